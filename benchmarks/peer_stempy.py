"""Run by the peer's python: stempy counts the electrons of frames in a file.

Argument: a folder with ``frames.npy`` (n, y, x) uint16, ``dark.npy`` and ``gain.npy``. Reads one line for
each run and answers with one line of JSON: the seconds it took. The electrons of the run, as one list of flat
indices and as the number in each frame, are then in ``stempy.npz``. The lines are

``core RAW_THRESHOLD``            the counting alone, of raw frames, thresholds given
``corrected THRESHOLD``           the same after dark and gain
``whole SAMPLES``                 ``electron_count`` as people call it: thresholds found, a SparseArray made
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from stempy import _image
from stempy.image import electron_count
from stempy.io import PyReader

BLOCK_FRAMES = 32


def count(folder: Path, frames: Any, how: str, number: float) -> float:
    n = len(frames)
    scan = (n, 1)
    reader = PyReader(frames, np.arange(n, dtype=np.uint32), scan, BLOCK_FRAMES, n)
    blank = np.zeros(frames.shape[1:], np.float32)
    if how == "whole":
        begin = time.perf_counter()
        counted = electron_count(
            reader, blank, number_of_samples=int(number), xray_threshold_n_sigma=1000, scan_dimensions=scan
        )
        seconds = time.perf_counter() - begin
        lists = [counted.data[i, 0] for i in range(n)]
    else:
        options = _image.ElectronCountOptionsClassic()
        corrected = how == "corrected"
        options.dark_reference = np.load(folder / "dark.npy") if corrected else blank
        options.gain = np.load(folder / "gain.npy") if corrected else None
        options.background_threshold = number
        options.x_ray_threshold = np.inf
        options.scan_dimensions = scan
        options.apply_row_dark_subtraction = False
        options.optimized_mean = 0.0
        options.apply_row_dark_use_mean = False
        begin = time.perf_counter()
        data = _image.electron_count(reader.begin(), reader.end(), options).data
        seconds = time.perf_counter() - begin
        lists = [np.array(position[0], np.uint32) for position in data]
    np.savez(folder / "stempy.npz", indices=np.concatenate(lists), counts=[len(each) for each in lists])
    return seconds


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    folder = Path(sys.argv[1])
    frames = np.load(folder / "frames.npy")
    print("ready", flush=True)
    for line in sys.stdin:
        how, number = line.split()
        print(json.dumps(count(folder, frames, how, float(number))), flush=True)


if __name__ == "__main__":
    main()
