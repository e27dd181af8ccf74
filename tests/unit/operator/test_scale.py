"""How many workers there should be, as a table and as a law."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.operator.experiment import Experiment, Frames, Status
from nextem.operator.scale import DOWN_AFTER_S, Load, Scaler, Workers, load_of, wanted

FOUR = Workers(asked=1, least=1, most=4)


def experiment(phase: str, instrument: str = "tem", dwell_s: float = 0.001, stored: int = 0) -> Experiment:
    return Experiment.of(
        {
            "metadata": {
                "namespace": "em", "name": f"{instrument}-{phase}", "uid": f"{instrument}-{phase}-{dwell_s}",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"instrument": instrument, "plan": {"scan": {"dwellS": dwell_s}}},
            "status": {"phase": phase, "frames": {"stored": stored, "announced": stored}},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("workers", "load", "replicas"),
    [
        (FOUR, Load(), 1),
        (FOUR, Load(images_per_s=1000), 1),
        (FOUR, Load(images_per_s=1001), 2),
        (FOUR, Load(images_per_s=2000, lag=60_000), 3),
        (FOUR, Load(images_per_s=1e6), 4),
        (replace(FOUR, asked=3), Load(images_per_s=1000), 3),
        (replace(FOUR, asked=3), Load(idle_s=DOWN_AFTER_S - 1), 3),
        (replace(FOUR, asked=3), Load(idle_s=DOWN_AFTER_S), 1),
        (replace(FOUR, asked=9), Load(images_per_s=1), 4),
        (replace(FOUR, asked=0), Load(), 1),
    ],
)
def test_table(workers: Workers, load: Load, replicas: int) -> None:
    assert wanted(workers, load, 1000.0) == replicas


@given(
    asked=st.integers(0, 9), least=st.integers(0, 4), more=st.integers(0, 5),
    rate=st.floats(0, 1e5), lag=st.integers(0, 10**6), idle_s=st.floats(0, 1e4),
)  # fmt: skip
def test_within_bounds_and_never_below_what_is_needed(
    asked: int, least: int, more: int, rate: float, lag: int, idle_s: float
) -> None:
    workers = Workers(asked, least, least + more)
    replicas = wanted(workers, Load(rate, lag, idle_s), 1000.0)
    assert least <= replicas <= least + more
    assert replicas * 1000.0 >= rate or replicas == least + more
    if idle_s < DOWN_AFTER_S:
        assert replicas >= min(asked, workers.most)


def test_the_load_is_the_fastest_open_experiment_of_each_instrument_and_what_is_analysed() -> None:
    open_ = [
        experiment("Running"), experiment("Waiting", dwell_s=0.0005), experiment("Running", "other"),
        experiment("Analysing", "third", stored=4000), experiment("Complete", "fourth"),
    ]  # fmt: skip
    assert load_of(open_, 99.0) == Load(3000.0, 4000, 0.0)
    assert load_of([experiment("Complete")], 99.0) == Load(0.0, 0, 99.0)
    assert Status.of({"frames": {"stored": 1}}).frames == Frames(0, 1, 0)


def test_it_asks_for_more_at_once_and_for_fewer_after_a_while() -> None:
    class Group:
        workers = FOUR

        def read(self) -> Workers:
            return self.workers

        def ask(self, replicas: int) -> None:
            self.workers = replace(self.workers, asked=replicas)

    now_s, group = 0.0, Group()
    experiments: list[Any] = [experiment("Running", dwell_s=0.0005)]
    scaler = Scaler(group, lambda: experiments, 1000.0, lambda: now_s)
    scaler.look()
    assert group.workers.asked == 2
    experiments.clear()
    now_s = DOWN_AFTER_S - 1
    scaler.look()
    assert group.workers.asked == 2
    now_s = DOWN_AFTER_S + 1
    scaler.look()
    assert group.workers.asked == 1
