"""Experiments as objects: the one that the tests carry out, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster_kit import Namespace, Object, TimeOut, wait_until

FINAL = {"Complete", "Failed", "Stopped"}
SEED, RATE = 1, 1000
ANALYSES = ("virtual_images", "center_of_mass", "mean_pattern")


def plan(side: int = 64, **more: Any) -> dict[str, Any]:
    """A scan of ``side`` by ``side`` positions, with two virtual detectors and the centre of mass."""
    origin = {"originYNm": 100, "originXNm": 100}
    middle = {"centerYPx": 127.5, "centerXPx": 127.5}
    return {
        "schemaVersion": 1,
        "title": f"{side} by {side}",
        "scan": {"sizeY": side, "sizeX": side, "stepNm": 2, "dwellS": 0.001, **origin},
        "doseEPerFrame": 1000,
        "reduction": {
            "centerOfMass": True,
            "masks": [
                {"name": "bright", "innerPx": 0, "outerPx": 20, **middle},
                {"name": "dark", "innerPx": 30, "outerPx": 100, **middle},
            ],
        },
        "analyses": [{"name": name} for name in ANALYSES],
        **more,
    }


def experiment(name: str, plan: dict[str, Any], **spec: Any) -> Object:
    return {
        "apiVersion": "nextem.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": name},
        "spec": {"instrument": "simulator", "plan": plan, **spec},
    }


def status(namespace: Namespace, name: str) -> dict[str, Any]:
    found = namespace.get("experiment", name)
    return (found or {}).get("status") or {}


def until_phase(namespace: Namespace, name: str, phases: set[str], timeout_s: float = 120) -> dict[str, Any]:
    """Its status once its phase is one of these. Raises TimeOut with the last status."""

    def probe() -> dict[str, Any] | None:
        now = status(namespace, name)
        return now if now.get("phase") in phases else None

    try:
        return wait_until(f"experiment {name} is {phases}", probe, timeout_s)
    except TimeOut as error:
        raise TimeOut(f"{error}: {status(namespace, name)}") from error


def until_frames(namespace: Namespace, name: str, at_least: int, timeout_s: float = 120) -> None:
    """Until so many of its frames are stored, in the middle of its scan."""

    def probe() -> bool | None:
        now = status(namespace, name)
        assert now.get("phase") not in FINAL, f"it ended before {at_least} frames were seen: {now}"
        return now.get("frames", {}).get("stored", 0) >= at_least or None

    wait_until(f"{at_least} frames of experiment {name}", probe, timeout_s, poll_s=0.1)


@contextmanager
def carried_out(namespace: Namespace, name: str, plan: dict[str, Any], **spec: Any) -> Iterator[None]:
    """The experiment, applied; deleted at the end."""
    namespace.apply(experiment(name, plan, **spec))
    try:
        yield
    finally:
        namespace.kubectl("delete", "experiment", name, "--ignore-not-found", timeout_s=120)


def assert_whole(done: dict[str, Any], side: int) -> None:
    """Complete; every frame stored, none lost, every product there."""
    assert done["phase"] == "Complete", done
    assert done["frames"] == {"announced": side * side, "stored": side * side, "lost": 0}
    assert {product["analysis"] for product in done["products"]} == set(ANALYSES)
