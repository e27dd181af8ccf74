"""When something happens in a movie: a change that no noise makes, in any place of the picture.

The image is summed over a grid of cells and made to have noise of one standard deviation (Anscombe,
Biometrika 35, 246 (1948): ``2 sqrt(counts + 3/8)``). Each cell is compared with its own running mean, and a
two-sided CUSUM (Page, Biometrika 41, 100 (1954)) adds up what is beyond the usual. The largest CUSUM of all
cells is the novelty: a small event moves a few cells by much, a sum over all cells would bury it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Cells = npt.NDArray[np.float64]

GRID = 16  # cells along each axis
SLACK = 1.5  # of standard deviations, what a cell may be off at no cost
THRESHOLD = 8.0  # of the CUSUM, by default
LARGEST_STEP = 7.5  # of one image in the CUSUM: one odd image alone raises no alarm
MEMORY = 32  # images in the running mean and spread
LEARNING = 8  # images that a cell wants before it counts


@dataclass(slots=True, eq=False)
class ChangeDetector:
    """Feed it images of one ``shape`` (y, x) in order, drift taken off; see :meth:`look`."""

    shape: tuple[int, int]
    threshold: float = THRESHOLD
    _rows: npt.NDArray[np.intp] = field(init=False)
    _columns: npt.NDArray[np.intp] = field(init=False)
    _mean: Cells = field(init=False)
    _variance: Cells = field(init=False)
    _above: Cells = field(init=False)
    _below: Cells = field(init=False)
    _seen: npt.NDArray[np.int64] = field(init=False)  # images that each cell has learnt from

    def __post_init__(self) -> None:
        y, x = self.shape
        self._rows, self._columns = _edges(y), _edges(x)
        self._forget()

    def look(
        self, image: npt.NDArray[np.generic], valid: tuple[int, int, int, int] | None = None
    ) -> tuple[float, bool]:
        """The novelty of ``image``, counts (y, x), and whether it is an alarm; learns from the image.

        ``valid`` is the rectangle (y from, y to, x from, x to) in which the image is whole: cells that leave
        it count for nothing. After an alarm the new state is what is usual, and is learnt afresh.
        """
        rows, columns = self._rows[:-1], self._columns[:-1]
        sums = np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows, axis=0), columns, axis=1)
        cells = 2.0 * np.sqrt(np.maximum(sums, 0.0) + 0.375)
        whole = self._whole(valid)
        ready = whole & (self._seen >= LEARNING)
        # The mean of n images is uncertain by itself.
        spread = np.sqrt(np.maximum(self._variance, 1.0) * (1.0 + 1.0 / np.clip(self._seen, 1, MEMORY)))
        off = np.clip((cells - self._mean) / spread, -LARGEST_STEP, LARGEST_STEP)
        self._above = np.where(ready, np.maximum(0.0, self._above + off - SLACK), self._above)
        self._below = np.where(ready, np.maximum(0.0, self._below - off - SLACK), self._below)
        novelty = float(max(self._above.max(), self._below.max()))
        alarm = novelty > self.threshold
        if alarm:
            self._forget()
        self._learn(cells, whole)
        return novelty, alarm

    def _whole(self, valid: tuple[int, int, int, int] | None) -> npt.NDArray[np.bool_]:
        y_from, y_to, x_from, x_to = valid or (0, self.shape[0], 0, self.shape[1])
        rows = (self._rows[:-1] >= y_from) & (self._rows[1:] <= y_to)
        columns = (self._columns[:-1] >= x_from) & (self._columns[1:] <= x_to)
        return rows[:, None] & columns[None, :]

    def _forget(self) -> None:
        grid = (self._rows.size - 1, self._columns.size - 1)
        self._mean, self._variance = np.zeros(grid), np.ones(grid)
        self._above, self._below = np.zeros(grid), np.zeros(grid)
        self._seen = np.zeros(grid, np.int64)

    def _learn(self, cells: Cells, whole: npt.NDArray[np.bool_]) -> None:
        self._seen += whole
        weight = np.where(whole, 1.0 / np.clip(self._seen, 1, MEMORY), 0.0)
        off = cells - self._mean
        # A change that has begun must not make itself usual before it is told.
        calm = np.minimum(off * off, 9.0 * np.maximum(self._variance, 1.0))
        self._variance += np.where(self._seen > LEARNING, weight * (calm - self._variance), 0.0)
        self._mean += weight * off


def _edges(size: int) -> npt.NDArray[np.intp]:
    """Where the cells of an axis begin, and its end."""
    cells = min(GRID, size)
    return np.append(np.arange(cells) * size // cells, size)
