"""Runs every benchmark of this folder, one after another (``make bench``)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOT_BENCHMARKS = {
    "adversary.py",
    "otlp_sink.py",
    "run_all.py",
    "streams.py",
    "table.py",
    "wan.py",
    "worlds.py",
}


def main() -> int:
    """Each benchmark writes its figures to ``FOLDER/<name>.json`` where a folder is given as argument."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    failed = []
    for script in sorted(HERE.glob("*.py")):
        if script.name in NOT_BENCHMARKS or script.stem.startswith("peer"):
            continue
        arguments = [] if folder is None else ["--json", str(folder / f"{script.stem}.json")]
        print(f"== {script.stem}", flush=True)
        if subprocess.run([sys.executable, str(script), *arguments], check=False).returncode != 0:
            failed.append(script.stem)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
