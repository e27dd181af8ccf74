"""Files as a detector: ``file:///path?scan=YxX&rate=FPS&format=...``. One module for each format.

The ending of the name says the format, ``format=`` overrules it, and ``reader=package.module:function`` hands
the file to the user's own function, see :mod:`nextem.edge.detectors.files.hook`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nextem.edge.detectors.base import Sink
from nextem.edge.detectors.files.hook import FrameSource
from nextem.edge.detectors.files.parameters import Parameters, parse_parameters
from nextem.edge.detectors.files.player import FilePlayer, Playback
from nextem.edge.detectors.files.source import Recording, ScanMismatch, UnreadableFile
from nextem.edge.detectors.registry import BadAddress, DetectorOptions
from nextem.wire.clock import Clock

__all__ = ["FORMATS", "FrameSource", "connect", "read_file"]

FORMATS: Mapping[str, str] = {
    "mib": "mib",
    "nxmx": "nxmx",
    "hdf5": "hdf5",
    "stempy": "stempy_sparse",
    "empad": "empad",
    "mrc": "mrc",
    "tiff": "tiff",
    "npy": "npy",
    "tpx3": "tpx3",
}
"""Name of a format -> its module."""

MAX_FRAMES = 2**32 - 1
"""What a plan's scan can count."""

ENDINGS: Mapping[str, str] = {
    ".mib": "mib",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".nxs": "hdf5",
    ".emd": "hdf5",
    ".hspy": "hdf5",
    ".raw": "empad",
    ".xml": "empad",
    ".mrc": "mrc",
    ".mrcs": "mrc",
    ".map": "mrc",
    ".st": "mrc",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".npy": "npy",
    ".tpx3": "tpx3",
}


def connect(options: DetectorOptions, sink: Sink, clock: Clock) -> FilePlayer:
    """Opens the file and looks at its header; frames are read once the detector is started.

    Raises :class:`BadAddress`, and :class:`~nextem.edge.detectors.base.DetectorError` where the file cannot
    be played.
    """
    parameters = parse_parameters(options.parameters)
    recording = read_file(Path(options.path), parameters)
    playback = Playback(parameters.rate_fps, parameters.loops, options.ring_bytes)
    return FilePlayer(recording, playback, sink, clock)


def read_file(path: Path, parameters: Parameters) -> Recording:
    """The recording in a file, with the scan asked for. Raises as :func:`connect` does."""
    if not path.is_file():
        raise UnreadableFile(f"{path}: there is no such file")
    name = "hook" if parameters.reader else FORMATS[_format(path, parameters)]
    if parameters.timepix3 and name != "tpx3":
        raise BadAddress(f"{path}: {', '.join(parameters.timepix3)}: only a .tpx3 file is asked this")
    if parameters.scans > 1 and parameters.scan is None:
        raise BadAddress(f"{path}: scans={parameters.scans} needs scan=YxX")
    recording: Recording = importlib.import_module(f"{__name__}.{name}").read(path, parameters)
    if recording.frames * parameters.loops > MAX_FRAMES:
        raise UnreadableFile(
            f"{path}: an acquisition has at most {MAX_FRAMES} frames, this one would have "
            f"{recording.frames} x {parameters.loops}"
        )
    if parameters.scan is None:
        return recording
    rows, columns = parameters.scan[0] * parameters.scans, parameters.scan[1]
    if recording.frames and rows * columns != recording.frames:
        raise ScanMismatch(
            f"{path}: scan={rows}x{columns} is {rows * columns} frames, the file is of {recording.frames}"
        )
    return replace(recording, scan=(rows, columns), frames=rows * columns)


def _format(path: Path, parameters: Parameters) -> str:
    asked = parameters.format
    found = asked or ENDINGS.get(path.suffix.lower())
    if found == "hdf5" and asked is None:
        from nextem.edge.detectors.files.hdf5 import kind_of

        return kind_of(path, parameters.dataset)
    if found is None or found not in FORMATS:
        raise BadAddress(
            f"{path}: no format {asked or path.suffix!r}; say format= one of {', '.join(FORMATS)}, "
            "or reader=package.module:function"
        )
    return found
