from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from nextem.analysis import registry
from nextem.analysis.frame_run import FrameRun, join
from nextem.analysis.messages import Item
from nextem.analysis.offline import analyse_offline
from nextem.analysis.plugin import Partial, Result, State, Summary
from nextem.analysis.reducer import Reducer
from nextem.wire.store import open_store


def item(reducer: Reducer, scan: Any, start: int, stop: int) -> Item:
    (run,) = join([scan.block(start, stop)])
    partials = {name: analysis.process(run) for name, analysis in reducer.analyses.running.items()}
    return Item.of(run, partials, {})


def test_each_frame_is_taken_once(small: Any) -> None:
    reducer = Reducer.of(small.started)
    assert reducer.add(item(reducer, small, 0, 40))
    assert not reducer.add(item(reducer, small, 0, 40))
    assert not reducer.add(item(reducer, small, 10, 30))
    partly = item(reducer, small, 30, 100)
    assert reducer.missing(partly) == [(40, 100)]
    assert not reducer.add(partly)
    assert reducer.add(item(reducer, small, 40, 100))
    assert same(
        reducer.finish(small.finished), analyse_offline(small.started, small.blocks([]), small.finished)
    )


def test_a_checkpoint_goes_on_as_if_nothing_had_been(small: Any, tmp_path: Any) -> None:
    reducer = Reducer.of(small.started)
    reducer.add(item(reducer, small, 20, 70))
    store = open_store(tmp_path)
    store.write_checkpoint("analysis/a", *reducer.snapshot())
    reducer.add(item(reducer, small, 0, 20))
    kept = store.read_checkpoint("analysis/a")
    assert kept is not None
    again = Reducer.restored(small.started, kept.arrays, kept.meta)
    assert list(again.covered) == [(20, 70)]
    assert (again.edge_boot_id, again.last_byte_ns) == ("boot", 1070)
    for start, stop in ((0, 20), (70, 100)):
        again.add(item(again, small, start, stop))
    assert same(
        again.finish(small.finished), analyse_offline(small.started, small.blocks([]), small.finished)
    )


def whole(scan: Any) -> list[Any]:
    return analyse_offline(scan.started, scan.blocks([]), scan.finished)


def same(made: list[Any], wanted: list[Any]) -> bool:
    return [(p, a.tobytes()) for p, a in made] == [(p, a.tobytes()) for p, a in wanted]


class Fragile:
    """Fails at the step that its parameter names."""

    def __init__(self, started: Any, parameters: Mapping[str, object]) -> None:
        self.step = parameters["fails_at"]
        self._fail("make")

    def _fail(self, step: str) -> None:
        if step == self.step:
            raise ZeroDivisionError(f"in {step}")

    def start(self) -> State:
        self._fail("start")
        return {"n": np.zeros(1)}

    def process(self, run: FrameRun) -> Partial:
        self._fail("process")
        return {"n": np.ones(1)}

    def merge(self, state: State, partial: Partial) -> State:
        self._fail("merge")
        return {"n": state["n"] + partial["n"]}

    def finish(self, state: State, summary: Summary) -> list[Result]:
        self._fail("finish")
        return [Result("fragile", "pattern", state["n"].reshape(1, 1), "")]


@pytest.mark.parametrize("step", ["make", "start", "process", "merge", "finish", "never"])
def test_a_failing_plugin_takes_only_itself_down(
    small: Any, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, "fragile": Fragile})
    wanted = whole(small)
    small.started.plan.analyses.add(name="fragile").parameters.update({"fails_at": step})
    made = analyse_offline(small.started, small.blocks([50]), small.finished)
    assert [a.tobytes() for _, a in made[:5]] == [a.tobytes() for _, a in wanted]
    last, _ = made[5]
    if step == "never":
        assert (last.kind, last.name) == ("pattern", "fragile")
        return
    assert (last.analysis, last.kind, last.name) == ("fragile", "failed", "fragile/failed")
    assert dict(made[0][0].provenance["failed_analyses"]) == {"fragile": f"ZeroDivisionError: in {step}"}
    told = [r.getMessage() for r in caplog.records]
    assert told == [f"analysis fragile of acquisition a is switched off: ZeroDivisionError: in {step}"]


def test_unknown_and_repeated_analyses_fail_by_name(small: Any) -> None:
    small.started.plan.analyses.add(name="ptychography")
    small.started.plan.analyses.add(name="novelty")
    made = analyse_offline(small.started, small.blocks([]), small.finished)
    failed = dict(made[0][0].provenance["failed_analyses"])
    assert failed["ptychography"].startswith(
        "UnknownAnalysis: no analysis 'ptychography' is installed; known are"
    )
    assert failed["novelty"] == "AnalysisError: the plan names it more than once"
