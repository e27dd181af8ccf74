"""What a simulated DECTRIS detector is, and its SIMPLON parameters: values and what follows from a change.

Source: SIMPLON API 1.8. The two times keep ``count_time + detector_readout_time <= frame_time``: setting one
of them changes the other where that would not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from nextem.simulator.dectris_blob import Encoding
from nextem.simulator.dectris_stream import HeaderDetail

API = "1.8.0"
READOUT_S = 1e-7
_LONGEST_S = 3600.0
_MOST_IMAGES = 2_000_000_000
_CHOICES = {
    "trigger_mode": ("exts", "ints", "exte", "inte"),
    "mode": ("enabled", "disabled"),
    "format": ("legacy", "cbor"),
    "header_detail": ("all", "basic", "none"),
}


class BadValue(ValueError):
    """A value that a parameter cannot have. The message names both."""


@dataclass(frozen=True, slots=True)
class DectrisOptions:
    """What the detector is. Ports of 0 are chosen by the system."""

    shape: tuple[int, int]
    dtype: str = "uint16"
    host: str = "127.0.0.1"
    stream_port: int = 0
    rest_port: int = 0
    version: Literal[1, 2] = 1
    encoding: Encoding = field(default_factory=Encoding)
    header_detail: HeaderDetail = "basic"
    joined_header: bool = False
    appendix: bytes = b""
    channels: tuple[str, ...] = ("threshold_1",)
    column_major: bool = False
    most_waiting: int = 1000  # messages inside libzmq
    trigger_waits: bool = False  # a trigger by REST is answered when its images have gone out


def detector_config(options: DectrisOptions) -> dict[str, Any]:
    """The configuration of a fresh detector, as version 1 sends it."""
    y, x = options.shape
    return {
        "auto_summation": True,
        "beam_center_x": x / 2,
        "beam_center_y": y / 2,
        "bit_depth_image": 8 * np.dtype(options.dtype).itemsize,
        "bit_depth_readout": 16,
        "compression": options.encoding.compression,
        "count_time": 1e-4,
        "countrate_correction_applied": False,
        "description": "NexTEM simulated detector",
        "detector_number": "S-000",
        "detector_readout_time": READOUT_S,
        "eiger_fw_version": "release-2022.1",
        "frame_time": 1e-4,
        "nimages": 1,
        "ntrigger": 1,
        "number_of_excluded_pixels": 0,
        "pixel_mask_applied": False,
        "roi_mode": "disabled",
        "sensor_material": "Si",
        "sensor_thickness": 4.5e-4,
        "software_version": API,
        "threshold_energy": 20000.0,
        "trigger_mode": "exts",
        "virtual_pixel_correction_applied": False,
        "x_pixel_size": 7.5e-5,
        "x_pixels_in_detector": x,
        "y_pixel_size": 7.5e-5,
        "y_pixels_in_detector": y,
    }


def stream_config(options: DectrisOptions) -> dict[str, Any]:
    """The configuration of its stream."""
    form = "legacy" if options.version == 1 else "cbor"
    return {"mode": "enabled", "format": form, "header_detail": options.header_detail}


def changed_by(config: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """What setting ``name`` to ``value`` changes in ``config``. Raises KeyError and :class:`BadValue`."""
    if name not in config:
        raise KeyError(name)
    if name in _CHOICES:
        _check(value in _CHOICES[name], name, value)
    elif name in ("nimages", "ntrigger"):
        _check(type(value) is int and 1 <= value <= _MOST_IMAGES, name, value)
    elif name in ("count_time", "frame_time"):
        _check(type(value) in (int, float) and READOUT_S < value <= _LONGEST_S, name, value)
        return _times(config, name, float(value))
    elif name == "detector_readout_time":
        raise BadValue(f"{name} can only be read")
    return {name: value}


def _check(good: bool, name: str, value: object) -> None:
    if not good:
        raise BadValue(f"{name} cannot be {value!r:.40}")


def _times(config: Mapping[str, Any], name: str, value_s: float) -> dict[str, Any]:
    changed = {name: value_s}
    if name == "count_time" and config["frame_time"] < value_s + READOUT_S:
        changed["frame_time"] = value_s + READOUT_S
    if name == "frame_time" and config["count_time"] > value_s - READOUT_S:
        changed["count_time"] = value_s - READOUT_S
    return changed
