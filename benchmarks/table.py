"""What every benchmark prints: a table, and with ``--json FILE`` the same figures for programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``peer`` names what it is compared with: another program, a limit, or a mark to beat."""

    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.peer_value if self.peer_value else None


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with ``--json``; benchmarks add their own options."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return made


def report(title: str, rows: Sequence[Row], json_path: Path | None) -> None:
    """Prints ``rows`` as a table and writes them as ``{"rows": [...]}``."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for heading in ("figure", "value", "unit", "compared with", "its value", "ratio"):
        table.add_column(
            heading, justify="left" if heading in ("figure", "unit", "compared with") else "right"
        )
    for row in rows:
        peer_value = "" if row.peer_value is None else f"{row.peer_value:,.4g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.name, f"{row.value:,.4g}", row.unit, row.peer or "", peer_value, ratio)
    Console(width=140).print(table)
    if json_path is not None:
        json_path.write_text(
            json.dumps({"rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}, indent=2)
        )
