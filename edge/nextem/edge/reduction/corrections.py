"""The corrections that a plan names, loaded and checked."""

from __future__ import annotations

from nextem.edge.calibrations import Calibrations, CorrectionArrays, bad_neighbours
from nextem.edge.reduction.formats import InvalidReduction
from nextem.v1 import plan_pb2

__all__ = ["CorrectionArrays", "bad_neighbours", "load_corrections"]


def load_corrections(
    corrections: plan_pb2.Corrections, shape: tuple[int, int], calibrations: Calibrations | None
) -> CorrectionArrays:
    """Raises :class:`InvalidReduction` where arrays are named and there is no folder of them, and what
    :meth:`Calibrations.corrections` raises."""
    if calibrations is not None:
        return calibrations.corrections(corrections, shape)
    if corrections.ByteSize():
        raise InvalidReduction("the plan names corrections, and this edge has no folder of calibrations")
    return CorrectionArrays()
