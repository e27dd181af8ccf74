"""The loop of a Kafka consumer: whoever asks drives it, and without anybody it goes on by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nextem.wire.kafka_loop import REST_S, CallersLoop


@pytest.fixture
def loop() -> Iterator[Any]:
    made = CallersLoop()
    made.start()
    try:
        yield made
    finally:
        made.close()


def me() -> threading.Thread:
    return threading.current_thread()


def test_who_asks_does_the_work_itself(loop: Any) -> None:
    assert [loop.run(me) for _ in range(3)] == [threading.current_thread()] * 3


def test_it_waits_for_what_takes_time(loop: Any) -> None:
    async def later() -> threading.Thread:
        await loop.sleep(0.02)
        return me()

    assert loop.run(later) is threading.current_thread()


def test_what_fails_is_raised_to_who_asked_and_the_loop_goes_on(loop: Any) -> None:
    def fail(text: str) -> None:
        raise ValueError(text)

    with pytest.raises(ValueError, match="no such thing"):
        loop.run(fail, "no such thing")
    assert loop.run(lambda: 1) == 1


def test_while_nobody_asks_it_goes_on_by_itself(loop: Any) -> None:
    """As heartbeats must beside long work, before the first question and after the last."""
    for _ in range(2):
        done, worker = threading.Event(), []

        def beat(done: threading.Event = done, worker: list[threading.Thread] = worker) -> None:
            worker.append(me())
            done.set()

        loop.call_soon_threadsafe(lambda beat=beat: loop.call_later(0.05, beat))
        assert done.wait(10)
        assert worker == [loop._io_thread]
        loop.run(lambda: None)


def test_another_thread_reaches_who_drives(loop: Any) -> None:
    """Who waits in the loop does at once what others put there: it is not for the loop's own thread."""
    from kafka.future import Future

    awaited: Any = Future()
    inside = threading.Event()

    async def wait() -> str:
        inside.set()
        return str(await awaited)

    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(loop.run(wait)))
    asking.start()
    assert inside.wait(10)
    loop.call_soon_threadsafe(lambda: awaited.success("said"))
    asking.join(10)
    assert answers == ["said"]


def test_many_threads_may_ask(loop: Any) -> None:
    answers: list[int] = []

    def ask(number: int) -> None:
        async def later() -> int:
            await loop.sleep(0.001)
            return number

        answers.extend(loop.run(later) for _ in range(50))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == sorted([0, 1, 2, 3] * 50)


class SlowToWake:
    """A lock whose waiters are kept from the processor for a while after it was given back."""

    def __init__(self, late_s: float) -> None:
        self._lock, self._late_s = threading.Lock(), late_s
        self.taken = threading.Event()  # by the loop's own thread, which is quick

    def acquire(self, blocking: bool = True) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        while True:
            time.sleep(self._late_s)
            if self._lock.acquire(blocking=False):
                return True

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()
        self.taken.set()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


def test_who_asks_gets_its_turn_however_slowly_it_wakes() -> None:
    """The loop's own thread leaves the loop alone while somebody waits for it, be it for long."""
    loop: Any = CallersLoop()
    loop._turn = turn = SlowToWake(3 * REST_S)
    loop.start()
    assert turn.taken.wait(10)  # it waits for the network now
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(loop.run(lambda: 1)), daemon=True)
    asking.start()
    asking.join(10)
    assert answers == [1]
    loop.close()


def test_closed_it_answers_nobody(loop: Any) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run(lambda: None)
