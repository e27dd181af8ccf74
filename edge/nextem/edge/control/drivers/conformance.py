"""What every driver must do, to be run against a real one:

    python -m nextem.edge.control.drivers.conformance HOST:PORT --step-nm 10

It moves each axis that can move by the step and back, changes the defocus by the step and back, and blanks
and unblanks the beam. Have the sample out. It starts no scan.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nextem.edge.control.capability import DWELL, SCAN, STAGE_WHILE_SCANNING, changes
from nextem.edge.control.driver import Blanks, CapabilityMissing, Driver, DriverError, DriverRefused
from nextem.v1 import control_pb2 as pb
from nextem.v1.plan_pb2 import Scan
from nextem.wire.key_folder import KeyFolder

M = TypeVar("M", pb.Stage, pb.Optics)

AXES = ("y_nm", "x_nm", "z_nm")
SETTABLE = frozenset(
    {f"stage.{axis}" for axis in AXES} | {f"optics.{f.name}" for f in pb.Optics.DESCRIPTOR.fields} | {SCAN}
)


class NotConforming(AssertionError):
    """A driver breaks a rule. The message says which, and what it did."""


@dataclass(slots=True)
class Bench:
    """A driver under test. ``step_nm`` of every change; ``tolerance_nm`` of what is read back."""

    driver: Driver
    step_nm: float = 10.0
    tolerance_nm: float = 1.0
    _epoch: int = field(init=False)

    def __post_init__(self) -> None:
        self._epoch = self.driver.get_state().command_epoch

    def epoch(self) -> int:
        """A new one."""
        self._epoch += 1
        return self._epoch

    def seen(self, state: pb.InstrumentState) -> None:
        """A call that counts by itself has come to this state."""
        self._epoch = max(self._epoch, state.command_epoch)

    def can(self, capability: str) -> bool:
        told = self.driver.get_state().capabilities
        return not told or capability in told

    def refused(self, what: str, kind: type[DriverError], call: Callable[[], object]) -> None:
        """``call`` must raise ``kind`` and change nothing."""
        before = self.driver.get_state()
        try:
            call()
        except kind:
            pass
        except DriverError as error:
            raise NotConforming(
                f"{what}: {type(error).__name__} instead of {kind.__name__}: {error}"
            ) from error
        else:
            raise NotConforming(f"{what} was not refused")
        after = self.driver.get_state()
        _require(
            not changes("stage", after.stage, before.stage)
            and not changes("optics", after.optics, before.optics)
            and after.command_epoch == before.command_epoch,
            f"{what} was refused and has changed something",
        )


def state_is_complete(bench: Bench) -> None:
    """The state names the instrument, has stage and optics, and capabilities that exist."""
    state = bench.driver.get_state()
    _require(bool(state.instrument), "the instrument has no name")
    _require(state.HasField("stage") and state.HasField("optics"), "stage or optics is not told")
    unknown = sorted(set(state.capabilities) - SETTABLE - {DWELL, STAGE_WHILE_SCANNING})
    _require(not unknown, f"capabilities that nobody can ask for: {unknown}")


def reading_changes_nothing(bench: Bench) -> None:
    """Two reads tell the same epoch and version."""
    one, two = bench.driver.get_state(), bench.driver.get_state()
    _require(one.command_epoch == two.command_epoch, "reading has changed the epoch")
    _require(one.state_version == two.state_version, "reading has changed the version")


def stage_moves_and_comes_back(bench: Bench) -> None:
    """Each axis goes by the step and the others stay; version and epoch follow."""
    for axis in (a for a in AXES if bench.can(f"stage.{a}")):
        before = bench.driver.get_state()
        to = _changed(before.stage, axis, getattr(before.stage, axis) + bench.step_nm)
        epoch = bench.epoch()
        there = bench.driver.move_stage(epoch, to)
        for other in AXES:
            off = abs(getattr(there.stage, other) - getattr(to, other))
            _require(off <= bench.tolerance_nm, f"a move of {axis} leaves {other} {off:g} nm off")
        _require(there.command_epoch == epoch, f"epoch {there.command_epoch} after a command of {epoch}")
        _require(there.state_version > before.state_version, f"a move of {axis} is not counted")
        bench.driver.move_stage(bench.epoch(), before.stage)


def optics_are_set_and_reset(bench: Bench) -> None:
    """Defocus and blanking are set alone and read back."""
    before = bench.driver.get_state().optics
    if bench.can("optics.defocus_nm"):
        to = _changed(before, "defocus_nm", before.defocus_nm + bench.step_nm)
        off = abs(bench.driver.set_optics(bench.epoch(), to).optics.defocus_nm - to.defocus_nm)
        _require(off <= bench.tolerance_nm, f"the defocus is {off:g} nm off")
    if bench.can("optics.beam_blanked"):
        for blanked in (True, False):
            to = _changed(before, "beam_blanked", blanked)
            told = bench.driver.set_optics(bench.epoch(), to).optics.beam_blanked
            _require(told == blanked, f"beam_blanked is {told} after it was set to {blanked}")
    bench.driver.set_optics(bench.epoch(), before)


def what_it_cannot_do_is_refused(bench: Bench) -> None:
    """Fields outside the capabilities are refused as such."""
    state = bench.driver.get_state()
    for capability in sorted(SETTABLE - set(state.capabilities)) if state.capabilities else ():
        group, _, name = capability.partition(".")
        if group == "stage":
            stage = _changed(state.stage, name, getattr(state.stage, name) + bench.step_nm)
            call = _call(bench.driver.move_stage, bench.epoch(), stage)
        elif group == "optics":
            old = getattr(state.optics, name)
            optics = _changed(state.optics, name, not old if isinstance(old, bool) else old + 1.0)
            call = _call(bench.driver.set_optics, bench.epoch(), optics)
        else:
            call = _call(bench.driver.start, bench.epoch(), "conformance")
        bench.refused(capability, CapabilityMissing, call)


def nonsense_is_refused(bench: Bench) -> None:
    """Not a number is no place."""
    state = bench.driver.get_state()
    for value in (math.nan, math.inf):
        to = _changed(state.stage, "y_nm", value)
        bench.refused(f"y_nm={value}", DriverRefused, _call(bench.driver.move_stage, bench.epoch(), to))


def older_epochs_are_refused(bench: Bench) -> None:
    """What was overtaken does not act any more."""
    state = bench.driver.get_state()
    bench.driver.move_stage(bench.epoch(), state.stage)
    old = bench.driver.get_state().command_epoch - 1
    bench.refused("an older epoch", DriverRefused, _call(bench.driver.move_stage, old, state.stage))
    bench.refused("an older epoch", DriverRefused, _call(bench.driver.set_optics, old, state.optics))


def stop_is_never_refused(bench: Bench) -> None:
    """Whatever the epoch, however often; and it fences off what came before."""
    epoch = bench.epoch() + 1
    bench.epoch()
    for which in (epoch, epoch, 0):
        after = bench.driver.stop(which, "conformance")
        _require(after.command_epoch == epoch, f"epoch {after.command_epoch} after a stop of {epoch}")
        _require(not after.scanning, "a scan runs after a stop")
    stage = bench.driver.get_state().stage
    bench.refused(
        "a move from before a stop", DriverRefused, _call(bench.driver.move_stage, epoch - 1, stage)
    )


def stop_overtakes_a_move(bench: Bench) -> None:
    """Both calls come back; the state can be read; the stage can move again."""
    axes = [axis for axis in AXES if bench.can(f"stage.{axis}")]
    if not axes:
        return
    home = bench.driver.get_state().stage
    away = _changed(home, axes[0], getattr(home, axes[0]) + bench.step_nm)
    with _under_way(_call(bench.driver.move_stage, bench.epoch(), away)):  # stopped on the way, or before it
        bench.driver.stop(bench.epoch(), "conformance")
    back = bench.driver.move_stage(bench.epoch(), home)
    off = abs(getattr(back.stage, axes[0]) - getattr(home, axes[0]))
    _require(off <= bench.tolerance_nm, f"after a stop the stage comes back {off:g} nm off")


def a_blank_is_one_call_and_final(bench: Bench) -> None:
    """Where it can be had: the beam alone, again and again, and nothing older turns it on."""
    if not isinstance(bench.driver, Blanks) or not bench.can("optics.beam_blanked"):
        return
    before = bench.driver.get_state().optics
    was = bench.driver.set_optics(bench.epoch(), _changed(before, "beam_blanked", False))
    try:
        told = bench.driver.blank_beam(bench.epoch())
    except CapabilityMissing:
        return  # then the edge sets the optics
    for _ in range(2):
        bench.seen(told)
        touched = changes("optics", told.optics, was.optics).keys() - {"optics.beam_blanked"}
        _require(told.optics.beam_blanked, "the beam is on after a blank")
        _require(not touched, f"a blank changes {sorted(touched)}")
        _require(told.command_epoch > was.command_epoch, "a blank has no epoch of its own")
        old = was.command_epoch
        bench.refused("a beam from before", DriverRefused, _call(bench.driver.set_optics, old, was.optics))
        was.command_epoch, told = told.command_epoch, bench.driver.blank_beam(0)
    bench.seen(told)
    bench.driver.set_optics(bench.epoch(), before)


def a_blank_overtakes_a_move(bench: Bench) -> None:
    """Both calls come back, the beam is off, and the stage has gone on."""
    axes = [axis for axis in AXES if bench.can(f"stage.{axis}")]
    if not axes or not isinstance(bench.driver, Blanks) or not bench.can("optics.beam_blanked"):
        return
    before = bench.driver.get_state()
    away = _changed(before.stage, axes[0], getattr(before.stage, axes[0]) + bench.step_nm)
    with _under_way(_call(bench.driver.move_stage, bench.epoch(), away)) as failed:
        try:
            bench.seen(bench.driver.blank_beam(bench.epoch()))
        except CapabilityMissing:
            return
    after = bench.driver.get_state()
    _require(after.optics.beam_blanked, "the beam is on after a blank")
    off = abs(getattr(after.stage, axes[0]) - getattr(away, axes[0]))
    late = bool(failed) and isinstance(failed[0], DriverRefused)  # the blank was first
    _require(late or (not failed and off <= bench.tolerance_nm), f"a blank has stopped a move: {failed}")
    bench.driver.move_stage(bench.epoch(), before.stage)
    bench.driver.set_optics(bench.epoch(), before.optics)


def scans_are_defined_and_forgotten(bench: Bench) -> None:
    """Defining twice is once; what is not defined does not start; a stop forgets."""
    if not bench.can(SCAN):
        return
    scan = Scan(size_y=2, size_x=3, step_nm=1.0, dwell_s=1e-3)
    for _ in range(2):
        state = bench.driver.define_scan(bench.epoch(), "conformance", scan, 10.0)
        _require(list(state.defined_scans) == ["conformance"], f"defined: {list(state.defined_scans)}")
    other = Scan(size_y=2, size_x=3, step_nm=2.0, dwell_s=1e-3)
    bench.refused(
        "another scan by a known name",
        DriverRefused,
        _call(bench.driver.define_scan, bench.epoch(), "conformance", other, 10.0),
    )
    bench.refused("an unknown scan", DriverRefused, _call(bench.driver.start, bench.epoch(), "unknown"))
    state = bench.driver.stop(bench.epoch(), "conformance")
    _require(not state.defined_scans, "a stop does not forget the scans")


CHECKS: tuple[Callable[[Bench], None], ...] = (
    state_is_complete,
    reading_changes_nothing,
    stage_moves_and_comes_back,
    optics_are_set_and_reset,
    what_it_cannot_do_is_refused,
    nonsense_is_refused,
    older_epochs_are_refused,
    stop_is_never_refused,
    stop_overtakes_a_move,
    a_blank_is_one_call_and_final,
    a_blank_overtakes_a_move,
    scans_are_defined_and_forgotten,
)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise NotConforming(otherwise)


@contextmanager
def _under_way(call: Callable[[], object]) -> Iterator[list[DriverError]]:
    """Within, ``call`` is under way or about to be; after it, it has come back: what it failed with."""
    begun, failed = threading.Event(), list[DriverError]()

    def run() -> None:
        begun.set()
        try:
            call()
        except DriverError as error:
            failed.append(error)

    caller = threading.Thread(target=run)
    caller.start()
    begun.wait()
    try:
        yield failed
    finally:
        caller.join(60.0)
    _require(not caller.is_alive(), "a call goes on 60 s after it was overtaken")


def _changed(message: M, name: str, value: float) -> M:
    made = type(message)()
    made.CopyFrom(message)
    setattr(made, name, value)
    return made


def _call(method: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: method(*arguments)


def main() -> int:
    """Runs every check and prints a line for each; 1 when one does not hold."""
    from nextem.edge.control.grpc_driver import GrpcDriver

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("address", help="HOST:PORT of the gRPC service Instrument")
    parser.add_argument("--step-nm", type=float, default=10.0)
    parser.add_argument("--tolerance-nm", type=float, default=1.0)
    parser.add_argument(
        "--keys", type=Path, help="folder of `nextem keys`, where it is served with certificates"
    )
    parser.add_argument("--instrument", default="", help="whose driver it is; needed with --keys")
    options = parser.parse_args()
    keys = KeyFolder(options.keys) if options.keys else None
    driver = GrpcDriver(options.address, keys=keys, instrument=options.instrument)
    failed = 0
    for check in CHECKS:
        try:
            check(Bench(driver, options.step_nm, options.tolerance_nm))
        except (NotConforming, DriverError) as error:
            failed += 1
            print(f"FAILED  {check.__name__}: {error}")
        else:
            print(f"ok      {check.__name__}")
    driver.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
