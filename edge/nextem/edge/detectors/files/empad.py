"""EMPAD raw: 130 rows of 128 float32 for each frame; the last two rows are the camera's own and no pixels.

The scan is told by the XML file beside it, or by a name such as ``scan_x256_y128.raw``. The camera gives
its analogue units, of which one electron makes some hundred, and may have taken a background off: say
``scale=`` (1 / units of one electron) and, where values go below zero, ``offset=``.

Source: M. W. Tate et al., High dynamic range pixel array detector for scanning transmission electron
microscopy, Microscopy and Microanalysis 22, 237 (2016), for the camera; the layout as RosettaSciIO documents
it.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from nextem.edge.detectors.files.arrays import Layout, read_plain
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import Recording, TruncatedFile, UnreadableFile, parsing

SHAPE = (128, 128)
ROWS = 130
_DTYPE = np.dtype("<f4")
_STRIDE = ROWS * SHAPE[1] * _DTYPE.itemsize
_NAME = re.compile(r"x(\d{1,6})_y(\d{1,6})")


def read(path: Path, parameters: Parameters) -> Recording:
    """A raw file, or the XML file that names it. Raises what :func:`read_plain` raises."""
    text = ""
    scan: tuple[int, int] | None = None
    beside = path if path.suffix.lower() == ".xml" else path.with_suffix(".xml")
    if beside.is_file():
        with parsing(beside, "EMPAD XML"):
            text = beside.read_text(errors="replace")
            scan, raw = _described(text)
        path = beside.with_name(raw) if path == beside else path
    elif match := _NAME.search(path.name):
        scan = int(match[2]), int(match[1])
    if scan is not None and min(scan) < 1:
        raise UnreadableFile(f"{path}: a scan has one position or more on each axis, this one {scan}")
    with parsing(path, "EMPAD raw file"):
        size = path.stat().st_size
    frames = scan[0] * scan[1] if scan else -(-size // _STRIDE)
    if frames * _STRIDE < size:
        raise UnreadableFile(
            f"{path}: {frames} frames of {_STRIDE} bytes are {frames * _STRIDE}, the file has {size}"
        )
    if frames and size < _STRIDE:
        raise TruncatedFile(f"{path}: a frame has {_STRIDE} bytes, the file {size}")
    return read_plain(path, Layout(0, frames, SHAPE, _DTYPE, _STRIDE), text, scan, parameters)


def _described(text: str) -> tuple[tuple[int, int] | None, str]:
    """Scan (y, x) and name of the raw file. Raises ValueError, LookupError, ParseError."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("no document type is wanted")  # entities can blow up
    root = ElementTree.fromstring(text)
    raw = root.find(".//raw_file")
    if raw is None or not raw.get("filename"):
        raise LookupError("it names no raw_file")
    raw_name = re.split(r"[/\\]", raw.attrib["filename"])[-1]
    acquired = [e for e in root.iter("scan_parameters") if e.get("mode", "acquire") == "acquire"]
    places = [(root, "pix"), *((element, "scan_resolution") for element in acquired)]
    for element, name in places:
        x, y = (element.findtext(f".//{name}_{axis}") for axis in "xy")
        if x and y:
            return (int(y), int(x)), raw_name
    return None, raw_name
