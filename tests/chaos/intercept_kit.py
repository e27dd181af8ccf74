"""Somebody between the steering service and the edge, who listens, keeps back, and plays again."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc

from nextem.v1 import control_pb2 as pb

_ATTACH = "/nextem.v1.Steering/Attach"


class Interceptor:
    """Stands where a :class:`~wire_kit.Wire` may; it reads and speaks the protocol.

    ``heard`` has every message to the edge so far, byte for byte. After :meth:`impersonate` an edge that
    attaches hears what :meth:`say` is given and nothing else; ``answers`` has what it sends.
    """

    def __init__(self, to: str, keep_back: Callable[[pb.SteeringMessage], bool] = lambda _: False) -> None:
        """``keep_back``: which messages the edge does not get; they are heard all the same."""
        self.heard: list[bytes] = []
        self.answers: list[pb.EdgeMessage] = []
        self._keep_back = keep_back
        self._say: queue.SimpleQueue[bytes | None] | None = None
        self._calls: set[Any] = set()
        self._channel = grpc.insecure_channel(to)
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="interceptor")
        self._server = grpc.server(self._pool, options=(("grpc.so_reuseport", 0),))
        attach = grpc.stream_stream_rpc_method_handler(self._attach)
        handlers = grpc.method_handlers_generic_handler("nextem.v1.Steering", {"Attach": attach})
        self._server.add_generic_rpc_handlers((handlers,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def impersonate(self) -> None:
        """From now on the service is not asked: edges that are attached are cut off, and dial again."""
        self._say = queue.SimpleQueue()
        for call in tuple(self._calls):
            call.cancel()

    def say(self, message: bytes) -> None:
        """To the edge that is attached, or attaches."""
        assert self._say is not None
        self._say.put(message)

    def close(self) -> None:
        if self._say is not None:
            self._say.put(None)
        for call in tuple(self._calls):
            call.cancel()
        self._server.stop(0).wait()
        self._pool.shutdown()
        self._channel.close()

    def _attach(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if self._say is not None:
            yield from self._speak(requests, context, self._say)
            return
        call = self._channel.stream_stream(_ATTACH)(requests)
        self._calls.add(call)
        context.add_callback(call.cancel)
        with suppress(grpc.RpcError):  # the edge sees that it ended
            for message in call:
                self.heard.append(message)
                if not self._keep_back(pb.SteeringMessage.FromString(message)):
                    yield message
        self._calls.discard(call)

    def _speak(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, say: queue.SimpleQueue[bytes | None]
    ) -> Iterator[bytes]:
        def listen() -> None:
            with suppress(grpc.RpcError):
                self.answers.extend(map(pb.EdgeMessage.FromString, requests))

        listener = threading.Thread(target=listen, name="interceptor-listens")
        listener.start()
        while context.is_active():
            with suppress(queue.Empty):
                if (message := say.get(timeout=0.1)) is None:
                    break
                yield message
        context.cancel()
        listener.join()
