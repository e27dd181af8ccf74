"""``nextem audit verify`` reads a log of either kind."""

from __future__ import annotations

from click.testing import CliRunner

from nextem.cli.main import main
from nextem.v1.control_pb2 import ChainLink, Outcome, SteeringEvent
from nextem.wire.audit_chain import NO_RECORD, SHA256_HEADER, Head, sealed
from nextem.wire.ids import uuid7
from nextem.wire.log import AUDIT, Log


def append_chain(log: Log, instrument: str) -> str:
    """Three records; returns the chain's id."""
    link = ChainLink(chain_id=uuid7(), instrument=instrument)
    head = Head(0, NO_RECORD)
    for number in range(3):
        value, head = sealed(SteeringEvent(outcome=Outcome(command_id=str(number))), head, link)
        log.append(AUDIT, value, headers={SHA256_HEADER: head.sha256}).result(30)
    return link.chain_id


def test_the_chains_of_a_log_are_found_whole(log: Log, log_address: str) -> None:
    first = append_chain(log, "one")
    second = append_chain(log, "two")
    result = CliRunner().invoke(main, ["audit", "verify", "--log", log_address, "--home", "/nowhere"])
    assert result.exit_code == 0, result.output
    assert f"chain {first} of one: 3 records, whole" in result.output
    assert f"chain {second} of two: 3 records, whole" in result.output


def test_a_log_that_is_not_there_is_told_in_a_line() -> None:
    result = CliRunner().invoke(main, ["audit", "verify", "--log", "/nowhere/log", "--home", "/nowhere"])
    assert (result.exit_code, result.output) == (1, "Error: there is no log at /nowhere/log\n")
