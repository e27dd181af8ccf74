"""MRC and its variants: a header of 1024 bytes, an extended header that is skipped, then sections.

Sections are frames, in the file's order; rows are as they lie, so that row 0 is the file's first. Mode 0 is
signed, as MRC2014 has it, unless IMOD's stamp says otherwise or ``unsigned=1`` is given.

Source: A. Cheng et al., MRC2014: Extensions to the MRC format header for electron cryo-microscopy and
tomography, Journal of Structural Biology 192, 146 (2015); IMOD's ``mrc_format`` for its stamp and flags.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from nextem.edge.detectors.base import UnsupportedFormat
from nextem.edge.detectors.files.arrays import Layout, read_plain
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import Recording, UnreadableFile, parsing

HEADER_BYTES = 1024
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2"}
_IMOD_STAMP = 1146047817
_LITTLE, _BIG = (b"\x44\x44", b"\x44\x41"), (b"\x11\x11",)


def read(path: Path, parameters: Parameters) -> Recording:
    """Raises :class:`UnreadableFile`, :class:`UnsupportedFormat` and what :func:`read_plain` raises."""
    with parsing(path, "MRC"), path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise UnreadableFile(f"{path}: an MRC header has {HEADER_BYTES} bytes, this file {len(header)}")
    order = _byte_order(path, header)
    nx, ny, nz, mode = struct.unpack_from(order + "4i", header)
    (extended,) = struct.unpack_from(order + "i", header, 92)
    if mode not in _MODES:
        raise UnsupportedFormat(
            f"{path}: MRC modes {', '.join(map(str, _MODES))} can be read, this is {mode}"
        )
    if extended < 0:
        raise UnreadableFile(f"{path}: the extended header has 0 bytes or more, this one {extended}")
    kind = "u1" if mode == 0 and (parameters.unsigned or _imod_unsigned(header, order)) else _MODES[mode]
    dtype = np.dtype(order + kind)
    labels = [header[at : at + 80].decode("latin-1").strip(" \0") for at in range(224, HEADER_BYTES, 80)]
    text = "\n".join([f"MRC {nz}x{ny}x{nx} mode {mode}", *filter(None, labels)])
    return read_plain(path, Layout(HEADER_BYTES + extended, nz, (ny, nx), dtype), text, None, parameters)


def _byte_order(path: Path, header: bytes) -> str:
    """By the machine stamp; where there is none, by which order makes sense of the mode."""
    stamp = header[212:214]
    if stamp in _LITTLE:
        return "<"
    if stamp in _BIG:
        return ">"
    for order in "<>":
        nx, ny, nz, mode = struct.unpack_from(order + "4i", header)
        if 0 <= mode <= 128 and min(nx, ny, nz) > 0:
            return order
    raise UnreadableFile(f"{path}: no MRC: stamp {stamp.hex()}, first words {header[:16].hex(' ', 4)}")


def _imod_unsigned(header: bytes, order: str) -> bool:
    stamp, flags = struct.unpack_from(order + "2i", header, 152)
    return stamp == _IMOD_STAMP and not flags & 1
