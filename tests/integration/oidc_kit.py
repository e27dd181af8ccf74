"""An OpenID Connect provider on loopback, as far as those need it who check its tokens."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nextem.wire.certificates import new_authority, new_certificate

DISCOVERY = "/realm/.well-known/openid-configuration"
KEYS = "/realm/keys"
ELSEWHERE = b"elsewhere"
"""A page that is a redirection to the keys."""


class OidcServer:
    """An identity provider at :attr:`issuer`: what it answers at which path, and what it was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        """By https with a ``context``, else by http."""
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                page = outer.pages.get(self.path)
                self.send_response(302 if page == ELSEWHERE else 404 if page is None else 200)
                if page == ELSEWHERE:
                    self.send_header("Location", f"{outer.issuer}/keys")
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.issuer = f"http{'s' if context else ''}://127.0.0.1:{self._server.server_port}/realm"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def publish(self, key_set: bytes) -> None:
        """Its keys are these (JWKS) from now on, and it says where they lie."""
        told = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"}
        self.pages |= {DISCOVERY: json.dumps(told).encode(), KEYS: key_set}

    def go_away(self) -> None:
        self.pages.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def https(folder: Path) -> ssl.SSLContext:
    """For a server on loopback; the certificate of its authority is ``folder``/ca.pem."""
    authority = new_authority("provider", 1)
    pair = new_certificate(authority, "id", hosts=["127.0.0.1"], days=1)
    for name, content in (
        ("id.crt", pair.certificate),
        ("id.key", pair.key),
        ("ca.pem", authority.certificate),
    ):
        (folder / name).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "id.crt", folder / "id.key")
    return context
