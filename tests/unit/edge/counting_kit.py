"""Frames as a camera's messages, and electrons as lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.wire.events import Events

Array = npt.NDArray[Any]


def lists(events: Events) -> list[list[int]]:
    assert events.values.dtype == np.uint8
    assert (events.values == 1).all()
    return [part.tolist() for part in np.split(events.indices, events.indptr[1:-1])]


def words_of(frames: Array, offset: int, tail: int) -> npt.NDArray[np.uint8]:
    """Frames as bytes of messages, with bytes of something else before and after."""
    rows = frames.reshape(len(frames), -1).view(np.uint8)
    words = np.full((len(frames), offset + rows.shape[1] + tail), 0xA5, np.uint8)
    words[:, offset : offset + rows.shape[1]] = rows
    return words
