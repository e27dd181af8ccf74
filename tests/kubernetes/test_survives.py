"""What a release survives in the middle of a scan: each ends Complete, no frame lost, products whole."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from cluster_kit import COMPONENTS, Object, Release, helm, run, wait_until
from experiment_kit import (
    FINAL,
    assert_whole,
    carried_out,
    experiment,
    plan,
    status,
    until_frames,
    until_phase,
)
from oracle_kit import assert_true
from store_kit import arrays, opened

SIDE = 96
LONG_SIDE = 192
"""Long enough for `helm upgrade`, whose hook runs before anything is replaced."""

IN_THE_MIDDLE = 1000
LONG_S = 300


@pytest.fixture(autouse=True)
def all_ready(release: Release) -> Iterator[None]:
    """Every test begins, and ends, with every pod ready."""
    _until_ready(release)
    yield
    _until_ready(release)


def _until_ready(release: Release) -> None:
    for component in COMPONENTS:
        wait_until(f"{component} is ready", partial(release.namespace.ready, component), LONG_S)


def _in_mid_scan(
    release: Release, name: str, disturb: Callable[[], None], side: int = SIDE
) -> dict[str, Any]:
    """The end of an experiment that is disturbed in the middle of its scan; its products are checked."""
    with carried_out(release.namespace, name, plan(side)):
        until_frames(release.namespace, name, IN_THE_MIDDLE)
        started = time.monotonic()
        disturb()
        ended = until_phase(release.namespace, name, FINAL, LONG_S)
        retried = ended.get("cutShort", 0)
        print(f"{name}: {time.monotonic() - started:.1f} s to {ended['phase']}, scans repeated: {retried}")
        assert_whole(ended, side)
        with opened(release) as store:
            assert_true(arrays(store, ended["acquisitionID"]), ended["acquisitionID"], side)
        return ended


def _delete(release: Release, pods: list[Object]) -> None:
    assert pods
    for pod in pods:
        release.namespace.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")


def _upgrade(release: Release, *settings: str) -> list[str]:
    return helm("upgrade", release.name, release.namespace, release.persistence, *settings)


@pytest.mark.parametrize("component", ["operator", "steering", "edge", "simulator", "kafka", "s3"])
def test_the_deletion_of_a_pod(release: Release, component: str, durable: bool) -> None:
    if component in ("kafka", "s3") and not durable:
        pytest.skip("what the quickstart's Kafka and S3 server hold is gone with their pods: no volumes here")
    _in_mid_scan(release, f"without-{component}", lambda: _delete(release, release.namespace.pods(component)))


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_the_deletion_of_a_ray_node(release: Release, kind: str) -> None:
    _in_mid_scan(
        release,
        f"without-ray-{kind}",
        lambda: _delete(release, release.namespace.objects("pods", f"ray.io/node-type={kind}")),
    )


def test_an_upgrade_in_mid_scan(release: Release) -> None:
    """A setting changes, so every process is replaced."""

    def upgrade() -> None:
        settings = ("common.settings.verbose=true", "nextem-edge.common.settings.verbose=true")
        run(*_upgrade(release, *settings), timeout_s=LONG_S)
        _delete(release, release.namespace.pods("analysis"))  # as docs/operate.md says: KubeRay leaves them

    _in_mid_scan(release, "upgraded", upgrade, LONG_SIDE)


def test_a_bad_image_is_rolled_back(release: Release) -> None:
    """The new steering service never gets ready; `helm upgrade --atomic` goes back, and the scan is whole."""

    def upgrade() -> None:
        bad = _upgrade(release, f"image.digests.steering=sha256:{'0' * 64}")
        done = subprocess.run(
            [*bad, "--atomic", "--timeout=60s"], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0

    _in_mid_scan(release, "rolled-back", upgrade, LONG_SIDE)


def test_a_second_experiment_waits_its_turn_or_is_refused(release: Release) -> None:
    namespace = release.namespace
    with carried_out(namespace, "first-of-two", plan(SIDE)):
        until_frames(namespace, "first-of-two", 1)
        with carried_out(namespace, "impatient", plan(16), busy="Refuse"):
            refused = until_phase(namespace, "impatient", FINAL, 30)
            assert refused["phase"] == "Failed"
            assert refused["reason"] == "Busy"
        with carried_out(namespace, "patient", plan(16), busy="Wait"):
            until_phase(namespace, "patient", {"Waiting"}, 30)
            assert_whole(until_phase(namespace, "first-of-two", FINAL, LONG_S), SIDE)
            assert_whole(until_phase(namespace, "patient", FINAL, LONG_S), 16)


def test_a_deleted_experiment_stops_its_scan(release: Release) -> None:
    """The finalizer lets the object go when the instrument stands still."""
    namespace = release.namespace
    namespace.apply(experiment("unwanted", plan(192)))
    until_frames(namespace, "unwanted", 100)
    started = time.monotonic()
    namespace.kubectl("delete", "experiment", "unwanted", timeout_s=60)
    print(f"deleted, and its scan stopped, in {time.monotonic() - started:.1f} s")
    assert status(namespace, "unwanted") == {}
    with carried_out(namespace, "after-it", plan(16)):
        assert_whole(until_phase(namespace, "after-it", FINAL, LONG_S), 16)
