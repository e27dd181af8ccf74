"""Is the policy worth its electrons? The demo, as a user runs it, once for each seed, on both specimens.

* Polycrystal: inclusions found of those planted, and against as many fine scans placed at random.
* Alloy (its folder by ``--alloy`` or NEXTEM_TEST_DATA): phase fractions of the fine-scanned area against the
  whole map, which is what scans placed at random find. Derived from a model of measured data.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from table import Row, parser, report

from nextem.cli.console import screen

FOUND_MARK, RANDOM_MARK = 0.8, 3.0
PRECIPITATES_MARK, VARIANTS_MARK = 2.5, 4.0


def demo(seed: int, *arguments: str) -> dict[str, Any]:
    """The summary of one ``nextem demo``."""
    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as home:
        command = [sys.executable, "-m", "nextem.cli.main", "demo", "--seed", str(seed), "--home", home]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"seed {seed}: {done.stderr[-2000:]}")
        (path,) = Path(home, "reports").rglob("summary.json")
        found: dict[str, Any] = json.loads(path.read_text())
    return found


def lost(summary: dict[str, Any]) -> int:
    """Frames lost or not accounted for."""
    return int(summary["frames_announced"] - summary["frames_stored"])


def polycrystal_rows(seeds: list[int]) -> list[Row]:
    rows = []
    for seed in seeds:
        found = demo(seed)
        share = found["inclusions_found"] / found["inclusions_planted"]
        by_chance = found["inclusions_found_at_random"]
        screen(stderr=True).print(f"polycrystal, seed {seed}: {share:.0%}, by chance {by_chance:.2f}")
        name = f"polycrystal, seed {seed}"
        rows += [
            Row(f"{name}: found of planted", share, "", "mark to beat", FOUND_MARK),
            Row(f"{name}: found", found["inclusions_found"], "", "at random", by_chance),
            Row(f"{name}: frames lost or unaccounted", lost(found), "frames"),
            Row(f"{name}: dose used", found["dose_used"], "electrons", "budget", found["dose_budget"]),
        ]
    return rows


def alloy_rows(folder: Path, seeds: list[int]) -> list[Row]:
    rows, gains = [], []
    for seed in seeds:
        found = demo(seed, "--specimen", str(folder))
        gain = [found["phases"][name]["gain"] for name in ("precipitates", "θ′ variants")]
        gains.append(gain)
        screen(stderr=True).print(
            f"alloy, seed {seed}: precipitates {gain[0]:.2f}, θ′ {gain[1]:.2f} × random"
        )
        rows += [
            Row(f"alloy, noise seed {seed}: precipitates", gain[0], "× random", "mark", PRECIPITATES_MARK),
            Row(f"alloy, noise seed {seed}: θ′ variants", gain[1], "× random", "mark", VARIANTS_MARK),
            Row(f"alloy, noise seed {seed}: frames lost or unaccounted", lost(found), "frames"),
        ]
    worst, median = np.min(gains, axis=0), np.median(gains, axis=0)
    for index, (name, mark) in enumerate(
        (("precipitates", PRECIPITATES_MARK), ("θ′ variants", VARIANTS_MARK))
    ):
        rows.append(
            Row(f"alloy, {len(seeds)} seeds: {name}, median", median[index], "× random", "mark", mark)
        )
        rows.append(Row(f"alloy, {len(seeds)} seeds: {name}, worst", worst[index], "× random", "mark", mark))
    return rows


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=6, help="polycrystals")
    made.add_argument("--alloy-seeds", type=int, default=10, help="noise seeds of the alloy")
    data = os.environ.get("NEXTEM_TEST_DATA", "")
    made.add_argument("--alloy", type=Path, default=Path(data, "sped-alculi-nmf-derived") if data else None)
    options = made.parse_args()
    rows = polycrystal_rows(list(range(1, options.seeds + 1)))
    if options.alloy is not None and options.alloy.is_dir():
        rows += alloy_rows(options.alloy, list(range(1, options.alloy_seeds + 1)))
    else:
        screen(stderr=True).print("no folder of the alloy: set NEXTEM_TEST_DATA or --alloy")
    report("Steering: found per dose", rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
