from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.steering.look_closer import LookCloser
from nextem.steering.policy import PolicyError
from nextem.v1 import acquisition_pb2, product_pb2

SIZE, FINE, STEP = 64, 32, 8


def world(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(what is unusual at every fine position, novelty of the survey) with noise and bright single points."""
    rng = np.random.default_rng(seed)
    side = SIZE * STEP
    y, x = np.mgrid[0:side, 0:side]
    truth = np.zeros((side, side), bool)
    for _ in range(12):
        cy, cx, radius = *rng.uniform(24, side - 24, 2), rng.uniform(10, 20)
        truth |= (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    novelty = rng.gamma(4, 0.5, (SIZE, SIZE)) + 2 * truth[4::STEP, 4::STEP] * rng.gamma(4, 0.25, (SIZE, SIZE))
    novelty += (rng.random(novelty.shape) < 0.01) * rng.exponential(10, novelty.shape)
    return truth, novelty


def corners(suggestions) -> list[tuple[float, float]]:
    return [(s.action.scan.origin_y_nm, s.action.scan.origin_x_nm) for s in suggestions]


def covered(suggestions, side: int) -> np.ndarray:
    area = np.zeros((side, side), bool)
    for y, x in corners(suggestions):
        area[round(y) : round(y) + FINE, round(x) : round(x) + FINE] = True
    return area


@pytest.mark.parametrize("score", ["region_mean", "peak"])
def test_beats_random_in_noise(surveys, score: str) -> None:
    gains = []
    for seed in range(6):
        truth, novelty = world(seed)
        early, late = surveys.run(novelty, score=score)
        assert len(early) + len(late) == 16
        gains.append(truth[covered(early + late, truth.shape[0])].mean() / truth.mean())
    assert np.mean(gains) > 6
    assert min(gains) > 3


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(8, 40),
    fine=st.integers(1, 56),
    scans=st.integers(1, 40),
    share=st.floats(0, 1.5),
    chunk=st.integers(1, 500),
    apart_nm=st.sampled_from([0.0, 10.0, 70.0]),
)
def test_budget_distance_field_and_numbers(surveys, seed, size, fine, scans, share, chunk, apart_nm) -> None:
    values = np.random.default_rng(seed).gamma(2, 1, (size, size))
    values[np.random.default_rng(seed).random(values.shape) < 0.1] = np.nan
    policy = LookCloser()
    budget_e = share * scans * fine**2 * 100
    plan = {"size": size, "fine": fine, "scans": scans, "dose_budget_e": budget_e}
    if fine > (size - 1) * STEP:
        with pytest.raises(PolicyError, match="does not fit"):
            policy.started(surveys.started(**plan))
        return
    policy.started(surveys.started(**plan, min_distance_nm=apart_nm))
    found = []
    for update in surveys.updates(values, chunk):
        policy.ingest(update)
        found += policy.suggest()
    policy.ingest(surveys.finished(values.size))
    found += policy.suggest()
    assert policy.done()
    assert len(found) <= scans
    assert len(found) * fine**2 * 100 <= budget_e * (1 + 1e-9)
    assert [s.number for s in found] == list(range(1, len(found) + 1))
    lowest, highest = 3.5, 3.5 + (size - 1) * STEP
    places = corners(found)
    for index, (y, x) in enumerate(places):
        assert lowest <= min(y, x)
        assert max(y, x) + fine - 1 <= highest
        for other_y, other_x in places[:index]:
            assert max(abs(y - other_y), abs(x - other_x)) >= (apart_nm or fine) - 1e-6


def test_no_region_twice_and_plans_are_the_template(surveys) -> None:
    early, late = surveys.run(world(1)[1])
    found = early + late
    assert len(set(corners(found))) == len(found)
    assert len({s.action.plan_id for s in found}) == len(found)
    for suggestion in found:
        assert suggestion.action.scan.size_y == FINE
        assert suggestion.action.dose_e_per_frame == 100
        assert not suggestion.action.HasField("steering")
        assert suggestion.action.scan.purpose == "fine"


def test_early_scans_are_paced_and_only_of_known_regions(surveys) -> None:
    novelty = world(2)[1]
    policy = LookCloser()
    policy.started(surveys.started())
    made = 0
    for update in surveys.updates(novelty, SIZE):
        policy.ingest(update)
        row = update.frames_covered // SIZE
        for suggestion in policy.suggest():
            made += 1
            last = suggestion.cause.frames[-1]
            assert last.first + last.count <= update.frames_covered
            assert suggestion.cause.last_byte_ns == update.last_byte_ns
        assert made <= row / SIZE * 16 * 0.5
    assert made == 8
    assert not policy.done()


def test_early_scans_are_among_the_best_so_far(surveys) -> None:
    flat = np.ones((SIZE, SIZE))
    flat[40:44, 20:24] = 9.0
    early, late = surveys.run(flat, chunk=SIZE)
    assert corners(early[:1]) == [(40 * STEP, 20 * STEP)]
    assert len(early) + len(late) >= 1


def test_nothing_unusual_nothing_commanded(surveys) -> None:
    early, late = surveys.run(np.ones((SIZE, SIZE)))
    assert early == late == []


def test_cause_names_the_frames_of_the_region(surveys) -> None:
    values = np.random.default_rng(0).gamma(4, 0.1, (SIZE, SIZE))
    values[40:44, 20:24] = 9.0
    early, late = surveys.run(values, early_fraction=0)
    assert early == []
    best = late[0]
    assert corners([best]) == [(40 * STEP, 20 * STEP)]
    assert [(f.first, f.count) for f in best.cause.frames] == [(y * SIZE + 20, 4) for y in range(40, 44)]
    assert best.cause.acquisition_id == surveys.acquisition_id
    assert best.cause.edge_boot_id == "boot-1"
    assert best.cause.last_byte_ns == SIZE * SIZE
    assert best.cause.reason == best.reason
    assert re.search(r"novelty 9 at survey point \(41, 21\), median .*; scan 1 of 16, 100 %", best.reason)
    assert best.priority > late[1].priority


@settings(max_examples=15)
@given(order=st.permutations(range(16)), repeat=st.integers(0, 15))
def test_the_end_does_not_depend_on_how_updates_were_split(surveys, order, repeat) -> None:
    values = world(3)[1]
    _, whole = surveys.run(values, chunk=values.size, early_fraction=0)
    policy = LookCloser()
    policy.started(surveys.started(early_fraction=0))
    pieces = list(surveys.updates(values, values.size // 16))
    stale = surveys.update(np.full(values.shape, 1e6), 0, values.size // 2, revision=0)
    for place in [*order, repeat]:
        policy.ingest(pieces[place])
        policy.ingest(stale)
        assert policy.suggest() == []
    policy.ingest(surveys.finished(values.size))
    assert corners(policy.suggest()) == corners(whole)


def test_a_later_revision_replaces(surveys) -> None:
    values = world(4)[1]
    _, wanted = surveys.run(values, early_fraction=0)
    policy = LookCloser()
    policy.started(surveys.started(early_fraction=0))
    policy.ingest(surveys.update(values[::-1], 0, values.size, revision=1))
    policy.ingest(surveys.update(values, 0, values.size, revision=2))
    policy.ingest(surveys.finished(values.size))
    assert corners(policy.suggest()) == corners(wanted)


def test_same_messages_same_suggestions(surveys) -> None:
    values = world(5)[1]
    assert surveys.run(values) == surveys.run(values)


def test_lost_frames_do_not_hold_up_the_end(surveys) -> None:
    values = world(6)[1]
    policy = LookCloser()
    policy.started(surveys.started())
    policy.ingest(surveys.update(values, 0, values.size - 100))
    policy.ingest(surveys.finished(values.size - 100, acquisition_pb2.FINISH_REASON_INCOMPLETE))
    assert len(policy.suggest()) == 16
    assert policy.done()


def test_waits_for_the_last_values(surveys) -> None:
    values = world(7)[1]
    policy = LookCloser()
    policy.started(surveys.started(early_fraction=0))
    policy.ingest(surveys.finished(values.size))
    policy.ingest(surveys.update(values, 0, values.size - 1))
    assert policy.suggest() == []
    policy.ingest(surveys.update(values, values.size - 1, 1))
    assert len(policy.suggest()) == 16


def test_values_of_two_models_are_not_ranked_together(surveys) -> None:
    values = world(7)[1]
    half = values.size // 2
    for final_on, at_once in (("one_model", 0), ("covered", 16)):
        policy = LookCloser()
        policy.started(surveys.started(early_fraction=0, final_on=final_on))
        policy.ingest(surveys.update(values, 0, half, revision=1))
        policy.ingest(surveys.update(values, half, half, revision=2))
        policy.ingest(surveys.finished(values.size))
        assert len(policy.suggest()) == at_once
        policy.ingest(surveys.update(values, 0, half, revision=2))
        assert len(policy.suggest()) == 16 - at_once
        assert policy.done()


def test_waits_for_the_product_where_the_plan_says_so(surveys) -> None:
    values = world(7)[1]
    policy = LookCloser()
    policy.started(surveys.started(early_fraction=0, final_on="product"))
    policy.ingest(surveys.update(values, 0, values.size))
    policy.ingest(surveys.finished(values.size))
    policy.ingest(product_pb2.Product(product_id="other", analysis="com"))
    assert policy.suggest() == []
    policy.ingest(product_pb2.Product(product_id="a/novelty", analysis="novelty"))
    found = policy.suggest()
    assert len(found) == 16
    assert found[0].cause.product_id == "a/novelty"


@pytest.mark.parametrize("reason", ["STOPPED", "FAILED"])
def test_a_survey_that_was_stopped_is_left_alone(surveys, reason: str) -> None:
    values = world(7)[1]
    policy = LookCloser()
    policy.started(surveys.started(early_fraction=0))
    policy.ingest(surveys.update(values, 0, values.size))
    policy.ingest(
        surveys.finished(values.size, acquisition_pb2.FinishReason.Value(f"FINISH_REASON_{reason}"))
    )
    assert policy.suggest() == []
    assert policy.done()


def test_price_of_dose_leaves_out_what_is_not_worth_it(surveys) -> None:
    values = np.random.default_rng(0).gamma(4, 0.1, (SIZE, SIZE))
    values[40:44, 20:24] = 9.0
    values[10:14, 50:54] = 7.0
    _, late = surveys.run(values, early_fraction=0, price_per_e=1.0 / (FINE**2 * 100))
    assert sorted(corners(late)) == [(80.0, 400.0), (320.0, 160.0)]


def test_overlap_counts_only_what_is_new(surveys) -> None:
    values = np.random.default_rng(0).gamma(4, 0.1, (SIZE, SIZE))
    values[40:46, 20:26] = 9.0
    _, late = surveys.run(values, early_fraction=0, min_distance_nm=8.0, scans=2)
    (ya, xa), (yb, xb) = corners(late)
    assert max(abs(ya - yb), abs(xa - xb)) >= 16


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"smooth_px": 2}, "smooth_px must be odd"),
        ({"smooth_px": 1.5}, "'smooth_px' must be of type int"),
        ({"score": "median"}, "score must be"),
        ({"early_fraction": 2}, "early_fraction must lie in 0..1, not 2.0"),
        ({"compress": 1}, "'compress' must be of type bool"),
        ({"smoth_px": 3}, "unknown parameter 'smoth_px'"),
        ({"fine": 600}, "does not fit into the survey along y"),
    ],
)
def test_a_plan_that_cannot_be_steered_is_refused(surveys, change, text) -> None:
    with pytest.raises(PolicyError, match=re.escape(text)):
        LookCloser().started(surveys.started(**change))


def test_a_fine_scan_without_dose_is_refused(surveys) -> None:
    event = surveys.started()
    event.plan.steering.fine.dose_e_per_frame = 0
    with pytest.raises(PolicyError, match="dose_e_per_frame > 0"):
        LookCloser().started(event)
    event.plan.steering.ClearField("fine")
    with pytest.raises(PolicyError, match=r"steering\.fine"):
        LookCloser().started(event)


def test_no_budget_no_scan(surveys) -> None:
    for change in ({"scans": 0}, {"dose_budget_e": 0.0}):
        policy = LookCloser()
        policy.started(surveys.started(**change))
        assert policy.done()


def test_an_update_that_does_not_fit_its_frames_is_refused(surveys) -> None:
    policy = LookCloser()
    policy.started(surveys.started())
    update = surveys.update(np.ones((SIZE, SIZE)), 0, 10)
    update.frames[0].count = 11
    with pytest.raises(PolicyError, match="40 bytes of values for 11 frames"):
        policy.ingest(update)


def test_before_it_started_a_policy_suggests_nothing() -> None:
    assert LookCloser().suggest() == []


def test_suggestions_by_the_piece_are_all_made(surveys) -> None:
    _, novelty = world(1)
    policy = LookCloser()
    policy.started(surveys.started(size=SIZE, fine=FINE, scans=16, dose_budget_e=1e9, final_on="covered"))
    for update in surveys.updates(novelty, 500):
        policy.ingest(update)
    policy.ingest(surveys.finished(novelty.size))
    found = []
    while not policy.done():
        (one,) = policy.suggest(1)
        found.append(one)
    assert [s.number for s in found] == list(range(1, 17))
    assert len(set(corners(found))) == 16
    assert policy.suggest(1) == []
