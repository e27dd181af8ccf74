"""The Python client: submit commands, watch, read products."""

from nextem.client.client import SteeringClient, acquire_command
from nextem.client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotAuthenticated,
    NotPermitted,
    RawFramesGone,
    RawFramesRefused,
    SteeringBusy,
    SteeringError,
    SteeringUnavailable,
)
from nextem.client.stream import Stream

__all__ = [
    "DeadlineExceeded",
    "InvalidRequest",
    "NotAuthenticated",
    "NotPermitted",
    "RawFramesGone",
    "RawFramesRefused",
    "SteeringBusy",
    "SteeringClient",
    "SteeringError",
    "SteeringUnavailable",
    "Stream",
    "acquire_command",
]
