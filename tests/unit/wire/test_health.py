"""Health: a process is ready only while every check is well; what lies outside never counts as its death."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nextem.wire.health import (
    LOOP_S,
    Health,
    Question,
    Watched,
    log_reached,
    open_log_once_there,
    store_taken,
)
from nextem.wire.health_rpc import PREFIX, add_health
from nextem.wire.health_server import served
from nextem.wire.log import Log

READY, LIVE, STARTED = Question.READY, Question.LIVE, Question.STARTED


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Iterator[Health]:
    made = Health(now_s=clock)
    yield made
    made.close()


def well(health: Health) -> dict[str, bool]:
    return {question.value: health.report(question).well for question in Question}


def test_the_life_of_a_process(health: Health, clock: Clock) -> None:
    clock.now_s = 10 * LOOP_S
    assert well(health) == {"startup": False, "readiness": False, "liveness": True}
    health.beat()
    assert well(health) == {"startup": True, "readiness": True, "liveness": True}
    health.stopping()
    assert well(health) == {"startup": True, "readiness": False, "liveness": True}


def test_a_check_makes_it_not_ready_and_never_dead(health: Health) -> None:
    why = "away"
    health.check("log", lambda: why)
    health.beat()
    assert health.report(READY).checks["log"] == "away"
    assert well(health) == {"startup": True, "readiness": False, "liveness": True}
    why = ""
    assert health.report(READY).well


def test_a_check_that_breaks_is_a_reason(health: Health) -> None:
    def broken() -> str:
        raise OSError("no disk")

    health.check("store", broken)
    health.beat()
    assert health.report(READY).checks["store"] == "OSError: no disk"


def test_a_loop_that_stands_is_dead_unless_it_drains(health: Health, clock: Clock) -> None:
    health.beat()
    clock.now_s = LOOP_S + 1
    assert health.report(LIVE).checks == {"loop": f"silent for {LOOP_S + 1:.0f} s"}
    health.beat()
    assert health.report(LIVE).well
    health.stopping()
    clock.now_s *= 3
    assert health.report(LIVE).well


def test_rounds_end_with_the_stop(health: Health) -> None:
    stop = threading.Event()
    rounds = 0
    for _ in health.rounds(stop, 0.001):
        assert health.report(READY).well
        rounds += 1
        if rounds == 3:
            stop.set()
    assert rounds == 3
    assert health.report(READY).checks["stop"] == "stopping"


def test_who_listens_hears_each_change_once(health: Health) -> None:
    why, heard = "", list[bool]()
    health.check("log", lambda: why)
    health.listen(heard.append)
    for told in ("", "", "away", "away", ""):
        why = told
        health.beat()
    health.stopping()
    health.close()
    assert heard == [False, True, False, True, False]


def test_a_slow_check_keeps_nobody_waiting(clock: Clock) -> None:
    questions, answers = Queue[str](), Queue[str]()

    def ask() -> str:
        questions.put("asked")
        return answers.get()

    watched = Watched(ask, period_s=0.0, patience_s=5.0, now_s=clock)
    assert questions.empty()
    assert watched() == "not asked yet"
    questions.get()
    clock.now_s = 6.0
    assert watched() == "no answer for 6 s"
    answers.put("away")
    questions.get()
    assert watched() == "away"
    answers.put("")
    questions.get()
    assert watched() == ""
    watched.close()
    answers.put("")


def test_a_log_is_reached_or_not(tmp_path: Path) -> None:
    assert log_reached(str(tmp_path / "log"))() == ""
    (tmp_path / "file").touch()
    assert log_reached(str(tmp_path / "file"))() != ""
    assert "127.0.0.1:9" in log_reached("kafka://127.0.0.1:9")()


def test_a_log_is_waited_for_and_the_start_says_so(health: Health, tmp_path: Path) -> None:
    stop, opened = threading.Event(), Queue[Log | None]()
    address = "kafka://127.0.0.1:9"
    waiting = threading.Thread(target=lambda: opened.put(open_log_once_there(address, stop, health)))
    waiting.start()
    while "the log cannot be reached: 127.0.0.1:9" not in health.report(STARTED).checks["start"]:
        assert waiting.is_alive()
    stop.set()
    waiting.join()
    assert opened.get() is None
    log = open_log_once_there(str(tmp_path / "log"), threading.Event(), health)
    assert log is not None
    log.close()
    health.beat()
    assert health.report(STARTED).checks == {"start": ""}


def test_a_store_takes_something_or_not(tmp_path: Path) -> None:
    assert store_taken(str(tmp_path / "store"), "tests")() == ""
    assert (tmp_path / "store" / "health" / "tests").read_bytes() == b""
    (tmp_path / "file").touch()
    assert "file" in store_taken(str(tmp_path / "file"), "tests")()
    assert "is no store" in store_taken("ftp://somewhere", "tests")()


def get(port: int | None, path: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_probes_by_http(health: Health) -> None:
    why = ""
    health.check("log", lambda: why)
    with served(health, "127.0.0.1", 0) as port:
        assert get(port, "/startupz") == (503, {"ok": False, "checks": {"start": "still starting"}})
        assert get(port, "/livez") == (200, {"ok": True, "checks": {"loop": "ok"}})
        health.beat()
        assert get(port, "/startupz")[0] == 200
        checks = {"start": "ok", "stop": "ok", "log": "ok"}
        assert get(port, "/readyz?verbose") == (200, {"ok": True, "checks": checks})
        why = "no broker answers"
        assert get(port, "/readyz") == (503, {"ok": False, "checks": checks | {"log": why}})
        assert get(port, "/livez")[0] == 200
        assert get(port, "/") == (404, {"paths": ["/startupz", "/readyz", "/livez"]})
    assert not health.report(READY).well


def test_a_taken_port_is_an_error(health: Health) -> None:
    with (
        served(health, "127.0.0.1", 0) as port,
        pytest.raises(OSError, match="in use"),
        served(health, "127.0.0.1", port),
    ):
        pass


def test_without_a_port_nobody_is_answered(health: Health) -> None:
    with served(health, "127.0.0.1", None) as port:
        assert port is None


def test_health_by_grpc(health: Health) -> None:
    why = ""
    health.check("log", lambda: why)
    health.beat()
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        add_health(server, health, ["nextem.v1.Steering"])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            status = health_pb2.HealthCheckResponse
            for name in ("", "nextem.v1.Steering"):
                request = health_pb2.HealthCheckRequest(service=name)
                assert stub.Check(request, timeout=5).status == status.SERVING
            watching = stub.Watch(request, timeout=30)
            assert next(watching).status == status.SERVING
            why = "away"
            health.beat()
            assert next(watching).status == status.NOT_SERVING
            assert stub.Check(request, timeout=5).status == status.NOT_SERVING
            with pytest.raises(grpc.RpcError) as unknown:
                stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=5)
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            watching.cancel()
        server.stop(1.0).wait()
    assert health_pb2.DESCRIPTOR.services_by_name["Health"].full_name == PREFIX.strip("/")
