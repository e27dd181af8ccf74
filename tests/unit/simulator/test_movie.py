"""The movie's truth is what its frames show."""

from __future__ import annotations

import numpy as np
import pytest

from nextem.simulator.movie import MovieOptions, MovieScene, Nucleation


def test_a_frame_depends_on_seed_and_index_alone() -> None:
    options = MovieOptions(shape=(32, 24))
    one, other = MovieScene(options, 10), MovieScene(options, 10)
    np.testing.assert_array_equal(one.frame(7), other.frame(7))
    assert (one.frame(7) != one.frame(8)).any()
    assert (one.frame(7) != MovieScene(MovieOptions(shape=(32, 24), seed=2), 10).frame(7)).any()


def test_counts_are_poisson_distributed_round_what_is_expected() -> None:
    scene = MovieScene(MovieOptions(shape=(64, 64), drift_px_per_frame=(0.0, 0.0)), 200)
    frames = np.stack([scene.frame(k) for k in range(200)]).astype(float)
    expected = scene.expected(0)
    off = (frames.mean(axis=0) - expected) / np.sqrt(expected / 200)
    assert abs(off.mean()) < 0.1
    assert 0.9 < off.std() < 1.1
    assert 0.95 < (frames.var(axis=0) / expected).mean() < 1.05


def test_a_whole_pixel_of_drift_moves_the_view_by_it() -> None:
    scene = MovieScene(MovieOptions(shape=(32, 32), drift_px_per_frame=(1.0, -2.0)), 4)
    np.testing.assert_allclose(scene.expected(2)[8:24, 8:24], scene.expected(0)[6:22, 12:28])


def test_a_particle_appears_at_its_time_and_place() -> None:
    event = Nucleation(frame=5, y_px=20.0, x_px=12.0, radius_px=4.0)
    options = MovieOptions(shape=(40, 40), drift_px_per_frame=(0.0, 0.0), nucleations=(event,))
    scene = MovieScene(options, 10)
    np.testing.assert_array_equal(scene.expected(0), scene.expected(4))
    taken = scene.expected(4) - scene.expected(5)
    assert np.unravel_index(taken.argmax(), taken.shape) == (20, 12)
    assert taken[20, 12] == pytest.approx(0.5 * scene.expected(4)[20, 12])


def test_a_drift_that_leaves_the_scene_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a drift of 99\.0 px leaves 64 px"):
        MovieScene(MovieOptions(drift_px_per_frame=(1.0, 0.0)), 100)
