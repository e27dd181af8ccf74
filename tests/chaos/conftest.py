"""One microscope for the tests of a file; the edge and the service round it are the tests' own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chaos_kit import Microscope


@pytest.fixture(scope="module")
def microscope(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Microscope]:
    made = Microscope(tmp_path_factory.mktemp("microscope"))
    yield made
    made.close()
