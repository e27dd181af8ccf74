"""An address that is not to be had is told the same way by a socket and by a gRPC server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import pytest

from nextem.wire.listening import CannotListen, address_of, bind, listen

Take = Callable[[str, int], object]


@pytest.fixture
def server() -> Iterator[grpc.Server]:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, options=(("grpc.so_reuseport", 0),))
        yield server
        server.stop(None).wait()


@pytest.fixture(params=["socket", "gRPC"])
def take(request: pytest.FixtureRequest, server: grpc.Server) -> Take:
    return listen if request.param == "socket" else partial(_bind, server)


def _bind(server: grpc.Server, host: str, port: int) -> int:
    return bind(server, host, port, None)


def test_a_port_that_is_taken_is_named(take: Take) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"^cannot listen on 127.0.0.1:{port}: [^(]*$"):
            take("127.0.0.1", port)


def test_an_address_of_another_machine_is_named(take: Take) -> None:
    with pytest.raises(CannotListen, match=r"^cannot listen on 192\.0\.2\.1:0: "):  # of nobody, RFC 5737
        take("192.0.2.1", 0)


def test_any_free_port_is_told(server: grpc.Server) -> None:
    assert bind(server, "127.0.0.1", 0, None) > 0


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert address_of("::1", 7) == "[::1]:7"
    assert address_of("edge", 7) == "edge:7"
