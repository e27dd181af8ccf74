"""The messages of one streaming call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

from nextem.client.errors import SteeringError

Message = TypeVar("Message")


class Stream(Generic[Message]):
    """Yields messages as they come, from one thread; :meth:`close` may be called from another.

    Raises :class:`nextem.client.errors.SteeringError` when the call fails; once closed by us, it just ends.
    """

    def __init__(
        self, call: Any, errors: Callable[[], AbstractContextManager[None]], check: Callable[[], None]
    ) -> None:
        """``errors`` turns what fails within it into a SteeringError; ``check`` may fail for each message."""
        self._call, self._errors, self._check = call, errors, check
        self._closed = False

    def __iter__(self) -> Stream[Message]:
        return self

    def __next__(self) -> Message:
        try:
            with self._errors():
                message: Message = next(self._call)
                self._check()
        except SteeringError:
            if self._closed:
                raise StopIteration from None
            self._call.cancel()
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
