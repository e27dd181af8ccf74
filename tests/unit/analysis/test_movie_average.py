"""The average of a movie: exact, the same however the frames came, and weighted by exposure where asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextem.analysis.frame_run import join
from nextem.analysis.movie_average import MAX_COUNTS, NAME, MovieAverage
from nextem.analysis.offline import analyse_offline
from nextem.analysis.plugin import AnalysisError
from nextem.wire.binning import bin_pixels
from nextem.wire.blocks import BINNED, Block, decode_block, encode_block
from nextem.wire.representations import fill

ScanOf = Callable[..., Any]
AVERAGE, BIN_PX, PIXEL, DOSE = 4, 2, 1.0, 0.5
WEIGHTED = {"pixel_angstrom": PIXEL, "dose_e_per_square_angstrom": DOSE}


def movie(scan_of: ScanOf, frames: np.ndarray, parameters: Mapping[str, object] | None = None) -> Any:
    scan = scan_of(frames, analyses=(NAME,))
    plan = scan.started.plan
    plan.reduction.movie.average_frames, plan.reduction.movie.bin_px = AVERAGE, BIN_PX
    plan.analyses[0].parameters.update(dict(parameters or {}))
    return scan


def block(
    scan: Any, start: int, stop: int, number: int = 0, bin_px: int = BIN_PX, bin_frames: int = AVERAGE
) -> Block:
    """Averages of frames ``start .. stop - 1``, as the edge sends them."""
    whole = scan.block(start, stop, number)
    head = replace(whole, bin_px=bin_px, bin_frames=bin_frames, payload=b"")
    return decode_block(encode_block(fill(head, scan.frames[start:stop], BINNED)))


def images(scan: Any, blocks: list[Block]) -> dict[str, np.ndarray]:
    return {product.name: array for product, array in analyse_offline(scan.started, blocks, scan.finished)}


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(3).poisson(3.0, (50, 16, 24)).astype(np.uint16)


def test_the_mean_is_that_of_the_averages(scan_of: ScanOf, frames: np.ndarray) -> None:
    scan = movie(scan_of, frames)
    made = images(scan, [block(scan, 0, 24), block(scan, 32, 50, 1)])
    kept = np.concatenate((frames[:24], frames[32:]))
    assert list(made) == ["movie/mean"]
    assert np.array_equal(made["movie/mean"], bin_pixels(kept, (16, 24), BIN_PX, len(kept))[0] / len(kept))


def test_weights_equal_the_formula(scan_of: ScanOf, frames: np.ndarray) -> None:
    """Grant and Grigorieff's, written out for each frequency of the full transform."""
    scan = movie(scan_of, frames, WEIGHTED)
    found = images(scan, [block(scan, 0, 50)])["movie/dose_weighted"]
    sums = bin_pixels(frames, (16, 24), BIN_PX, AVERAGE).astype(float)
    counts = np.array([AVERAGE] * 12 + [2])
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(8, 2.0), np.fft.fftfreq(12, 2.0), indexing="ij"))
    top, bottom = np.zeros((8, 12), complex), np.zeros((8, 12))
    for i, (image, count) in enumerate(zip(sums, counts, strict=True)):
        exposure = (i * AVERAGE + count / 2) * DOSE
        with np.errstate(divide="ignore"):
            q = np.exp(-exposure / 2 / (0.245 * k**-1.665 + 2.81))
        top += q * np.fft.fft2(image)
        bottom += count * q**2
    wanted = np.fft.ifft2(top / np.sqrt(50 * bottom))
    assert np.allclose(found, wanted.real, rtol=0, atol=1e-6)
    assert found.mean() == pytest.approx(sums.sum() / 50 / found.size)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.data())
def test_split_order_and_repeats_change_no_bit(
    scan_of: ScanOf, frames: np.ndarray, data: st.DataObject
) -> None:
    scan = movie(scan_of, frames, WEIGHTED)
    wanted = images(scan, [block(scan, 0, 50)])
    cuts = sorted(data.draw(st.sets(st.integers(1, 12))))
    edges = [0, *(AVERAGE * cut for cut in cuts), 50]
    pieces = [block(scan, a, b) for a, b in pairwise(edges)]
    again = data.draw(st.lists(st.sampled_from(pieces), max_size=3))
    made = images(scan, data.draw(st.permutations([*pieces, *again])))
    assert {name: array.tobytes() for name, array in made.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }


def test_runs_carry_averages_and_parts_those_that_are_whole(scan_of: ScanOf, frames: np.ndarray) -> None:
    scan = movie(scan_of, frames)
    (run,) = join([block(scan, 40, 50, 1), block(scan, 0, 40)])
    assert [one.first_frame for one in run.binned] == list(range(0, 50, AVERAGE))
    assert [one.count for one in run.binned] == [AVERAGE] * 12 + [2]
    assert [one.first_frame for one in run.part(6, 47).binned] == list(range(8, 44, AVERAGE))
    assert np.array_equal(run.binned[2].image, bin_pixels(frames[8:12], (16, 24), BIN_PX, AVERAGE)[0])


def test_without_an_average_there_is_no_image(scan_of: ScanOf, frames: np.ndarray) -> None:
    scan = movie(scan_of, frames, WEIGHTED)
    made = images(scan, [scan.block(0, 50)])
    assert sorted(made) == ["movie/dose_weighted", "movie/mean"]
    assert all(np.isnan(array).all() and array.shape == (8, 12) for array in made.values())


def fading(seed: int, n: int, dose: float) -> tuple[np.ndarray, np.ndarray]:
    """Sums of frames, one an average, of a scene that fades as the formula has it; and the scene."""
    rng = np.random.default_rng(seed)
    scene = np.random.default_rng(1).normal(0.0, 1.0, (64, 64))
    spectrum = np.fft.rfft2(scene)
    k = np.hypot(np.fft.fftfreq(64, PIXEL)[:, None], np.fft.rfftfreq(64, PIXEL))
    k[0, 0] = 1.0
    critical = 0.245 * k**-1.665 + 2.81
    seen = [np.fft.irfft2(spectrum * np.exp(-(i + 0.5) * dose / 2 / critical), (64, 64)) for i in range(n)]
    return rng.poisson(np.clip(20.0 + 2.0 * np.array(seen), 0, None)).astype(np.uint16), scene


def ring_correlation(a: np.ndarray, b: np.ndarray, low: float, high: float) -> float:
    """Fourier ring correlation over the frequencies ``low .. high``, cycles a pixel."""
    k = np.hypot(np.fft.fftfreq(len(a))[:, None], np.fft.rfftfreq(len(a)))
    ring = (k >= low) & (k < high)
    one, two = np.fft.rfft2(a)[ring], np.fft.rfft2(b)[ring]
    power = np.sqrt((np.abs(one) ** 2).sum() * (np.abs(two) ** 2).sum())
    return float((one * two.conj()).sum().real / power)


def of_sums(scan_of: ScanOf, sums: np.ndarray, dose: float) -> dict[str, np.ndarray]:
    scan = scan_of(sums, analyses=(NAME,))
    scan.started.plan.reduction.movie.average_frames = 1
    parameters = {"pixel_angstrom": PIXEL, "dose_e_per_square_angstrom": dose}
    scan.started.plan.analyses[0].parameters.update(parameters)
    return images(scan, [block(scan, 0, len(sums), bin_px=1, bin_frames=1)])


def test_noise_goes_down_by_the_root_of_the_number_of_averages(scan_of: ScanOf) -> None:
    """Without fading weighted and plain are one image; its noise is that of one frame over root n."""
    n = 100
    sums = np.random.default_rng(4).poisson(20.0, (n, 64, 64)).astype(np.uint16)
    made = of_sums(scan_of, sums, 1e-9)
    assert np.allclose(made["movie/dose_weighted"], made["movie/mean"], atol=1e-5)
    assert made["movie/mean"].std() == pytest.approx(sums[0].std() / np.sqrt(n), rel=0.05)


def test_fine_detail_that_fades_is_seen_better_with_weights(scan_of: ScanOf) -> None:
    n, dose = 60, 1.0
    halves = [of_sums(scan_of, fading(seed, n, dose)[0], dose) for seed in (11, 12)]
    fine = {
        name: ring_correlation(halves[0][name], halves[1][name], 0.3, 0.5)
        for name in ("movie/mean", "movie/dose_weighted")
    }
    assert fine["movie/dose_weighted"] > fine["movie/mean"] + 0.1
    scene = fading(11, n, dose)[1]
    against = {name: ring_correlation(halves[0][name], scene, 0.3, 0.5) for name in fine}
    assert against["movie/dose_weighted"] > against["movie/mean"]


def test_noise_stays_white_with_weights(scan_of: ScanOf) -> None:
    sums = np.random.default_rng(5).poisson(20.0, (60, 64, 64)).astype(np.uint16)
    made = of_sums(scan_of, sums, 1.0)
    k = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64))
    power = np.abs(np.fft.rfft2(made["movie/dose_weighted"])) ** 2
    coarse, fine = power[(k > 0.05) & (k < 0.25)].mean(), power[k > 0.3].mean()
    assert fine == pytest.approx(coarse, rel=0.15)


@pytest.mark.parametrize(
    ("parameters", "rule"),
    [
        ({"pixel_angstrom": -1.0}, "pixel_angstrom must be positive, not -1.0"),
        ({"pixel_angstrom": 1.0}, "or the plan's dose_e_per_frame must be above 0"),
        ({**WEIGHTED, "voltage_kv": 80}, r"known at \[200, 300\] kV, not 80"),
        ({"dose": 1.0}, "unknown parameter 'dose'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    scan_of: ScanOf, frames: np.ndarray, parameters: dict[str, object], rule: str
) -> None:
    with pytest.raises(AnalysisError, match=rule):
        MovieAverage(movie(scan_of, frames).started, parameters)


def test_a_plan_without_a_movie_is_refused(scan_of: ScanOf, frames: np.ndarray) -> None:
    with pytest.raises(AnalysisError, match="makes no movie"):
        MovieAverage(scan_of(frames, analyses=(NAME,)).started, {})


def test_the_plan_s_dose_is_spread_over_the_field(scan_of: ScanOf, frames: np.ndarray) -> None:
    scan = movie(scan_of, frames, {"pixel_angstrom": PIXEL})
    scan.started.plan.dose_e_per_frame = DOSE * 16 * 24 * PIXEL**2
    other = movie(scan_of, frames, WEIGHTED)
    one, two = (images(each, [block(each, 0, 50)])["movie/dose_weighted"] for each in (scan, other))
    assert np.array_equal(one, two)


def test_an_image_of_another_size_switches_the_analysis_off(scan_of: ScanOf, frames: np.ndarray) -> None:
    scan = movie(scan_of, frames)
    made = analyse_offline(scan.started, [block(scan, 0, 8, bin_px=4)], scan.finished)
    assert [product.kind for product, _ in made] == ["failed"]


def test_more_counts_than_can_be_summed_are_refused(scan_of: ScanOf, frames: np.ndarray) -> None:
    analysis = MovieAverage(movie(scan_of, frames).started, {})
    state = analysis.start()
    full = analysis.start()
    full["sum"][0, 0] = MAX_COUNTS
    state = analysis.merge(state, full)
    with pytest.raises(AnalysisError, match="counts in one movie"):
        analysis.merge(state, full)
