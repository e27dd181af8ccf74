"""Who reads the acquisitions topic late still finds what is durable on it."""

from __future__ import annotations

import random
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.analysis.directory import Directory, joined_maps
from nextem.edge import map_parts as edge_maps
from nextem.v1 import acquisition_pb2
from nextem.wire.local_log import LocalLog
from nextem.wire.log import ACQUISITIONS


def test_a_start_that_is_on_its_way_is_waited_for(tmp_path: Path) -> None:
    with closing(LocalLog(tmp_path)) as log, closing(Directory(log)) as directory:
        event = acquisition_pb2.AcquisitionEvent(
            started=acquisition_pb2.AcquisitionStarted(acquisition_id="late", instrument="scope")
        )
        assert directory.started("late") is None
        timer = threading.Timer(0.2, lambda: log.append(ACQUISITIONS, event.SerializeToString()))
        timer.start()
        found = directory.started("late", wait_s=30.0)
        timer.join()
    assert found is not None
    assert found.instrument == "scope"


def test_waiting_for_a_start_has_an_end(tmp_path: Path) -> None:
    with closing(LocalLog(tmp_path)) as log, closing(Directory(log)) as directory:
        assert directory.started("never", wait_s=0.05) is None


@given(
    st.dictionaries(st.sampled_from(["mean", "variance", "histogram"]), st.integers(1, 5000), min_size=1),
    st.randoms(),
)
def test_maps_come_together_from_pieces_in_any_order(sizes: dict[str, int], order: random.Random) -> None:
    maps = {name: np.random.default_rng(size).normal(size=(2, size)) for name, size in sizes.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge_maps, "PART_BYTES", 4096)
        parts = list(edge_maps.map_parts("scan", maps, 7))
    order.shuffle(parts)
    found = joined_maps([*parts, *parts[:2]])
    assert found.keys() == maps.keys()
    assert all(np.array_equal(found[name], maps[name]) for name in maps)


def test_maps_are_kept_until_they_are_forgotten(tmp_path: Path) -> None:
    with closing(LocalLog(tmp_path)) as log, closing(Directory(log, keep_maps=True)) as directory:
        for part in edge_maps.map_parts("scan", {"mean": np.arange(6.0).reshape(2, 3)}, 1):
            log.append(ACQUISITIONS, acquisition_pb2.AcquisitionEvent(map=part).SerializeToString())
        directory.read()
        assert directory.maps("scan")["mean"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert directory.finished("") is None
        directory.forget_maps("scan")
        assert directory.maps("scan") == {}
