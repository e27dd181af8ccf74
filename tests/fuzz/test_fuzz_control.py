"""Random lives of the control agent: whatever is sent, and wherever it dies, the instrument is never misled.

Each sequence (:mod:`control_life`) drives the real agent (rules, leases, journal on disk, runner, modes)
without its threads: the world decides which of its queues goes on next. Messages are replayed, reordered,
doubled, changed and held back; the clock jumps; at any door of driver and journal the edge may die, a stop
may come in, the operator may take over, or the driver may fail. :mod:`control_world` checks every act.
``NEXTEM_FUZZ_SEQUENCES`` says how many sequences; a failure names the seed that plays it again.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_life import STEPS, World
from control_world import Violation

SEQUENCES = int(os.environ.get("NEXTEM_FUZZ_SEQUENCES", "400"))
FIRST_SEED = int(os.environ.get("NEXTEM_FUZZ_SEED", "0"))


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a place: the journal syncs for every command."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="nextem-fuzz-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)


def test_no_sequence_misleads_the_instrument(quiet: None, folder: Path) -> None:
    executed = started = crashes = stops = 0
    for seed in range(FIRST_SEED, FIRST_SEED + SEQUENCES):
        place = folder / str(seed)
        place.mkdir()
        world = None
        try:
            world = World(seed, place)
            world.run()
        except (Exception, Violation) as error:
            raise AssertionError(f"NEXTEM_FUZZ_SEED={seed} NEXTEM_FUZZ_SEQUENCES=1: {error!r}") from error
        finally:
            if world is not None:
                world.agent._journal.close()
            shutil.rmtree(place)
        executed += len(world.ledger.executed)
        started += len(world.ledger.started)
        crashes += world.crashes
        stops += world.column.stops
    print(
        f"{SEQUENCES} sequences of {STEPS} steps: {executed} commands executed, {started} scans started,"
        f" {stops} stops, {crashes} crashes"
    )
    if SEQUENCES >= 100:  # else nothing was tried
        assert min(executed, started, crashes, stops) > SEQUENCES // 20
