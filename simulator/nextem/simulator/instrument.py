"""The simulated microscope: stage, optics and scans, behind one lock, without any network.

Rules that it keeps: what it cannot do it refuses, and never clamps; epochs of commands do not fall;
scans may be defined while one runs; the stage does not move under a running scan; stopping always works.
Where there is a :class:`~nextem.simulator.world.World`, moves take their time and the column may fail.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import astuple, dataclass, field, replace

from nextem.simulator.column import ColumnState
from nextem.simulator.detector import BeamState, Detector, Exposure, Progress
from nextem.simulator.exposures import Armed, Deferred, SourceFactory
from nextem.simulator.merlin import EPOCH_DIGITS, FrameFormat
from nextem.simulator.settings import (
    MAX_FRAMES,
    InstrumentView,
    Interrupted,
    OpticsSetting,
    Refused,
    ScanDefinition,
    StagePosition,
    check,
    check_dwell,
    check_optics,
    check_scan,
    check_stage,
)
from nextem.simulator.stage import StageMechanics
from nextem.simulator.world import World

log = logging.getLogger(__name__)

MAX_DEFINED_SCANS = 64
_SETTLE_S = 5.0  # for the detector to say that the last batch is out
_STOP_S = 1.0  # for the current batch after a stop


@dataclass(slots=True)
class _State:
    stage: StagePosition = field(default_factory=StagePosition)
    optics: OpticsSetting = field(default_factory=OpticsSetting)
    scanning: bool = False
    scan_id: str = ""
    command_epoch: int = 0
    version: int = 1
    scans: dict[str, ScanDefinition] = field(default_factory=dict)
    armed: Armed | None = None
    moving: bool = False
    stops: int = 0


class Instrument:
    """One microscope with one detector. Thread-safe; every request returns the state after it.

    ``state_version`` counts changes of the stage and the optics and the starts and ends of scans; to define a
    scan changes nothing physical and is not counted. A scan is used up by starting it.
    Raises :class:`Refused` and :class:`OutOfRange`, and :class:`Interrupted` for what a stop ends on the way.
    """

    def __init__(
        self,
        name: str,
        detector: Detector,
        mode: FrameFormat,
        make_source: SourceFactory,
        world: World | None = None,
        moves_while_scanning: bool = False,
    ) -> None:
        """``moves_while_scanning``: the stage may move under a scan, as is wanted for a film of one place."""
        self.moves_while_scanning = moves_while_scanning
        self.name = name
        self._detector = detector
        self._make_source = make_source
        self._state = _State()
        self._world = world
        self._changed = threading.Condition()
        self._mode = mode
        self._dwell_s, self._slowed = 1e-3, 1.0  # of the newest acquisition
        self._trigger: threading.Event | None = None  # of the newest acquisition
        self._beam = BeamState(
            0, False
        )  # replaced as a whole, so that the detector reads it without the lock

    def view(self) -> InstrumentView:
        """The state now."""
        with self._changed:
            return self._view()

    def move_stage(self, command_epoch: int, to: StagePosition) -> InstrumentView:
        """Moves to ``to``. Refused while a scan runs, and while the stage moves."""
        check_stage(to)
        with self._changed:
            self._check_epoch(command_epoch)
            if not self.moves_while_scanning:
                self._check_idle("the stage does not move")
            elif self._state.moving:
                raise Refused("the stage does not move while it moves")
            if self._world is not None:
                self._travel(self._world, command_epoch, to)
            self._state.stage = to
            return self._applied(command_epoch)

    def set_optics(self, command_epoch: int, to: OpticsSetting) -> InstrumentView:
        """Sets every field of the optics; in force from the next batch of a running scan on."""
        check_optics(to)
        with self._changed:
            self._check_epoch(command_epoch)
            if self._world is not None:
                if not to.beam_blanked:
                    self._check_beam("the beam stays blanked")
                if not self._wait(self._world.set_s(self._state.optics, to)):
                    raise Interrupted("the optics were stopped before they were set")
                self._check_epoch(command_epoch)
                self._world.set_optics(to)
            self._state.optics = to
            return self._applied(command_epoch)

    def blank_beam(self, command_epoch: int) -> InstrumentView:
        """The beam is off from the next batch on. Never refused; what waits with an older epoch will be.

        The epoch becomes ``command_epoch``, or one more than it was where that is higher.
        """
        with self._changed:
            newest = 10**EPOCH_DIGITS - 1
            epoch = min(self._state.command_epoch + 1, newest)
            if epoch < command_epoch <= newest:
                epoch = command_epoch
            was_blanked = self._state.optics.beam_blanked
            self._state.optics = replace(self._state.optics, beam_blanked=True)
            if self._world is not None:
                self._world.set_optics(self._state.optics)
            return self._applied(epoch, counts=not was_blanked)

    def define_scan(self, command_epoch: int, scan: ScanDefinition) -> InstrumentView:
        """Makes a scan known, also while another runs. The same definition again changes nothing."""
        check_scan(scan)
        with self._changed:
            self._check_epoch(command_epoch)
            known = self._state.scans.get(scan.scan_id)
            if known is not None and known != scan:
                raise Refused(f"scan {scan.scan_id} is defined otherwise already")
            if known is None and len(self._state.scans) >= MAX_DEFINED_SCANS:
                raise Refused(f"{MAX_DEFINED_SCANS} scans are defined and not started, no more can be")
            self._state.scans[scan.scan_id] = scan
            return self._applied(command_epoch, counts=False)

    def start(self, command_epoch: int, scan_id: str) -> InstrumentView:
        """Starts a defined scan and returns at once. Refused while one runs.

        A detector that was armed takes the scan's frames, and must be armed for as many.
        """
        with self._changed:
            self._check_epoch(command_epoch)
            self._check_idle("no scan starts")
            if not self._state.optics.beam_blanked:
                self._check_beam("no scan starts")
            scan = self._state.scans.get(scan_id)
            if scan is None:
                raise Refused(f"scan {scan_id!r} is not defined, or has been started before")
            on_sample = scan.on_sample(self._state.stage)
            if self._state.armed is None:
                self._expose(command_epoch, on_sample, scan.size_yx)
            else:
                self._scan_armed(self._state.armed, command_epoch, on_sample)
            del self._state.scans[scan_id]
            return self._applied(command_epoch)

    @property
    def mode(self) -> FrameFormat:
        """The detector's mode for the next acquisition."""
        return self._mode

    def set_counter_depth(self, depth_bits: int) -> None:
        """Sets how far the detector counts. Refused while a scan runs; raises UnknownCounterDepth."""
        with self._changed:
            mode = replace(self._mode, depth_bits=depth_bits)
            self._check_detector("the counter depth does not change")
            self._mode = mode

    def set_raw(self, raw: bool) -> None:
        """Whether pixels go out as the chips send them. Refused while a scan runs; raises UnknownLayout."""
        with self._changed:
            mode = replace(self._mode, raw=raw)
            self._check_detector("the file format does not change")
            self._mode = mode

    @property
    def detector_busy(self) -> bool:
        """Whether the detector takes frames, or is armed."""
        return self._state.scanning or self._state.armed is not None

    def start_detector(
        self, frames: int, trigger: threading.Event | None, *, external: bool = False, dwell_s: float = 1e-3
    ) -> InstrumentView:
        """Takes frames as the detector's control port asks, each of 1000 electrons. Refused while it is busy.

        With a ``trigger`` it is armed: the frames are those of the next scan that starts, which is the
        trigger where that is ``external``. Without, or where the trigger comes before any scan, the beam
        stays at the stage.
        """
        check("frames", frames, 1, MAX_FRAMES)
        with self._changed:
            self._check_detector("no acquisition starts")
            still = ScanDefinition("", (1, frames), (0.0, 0.0), 0.0, dwell_s, 1000.0)
            epoch = self._state.command_epoch
            self._expose(epoch, still.on_sample(self._state.stage), None, trigger, external)
            return self._applied(epoch, counts=trigger is None)

    def trigger_detector(self) -> None:
        """The soft trigger of an armed detector; one that waits for an edge, or for nothing, ignores it."""
        with self._changed:
            trigger, armed = self._trigger, self._state.armed
            if armed is not None and not armed.external:
                self._state.armed = None
                self._state.scanning, self._state.scan_id = True, ""
                self._state.version += 1
            if trigger is not None and (armed is None or not armed.external):
                trigger.set()

    def set_dwell(self, scan_id: str, dwell_s: float) -> InstrumentView:
        """From the next batch of the running scan on a frame takes ``dwell_s``; its dose stays as defined."""
        check_dwell(dwell_s)
        with self._changed:
            if not self._state.scanning or self._state.scan_id != scan_id:
                raise Refused(f"no dwell changes: scan {scan_id!r} does not run")
            self._slowed = dwell_s / self._dwell_s
            return self._applied(self._state.command_epoch)

    def stop(self, command_epoch: int, reason: str) -> InstrumentView:
        """Stops the scan after its current batch and forgets those defined. Never refused, also when idle."""
        with self._changed:
            epoch = self._state.command_epoch
            if epoch < command_epoch < 10**EPOCH_DIGITS:
                epoch = command_epoch
            self._state.command_epoch = epoch
            self._state.stops += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._state.moving, _STOP_S)
            if self.detector_busy:
                log.info("scan %s is stopped: %s", self._state.scan_id or "(none)", reason or "(no reason)")
                self._detector.stop()
                self._changed.wait_for(lambda: not self.detector_busy, _STOP_S)
            self._state.scans.clear()
            return self._applied(epoch, counts=False)

    def _expose(
        self,
        command_epoch: int,
        on_sample: ScanDefinition,
        scan_yx: tuple[int, int] | None,
        trigger: threading.Event | None = None,
        external: bool = False,
    ) -> None:
        source = Deferred(self._make_source(on_sample, self._mode))
        self._dwell_s, self._slowed = on_sample.dwell_s, 1.0
        exposure = Exposure(
            mode=self._mode,
            frames=on_sample.frames,
            scan_yx=scan_yx,
            dwell_s=on_sample.dwell_s,
            source=source,
            state=lambda: self._beam,
            on_finished=self._finished,
            trigger=trigger,
        )
        # in force before the first frame is made, which may be before begin() returns
        self._beam = BeamState(command_epoch, self._state.optics.beam_blanked)
        self._detector.begin(exposure)
        self._trigger = trigger
        if trigger is None:
            self._state.scanning, self._state.scan_id = True, on_sample.scan_id
        else:
            self._state.armed = Armed(on_sample.frames, source, trigger, external)

    def _scan_armed(self, armed: Armed, command_epoch: int, on_sample: ScanDefinition) -> None:
        if armed.frames != on_sample.frames:
            raise Refused(f"a scan of {on_sample.frames} frames, the detector is armed for {armed.frames}")
        armed.source.source = self._make_source(on_sample, self._mode)
        self._beam = BeamState(command_epoch, self._state.optics.beam_blanked)
        self._state.armed = None
        self._state.scanning, self._state.scan_id = True, on_sample.scan_id
        if armed.external:
            armed.trigger.set()

    def _finished(self, progress: Progress) -> None:
        with self._changed:
            self._state.scanning, self._state.armed = False, None
            self._state.version += 1
            self._changed.notify_all()

    def _check_epoch(self, command_epoch: int) -> None:
        if command_epoch < self._state.command_epoch:
            raise Refused(
                f"command_epoch {command_epoch} is older than {self._state.command_epoch}, the newest applied"
            )
        check("command_epoch", command_epoch, 0, 10**EPOCH_DIGITS - 1)

    def _check_idle(self, what: str) -> None:
        """A scan whose last batch goes out counts as ended: its reader may ask before its sender knows."""
        if self._state.scanning and self._detector.progress.finishing:
            self._changed.wait_for(lambda: not self._state.scanning, _SETTLE_S)
        if self._state.moving:
            raise Refused(f"{what} while the stage moves")
        if self._state.scanning:
            raise Refused(f"{what} while scan {self._state.scan_id or '(none)'} runs")

    def _check_beam(self, what: str) -> None:
        if self._world is not None and (state := self._world.column_state) is not ColumnState.READY:
            raise Refused(f"{what}: {state.value}")

    def _travel(self, world: World, command_epoch: int, to: StagePosition) -> None:
        """Waits until the stage is at ``to``; a stop leaves it on the straight way there."""
        start, duration_s = self._state.stage, world.move_s(self._state.stage, to)
        began_s = world.now_s()
        self._state.command_epoch, self._state.moving = command_epoch, True
        there = self._wait(duration_s)
        self._state.moving = False
        self._changed.notify_all()
        if there:
            world.moved(to)
            return
        part = min(1.0, (world.now_s() - began_s) / duration_s)
        self._state.stage = StagePosition(
            *(a + part * (b - a) for a, b in zip(astuple(start), astuple(to), strict=True))
        )
        world.moved(self._state.stage)
        self._applied(self._state.command_epoch)
        raise Interrupted(f"the stage was stopped at {self._state.stage}")

    def _wait(self, duration_s: float) -> bool:
        """Lets others in for so long; False when a stop came."""
        stops = self._state.stops
        if duration_s > 0:
            self._changed.wait_for(lambda: self._state.stops != stops, duration_s)
        return self._state.stops == stops

    def _check_detector(self, what: str) -> None:
        self._check_idle(what)
        if self._state.armed is not None:
            raise Refused(f"{what} while the detector is armed")

    def _applied(self, command_epoch: int, *, counts: bool = True) -> InstrumentView:
        self._state.command_epoch = max(command_epoch, self._state.command_epoch)
        self._state.version += counts
        self._beam = BeamState(self._state.command_epoch, self._state.optics.beam_blanked, self._slowed)
        return self._view()

    def _view(self) -> InstrumentView:
        state, mechanics = self._state, StageMechanics()
        if self._world is not None:
            mechanics = self._world.stage.mechanics
        return InstrumentView(
            name=self.name,
            stage=state.stage,
            optics=state.optics,
            scanning=state.scanning,
            scan_id=state.scan_id,
            frames_sent=self._detector.progress.sent,
            command_epoch=state.command_epoch,
            state_version=state.version,
            defined_scans=tuple(state.scans),
            column=None if self._world is None else self._world.column_state,
            stage_speed_nm_s=mechanics.speed_nm_s,
            stage_latency_s=mechanics.latency_s,
        )
