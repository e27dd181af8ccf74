from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nextem.analysis import novelty_model
from nextem.analysis.frame_run import join
from nextem.analysis.novelty import Novelty
from nextem.analysis.offline import analyse_offline
from nextem.analysis.plugin import AnalysisError
from nextem.analysis.pooling import pool

SIDE = 32
SPOTS = [(4, 4), (4, 20), (12, 27), (20, 4), (27, 12), (27, 27), (12, 12), (20, 20)]


def pattern(spot: int) -> np.ndarray:
    rate = np.full((SIDE, SIDE), 0.02)
    rate[14:18, 14:18] = 4.0
    y, x = SPOTS[spot]
    rate[y : y + 4, x : x + 4] = 4.0
    return rate


def field(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    rates = np.stack([pattern(spot) for spot in range(len(SPOTS))])
    return np.random.default_rng(seed).poisson(rates[labels.ravel()]).astype(np.uint8)


def scores(scan: Any) -> tuple[Any, np.ndarray]:
    made = analyse_offline(scan.started, scan.blocks([100, 101, 350]), scan.finished)
    ((product, array),) = [(p, a) for p, a in made if p.name == "novelty"]
    return product, array


@pytest.fixture
def grains() -> np.ndarray:
    """42 x 42 positions: seven grains, none with a majority, and one inclusion of 4 x 4."""
    labels = np.repeat(np.arange(7), 6)[:, None] * np.ones(42, int)
    labels[16:20, 15:19] = 7
    return labels


@pytest.fixture
def precipitates() -> np.ndarray:
    """24 x 24 positions of one matrix, with three precipitates of two kinds: 10 % of the field."""
    labels = np.zeros((24, 24), int)
    labels[2:7, 3:7] = 6
    labels[15:19, 4:9] = 6
    labels[12:16, 16:20] = 7
    return labels


def test_rare_inclusion_scores_highest_among_grains(scan_of: Callable[..., Any], grains: np.ndarray) -> None:
    product, found = scores(scan_of(field(grains), grains.shape, ["novelty"]))
    assert product.provenance["notes"]["reference"] == "population"
    assert grains.flat[np.argmax(found)] == 7
    inner = pool_mask(grains == 7)
    assert found[inner].min() > np.percentile(found[grains != 7], 99.5)


def test_precipitates_stand_out_of_a_matrix(scan_of: Callable[..., Any], precipitates: np.ndarray) -> None:
    product, found = scores(scan_of(field(precipitates), precipitates.shape, ["novelty"]))
    assert product.provenance["notes"]["reference"] == "matrix"
    assert product.provenance["notes"]["matrix_share"] > 0.8
    far = pool_mask(precipitates == 0)
    assert np.median(found[far]) == 0
    assert found[precipitates > 0].min() > 2 * np.percentile(found[far], 99)


def pool_mask(inside: np.ndarray) -> np.ndarray:
    """Positions all of whose neighbours are inside."""
    padded = np.pad(inside, 1, constant_values=True)
    ny, nx = inside.shape
    return np.all([padded[i : i + ny, j : j + nx] for i in range(3) for j in range(3)], axis=0)


def test_reference_can_be_set(scan_of: Callable[..., Any], precipitates: np.ndarray) -> None:
    for reference in ("matrix", "population"):
        scan = scan_of(field(precipitates), precipitates.shape, ["novelty"], {"reference": reference})
        assert scores(scan)[0].provenance["notes"]["reference"] == reference


def test_blank_frames_have_no_score_and_do_no_harm(scan_of: Callable[..., Any], grains: np.ndarray) -> None:
    frames = field(grains)
    frames[[5, 77]] = 0
    found = scores(scan_of(frames, grains.shape, ["novelty"]))[1]
    assert np.flatnonzero(np.isnan(found)).tolist() == [5, 77]
    assert grains.flat[np.nanargmax(found)] == 7


def test_too_few_frames_have_no_score(scan_of: Callable[..., Any]) -> None:
    product, found = scores(scan_of(np.ones((63, 8, 8), np.uint8), (7, 9), ["novelty"]))
    assert np.isnan(found).all()
    assert product.provenance["notes"]["reference"] == "none: too few frames"


def test_frames_all_alike_score_nothing(scan_of: Callable[..., Any]) -> None:
    found = scores(scan_of(np.ones((100, 8, 8), np.uint8), (10, 10), ["novelty"]))[1]
    assert (found == 0).all()


def test_features_are_the_stabilised_binned_counts(small: Any, representation: int) -> None:
    analysis = Novelty(small.started, {"bins": 5})
    (run,) = join([small.block(0, 20, 0, representation)])
    partial = analysis.process(run)
    rows, columns = np.arange(16) * 5 // 16, np.arange(12) * 5 // 12
    counts = np.zeros((20, 5, 5))
    for y in range(16):
        for x in range(12):
            counts[:, rows[y], columns[x]] += small.frames[:20, y, x]
    wanted = np.floor(novelty_model.SCALE * 2 * np.sqrt(counts + 0.375) + 0.5).reshape(20, 25)
    assert np.array_equal(partial["features"], wanted)
    assert partial["kind"].tolist() == [1] * 7 + [2] + [1] * 12


def test_bins_saturate_and_are_never_smaller_than_a_pixel(scan_of: Callable[..., Any]) -> None:
    scan = scan_of(np.full((2, 3, 4), 1 << 40, np.uint64), analyses=["novelty"])
    (run,) = join(scan.blocks([]))
    features = Novelty(scan.started, {}).process(run)["features"]
    assert features.shape == (2, 12)
    assert (features == novelty_model.LARGEST).all()


def test_pooling_takes_the_neighbours_that_are_there() -> None:
    features = np.arange(24, dtype=np.int16).reshape(24, 1) * 10
    usable = np.ones(24, bool)
    usable[[1, 23]] = False
    pooled = pool(features, usable, (3, 4), 3, np.array([0, 5, 12, 22]))
    members = [[0, 4, 5], [0, 2, 4, 5, 6, 8, 9, 10], [12, 13, 16, 17], [17, 18, 19, 21, 22]]
    assert pooled.members.tolist() == [len(m) for m in members]
    assert pooled.values[:, 0].tolist() == [int(np.floor(40 * np.mean(m) + 0.5)) for m in members]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"bin": 8}, "unknown parameter 'bin'"),
        ({"bins": 8.5}, "'bins' must be of type int, not 8.5"),
        ({"bins": 64}, "bins must be 1..32"),
        ({"pool": 2}, "pool must be odd"),
        ({"reference": "median"}, "not 'median'"),
        ({"reference": True}, "'reference' must be of type str"),
    ],
)
def test_wrong_parameters_are_named(small: Any, parameters: dict[str, object], told: str) -> None:
    with pytest.raises(AnalysisError, match=told):
        Novelty(small.started, parameters)


def test_live_values_follow_the_model(scan_of: Callable[..., Any], grains: np.ndarray) -> None:
    scan = scan_of(field(grains), grains.shape, ["novelty"])
    analysis = Novelty(scan.started, {})
    live, state = analysis.live(), analysis.start()
    (first,), (rest,) = join([scan.block(0, 300)]), join([scan.block(300, 1764)], max_frames=2000)
    state = analysis.merge(state, analysis.process(first))
    assert live.score(state, 0, 300) is None
    assert not live.due(63, complete=False)
    assert live.due(300, complete=False)
    live.use(live.fit(analysis.snapshot(state)), 1, 300)
    assert live.revision == 1
    assert not live.due(374, complete=False)
    assert live.due(375, complete=False)
    assert live.due(301, complete=True)
    assert not live.due(300, complete=True)
    state = analysis.merge(state, analysis.process(rest))
    values = live.score(state, 300, 1764)
    assert values is not None
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    live.use(live.fit(analysis.snapshot(state)), 2, 1764)
    assert np.array_equal(live.score(state, 0, 1764), scores(scan)[1].ravel())
