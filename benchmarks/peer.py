"""The peer's environment: LiberTEM and LiberTEM-live, made once and kept in the user's cache.

Benchmarks and the tests against the peer share it. The peer's programs run in processes of their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[1] / "tests" / "peer" / "requirements.txt"
INSTALL_TIMEOUT_S = 600


class PeerUnavailable(Exception):
    """The peer cannot be installed here; says why."""


def peer_bin(requirements: Path = REQUIREMENTS) -> Path:
    """The folder of the peer's programs, ``python`` among them, with what the file ``requirements`` names.

    Raises :class:`PeerUnavailable`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nextem"
    version = f"{sys.version_info.major}.{sys.version_info.minor} "
    name = hashlib.sha256(version.encode() + requirements.read_bytes()).hexdigest()[:12]
    folder = cache / "peer-venv" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder, requirements)
            (folder / "complete").touch()
    return folder / "bin"


def _install(folder: Path, requirements: Path) -> None:
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
    for command in ([sys.executable, "-m", "venv", str(folder)], pip):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
        except (subprocess.SubprocessError, OSError) as error:
            told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise PeerUnavailable(f"the peer cannot be installed: {told[-1] if told else error}") from error
