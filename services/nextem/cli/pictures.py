"""Pictures of products, for people: PNG files, and a small one in the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from rich.text import Text

from nextem.v1 import product_pb2

Array = NDArray[np.generic]


def displayable(product: product_pb2.Product, array: Array) -> NDArray[np.float64]:
    """One finite image (y, x) of a product: patterns on a square-root scale, vectors by their length.

    Vector maps (2, y, x) are shown relative to their median. Unknown values are shown as the smallest.
    """
    image = np.asarray(array, dtype=np.float64)
    if product.kind == "vector_map":
        image = image - np.nanmedian(image, axis=(1, 2), keepdims=True)
        image = np.hypot(image[0], image[1])
    elif product.kind == "pattern":
        image = np.sqrt(np.clip(image, 0, None))
    if image.ndim != 2:
        raise ValueError(f"{product.product_id}: cannot draw an array of shape {array.shape}")
    known = np.isfinite(image)
    return np.where(known, image, image[known].min() if known.any() else 0.0)


def failure(product: product_pb2.Product) -> str:
    """Why an analysis gave no result, from a product of kind "failed"."""
    return json.dumps(json_format.MessageToDict(product.provenance).get("notes", {}))


def limits(image: NDArray[np.float64]) -> tuple[float, float]:
    """Display range: percentiles 0.5 and 99.5, so that a hot pixel does not hide the picture."""
    low, high = np.percentile(image, (0.5, 99.5))
    return float(low), float(high if high > low else low + 1.0)


def save_picture(product: product_pb2.Product, array: Array, path: Path, note: str = "") -> Path:
    """Draws one product with a colour bar and a title that says what it is; returns ``path``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = displayable(product, array)
    low, high = limits(image)
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(image, vmin=low, vmax=high, cmap="magma" if product.kind == "pattern" else "viridis")
    scale = {"pattern": "√ counts", "vector_map": f"|shift| ({product.unit})"}.get(product.kind, product.unit)
    figure.colorbar(shown, ax=axes, shrink=0.85, label=scale)
    is_pattern = product.kind == "pattern"
    axes.set_xlabel("detector x (px)" if is_pattern else "scan x")
    axes.set_ylabel("detector y (px)" if is_pattern else "scan y")
    covered = sum(r.count for r in product.covered)
    axes.set_title(f"{product.name}: {covered:,} of {product.frames_announced:,} frames", fontsize=9)
    if note:
        figure.supxlabel(note, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def terminal_picture(image: NDArray[np.float64], columns: int = 64) -> Text:
    """The image in half-block characters, two rows of pixels a line, in shades of grey."""
    columns = min(columns, image.shape[1])
    rows = max(2, round(image.shape[0] * columns / image.shape[1]) // 2 * 2)
    low, high = limits(image)
    small = np.clip((_resampled(image, rows, columns) - low) / (high - low), 0, 1)
    grey = (small * 255).astype(int)
    text = Text()
    for y in range(0, rows, 2):
        for x in range(columns):
            top, bottom = grey[y, x], grey[y + 1, x]
            text.append("▀", style=f"rgb({top},{top},{top}) on rgb({bottom},{bottom},{bottom})")
        text.append("\n")
    return text


def _resampled(image: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    """Mean over cells where shrinking, nearest neighbour where growing."""
    y_edges = np.linspace(0, image.shape[0], rows + 1)
    x_edges = np.linspace(0, image.shape[1], columns + 1)
    out = np.empty((rows, columns))
    for y in range(rows):
        y0, y1 = int(y_edges[y]), max(int(y_edges[y]) + 1, int(np.ceil(y_edges[y + 1])))
        for x in range(columns):
            x0, x1 = int(x_edges[x]), max(int(x_edges[x]) + 1, int(np.ceil(x_edges[x + 1])))
            out[y, x] = image[y0:y1, x0:x1].mean()
    return out
