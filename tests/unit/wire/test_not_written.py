"""An acknowledgement without an offset is none: the record may never have been written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nextem.wire.broker_log import not_written
from nextem.wire.kafka import _failure
from nextem.wire.log import LogUnavailable


@pytest.mark.parametrize("offset", [None, -1, -1001])
def test_without_an_offset_it_may_be_tried_again(offset: int | None) -> None:
    failure = not_written(offset, "append to frames")
    assert isinstance(failure, LogUnavailable)
    assert "append to frames: acknowledged as a repetition" in str(failure)


@pytest.mark.parametrize("offset", [0, 7])
def test_with_one_it_is_written(offset: int) -> None:
    assert not_written(offset, "append to frames") is None


def test_kafka_python_tells_a_repetition_as_success() -> None:
    assert isinstance(_failure(SimpleNamespace(offset=-1), "append"), LogUnavailable)
    assert _failure(SimpleNamespace(offset=0), "append") is None
