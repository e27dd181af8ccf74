"""Keys of two edges and of Anna, the operator; a service that has them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from identity_kit import Service

from nextem.cli.key_maker import init_keys
from nextem.wire.key_folder import KeyFolder


@pytest.fixture(scope="module")
def made_keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFolder:
    keys = KeyFolder(tmp_path_factory.mktemp("identity") / "keys")
    init_keys(keys, ["tem-1", "tem-2"], [], operator="anna", days=1)
    return keys


@pytest.fixture
def keys(made_keys: KeyFolder, tmp_path: Path) -> KeyFolder:
    """A copy that the test may change."""
    return KeyFolder(Path(shutil.copytree(made_keys.folder, tmp_path / "keys")))


@pytest.fixture
def service(keys: KeyFolder) -> Iterator[Service]:
    service = Service(keys)
    yield service
    service.close()
