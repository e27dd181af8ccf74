"""What is computed from every frame in one pass."""

from nextem.edge.reduction.figures import ReducedBlock
from nextem.edge.reduction.formats import InvalidReduction, PixelFormat
from nextem.edge.reduction.maps import Maps
from nextem.edge.reduction.masks import mask_pixels
from nextem.edge.reduction.reducer import (
    InvalidFrames,
    Reducer,
    compile_reduction,
    reduction_id,
)

__all__ = [
    "InvalidFrames",
    "InvalidReduction",
    "Maps",
    "PixelFormat",
    "ReducedBlock",
    "Reducer",
    "compile_reduction",
    "mask_pixels",
    "reduction_id",
]
