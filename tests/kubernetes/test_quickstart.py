"""From `helm install` to a product: one experiment on the simulated microscope of the quickstart."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cluster_kit import COMPONENTS, Release
from experiment_kit import (
    FINAL,
    RATE,
    SEED,
    assert_whole,
    carried_out,
    plan,
    status,
    until_frames,
    until_phase,
)
from laptop_kit import NEXTEM, laptop_store
from store_kit import ADDRESS, arrays, credentials, opened
from usage_kit import table, usage

from nextem.wire.store import open_store

SIDE = 64
LONG_SIDE = 256
"""Over a minute: longer than it is measured."""

MEASURED_S = 20


@pytest.fixture(scope="module")
def done(release: Release) -> Iterator[dict[str, Any]]:
    """The status of an experiment that has ended; the first one after the install."""
    applied = time.time()
    with carried_out(release.namespace, "first", plan(SIDE)):
        ended = until_phase(release.namespace, "first", FINAL, 240)
        first_frame = datetime.fromisoformat(ended["firstFrameAt"].replace("Z", "+00:00")).timestamp()
        print(f"helm install until every pod is ready: {release.install_s:.1f} s")
        print(f"kubectl apply until the first frame is seen: {first_frame - applied:.1f} s")
        print(f"kubectl apply until the products are whole: {time.time() - applied:.1f} s")
        print(release.namespace.kubectl("get", "experiments"))
        print(release.namespace.kubectl("describe", "experiment", "first"))
        yield ended


def test_an_experiment_ends_complete_with_no_frame_lost(done: dict[str, Any]) -> None:
    assert_whole(done, SIDE)


def test_its_products_are_those_of_laptop_mode_byte_for_byte(
    done: dict[str, Any], release: Release, tmp_path: Path
) -> None:
    acquisition_id = done["acquisitionID"]
    simulator = (f"--seed={SEED}", f"--rate={RATE}")
    laptop = laptop_store(tmp_path / "home", plan(SIDE), acquisition_id, simulator)
    with opened(release) as store:
        there = arrays(store, acquisition_id)
    here = arrays(open_store(laptop), acquisition_id)
    assert here.keys() == there.keys()
    assert len(here) >= 4
    for name, array in here.items():
        assert there[name] == array, name


def test_a_picture_of_a_product_comes_by_a_presigned_link(done: dict[str, Any], release: Release) -> None:
    product = next(each["id"] for each in done["products"] if each["analysis"] == "virtual_images")
    with credentials(release) as environment:
        told = subprocess.run(
            [*NEXTEM, "products", "--store", ADDRESS, "link", product],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        link = next(word for word in told.stdout.split() if word.startswith("http") and ".png" in word)
        with urllib.request.urlopen(link, timeout=30) as answer:
            assert answer.read(8) == b"\x89PNG\r\n\x1a\n"


def test_memory_and_processors_of_each_pod(done: dict[str, Any], release: Release) -> None:
    """Printed for docs/operate.md; no pod may come near its limit."""
    rest = usage(release.namespace, MEASURED_S)
    with carried_out(release.namespace, "measured", plan(LONG_SIDE)):
        until_frames(release.namespace, "measured", RATE)
        busy = usage(release.namespace, MEASURED_S)
        assert status(release.namespace, "measured")["phase"] == "Running"
        assert_whole(until_phase(release.namespace, "measured", FINAL, 240), LONG_SIDE)
    print(table(rest, busy, f"{RATE} images/s"))
    assert len(busy) >= len(COMPONENTS)
