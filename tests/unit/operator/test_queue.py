"""Whose turn it is on an instrument."""

from __future__ import annotations

from typing import Any

import pytest

from nextem.operator.experiment import Experiment
from nextem.operator.service import ahead_of


def experiment(name: str, phase: str, **spec: Any) -> Experiment:
    """The later its name, the younger it is."""
    second = ord(name) - ord("a")
    return Experiment.of(
        {
            "metadata": {
                "namespace": "em", "name": name, "uid": f"6f1f3c2e-0c5b-4b57-9f0a-1f6f0b2b9f{second:02d}",
                "creationTimestamp": f"2026-01-01T00:00:{second:02d}Z",
            },
            "spec": {"instrument": "tem", "plan": {}, **spec},
            "status": {"phase": phase},
        }
    )  # fmt: skip


MINE = experiment("m", "Waiting")


@pytest.mark.parametrize(
    ("others", "ahead"),
    [
        ([], ""),
        ([MINE], ""),
        ([experiment("a", "Complete"), experiment("b", "Failed"), experiment("c", "Stopped")], ""),
        ([experiment("z", "Waiting")], ""),
        ([experiment("c", "Waiting"), experiment("b", "Waiting")], "em/b"),
        ([experiment("b", "Analysing"), experiment("c", "Waiting")], "em/c"),
        ([experiment("z", "Running")], "em/z"),
        ([experiment("b", "Running", instrument="other")], ""),
        ([experiment("b", "Pending", busy="Refuse")], ""),
    ],
)
def test_the_oldest_that_is_open_comes_first(others: list[Experiment], ahead: str) -> None:
    assert ahead_of(MINE, others) == ahead
