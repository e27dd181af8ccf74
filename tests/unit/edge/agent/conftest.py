"""A control agent between fakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_kit import (
    MakeRig,
    Rig,
    control_threads,
)


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(folder: Path = tmp_path, **fields: Any) -> Rig:
        rigs.append(Rig(folder, **fields))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
    assert control_threads() == []


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig()
