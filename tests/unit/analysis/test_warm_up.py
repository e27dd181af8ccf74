"""The warm-up runs every built-in analysis; one that it cannot run keeps the service from starting."""

from __future__ import annotations

import logging

import pytest

from nextem.analysis.warm_up import warm_up


def test_every_built_in_analysis_can_be_warmed_up(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warm_up()
    assert not caplog.records  # none was switched off on the way
