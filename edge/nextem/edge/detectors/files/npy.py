"""NumPy's own files: one array ``(..., y, x)``. Two axes before the detector's are the scan.

Source: NumPy's NEP 1. Pickles are never loaded.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from nextem.edge.detectors.base import UnsupportedFormat
from nextem.edge.detectors.files.arrays import Layout, read_plain
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import Recording, UnreadableFile, parsing, raster


def read(path: Path, parameters: Parameters) -> Recording:
    """Raises :class:`UnreadableFile`, :class:`UnsupportedFormat` and what :func:`read_plain` raises."""
    with parsing(path, "npy"), path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise UnsupportedFormat(f"{path}: npy of version 1.0 or 2.0 can be read, this is {version}")
        shape, fortran, dtype = _HEADERS[version](file)
        offset = file.tell()
    if dtype.hasobject:
        raise UnsupportedFormat(f"{path}: an array of Python objects is not loaded")
    if fortran and len(shape) > 1:
        raise UnsupportedFormat(f"{path}: frames must lie row by row (C order), these lie in Fortran order")
    if len(shape) < 2 or any(n < 0 for n in shape):
        raise UnreadableFile(f"{path}: an array of frames has the axes (..., y, x), this one {shape}")
    leading = shape[:-2]
    layout = Layout(offset, math.prod(leading), (shape[-2], shape[-1]), dtype)
    text = f"npy {'x'.join(map(str, shape))} {dtype.str}"
    return read_plain(path, layout, text, raster(leading), parameters)


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
