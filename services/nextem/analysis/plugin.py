"""What an analysis is: four steps whose result does not depend on how frames were split or ordered.

``start -> process(run) -> merge -> finish``. :func:`process` runs in worker actors, many at once; ``merge``
and ``finish`` run where the acquisition's state lies. ``docs/analysis.md`` shows a complete small plug-in.

A state and a partial are dicts of numpy arrays, so that checkpoints need nothing from the plug-in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nextem.analysis.frame_run import FrameRun
from nextem.v1 import acquisition_pb2
from nextem.wire.coverage import FrameSet

Array = npt.NDArray[Any]
State = dict[str, Array]
Partial = dict[str, Array]


class AnalysisError(Exception):
    """An analysis cannot work on an acquisition; the text names the rule and the value."""


@dataclass(frozen=True, slots=True)
class Result:
    """One finished array.

    ``kind``: "map" (scan_y, scan_x), "vector_map" (2, scan_y, scan_x), "pattern" (y, x) or "values" (n,),
    which stand by their names in ``notes["values"]``, for policies to go by. ``name`` is unique within the
    acquisition, such as "virtual/bright". ``notes``, JSON values, go into the provenance.
    """

    name: str
    kind: str
    array: Array
    unit: str
    notes: Mapping[str, object] = field(default_factory=dict)


ReadProduct = Callable[[str], Array]
"""The array of a product by its id. Raises :class:`AnalysisError` where there is none."""


def no_products(product_id: str) -> Array:
    """A :data:`ReadProduct` where there is no store."""
    raise AnalysisError(f"there is no store to read product {product_id!r} from")


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known at the end: which frames the state holds, and the edge's own accounting.

    ``earlier`` reads a product of an earlier acquisition from the store. It never changes, so what is made
    of it does not either.
    """

    covered: FrameSet
    finished: acquisition_pb2.AcquisitionFinished
    earlier: ReadProduct = no_products


class Analysis(Protocol):
    """One analysis of one acquisition. Made once in each worker and once where the state lies.

    An analysis that cannot work raises, best :class:`AnalysisError`; it is then switched off for this
    acquisition, and the others go on.

    An analysis that lives on scalars alone says ``needs_pixels = False``: it then gets runs that are not
    ``whole``, too. Of any other such frames are left out, and its products do not list them as covered.
    """

    def start(self) -> State:
        """The state of no frames."""
        ...

    def process(self, run: FrameRun) -> Partial:
        """What ``run`` adds. Pure: the same frames give the same partial, in any process."""
        ...

    def merge(self, state: State, partial: Partial) -> State:
        """``state`` with ``partial`` added; may change and return the arrays it was given.

        Each frame comes exactly once. Order and grouping must not matter: let every step be exact, that is
        keep integers, or put values in their frame's place.
        """
        ...

    def finish(self, state: State, summary: Summary) -> list[Result]:
        """The products of the frames that ``state`` holds. Must not change ``state``."""
        ...


def needs_pixels(analysis: Analysis) -> bool:
    """Whether runs without whole pixels are to be kept from ``analysis``."""
    return bool(getattr(analysis, "needs_pixels", True))


class Live(Protocol):
    """First answers while frames still arrive. Not pure, and the split of frames may show in it."""

    @property
    def revision(self) -> int:
        """Of the model that :meth:`score` uses; 0 while there is none."""
        ...

    def score(self, state: State, start: int, stop: int) -> npt.NDArray[np.float32] | None:
        """Values of frames ``start .. stop - 1``, all in ``state``; None while there is no model.

        Lies in the path between a frame and a command: it must take well under a millisecond for a block.
        """
        ...

    def due(self, frames_covered: int, complete: bool) -> bool:
        """Whether the model should be made anew. ``complete``: no further frame will come."""
        ...

    def fit(self, state: State) -> object:
        """A new model from a snapshot. May take long; runs beside everything else, on no lock."""
        ...

    def use(self, model: object, revision: int, frames_covered: int) -> None:
        """:meth:`score` uses ``model`` from now on."""
        ...


@runtime_checkable
class LiveAnalysis(Protocol):
    """An :class:`Analysis` that also gives live values."""

    def live(self) -> Live: ...

    def snapshot(self, state: State) -> State:
        """What :meth:`Live.fit` needs, safe against later merges; quick, for it is taken under a lock."""
        ...


Factory = Callable[[acquisition_pb2.AcquisitionStarted, Mapping[str, object]], Analysis]
"""Makes an analysis for an acquisition with the plan's parameters (JSON values). Cheap: no arrays yet."""


def read_parameters(given: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, Any]:
    """``defaults`` with the ``given`` ones put in.

    Raises :class:`AnalysisError` for a name that is not known and for a value of another type. JSON knows
    one type of number: a whole one is wanted where the default is an int.
    """
    values = dict(defaults)
    for name, value in given.items():
        if name not in defaults:
            raise AnalysisError(f"unknown parameter {name!r}; known are {sorted(defaults)}")
        values[name] = _typed(name, value, type(defaults[name]))
    return values


def _typed(name: str, value: object, wanted: type) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and wanted in (int, float):
        if wanted(value) == value:
            return wanted(value)
    elif isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool):
        return value
    raise AnalysisError(f"parameter {name!r} must be of type {wanted.__name__}, not {value!r}")
