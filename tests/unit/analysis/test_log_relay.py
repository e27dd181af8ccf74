from __future__ import annotations

import logging

import pytest

from nextem.analysis.log_relay import Relay, tell


def test_lines_come_out_as_they_went_in(caplog: pytest.LogCaptureFixture) -> None:
    relay = Relay()
    there = logging.Logger("nextem.there")
    there.addHandler(relay)
    there.warning("lost %d", 3)
    try:
        raise ValueError("why")
    except ValueError:
        there.exception("failed")
    lines = relay.take()
    assert relay.take() == []
    with caplog.at_level(logging.INFO):
        tell(lines, "worker 1")
    told = [(r.name, r.levelname, r.getMessage().splitlines()) for r in caplog.records]
    assert told[0] == ("nextem.there", "WARNING", ["worker 1: lost 3"])
    assert told[1][2][0] == "worker 1: failed"
    assert told[1][2][-1] == "ValueError: why"
