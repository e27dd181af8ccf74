"""The journal: no command twice, no counter backwards, nothing forgotten."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nextem.edge.control.journal import IllegalTransition, Journal, JournalError
from nextem.edge.control.states import DONE, FAILED, FINAL, RECEIVED, REJECTED, STARTED, TRANSITIONS, UNKNOWN
from nextem.v1.control_pb2 import CommandState, Outcome

DIGEST = b"d" * 32


def outcome(command_id: str, state: CommandState = RECEIVED, **fields: Any) -> Outcome:
    return Outcome(command_id=command_id, state=state, received_ns=5, **fields)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db", "boot-1")
    yield journal
    journal.close()


def after_a_crash(tmp_path: Path, name: str) -> Path:
    """The journal's files as the disk has them now, while their writer still holds them."""
    for suffix in ("", "-wal"):
        shutil.copyfile(tmp_path / f"journal.db{suffix}", tmp_path / f"{name}.db{suffix}")
    return tmp_path / f"{name}.db"


def test_a_command_goes_from_started_to_done(journal: Journal) -> None:
    assert journal.lookup("a") is None
    started = journal.start(outcome("a"), DIGEST, 7, 100.0)
    assert (started.state, started.command_epoch) == (STARTED, 1)
    entry = journal.lookup("a")
    assert entry is not None
    assert (entry.state, entry.digest, entry.outcome) == (STARTED, DIGEST, started)
    done = outcome("a", DONE, command_epoch=1, at_driver_ns=9)
    journal.finish(done, 11)
    entry = journal.lookup("a")
    assert entry is not None
    assert entry.outcome == done


def test_a_rejected_command_is_remembered(journal: Journal) -> None:
    journal.reject(outcome("a", REJECTED), DIGEST, 6)
    entry = journal.lookup("a")
    assert entry is not None
    assert entry.state == REJECTED
    assert journal.command_epoch == 0
    assert journal.dose_used_e == 0.0


def test_what_is_rejected_ends_as_rejected(journal: Journal) -> None:
    with pytest.raises(IllegalTransition, match="COMMAND_STATE_RECEIVED to COMMAND_STATE_DONE"):
        journal.reject(outcome("a", DONE), DIGEST, 6)
    assert journal.lookup("a") is None


def test_no_command_starts_twice(journal: Journal) -> None:
    journal.start(outcome("a"), DIGEST, 7, 100.0)
    with pytest.raises(IllegalTransition, match="command a is recorded already"):
        journal.start(outcome("a"), DIGEST, 8, 100.0)
    assert journal.command_epoch == 1
    assert journal.dose_used_e == 100.0


def test_an_end_needs_a_start_and_comes_once(journal: Journal) -> None:
    with pytest.raises(IllegalTransition, match="nothing recorded to COMMAND_STATE_DONE"):
        journal.finish(outcome("a", DONE), 1)
    journal.start(outcome("a"), DIGEST, 7, 0.0)
    journal.finish(outcome("a", FAILED), 8)
    with pytest.raises(IllegalTransition, match="COMMAND_STATE_FAILED to COMMAND_STATE_DONE"):
        journal.finish(outcome("a", DONE), 9)


def test_dose_is_reserved_at_the_start_and_given_back_only_when_nothing_ran(journal: Journal) -> None:
    journal.start(outcome("a"), DIGEST, 7, 100.0)
    journal.start(outcome("b"), DIGEST, 7, 10.0)
    assert journal.dose_used_e == 110.0
    journal.finish(outcome("a", FAILED), 8)
    assert journal.dose_used_e == 110.0
    journal.finish(outcome("b", FAILED), 8, release_dose=True)
    assert journal.dose_used_e == 100.0


def test_where_the_dose_went_is_kept_unless_nothing_ran(tmp_path: Path, journal: Journal) -> None:
    journal.start(outcome("a"), DIGEST, 7, 100.0, exposure=b"here")
    journal.start(outcome("b"), DIGEST, 7, 10.0, exposure=b"there")
    journal.start(outcome("c"), DIGEST, 7, 0.0)
    assert journal.exposures() == [b"here", b"there"]
    journal.finish(outcome("b", FAILED), 8, release_dose=True)
    assert journal.exposures() == [b"here"]
    after = Journal(after_a_crash(tmp_path, "after"), "boot-2")
    assert after.exposures() == [b"here"]
    after.close()


def test_a_journal_of_version_1_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old = Journal(path, "boot-1")
    old.start(outcome("a"), DIGEST, 7, 100.0)
    old.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(
            "ALTER TABLE commands DROP COLUMN exposure; DROP TABLE requests; PRAGMA user_version = 1;"
        )
    journal = Journal(path, "boot-2")
    entry = journal.lookup("a")
    assert entry is not None
    assert (entry.state, journal.dose_used_e, journal.exposures()) == (UNKNOWN, 100.0, [])
    journal.start(outcome("b"), DIGEST, 7, 1.0, exposure=b"here")
    journal.close()


def test_a_journal_of_version_2_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    Journal(path, "boot-1").close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE requests; PRAGMA user_version = 2;")
    journal = Journal(path, "boot-2")
    assert journal.is_first(DIGEST, 1)
    journal.close()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 250_000), st.booleans()), max_size=40))
def test_no_signed_request_is_taken_twice(asked: list[tuple[int, int, bool]]) -> None:
    """Whatever the order of their times, and over restarts; and what is new and not old is taken."""
    taken: set[bytes] = set()
    newest = 0
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "j.db", "boot")
        for number, signed_ms, restart in asked:
            digest = b"%d %d" % (number, signed_ms)  # the time is signed, so it is part of what is asked
            if restart:
                journal.close()
                journal = Journal(Path(folder) / "j.db", "boot")
            first = journal.is_first(digest, signed_ms)
            assert first == (digest not in taken and signed_ms >= newest - 90_000)
            if first:
                taken.add(digest)
                newest = max(newest, signed_ms)
        journal.close()


def test_the_epoch_passes_what_the_instrument_remembers(journal: Journal) -> None:
    assert journal.start(outcome("a"), DIGEST, 7, 0.0, epoch_above=41).command_epoch == 42
    assert journal.start(outcome("b"), DIGEST, 7, 0.0, epoch_above=3).command_epoch == 43


def test_a_stop_is_recorded_whole_and_raises_the_epoch(journal: Journal) -> None:
    journal.record_stop(outcome("s", DONE, command_epoch=5), DIGEST, 6, 7)
    entry = journal.lookup("s")
    assert entry is not None
    assert entry.state == DONE
    assert journal.command_epoch == 5


def test_after_a_crash_started_is_unknown_for_good(tmp_path: Path, journal: Journal) -> None:
    journal.start(outcome("begun"), DIGEST, 7, 100.0)
    journal.amend(outcome("begun", STARTED, command_epoch=1, at_driver_ns=8))
    journal.start(outcome("ended"), DIGEST, 7, 10.0)
    journal.finish(outcome("ended", DONE), 8)
    epoch = journal.next_lease_epoch()
    again = Journal(after_a_crash(tmp_path, "crashed"), "boot-2")
    try:
        entry = again.lookup("begun")
        assert entry is not None
        assert entry.state == UNKNOWN
        assert entry.outcome.state == UNKNOWN
        assert entry.outcome.rule == "edge_restarted"
        assert entry.outcome.at_driver_ns == 8
        ended = again.lookup("ended")
        assert ended is not None
        assert ended.state == DONE
        with pytest.raises(IllegalTransition):
            again.finish(outcome("begun", DONE), 9)
        with pytest.raises(IllegalTransition):
            again.start(outcome("begun"), DIGEST, 9, 0.0)
        assert again.dose_used_e == 110.0
        assert again.start(outcome("next"), DIGEST, 9, 0.0).command_epoch == 3
        assert again.next_lease_epoch() == epoch + 1
    finally:
        again.close()


def test_undelivered_are_those_not_confirmed_in_their_newest_state(journal: Journal) -> None:
    journal.reject(outcome("a", REJECTED), DIGEST, 6)
    journal.start(outcome("b"), DIGEST, 7, 0.0)
    journal.mark_delivered(["a", "b", "nobody"])
    assert [(o.command_id, o.state) for o in journal.undelivered()] == [("b", STARTED)]
    journal.finish(outcome("b", DONE), 8)
    assert [(o.command_id, o.state) for o in journal.undelivered()] == [("b", DONE)]
    journal.mark_delivered(["b"])
    assert journal.undelivered() == []


def test_undelivered_are_bounded_to_the_newest(journal: Journal) -> None:
    for number in range(5):
        journal.reject(outcome(str(number), REJECTED), DIGEST, 6)
    assert [o.command_id for o in journal.undelivered(2)] == ["3", "4"]


def test_every_write_but_notes_is_synced(tmp_path: Path, journal: Journal) -> None:
    journal.start(outcome("a"), DIGEST, 7, 0.0)
    journal.mark_delivered(["a"])
    assert journal._file.connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert journal._file.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_in_use_is_refused(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(JournalError, match=r"journal\.db: database is locked"):
        Journal(tmp_path / "journal.db", "boot-2")


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(JournalError, match=r"journal\.db: file is not a database"):
        Journal(path, "boot-1")


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(JournalError, match="schema version 9 is not 3"):
        Journal(path, "boot-1")


def test_a_closed_journal_says_so(journal: Journal) -> None:
    journal.close()
    with pytest.raises(JournalError, match="the file is closed"):
        journal.start(outcome("a"), DIGEST, 7, 0.0)
    with pytest.raises(JournalError, match="the file is closed"):
        journal.lookup("a")


def test_a_time_that_does_not_fit_is_refused_and_nothing_is_recorded(journal: Journal) -> None:
    with pytest.raises(JournalError, match="too large"):
        journal.start(outcome("a"), DIGEST, 1 << 64, 5.0)
    assert journal.lookup("a") is None
    assert journal.dose_used_e == 0.0
    assert journal.start(outcome("a"), DIGEST, 7, 0.0).command_epoch == 1


def test_the_table_ends_where_it_says() -> None:
    assert {DONE, FAILED, REJECTED, UNKNOWN} == FINAL
    reachable: set[CommandState | None] = {None}
    for _ in TRANSITIONS:
        reachable |= {onward for state in reachable for onward in TRANSITIONS[state]}
    assert reachable == set(TRANSITIONS)


class JournalMachine(RuleBasedStateMachine):
    """Any order of calls and restarts: the file agrees with a dictionary."""

    ids = st.sampled_from(["a", "b", "c"])

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.boot = 1
        self.journal = Journal(self.folder / "journal.db", "boot-1")
        self.model: dict[str, CommandState] = {}
        self.dose: dict[str, float] = {}
        self.epoch = 0

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.folder)

    @rule(command_id=ids, dose_e=st.sampled_from([0.0, 1.0, 64.0]))
    def start(self, command_id: str, dose_e: float) -> None:
        if command_id in self.model:
            with pytest.raises(IllegalTransition):
                self.journal.start(outcome(command_id), DIGEST, 1, dose_e)
            return
        self.epoch += 1
        assert self.journal.start(outcome(command_id), DIGEST, 1, dose_e).command_epoch == self.epoch
        self.model[command_id], self.dose[command_id] = STARTED, dose_e

    @rule(command_id=ids)
    def reject(self, command_id: str) -> None:
        if command_id in self.model:
            with pytest.raises(IllegalTransition):
                self.journal.reject(outcome(command_id, REJECTED), DIGEST, 1)
            return
        self.journal.reject(outcome(command_id, REJECTED), DIGEST, 1)
        self.model[command_id] = REJECTED

    @rule(
        command_id=ids,
        state=st.sampled_from([RECEIVED, STARTED, DONE, FAILED, REJECTED, UNKNOWN]),
        release=st.booleans(),
    )
    def finish(self, command_id: str, state: CommandState, release: bool) -> None:
        if state not in TRANSITIONS[self.model.get(command_id)] or command_id not in self.model:
            with pytest.raises(IllegalTransition):
                self.journal.finish(outcome(command_id, state), 1, release_dose=release)
            return
        self.journal.finish(outcome(command_id, state), 1, release_dose=release)
        self.model[command_id] = state
        if release:
            self.dose[command_id] = 0.0

    @precondition(lambda self: self.boot < 6)
    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.boot += 1
        self.journal = Journal(self.folder / "journal.db", f"boot-{self.boot}")
        for command_id, state in self.model.items():
            if state == STARTED:
                self.model[command_id] = UNKNOWN

    @invariant()
    def agrees(self) -> None:
        for command_id in ("a", "b", "c"):
            entry = self.journal.lookup(command_id)
            assert (entry and entry.state) == self.model.get(command_id)
            if entry is not None:
                assert entry.outcome.state == entry.state
        assert self.journal.dose_used_e == sum(self.dose.values())
        assert self.journal.command_epoch == self.epoch


JournalMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=20)
TestJournalMachine = JournalMachine.TestCase
