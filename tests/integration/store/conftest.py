"""Every kind of store in turn: a folder, and S3 as two servers speak it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from place_kit import Place
from s3_kit import BUCKET, SERVERS, S3Server

from nextem.wire.object_store import Objects, open_objects


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, S3Server]]:
    """The servers of the whole folder, by name; started when first asked for."""
    started: dict[str, S3Server] = {}
    yield started
    for server in started.values():
        server.stop()


def running(name: str, servers: dict[str, S3Server], tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    if name not in servers:
        server = S3Server(name, tmp_path_factory.mktemp(name))
        server.start()
        server.make_bucket()
        servers[name] = server
    return servers[name]


@pytest.fixture(params=["folder", *SERVERS])
def place(
    request: pytest.FixtureRequest,
    servers: dict[str, S3Server],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    if request.param == "folder":
        return Place(str(tmp_path / "store"), None)
    server = running(request.param, servers, tmp_path_factory)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return Place(f"s3://{BUCKET}/{tmp_path.name}/deep", server)


@pytest.fixture
def objects(place: Place) -> Objects:
    return open_objects(place.address)
