"""What the log says of commands, in whatever order it is read."""

from __future__ import annotations

import itertools
import time
from contextlib import closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nextem.operator.experiment import Frames
from nextem.operator.ledger import DEEDS, Ledger, LogReader
from nextem.v1 import acquisition_pb2, control_pb2, product_pb2
from nextem.wire.log import ACQUISITIONS, AUDIT, PRODUCTS, Position, Record, open_log

STATES = control_pb2.CommandState
_OFFSETS = itertools.count()


def record(topic: str, message: object) -> Record:
    return Record(Position(topic, 0, next(_OFFSETS)), message.SerializeToString())  # type: ignore[attr-defined]


def told(**event: object) -> Record:
    made = control_pb2.SteeringEvent(**event)  # type: ignore[arg-type]
    made.chain.instrument = "tem"
    return record(AUDIT, made)


def outcome(state: str, **more: object) -> Record:
    named = control_pb2.Outcome(
        command_id="c",
        acquisition_id="a",
        state=STATES.Value(f"COMMAND_STATE_{state}"),
        **more,  # type: ignore[arg-type]
    )
    return told(outcome=named)


def stop(issuer: str, *, safe: bool = False) -> Record:
    return told(command=control_pb2.Command(issuer=issuer, stop=control_pb2.Stop(safe_state=safe)))


BEGUN = record(
    ACQUISITIONS,
    acquisition_pb2.AcquisitionEvent(
        started=acquisition_pb2.AcquisitionStarted(acquisition_id="a", command_id="c", frames_announced=10)
    ),
)
ENDED = record(
    ACQUISITIONS,
    acquisition_pb2.AcquisitionEvent(
        finished=acquisition_pb2.AcquisitionFinished(
            acquisition_id="a", frames_announced=10, frames_stored=9, frames_lost=1
        )
    ),
)
MADE = record(
    PRODUCTS,
    product_pb2.ProductEvent(
        product=product_pb2.Product(
            product_id="a/x", acquisition_id="a", name="x", analysis="x", uri="products/a/x.zarr",
            covered=[{"first": 0, "count": 4}, {"first": 5, "count": 5}], made_with=1,
        )
    ),
)  # fmt: skip
ALL = [
    told(command=control_pb2.Command(command_id="c")),
    outcome("STARTED"),
    BEGUN,
    told(command=control_pb2.Command(command_id="fine", cause={"acquisition_id": "a"})),
    ENDED,
    MADE,
    outcome("DONE"),
]


@given(st.permutations(ALL), st.lists(st.sampled_from(ALL)))
def test_order_and_repetition_do_not_matter(records: list[Record], again: list[Record]) -> None:
    ledger = Ledger("s3://bucket/em/")
    for each in [*records, *again]:
        ledger.read(each)
    seen = ledger.seen("c")
    assert seen is not None
    assert (seen.state, seen.over, seen.frames) == (control_pb2.COMMAND_STATE_DONE, True, Frames(10, 9, 1))
    assert [(made.covered, made.made_with, made.product.uri) for made in seen.products] == [
        (9, 1, "s3://bucket/em/products/a/x.zarr")
    ]
    assert len(seen.steered) == 1
    assert ledger.seen("other") is None


def test_who_stopped_it_is_kept_and_a_person_s_word_counts() -> None:
    ledger = Ledger()
    for each in (stop("early"), outcome("STARTED"), stop("edge", safe=True), stop("anna"), stop("edge")):
        ledger.read(each)
    ledger.read(outcome("FAILED", rule="stopped"))
    ledger.read(stop("late", safe=True))
    seen = ledger.seen("c")
    assert seen is not None
    assert (seen.stopped_by, seen.rule, ledger.safe_by("tem"), ledger.safe_by("other")) == (
        "anna", "stopped", "late", "",
    )  # fmt: skip


def test_an_acquisition_that_was_begun_is_known_before_its_outcome() -> None:
    ledger = Ledger()
    ledger.read(BEGUN)
    seen = ledger.seen("c")
    assert seen is not None
    assert (seen.state, seen.frames) == (control_pb2.COMMAND_STATE_STARTED, Frames(10, 0, 0))


def test_it_is_quiet_since_the_last_word_of_a_command_or_what_it_made() -> None:
    now_s = 0.0
    ledger = Ledger(now_s=lambda: now_s)
    ledger.read(BEGUN)
    now_s = 5.0
    assert ledger.quiet_s("c") == 5.0
    ledger.read(MADE)
    now_s = 6.0
    assert (ledger.quiet_s("c"), ledger.quiet_s("other")) == (1.0, 0.0)


def test_a_reader_has_caught_up_once_everything_that_was_there_is_read(tmp_path: Path) -> None:
    ledger = Ledger()
    with closing(open_log(str(tmp_path / "log"))) as log:
        for each in (outcome("STARTED"), outcome("DONE")):
            log.append(AUDIT, bytes(each.value)).result()
        reader = LogReader(log, ledger, DEEDS)
        assert not reader.caught_up
        reader.start()
        until_s = time.monotonic() + 30
        while not reader.caught_up:
            assert time.monotonic() < until_s
            time.sleep(0.01)
        seen = ledger.seen("c")
        assert seen is not None
        assert seen.over
        reader.close()


def test_why_an_analysis_has_made_nothing_is_known() -> None:
    ledger = Ledger()
    product = product_pb2.Product(product_id="a/x/failed", acquisition_id="a", analysis="x", kind="failed")
    product.provenance.update({"notes": {"error": "AnalysisError: why"}})
    for each in (BEGUN, record(PRODUCTS, product_pb2.ProductEvent(product=product))):
        ledger.read(each)
    seen = ledger.seen("c")
    assert seen is not None
    assert [made.error for made in seen.products] == ["AnalysisError: why"]
