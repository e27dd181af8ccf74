"""What a DECTRIS file writer leaves: a master file in NXmx and the data files that it links to.

Frames are placed by ``image_nr_low`` of their data file, so that a file that is missing loses its own frames
only. The master says how many frames there should be (``ntrigger`` times ``nimages``); where both are more
than one, triggers are the rows of a scan. A data file may be played by itself. Masked pixels keep the largest
value, as the detector wrote them: name them in the plan's corrections.

Source: NeXus NXmx and DECTRIS' file writer 1.x and 2024, checked on files of an ARINA.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nextem.edge.detectors.files.chunks import fault_of
from nextem.edge.detectors.files.hdf5 import Place, open_hdf5, read_arrays
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import Recording, UnreadableFile, parsing

_DATA = re.compile(r"data_\d+")
_SPECIFIC = "entry/instrument/detector/detectorSpecific"


def read(path: Path, parameters: Parameters) -> Recording:
    """Raises :class:`UnreadableFile`, MissingDataFile where no data file is there, UnsupportedFormat."""
    with parsing(path, "NXmx"), open_hdf5(path) as file:
        places = _places(path, file)
        images, triggers = (_number(file, f"{_SPECIFIC}/{name}") for name in ("nimages", "ntrigger"))
        text = _told(file)
    scan = (triggers, images) if images > 1 and triggers > 1 else None
    return read_arrays(path, places, text, images * triggers, scan, parameters)


def _places(path: Path, file: h5py.File) -> list[Place]:
    """The arrays of frames in their order: linked, virtual, or here."""
    group = file.get("entry/data")
    if not isinstance(group, h5py.Group):
        raise UnreadableFile(f"{path}: frames are in the group entry/data, there is none")
    names = sorted(filter(_DATA.fullmatch, group), key=lambda name: int(name[5:]))
    if not names and "data" in group and group["data"].is_virtual:
        sources = sorted(group["data"].virtual_sources(), key=lambda s: s.vspace.get_select_bounds()[0])
        return [Place(_beside(path, s.file_name), s.dset_name, True) for s in sources]
    places = []
    for name in names or ["data"]:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            places.append(Place(_beside(path, link.filename), link.path, True))
        else:
            places.append(Place(path, f"entry/data/{name}"))
    return places


def _beside(path: Path, name: str) -> Path:
    return path if name == "." else path.parent / name


def _number(file: h5py.File, name: str) -> int:
    """A count; 0 where it is not told, so that the arrays' own lengths count."""
    found = file.get(name)
    return int(np.asarray(found).reshape(-1)[0]) if _is_value(found, "iu") else 0


def _is_value(item: Any, kinds: str) -> bool:
    """Whether it is one value that can be read."""
    one = isinstance(item, h5py.Dataset) and item.size == 1 and item.dtype.kind in kinds
    return one and not fault_of(item)


def _told(file: h5py.File) -> str:
    """Every single value about the instrument, one a line."""
    lines: list[str] = []

    def note(name: str, item: Any) -> None:
        if _is_value(item, "iufS"):
            value = np.asarray(item).reshape(-1)[0]
            lines.append(f"{name}\t{value.decode(errors='replace') if isinstance(value, bytes) else value}")

    instrument = file.get("entry/instrument")
    if isinstance(instrument, h5py.Group):
        instrument.visititems(note)
    return "\n".join(["NXmx", *lines])
