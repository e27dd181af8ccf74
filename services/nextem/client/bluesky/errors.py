"""What a plan gets to see when a command is not carried out."""

from __future__ import annotations

from nextem.v1 import acquisition_pb2


class CommandRefused(Exception):
    """A rule said no and nothing was done. ``rule`` is its name, ``detail`` has the value."""

    def __init__(self, action: str, rule: str, detail: str) -> None:
        self.action, self.rule, self.detail = action, rule, detail
        super().__init__(f"{action} refused by {rule}: {detail}")


class CommandFailed(Exception):
    """The command was begun and did not end well, or nobody knows how it ended.

    ``accounting``: of an acquisition that was begun: which frames are stored and which are lost.
    """

    def __init__(
        self,
        action: str,
        rule: str,
        detail: str,
        accounting: acquisition_pb2.AcquisitionFinished | None = None,
    ) -> None:
        self.action, self.rule, self.detail, self.accounting = action, rule, detail, accounting
        super().__init__(f"{action} failed by {rule}: {detail}")


class Stopped(CommandFailed):
    """The command ended because the plan that gave it was stopped, aborted or paused."""


class LeaseRefused(Exception):
    """Somebody else may command the instrument; says who, and until when."""


class LeaseLost(Exception):
    """The lease ended before it was given back. The edge has brought the instrument into its safe state."""


class NoResult(Exception):
    """The device was read before an acquisition of its own had ended."""


class ProductsMissing(Exception):
    """An analysis failed, or its product did not come in time. Names the products."""
