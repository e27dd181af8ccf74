"""Reads the audit topic from its beginning, checking its chains on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from nextem.v1.control_pb2 import SteeringEvent
from nextem.wire.audit_chain import Break, Chain, ChainBroken, Verifier
from nextem.wire.log import AUDIT, CorruptRecord, LogError, OffsetOutOfRange, Record, open_log

_JOIN_TURNS = 50
_TURN_S = 0.2


def read_records(address: str) -> Iterator[Record]:
    """Every record of the audit topic, up to now.

    Raises :class:`~nextem.wire.log.LogError`, also where a folder holds no log, and
    :class:`~nextem.wire.audit_chain.ChainBroken` for what the log itself finds damaged or gone.
    """
    if "://" not in address and not Path(address).is_dir():
        raise LogError(f"there is no log at {address}")
    log = open_log(address)
    with closing(log), closing(log.consumer([AUDIT], None)) as reader:
        for _ in range(_JOIN_TURNS):
            records = reader.poll(timeout_s=_TURN_S)
            if records or reader.assigned():
                break
        else:
            raise LogError(f"{address}: no partition of {AUDIT} in {_JOIN_TURNS * _TURN_S:g} s")
        while records or reader.lag():
            yield from records
            try:
                records = reader.poll(timeout_s=_TURN_S)
            except (CorruptRecord, OffsetOutOfRange) as error:
                raise ChainBroken(Break(None, "", 0, str(error))) from error


def read_audit(address: str, verifier: Verifier) -> Iterator[SteeringEvent]:
    """Every event once, in the order of the log. Raises as :func:`read_records`."""
    for record in read_records(address):
        if (event := verifier.take(record)) is not None:
            yield event


def chains_of(
    address: str, authority_pem: bytes | None = None
) -> tuple[list[SteeringEvent], tuple[Chain, ...]]:
    """Everything at once, signatures checked where an authority is given; raises as :func:`read_records`."""
    verifier = Verifier(authority_pem)
    return list(read_audit(address, verifier)), verifier.chains()
