"""Corrected figures against float64 numpy: within the stated bound, and the same bits however frames come."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.calibrations import CalibrationMisfit, Calibrations, CorrectionArrays
from nextem.edge.reduction import InvalidReduction, PixelFormat, ReducedBlock, compile_reduction, mask_pixels
from nextem.edge.reduction.parallel import reduce_array
from nextem.v1 import plan_pb2
from nextem.wire.events import frames_to_events

Array = npt.NDArray[Any]

POLICIES = (
    plan_pb2.REPRESENTATION_POLICY_SMALLEST,
    plan_pb2.REPRESENTATION_POLICY_EVENTS,
    plan_pb2.REPRESENTATION_POLICY_DENSE,
)


class InMemory(Calibrations):
    """Arrays by a name instead of a hash."""

    def __init__(self, corrections: CorrectionArrays) -> None:
        self.arrays = {"d": corrections.dark, "g": corrections.gain, "b": corrections.bad}

    def load(self, sha256: str) -> Array:
        array = self.arrays[sha256]
        assert array is not None
        return array


def plan_with(corrections: CorrectionArrays, policy: int = POLICIES[0]) -> plan_pb2.Reduction:
    masks = [
        plan_pb2.Mask(name="disk", center_y_px=3, center_x_px=4, inner_px=0, outer_px=5),
        plan_pb2.Mask(name="rest", center_y_px=3, center_x_px=4, inner_px=2, outer_px=-1),
    ]
    named = {"dark": "d", "gain": "g", "bad": "b"}
    return plan_pb2.Reduction(
        masks=masks,
        center_of_mass=True,
        representation=policy,  # type: ignore[arg-type]
        corrections=plan_pb2.Corrections(
            **{f"{k}_sha256": v for k, v in named.items() if getattr(corrections, k) is not None}
        ),
        maps=plan_pb2.Maps(radial=plan_pb2.RadialProfile(center_y_px=2, center_x_px=2.5, width_px=3, bins=3)),
    )


def weights(shape: tuple[int, int], reduction: plan_pb2.Reduction) -> dict[str, Array]:
    """What each figure weighs the pixels of a corrected frame by."""
    y, x = np.indices(shape, np.float64)
    ring = np.sqrt((y - 2) ** 2 + (x - 2.5) ** 2) // 3
    found = {"sum": np.ones(shape), "moment_y": y, "moment_x": x}
    found |= {f"mask/{each.name}": mask_pixels(each, shape).astype(float) for each in reduction.masks}
    return found | {f"radial/{k}": (ring == k) / max(1, np.count_nonzero(ring == k)) for k in range(3)}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, CorrectionArrays]:
    itemsize = draw(st.sampled_from([1, 2, 4]))
    n, y, x = draw(st.integers(1, 7)), draw(st.integers(1, 18)), draw(st.integers(1, 140))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    top = min(draw(st.sampled_from([1, 300, 2**32 - 1])), 2 ** (8 * itemsize) - 1)
    kept = rng.random((n, y, x)) < rng.choice([0.0, 0.01, 0.24, 0.26, 1.0], (n, 1, 1))
    frames = np.where(kept, rng.integers(0, top, (n, y, x), np.uint32, endpoint=True), 0)
    wanted = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any))
    bad = rng.random((y, x)) < draw(st.sampled_from([0.0, 0.02, 0.9]))
    corrections = CorrectionArrays.of(
        (y, x),
        dark=rng.normal(3, 2, (y, x)).astype(np.float32) if wanted[0] else None,
        gain=rng.normal(1, 0.2, (y, x)).astype(np.float32) if wanted[1] else None,
        bad=bad if wanted[2] else None,
    )
    return frames.astype(f"u{itemsize}"), corrections


def figures_of(reduced: ReducedBlock) -> dict[str, Array]:
    columns = {name: values for name, values in reduced.scalars().items() if not name.startswith("com")}
    return columns | {"moment_y": reduced.moment_y, "moment_x": reduced.moment_x}


def as_words(frames: Array, pixel: PixelFormat) -> Array:
    return frames.astype(pixel.wire).reshape(len(frames), -1).view(np.uint8)


@settings(max_examples=100)
@given(cases(), st.booleans(), st.data())
def test_within_the_bound_and_bit_for_bit_however_the_frames_come(
    case: tuple[Array, CorrectionArrays], big_endian: bool, data: st.DataObject
) -> None:
    frames, corrections = case
    n, y, x = frames.shape
    pixel = PixelFormat(frames.itemsize, big_endian)
    blocks = []
    for policy in POLICIES:
        reducer = compile_reduction(
            plan_with(corrections, policy), (y, x), pixel, n, calibrations=InMemory(corrections)
        )
        cuts = sorted({0, n, *data.draw(st.sets(st.integers(1, n)))})
        for start, stop in pairwise(cuts):
            twin = reducer.twin() if data.draw(st.booleans()) else reducer
            reduced = twin.reduce(as_words(frames[start:stop], pixel))
            blocks.append((start, stop, figures_of(reduced)))
            assert np.array_equal(reduced.pixels.frames, frames[start:stop])
        from_events = reducer.reduce_events(frames_to_events(frames))
        blocks.append((0, n, figures_of(from_events)))

    first = blocks[-1][2]
    for start, stop, found in blocks:
        for name, values in found.items():
            assert values.tobytes() == first[name][start:stop].tobytes(), name

    plain = corrections.apply(frames)
    dark = 0 if corrections.dark is None else np.abs(corrections.dark.astype(float))
    gain = 1 if corrections.gain is None else np.abs(corrections.gain.astype(float))
    sizes = corrections.repair((frames.astype(float) + dark) * gain)
    for name, weight in weights((y, x), plan_with(corrections)).items():
        wanted = (plain * weight).sum((1, 2))
        bound = y * x * 2.0**-52 * (sizes * weight).sum((1, 2))
        if name.startswith("radial") and not weight.any():
            assert np.isnan(first[name]).all()
        else:
            assert (np.abs(first[name] - wanted) <= bound).all(), name


def test_center_of_mass_is_that_of_the_corrected_frame() -> None:
    rng = np.random.default_rng(0)
    frames = rng.poisson(2, (3, 20, 30)).astype(np.uint16)
    corrections = CorrectionArrays.of(
        (20, 30),
        dark=rng.normal(0.5, 0.1, (20, 30)).astype(np.float32),
        gain=rng.normal(1, 0.1, (20, 30)).astype(np.float32),
        bad=rng.random((20, 30)) < 0.05,
    )
    reducer = compile_reduction(
        plan_with(corrections), (20, 30), PixelFormat(2, False), calibrations=InMemory(corrections)
    )
    columns = reducer.reduce(as_words(frames, PixelFormat(2, False))).scalars()
    plain = corrections.apply(frames)
    y, x = np.indices((20, 30))
    np.testing.assert_allclose(columns["com_y"], (plain * y).sum((1, 2)) / plain.sum((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(columns["com_x"], (plain * x).sum((1, 2)) / plain.sum((1, 2)), rtol=1e-12)
    assert columns["sum"].dtype == np.float64


def test_a_hot_pixel_is_repaired_and_a_flat_field_is_flat() -> None:
    """Science: a flat field corrected by its own gain leaves shot noise; a hot pixel leaves no trace."""
    rng = np.random.default_rng(1)
    sensitivity = rng.normal(1, 0.1, (64, 64))
    frames = rng.poisson(400 * sensitivity, (200, 64, 64)).astype(np.uint16)
    frames[:, 10, 20] = 60_000
    bad = np.zeros((64, 64), bool)
    bad[10, 20] = True
    corrections = CorrectionArrays.of((64, 64), gain=(1 / sensitivity).astype(np.float32), bad=bad)
    reduction = plan_with(corrections)
    reduction.maps.variance = reduction.maps.maximum = True
    reducer = compile_reduction(
        reduction, (64, 64), PixelFormat.of("<u2"), calibrations=InMemory(corrections)
    )
    maps = reduce_array(frames, reducer, 2).finish(corrections)
    noise = np.sqrt(400 / 200)
    assert abs(maps["mean"] - 400).max() < 6 * noise
    assert abs(maps["mean"][10, 20] - 400) < 6 * noise
    assert np.std(maps["mean"] - 400) == pytest.approx(noise, rel=0.05)
    assert maps["maximum"].max() < 600
    assert np.allclose(maps["variance"][10, 20], maps["variance"][9:12, 19:22][bad[9:12, 19:22] == 0].mean())


def test_calibrations_come_from_the_folder_and_are_checked(tmp_path: Path) -> None:
    folder = Calibrations(tmp_path)
    dark = folder.add(np.full((4, 4), 2, np.float32))
    reduction = plan_pb2.Reduction(corrections=plan_pb2.Corrections(dark_sha256=dark))
    reducer = compile_reduction(reduction, (4, 4), PixelFormat(1), calibrations=folder)
    assert reducer.reduce(np.full((1, 16), 5, np.uint8)).sum.tolist() == [48.0]
    with pytest.raises(CalibrationMisfit):
        compile_reduction(reduction, (4, 5), PixelFormat(1), calibrations=folder)
    with pytest.raises(InvalidReduction, match="folder"):
        compile_reduction(reduction, (4, 4), PixelFormat(1))
