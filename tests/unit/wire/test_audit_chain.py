"""Chains of audit records: whatever is changed, removed, swapped or put in is found where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.v1.control_pb2 import ChainLink, Command, Lease, LeaseChange, Outcome, SteeringEvent
from nextem.wire.audit_chain import (
    NO_RECORD,
    SHA256_HEADER,
    ChainBroken,
    Head,
    Verifier,
    sealed,
    sha256,
    verified,
)
from nextem.wire.log import AUDIT, Position, Record

EVENTS = st.one_of(
    st.builds(lambda name: SteeringEvent(command=Command(command_id=name, issuer="anna")), st.text()),
    st.builds(lambda name: SteeringEvent(outcome=Outcome(command_id=name)), st.text()),
    st.builds(lambda n: SteeringEvent(lease=LeaseChange(lease=Lease(epoch=n))), st.integers(0, 1 << 40)),
)
CHAINS = st.lists(EVENTS, min_size=2, max_size=12)


def records(events: Sequence[SteeringEvent], chain_id: str = "chain") -> list[Record]:
    head, found = Head(0, NO_RECORD), []
    for event in events:
        link = ChainLink(chain_id=chain_id, instrument="tem", edge_boot_id="boot", edge_ns=7)
        value, head = sealed(event, head, link)
        found.append(Record(Position(AUDIT, 0, len(found)), value, b"", {SHA256_HEADER: head.sha256}))
    return found


def broken_at(found: Sequence[Record]) -> int | None:
    """Offset of the first break in records that lie in this order, or None."""
    again = [replace(r, position=Position(AUDIT, 0, place)) for place, r in enumerate(found)]
    try:
        verified(again)
    except ChainBroken as error:
        return error.at.position and error.at.position.offset
    return None


@given(CHAINS)
def test_a_chain_as_written_is_whole(events: list[SteeringEvent]) -> None:
    found, chains = verified(records(events))
    for event in found:
        event.ClearField("chain")
    assert found == events
    assert [(c.chain_id, c.instrument, c.head.sequence) for c in chains] == [("chain", "tem", len(events))]


@given(CHAINS, st.data())
def test_any_flipped_bit_is_found(events: list[SteeringEvent], data: st.DataObject) -> None:
    whole = records(events)
    place = data.draw(st.integers(0, len(whole) - 1))
    value = bytearray(whole[place].value)
    value[data.draw(st.integers(0, len(value) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    whole[place] = replace(whole[place], value=bytes(value))
    assert broken_at(whole) == place


@given(CHAINS, st.data())
def test_a_record_rewritten_with_its_header_is_found_at_the_next(
    events: list[SteeringEvent], data: st.DataObject
) -> None:
    whole = records(events)
    place = data.draw(st.integers(0, len(whole) - 2))
    event = SteeringEvent.FromString(bytes(whole[place].value))
    event.chain.unix_ns += 1
    value = event.SerializeToString()
    whole[place] = replace(whole[place], value=value, headers={SHA256_HEADER: sha256(value)})
    assert broken_at(whole) == place + 1


@given(CHAINS, st.data())
def test_a_removed_record_is_found(events: list[SteeringEvent], data: st.DataObject) -> None:
    whole = records(events)
    place = data.draw(st.integers(0, len(whole) - 2))
    del whole[place]
    assert broken_at(whole) == place


@given(CHAINS, st.data())
def test_two_swapped_records_are_found(events: list[SteeringEvent], data: st.DataObject) -> None:
    whole = records(events)
    first = data.draw(st.integers(0, len(whole) - 2))
    second = data.draw(st.integers(first + 1, len(whole) - 1))
    whole[first], whole[second] = whole[second], whole[first]
    assert broken_at(whole) == first


@given(CHAINS, EVENTS, st.data())
def test_an_inserted_record_is_found(
    events: list[SteeringEvent], forged: SteeringEvent, data: st.DataObject
) -> None:
    """However well it is made: it takes a number that the next one has, or breaks the chain."""
    whole = records(events)
    place = data.draw(st.integers(1, len(whole) - 1))
    link = ChainLink(chain_id="chain", instrument="tem", edge_boot_id="forged")
    before = Head(place, sha256(bytes(whole[place - 1].value)))
    value, head = sealed(forged, before, link)
    whole.insert(place, Record(Position(AUDIT, 0, 0), value, b"", {SHA256_HEADER: head.sha256}))
    assert broken_at(whole) == place + 1


@given(CHAINS, st.data())
def test_copies_of_an_edge_that_died_are_no_break(events: list[SteeringEvent], data: st.DataObject) -> None:
    whole = records(events)
    place = data.draw(st.integers(1, len(whole)))
    again = data.draw(st.integers(0, place - 1))
    found, chains = verified([*whole[:place], *whole[again:place], *whole[place:]])
    assert len(found) == len(events)
    assert chains[0].copies == place - again


def test_chains_of_several_edges_lie_in_one_log() -> None:
    event = SteeringEvent(outcome=Outcome(command_id="c"))
    first, second = records([event] * 3, "one"), records([event] * 2, "two")
    _, chains = verified([first[0], second[0], first[1], second[1], first[2]])
    assert [(c.chain_id, c.head.sequence) for c in chains] == [("one", 3), ("two", 2)]


def test_an_end_that_was_cut_off_or_rewritten_is_found_by_what_the_edge_keeps() -> None:
    whole = records([SteeringEvent(outcome=Outcome(command_id=str(n))) for n in range(3)])
    kept = Head(3, sha256(bytes(whole[2].value)))
    verifier = Verifier()
    for record in whole[:2]:
        verifier.take(record)
    with pytest.raises(ChainBroken, match="the log ends at record 2, the edge has written 3"):
        verifier.check_head("chain", kept)
    verifier.check_head("chain", Head(2, sha256(bytes(whole[1].value))))
    with pytest.raises(ChainBroken, match="not the record that the edge wrote"):
        verifier.check_head("chain", Head(2, b"x" * 32))


def test_what_is_no_record_of_a_chain_is_named() -> None:
    plain = Record(Position(AUDIT, 0, 4), SteeringEvent(command=Command()).SerializeToString())
    with pytest.raises(ChainBroken, match=r"nextem.audit\[0\] offset 4: carries no chain"):
        verified([plain])
    with pytest.raises(ChainBroken, match="cannot be read"):
        verified([replace(plain, value=b"\xff\xff\xff")])
