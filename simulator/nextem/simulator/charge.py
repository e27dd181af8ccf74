"""A monolithic pixel detector that integrates charge: planted electrons under noise, and where they fell.

Each electron deposits a charge, whose spread from electron to electron is a Moyal distribution (J. E. Moyal,
Phil. Mag. 46, 263 (1955), an approximation of Landau's), over the pixels round its place: a normal spread,
integrated over each pixel. Then come the gain of the pixel, the dark pattern, noise of rows and of reading,
X-rays that fill one pixel, and the converter. Frame i depends on (seed, i) and on nothing else, by the
counter-based generator Philox (J. K. Salmon et al., SC'11, doi:10.1145/2063384.2063405).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

REACH_PX = 3
"""Charge further than this from its pixel, along either axis, is lost; 1e-5 of it at a spread of 0.8 px."""

MOYAL_MODE_TO_MEAN = 1.2703628454614782  # Euler's constant + ln 2, in widths


@dataclass(frozen=True, slots=True)
class ChargeModel:
    """What the detector does to an electron. Charges are in counts of its converter."""

    mean_charge: float = 400.0  # of one electron, in all its pixels together
    charge_width: float = 50.0  # of the Moyal distribution
    spread_px: float = 0.5  # standard deviation of the charge cloud, both axes
    dark: float = 100.0  # mean of the dark pattern
    dark_sigma: float = 5.0  # from pixel to pixel, the same in every frame
    gain_sigma: float = 0.02  # of the pixels' gains round 1
    read_noise: float = 3.0  # of each pixel in each frame
    row_noise: float = 0.0  # of each row in each frame
    xrays_per_frame: float = 0.0
    xray_charge: float = 5000.0
    bits: int = 16  # of the converter, at most 16


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """Frames and the truth about them, in CSR form: the electrons of frame i are
    ``indptr[i] .. indptr[i + 1] - 1``."""

    frames: npt.NDArray[np.uint16]  # (n, y, x)
    indptr: npt.NDArray[np.int64]
    y_px: npt.NDArray[np.float64]  # pixel (0, 0) reaches from -0.5 to 0.5
    x_px: npt.NDArray[np.float64]

    def of_frame(self, frame: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """y and x of the electrons of one frame."""
        part = slice(self.indptr[frame], self.indptr[frame + 1])
        return self.y_px[part], self.x_px[part]


class ChargeDetector:
    """Frames of ``shape`` (y, x). ``dark`` (y, x) and ``gain`` (y, x) are its true patterns."""

    def __init__(self, shape: tuple[int, int], model: ChargeModel, seed: int) -> None:
        if not 1 <= model.bits <= 16:
            raise ValueError(f"a converter of {model.bits} bits; from 1 to 16 can be")
        self.shape, self.model, self._seed = shape, model, seed
        random = self._random(0)
        self.dark = random.normal(model.dark, model.dark_sigma, shape).astype(np.float32)
        self.gain = random.normal(1, model.gain_sigma, shape).clip(0.1).astype(np.float32)

    def expose(self, electrons_per_px: float, first_frame: int, count: int) -> Planted:
        """``count`` frames from ``first_frame`` on, evenly lit: Poisson numbers of electrons."""
        y, x = self.shape
        frames = np.empty((count, y, x), np.uint16)
        truth = []
        for i in range(count):
            random = self._random(first_frame + i + 1)
            n = random.poisson(electrons_per_px * y * x)
            places = random.uniform(-0.5, (y - 0.5, x - 0.5), (n, 2))
            truth.append(places)
            frames[i] = self._frame(places, random)
        where = np.concatenate(truth) if truth else np.empty((0, 2))
        indptr = np.cumsum([0, *(len(places) for places in truth)])
        return Planted(frames, indptr, where[:, 0].copy(), where[:, 1].copy())

    def _frame(self, places: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.uint16]:
        model = self.model
        most_probable = model.mean_charge - MOYAL_MODE_TO_MEAN * model.charge_width
        charges = most_probable - model.charge_width * np.log(random.normal(size=len(places)) ** 2)
        collected = np.zeros(self.shape)
        deposit(collected, places, charges.clip(0), model.spread_px)
        xrays = random.poisson(model.xrays_per_frame)
        hit = random.integers(0, self.shape, (xrays, 2))
        np.add.at(collected, (hit[:, 0], hit[:, 1]), model.xray_charge)
        noise = random.normal(0, model.read_noise, self.shape)
        noise += random.normal(0, model.row_noise, (self.shape[0], 1))
        read = np.rint(collected * self.gain + self.dark + noise)
        return read.clip(0, 2**model.bits - 1).astype(np.uint16)

    def _random(self, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, stream, 0]))


@njit(cache=True, nogil=True)
def deposit(
    collected: npt.NDArray[np.float64],
    places: npt.NDArray[np.float64],
    charges: npt.NDArray[np.float64],
    spread_px: float,
) -> None:
    """Adds the charges (n,) at ``places`` (n, 2), each spread normally and integrated over the pixels."""
    height, width = collected.shape
    scale = 1 / (math.sqrt(2.0) * spread_px)
    for k in range(charges.size):
        y, x = places[k]
        middle_y, middle_x = round(y), round(x)
        for row in range(max(middle_y - REACH_PX, 0), min(middle_y + REACH_PX + 1, height)):
            in_row = (math.erf((row + 0.5 - y) * scale) - math.erf((row - 0.5 - y) * scale)) / 2
            for column in range(max(middle_x - REACH_PX, 0), min(middle_x + REACH_PX + 1, width)):
                edges = math.erf((column + 0.5 - x) * scale) - math.erf((column - 0.5 - x) * scale)
                collected[row, column] += charges[k] * in_row * edges / 2


def matched(
    planted: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    found: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    reach_px: float,
) -> int:
    """How many of the planted electrons (y, x) of one frame were found, at ``reach_px`` or nearer.

    Nearest pairs first, and nobody is paired twice.
    """
    y = np.subtract.outer(planted[0], found[0])
    x = np.subtract.outer(planted[1], found[1])
    distance = np.hypot(y, x)
    of_planted, of_found = np.nonzero(distance <= reach_px)
    order = np.argsort(distance[of_planted, of_found], kind="stable")
    free_planted, free_found = np.ones(planted[0].size, np.bool_), np.ones(found[0].size, np.bool_)
    for pair in order:
        i, j = of_planted[pair], of_found[pair]
        if free_planted[i] and free_found[j]:
            free_planted[i] = free_found[j] = False
    return int((~free_planted).sum())
