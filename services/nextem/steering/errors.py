"""What the steering service refuses, and why."""

from __future__ import annotations


class HubError(Exception):
    """The hub cannot do what was asked."""


class NotAttached(HubError):
    """No edge is attached for the instrument."""


class BadRequest(HubError):
    """The request misses something that it must say."""


class EdgeBusy(HubError):
    """Too many commands wait to be sent to the edge."""


class LeaseTimeout(HubError):
    """The edge did not answer a lease request in time."""


class AnswerTimeout(HubError):
    """The edge did not answer about its mode, or to a verdict, in time."""


class FetchTimeout(HubError):
    """The edge did not bring raw frames in time; it may still be at it."""


class Replaced(HubError):
    """A newer attachment of the same instrument took over."""


class HubClosed(HubError):
    """The steering service stops."""


class SlowWatcher(HubError):
    """A watcher read so slowly that commands or outcomes would have been lost; its stream ends."""
