"""The example of docs/analysis.md works as it stands there."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nextem.analysis import registry
from nextem.analysis.novelty import DEFAULTS
from nextem.analysis.offline import analyse_offline

PAGE = Path(__file__).parents[3] / "docs" / "analysis.md"


def test_the_example_runs(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("my_package.brightest")
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "my_package.brightest", module)
    point = EntryPoint("brightest", "my_package.brightest:Brightest", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([point]))
    small.started.plan.analyses.add(name="brightest").parameters.update({"threshold": 2})
    for cuts in ([], [5, 50, 51]):
        made = {p.name: a for p, a in analyse_offline(small.started, small.blocks(cuts), small.finished)}
        largest = small.frames.max((1, 2)).reshape(10, 10)
        assert np.array_equal(made["brightest"], np.where(largest >= 2, largest, 0))


def test_every_parameter_of_novelty_is_told() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == {name: str(value) for name, value in DEFAULTS.items()}
