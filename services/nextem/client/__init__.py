"""The Python client: submit commands, watch, read products."""

from nextem.client.client import SteeringClient
from nextem.client.commands import acquire_command, undo_command
from nextem.client.errors import (
    DeadlineExceeded,
    DecisionRefused,
    InvalidRequest,
    NotAuthenticated,
    NotPermitted,
    RawFramesGone,
    RawFramesRefused,
    ServiceNotBelieved,
    SteeringBusy,
    SteeringError,
    SteeringUnavailable,
)
from nextem.client.stream import Stream

__all__ = [
    "DeadlineExceeded",
    "DecisionRefused",
    "InvalidRequest",
    "NotAuthenticated",
    "NotPermitted",
    "RawFramesGone",
    "RawFramesRefused",
    "ServiceNotBelieved",
    "SteeringBusy",
    "SteeringClient",
    "SteeringError",
    "SteeringUnavailable",
    "Stream",
    "acquire_command",
    "undo_command",
]
