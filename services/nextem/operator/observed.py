"""What is seen of the world: instruments, commands, acquisitions and products, as values."""

from __future__ import annotations

from dataclasses import dataclass

from nextem.operator.experiment import NO_FRAMES, Frames, Product
from nextem.v1 import control_pb2

EDGE = "edge"
"""Issuer of what the edge does by itself when it has lost whoever led the instrument."""

OVER = frozenset(
    {
        control_pb2.COMMAND_STATE_DONE,
        control_pb2.COMMAND_STATE_FAILED,
        control_pb2.COMMAND_STATE_REJECTED,
        control_pb2.COMMAND_STATE_UNKNOWN,
    }
)
"""States after which nothing more becomes of a command."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """What its newest heartbeat says. ``led_by``: who else holds the lease of the scan, empty for nobody.

    ``safe_by`` is who brought it into the safe state last; "edge" where the edge lost whoever led.
    """

    attached: bool = True
    why: str = ""
    takes_commands: bool = True
    scanning: bool = False
    scan_id: str = ""
    frames_sent: int = 0
    led_by: str = ""
    blanked: bool = False
    safe_by: str = ""


@dataclass(frozen=True, slots=True)
class MadeProduct:
    """A product, and how many frames it covers. ``error``: why the analysis has made none.

    ``made_with``: how many products its analysis made; 0: it does not say.
    """

    product: Product
    covered: int
    error: str = ""
    made_with: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one command and its acquisition, from the log and from the steering service.

    ``stopped_by`` is who stopped the instrument while it ran, as in :class:`Instrument`.
    ``steered`` are the commands that a policy gave because of it.
    """

    state: control_pb2.CommandState = control_pb2.COMMAND_STATE_UNSPECIFIED
    rule: str = ""
    detail: str = ""
    acquisition_id: str = ""
    stopped_by: str = ""
    finished: bool = False
    frames: Frames = NO_FRAMES
    products: tuple[MadeProduct, ...] = ()
    steered: tuple[Seen, ...] = ()

    @property
    def over(self) -> bool:
        return self.state in OVER


@dataclass(frozen=True, slots=True)
class Observed:
    """The world at one moment. ``now`` is RFC 3339.

    ``seen`` is of the newest command given, or the first that would be. ``sending``: it is on its way now.
    ``refused``: why it could not be submitted a moment ago. ``ahead`` is who comes before on this instrument.
    ``dry_run``: what the edge has said to a dry run of the plan, None where it has not been asked lately.
    ``policy_leads``: one of the steering service's holds a lease there. ``quiet_s``: for how long nothing was
    heard of the command, its acquisition and what these led to.
    """

    now: str
    instrument: Instrument = Instrument()
    seen: Seen | None = None
    sending: bool = False
    refused: str = ""
    ahead: str = ""
    dry_run: Seen | None = None
    policy_leads: bool = False
    quiet_s: float = 0.0
