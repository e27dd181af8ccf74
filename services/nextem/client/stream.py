"""The messages of one streaming call."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic, TypeVar

from nextem.client.errors import SteeringError, typed_errors

Message = TypeVar("Message")


class Stream(Generic[Message]):
    """Yields messages as they come, from one thread; :meth:`close` may be called from another.

    Raises :class:`nextem.client.errors.SteeringError` when the call fails; once closed by us, it just ends.
    """

    def __init__(self, address: str, call: Any) -> None:
        self._address, self._call = address, call
        self._closed = False

    def __iter__(self) -> Stream[Message]:
        return self

    def __next__(self) -> Message:
        try:
            with typed_errors(self._address):
                message: Message = next(self._call)
        except SteeringError:
            if self._closed:
                raise StopIteration from None
            raise
        return message

    def close(self) -> None:
        """Ends the call. Idempotent."""
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> Stream[Message]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
