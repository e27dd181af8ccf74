"""After a death of the edge: closes the acquisition that was running, with exact accounting."""

from __future__ import annotations

import logging
import struct

import numpy as np

from nextem.edge.accounting import UNKNOWN_PATTERN, Account
from nextem.edge.detectors.base import DetectorError, Ending, EndKind
from nextem.edge.uplink.spool import Entry, Kind, Spool
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.blocks import BlockError, decode_block

log = logging.getLogger(__name__)


class EdgeRestarted(DetectorError):
    """The edge died during an acquisition. What was spooled is stored, everything else is lost."""


_LENGTH = struct.Struct("<I")


def pack_checkpoint(started: pb.AcquisitionStarted, account: Account) -> bytes:
    """All that is needed to close an acquisition whose earlier entries are gone from the spool."""
    head = started.SerializeToString()
    return _LENGTH.pack(len(head)) + head + account.checkpoint().SerializeToString()


def unpack_checkpoint(data: bytes) -> tuple[pb.AcquisitionStarted, Account]:
    """Undoes :func:`pack_checkpoint`."""
    (length,) = _LENGTH.unpack_from(data)
    split = _LENGTH.size + length
    started = pb.AcquisitionStarted.FromString(data[_LENGTH.size : split])
    finished = pb.AcquisitionFinished.FromString(data[split:])
    return started, Account.restore(finished, (started.shape_y, started.shape_x))


def recover(spool: Spool) -> list[pb.AcquisitionFinished]:
    """Appends an ``AcquisitionFinished`` for each acquisition in the spool that has none; returns these.

    Reads the spool from its oldest entry. Times stay on the clock of the edge that died.
    """
    open_from: dict[str, tuple[int, pb.AcquisitionStarted]] = {}
    for offset, entry in spool.read(spool.oldest, spool.end):
        if entry is None:
            continue
        if entry.kind is Kind.STARTED:
            open_from[entry.acquisition_id] = (offset, pb.AcquisitionStarted.FromString(bytes(entry.value)))
        elif entry.kind is Kind.CHECKPOINT:
            started, _ = unpack_checkpoint(bytes(entry.value))
            open_from[entry.acquisition_id] = (offset, started)
        elif entry.kind is Kind.FINISHED:
            open_from.pop(entry.acquisition_id, None)
    return [_finish(spool, name, offset, started) for name, (offset, started) in open_from.items()]


def _finish(
    spool: Spool, acquisition_id: str, offset: int, started: pb.AcquisitionStarted
) -> pb.AcquisitionFinished:
    account, last_byte_ns = _account(spool, acquisition_id, offset, started)
    error = EdgeRestarted(f"the edge ended after frame {account.next_frame - 1} was stored")
    ending = Ending(EndKind.FAILED, account.next_frame - 1, error, 0, last_byte_ns)
    finished = account.finish(ending, last_byte_ns)
    spool.append(Entry(Kind.FINISHED, acquisition_id, finished.SerializeToString()))
    log.error("EdgeRestarted: %s (acquisition %s)", error, acquisition_id)
    return finished


def _account(
    spool: Spool, acquisition_id: str, offset: int, started: pb.AcquisitionStarted
) -> tuple[Account, int]:
    account = Account(acquisition_id, started.frames_announced, (started.shape_y, started.shape_x))
    last_byte_ns = started.started_ns
    for _, entry in spool.read(offset, spool.end):
        if entry is None or entry.acquisition_id != acquisition_id:
            continue
        if entry.kind is Kind.CHECKPOINT:
            _, account = unpack_checkpoint(bytes(entry.value))
        elif entry.kind is Kind.BLOCK:
            last_byte_ns = entry.last_byte_ns
            try:
                block = decode_block(entry.value)
                total = block.frames().sum(axis=0, dtype=np.uint64) if block.whole else None
            except BlockError as error:
                log.error("%s: %s (acquisition %s)", type(error).__name__, error, acquisition_id)
                continue
            if total is None:
                account.pattern = UNKNOWN_PATTERN
            elif not account.blocks:
                account.pattern = total
            elif account.pattern.size:
                account.pattern += total
            dtype = np.dtype(started.dtype) if started.dtype else block.dtype
            account.bytes_raw += block.count * block.shape[0] * block.shape[1] * dtype.itemsize
            account.store(block, len(entry.value))
    return account, last_byte_ns
