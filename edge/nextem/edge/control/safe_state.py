"""When the instrument is made safe although nobody said so: whoever led it is lost.

The safe state is: what runs is stopped, the stage is held, the beam is blanked.
"""

from __future__ import annotations

from collections.abc import Callable

from nextem.edge.control.lease import Lease, Leases
from nextem.wire.clock import Clock


class LostHolders:
    """:meth:`look` again and again; :meth:`heard` for every message of the steering service. Thread-safe."""

    def __init__(
        self,
        clock: Clock,
        leases: Leases,
        *,
        lapse: Callable[[str], list[Lease]],
        pending: Callable[[], int],
        lost_after_s: float,
        make_safe: Callable[[str], object],
    ) -> None:
        """``lapse`` ends the leases of the lost, as :meth:`~nextem.edge.control.lease.Leases.lapse` does.

        ``pending`` counts the acquisitions that wait or run. ``make_safe`` gets the reason, for people.

        The service counts as lost when it was not heard for ``lost_after_s``. That matters as long as
        somebody beyond the link holds a lease, or something waits or runs; else the instrument is left alone.
        """
        self._clock, self._leases, self._lapse, self._pending = clock, leases, lapse, pending
        self._lost_after_s, self._make_safe = lost_after_s, make_safe
        self._heard_ns = self._unled_ns = clock.now_ns()
        self._silence_told = False

    def heard(self) -> None:
        self._heard_ns, self._silence_told = self._clock.now_ns(), False

    def look(self) -> None:
        """Makes the instrument safe, once for each loss."""
        silence = self._silence()
        lapsed = self._lapse(silence)
        if lapsed or (silence and not self._silence_told):
            self._silence_told = bool(silence)
            if silence:  # all its leases have ended, though what they began may still run
                self._unled_ns = self._clock.now_ns()
            leases = [f"the lease of {x.holder!r} (epoch {x.epoch}) {x.ended}" for x in lapsed]
            self._make_safe("; ".join(leases) or silence)

    def _silence(self) -> str:
        now_ns = self._clock.now_ns()
        if not (self._leases.any_remote() or self._pending()):
            self._unled_ns = now_ns  # who begins to lead from now on has the whole time to be heard
            return ""
        silent_s = (now_ns - max(self._heard_ns, self._unled_ns)) / 1e9
        if silent_s <= self._lost_after_s:
            return ""
        return f"the steering service was not heard for {silent_s:.1f} s"
