"""The one-page report of a demo: figures, the survey with what was commanded, and every fine scan."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextem.cli.experiment import Record, Scan
from nextem.cli.pictures import displayable, failure, limits
from nextem.cli.scoring import Inclusion, PhaseScore, Rectangle
from nextem.v1 import product_pb2
from nextem.wire.store import ProductStore


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one experiment; :meth:`as_json` is what lies in ``summary.json``."""

    frames_announced: int
    frames_stored: int
    frames_lost: int
    images_per_s: float
    bytes_raw: int
    bytes_sent: int
    loop_latency_ms: dict[str, float | None]
    dose_used: float
    dose_budget: float
    inclusions_planted: int | None = None
    inclusions_found: int | None = None
    inclusions_found_at_random: float | None = None
    phases: Sequence[PhaseScore] = ()
    more: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        names = (
            "frames_announced frames_stored frames_lost images_per_s bytes_raw bytes_sent loop_latency_ms "
            "inclusions_planted inclusions_found inclusions_found_at_random dose_used dose_budget"
        )
        facts: dict[str, Any] = {name: getattr(self, name) for name in names.split()}
        facts["phases"] = {
            s.phase: {"scanned": s.scanned, "whole": s.whole, "gain": s.gain} for s in self.phases
        }
        return facts | self.more

    def rows(self) -> list[tuple[str, str]]:
        """What people read at the end."""
        p50, p99 = self.loop_latency_ms["p50"], self.loop_latency_ms["p99"]
        rows = [
            (
                "frames announced / stored / lost",
                f"{self.frames_announced:,} / {self.frames_stored:,} / {self.frames_lost:,}",
            ),
            ("images per second", f"{self.images_per_s:,.0f}"),
            (
                "bytes raw / sent",
                f"{_size(self.bytes_raw)} / {_size(self.bytes_sent)} "
                f"(1/{self.bytes_raw / max(1, self.bytes_sent):.0f})",
            ),
            ("loop latency p50 / p99", "no command" if p50 is None else f"{p50:.1f} / {p99:.1f} ms"),
            ("dose used / budget", f"{self.dose_used:.3g} / {self.dose_budget:.3g} electrons"),
        ]
        if self.inclusions_planted is not None:
            rows.append(
                ("inclusions planted / found", f"{self.inclusions_planted} / {self.inclusions_found}")
            )
            rows.append(("found by as many scans at random", f"{self.inclusions_found_at_random:.2f}"))
        return rows + [
            (
                f"{score.phase} in scanned area / whole map",
                f"{score.scanned:.1%} / {score.whole:.1%} ({score.gain:.1f} × random)",
            )
            for score in self.phases
        ]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def quick_picture(
    product: product_pb2.Product, array: NDArray[np.generic], path: Path, side_px: int = 256
) -> None:
    """A plain PNG of a product, enlarged to about ``side_px`` without smoothing."""
    from matplotlib import colormaps
    from PIL import Image

    image = displayable(product, array)
    low, high = limits(image)
    colours = colormaps["magma" if product.kind == "pattern" else "viridis"](
        (image - low) / (high - low), bytes=True
    )
    scale = max(1, side_px // max(image.shape))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.ascontiguousarray(colours[..., :3]))
    picture.resize((image.shape[1] * scale, image.shape[0] * scale), Image.Resampling.NEAREST).save(path)


def survey_picture(
    novelty: NDArray[np.generic],
    field_nm: tuple[float, float],
    scans: Sequence[Rectangle],
    truth: NDArray[np.int16] | Sequence[Inclusion],
    path: Path,
    label: str,
) -> None:
    """The survey's novelty with the fine scans in the order of their command, beside the ground truth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle
    from matplotlib.patches import Rectangle as Box

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    extent = (0, field_nm[1], field_nm[0], 0)
    known = np.nan_to_num(np.asarray(novelty, dtype=float), nan=float(np.nanmin(novelty)))
    left.imshow(known, extent=extent, vmin=limits(known)[0], vmax=limits(known)[1], cmap="viridis")
    left.set_title("what the survey found unusual, and the fine scans it led to")
    right.set_title("ground truth, unseen by the policy")
    if isinstance(truth, np.ndarray):
        right.imshow(truth, extent=extent, cmap="Set2", interpolation="nearest")
    else:
        right.imshow(np.full((2, 2), np.nan), extent=extent)
        for inclusion in truth:
            right.add_patch(Circle((inclusion.x_nm, inclusion.y_nm), inclusion.radius_nm, color="crimson"))
    for axes, colour in ((left, "white"), (right, "black")):
        axes.set_xlabel("x (nm)")
        for number, scan in enumerate(scans, start=1):
            size = (scan.x1_nm - scan.x0_nm, scan.y1_nm - scan.y0_nm)
            axes.add_patch(Box((scan.x0_nm, scan.y0_nm), *size, fill=False, edgecolor=colour, linewidth=1.2))
            axes.text(scan.x0_nm, scan.y0_nm, str(number), color=colour, fontsize=7, va="bottom")
    left.set_ylabel("y (nm)")
    if label:
        figure.suptitle(label, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; color: #222 }}
table {{ border-collapse: collapse }}
td, th {{ padding: .15em 1.2em .15em 0; text-align: left; vertical-align: top }}
img {{ image-rendering: pixelated; max-width: 100% }} figure {{ display: inline-block; margin: .4em }}
figcaption {{ font-size: 12px; color: #555 }} .note {{ background: #fff6d8; padding: .4em .8em }}
</style></head><body><h1>{title}</h1>{note}<table>{figures}</table>
<h2>The survey and what it led to</h2><img src="survey.png" alt="survey and ground truth">
<h2>Commands</h2><table><tr><th>#<th>why<th>loop latency<th>outcome</tr>{commands}</table>
<h2>Products</h2>{gallery}</body></html>
"""


def write_report(
    folder: Path, title: str, label: str, summary: Summary, record: Record, store: ProductStore
) -> Path:
    """Pictures of every product, ``summary.json`` and ``report.html``; returns the page's path.

    ``survey.png`` must lie in ``folder`` already (:func:`survey_picture`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary.as_json(), indent=2))
    rows = "".join(f"<tr><td>{html.escape(a)}<td><b>{html.escape(b)}</b></tr>" for a, b in summary.rows())
    note = f'<p class="note">Specimen: {html.escape(label)}.</p>' if label else ""
    gallery = "".join(
        _scan_gallery(folder, number, scan, store) for number, scan in enumerate(record.scans.values())
    )
    page = folder / "report.html"
    page.write_text(
        _PAGE.format(
            title=html.escape(title), note=note, figures=rows, commands=_command_rows(record), gallery=gallery
        )
    )
    return page


def _command_rows(record: Record) -> str:
    from nextem.v1 import control_pb2

    rows = []
    for number, outcome in enumerate(record.steered(), start=1):
        final = record.final[outcome.command_id]
        state = control_pb2.CommandState.Name(final.state).removeprefix("COMMAND_STATE_").lower()
        reason = html.escape(record.commands[outcome.command_id].cause.reason)
        rows.append(f"<tr><td>{number}<td>{reason}<td>{outcome.loop_latency_ms:.1f} ms<td>{state}</tr>")
    return "".join(rows)


def _scan_gallery(folder: Path, number: int, scan: Scan, store: ProductStore) -> str:
    title = f"fine scan {number}" if number else "survey"
    figures = []
    for product_id in sorted(scan.products):
        product, array = store.read(product_id)
        if product.kind in ("failed", "values"):
            figures.append(f"<p>{html.escape(product.name)}: {html.escape(failure(product))}</p>")
            continue
        name = f"pictures/{number:02d}_{product.name.replace('/', '_')}.png"
        quick_picture(product, array, folder / name, 256 if number == 0 else 160)
        figures.append(
            f'<figure><img src="{name}" alt="{html.escape(product.name)}">'
            f"<figcaption>{html.escape(product.name)}</figcaption></figure>"
        )
    return f"<h3>{title}</h3><div>{''.join(figures)}</div>"
