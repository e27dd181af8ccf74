"""ZeroMQ messages, many for each time that the interpreter's lock is held.

pyzmq costs some microseconds of Python for each part of a message, and a frame has up to five. So the loop
that takes messages from libzmq and puts them one behind the other into the ring is a kernel, which calls the
libzmq that pyzmq brings by the addresses of its functions. Everything that is rare goes through pyzmq.
"""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, njit, types
from numba.core import cgutils

from nextem.edge.detectors.base import Slab
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.dectris_link import Link

MAX_PARTS = 16
"""Parts of a message that the kernel takes; more go through pyzmq."""

MOST_PARTS = 64
"""Parts of a message that are kept at all."""

MAX_PART_BYTES = 1 << 30
"""libzmq gives a connection up that sends more in one part."""

_MESSAGES = 2048
_FUNCTIONS = ("zmq_msg_recv", "zmq_msg_data", "zmq_msg_size", "zmq_msg_more", "zmq_errno")
_MSG_BYTES = 64  # of a zmq_msg_t, by the ABI
_DRAINED, _FULL, _TOO_LARGE = 0, 1, 2
_EAGAIN, _EINTR = errno.EAGAIN, errno.EINTR
_NOWAIT = int(zmq.DONTWAIT)
_KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_KEEPALIVE_CNT: 3,
}

intrinsic: Any = extending.intrinsic


@dataclass(frozen=True, slots=True)
class Table:
    """Where messages lie in a slab: message m has the parts ``first[m] .. first[m + 1] - 1``."""

    first: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, messages: int = _MESSAGES) -> Table:
        parts = MAX_PARTS * messages // 2
        return cls(np.zeros(messages + 1, np.int64), np.empty(parts, np.int64), np.empty(parts, np.int64))

    def parts(self, slab: Slab, message: int) -> list[bytes]:
        """Copies of the parts of one message."""
        first = int(self.first[message])
        return self.rows(slab, first, int(self.first[message + 1]) - first)

    def rows(self, slab: Slab, first: int, count: int) -> list[bytes]:
        """Copies of ``count`` parts from row ``first`` on."""
        ends = zip(self.offset[first : first + count], self.size[first : first + count], strict=True)
        return [bytes(slab.view[at : at + size]) for at, size in ends]

    def add(self, slab: Slab, at: int, message: int, parts: list[bytes]) -> None:
        """Makes ``parts``, at most :data:`MAX_PARTS`, the message with this number, from byte ``at`` on."""
        row = int(self.first[message])
        for k, part in enumerate(parts, row):
            slab.view[at : at + len(part)] = part
            self.offset[k], self.size[k] = at, len(part)
            at += len(part)
        self.first[message + 1] = row + len(parts)

    def is_full(self, messages: int) -> bool:
        """Whether there is no room for a message more."""
        return messages >= len(self.first) - 1 or self.first[messages] + MAX_PARTS > len(self.offset)


class Receiver:
    """A PULL socket. Belongs to one thread."""

    def __init__(self, address: str, counters: Counters, most_waiting: int = 1000) -> None:
        """Connects, now or as soon as somebody binds there. ``most_waiting``: messages inside libzmq.

        That bound is set once: libzmq may stop for good where it changes on a connection with messages.
        """
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART_BYTES)
        for option, value in _KEEPALIVE.items():
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._socket.setsockopt(zmq.RCVHWM, most_waiting)
        self.link = Link(self._socket, address, counters)
        self._socket.connect(address)
        library = _library()
        self._functions = np.array(
            [ctypes.cast(getattr(library, f), ctypes.c_void_p).value for f in _FUNCTIONS]
        )
        self._library = library
        self._message = np.zeros(_MSG_BYTES // 8, np.int64)
        self._pointer = ctypes.c_void_p(self._message.ctypes.data)
        library.zmq_msg_init(self._pointer)
        self.table = Table.empty()

    def wait(self, timeout_ns: int) -> bool:
        """Whether a message is there, or comes in time."""
        # Rounded up: waking a moment early would make a caller that waits for an age spin.
        return bool(self._socket.poll(max(0, -(-timeout_ns // 1_000_000))))

    def take(self) -> list[bytes] | None:
        """One message by pyzmq, None where there is none."""
        try:
            first = self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None
        return self._rest([first], self._socket.getsockopt(zmq.RCVMORE) == 1)

    def fill(
        self, slab: Slab, at: int, taken: int, most: int, largest: int
    ) -> tuple[int, int, list[bytes] | None]:
        """Puts messages behind the ``taken`` ones of the table, from byte ``at`` of the slab on.

        Takes what there is, ``most`` in all, while ``largest`` bytes are free. Returns the number in the
        table, the byte behind them and, where a message did not fit after all, that.
        """
        counts = np.zeros(3, np.int64)
        status = _fill(
            self._functions, self._socket.underlying, self._message, slab.data, at, taken,
            min(most, len(self.table.first) - 1), largest, self.table.first, self.table.offset,
            self.table.size, counts,
        )  # fmt: skip
        if status < 0:
            raise zmq.ZMQError(-status)
        messages, end = int(counts[0]), int(counts[1])
        large = self._large(slab, messages, int(counts[2])) if status == _TOO_LARGE else None
        return messages, end, large

    def _large(self, slab: Slab, message: int, parts: int) -> list[bytes]:
        """The whole of the message of which the kernel took ``parts`` parts and holds the next."""
        first = int(self.table.first[message])
        rows = range(first, first + parts)
        whole = [
            bytes(slab.view[self.table.offset[k] : self.table.offset[k] + self.table.size[k]]) for k in rows
        ]
        size = self._library.zmq_msg_size(self._pointer)
        whole.append(ctypes.string_at(self._library.zmq_msg_data(self._pointer), size))
        return self._rest(whole, self._library.zmq_msg_more(self._pointer) == 1)

    def _rest(self, parts: list[bytes], more: bool) -> list[bytes]:
        while more:
            part = self._socket.recv()
            if len(parts) < MOST_PARTS:
                parts.append(part)
            more = self._socket.getsockopt(zmq.RCVMORE) == 1
        return parts

    def close(self) -> None:
        self._library.zmq_msg_close(self._pointer)
        self.link.close()
        self._socket.close()
        self._context.term()


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address


def _library() -> ctypes.CDLL:
    """The libzmq that pyzmq is linked to: looked up through pyzmq's own extension."""
    import zmq.backend.cython._zmq as extension

    library = ctypes.CDLL(extension.__file__)
    for name in ("zmq_msg_init", "zmq_msg_close", "zmq_msg_more", "zmq_msg_data", "zmq_msg_size"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.zmq_msg_data.restype = ctypes.c_void_p
    library.zmq_msg_size.restype = ctypes.c_size_t
    return library


def _call(builder: Any, address: Any, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)


@intrinsic
def _receive_part(_context: Any, function: Any, message: Any, socket: Any, flags: Any) -> Any:
    """``zmq_msg_recv``: the size of the part, -1 for an error."""
    c_int = ir.IntType(32)

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, to, source, how = arguments
        result = _call(builder, address, c_int, [to, source, builder.trunc(how, c_int)])
        return builder.sext(result, ir.IntType(64))

    return types.int64(types.uintp, types.uintp, types.uintp, types.int64), build


@intrinsic
def _ask(_context: Any, function: Any, message: Any) -> Any:
    """``zmq_msg_data`` and ``zmq_msg_size`` of a message."""

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _call(builder, arguments[0], ir.IntType(64), [arguments[1]])

    return types.int64(types.uintp, types.uintp), build


@intrinsic
def _ask_int(_context: Any, function: Any, message: Any) -> Any:
    """``zmq_msg_more`` of a message, and ``zmq_errno``, which ignores it."""

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        result = _call(builder, arguments[0], ir.IntType(32), [arguments[1]])
        return builder.sext(result, ir.IntType(64))

    return types.int64(types.uintp, types.uintp), build


@intrinsic
def _copy(_context: Any, target: Any, source: Any, count: Any) -> Any:
    def build(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        to, start = (builder.inttoptr(address, byte) for address in arguments[:2])
        cgutils.raw_memcpy(builder, to, start, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.int64), build


@njit(cache=True, nogil=True)
def _fill(
    functions: npt.NDArray[np.int64],
    socket: int,
    message: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8],
    at: int,
    messages: int,
    most: int,
    largest: int,
    first: npt.NDArray[np.int64],
    offset: npt.NDArray[np.int64],
    size: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
) -> int:
    """``counts``: messages, the byte behind them, and the parts taken of one that does not fit."""
    pointer = types.uintp(message.ctypes.data)
    part = first[messages]
    counts[:] = (messages, at, 0)
    while messages < most and data.size - at >= largest and offset.size - part >= MAX_PARTS:
        taken = 0
        more = True
        end = at
        while more:
            received = _receive_part(
                types.uintp(functions[0]), pointer, types.uintp(socket), _NOWAIT if taken == 0 else 0
            )
            if received < 0:
                error = _ask_int(types.uintp(functions[4]), pointer)
                if error == _EINTR:
                    continue
                return _DRAINED if error == _EAGAIN else -error
            count = _ask(types.uintp(functions[2]), pointer)
            more = _ask_int(types.uintp(functions[3]), pointer) != 0
            if taken == MAX_PARTS or count > data.size - end:
                counts[2] = taken
                return _TOO_LARGE
            source = _ask(types.uintp(functions[1]), pointer)
            _copy(types.uintp(data.ctypes.data + end), types.uintp(source), count)
            offset[part + taken] = end
            size[part + taken] = count
            taken += 1
            end += count
        at = end
        part += taken
        messages += 1
        first[messages] = part
        counts[0], counts[1] = messages, at
    return _FULL
