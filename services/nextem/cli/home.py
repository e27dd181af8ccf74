"""Where one installation keeps what it makes: the home folder and its lay-out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nextem.wire.console import FILE_NAME
from nextem.wire.key_folder import AUTHORITY, KeyFolder

DEFAULT_HOME = "nextem-home"


@dataclass(frozen=True, slots=True)
class Home:
    """The home folder: ``--home``, else ``$NEXTEM_HOME``, else ``./nextem-home``."""

    folder: Path

    @classmethod
    def at(cls, given: Path | None) -> Home:
        return cls((given or Path(os.environ.get("NEXTEM_HOME") or DEFAULT_HOME)).resolve())

    @property
    def store(self) -> Path:
        """Products, as Zarr v3."""
        return self.folder / "store"

    @property
    def log(self) -> Path:
        """Segments of the local log."""
        return self.folder / "log"

    @property
    def kafka(self) -> Path:
        """Data of the Kafka broker that we start ourselves."""
        return self.folder / "kafka"

    @property
    def keys(self) -> KeyFolder:
        """Certificates, signing keys and tokens, where ``nextem keys init`` has made any."""
        return KeyFolder(self.folder / "keys")

    @property
    def settings(self) -> Path:
        """Settings of the processes, where nobody names another file (:mod:`nextem.cli.settings`)."""
        return self.folder / "nextem.toml"

    @property
    def console(self) -> Path:
        """Socket file of the edge that keeps its journal here, while it runs."""
        return self.folder / FILE_NAME

    def secured(self, given: Path | None) -> KeyFolder | None:
        """The folder ``given``, else this home's own keys, else None: plain text on loopback."""
        if given is not None:
            return KeyFolder(given.resolve())
        return self.keys if self.keys.certificate(AUTHORITY).exists() else None

    def run(self, name: str) -> Path:
        """Folder of one run: log, spool, journal and the processes' own logs."""
        return self.folder / "runs" / name

    def report(self, name: str) -> Path:
        """Folder of one run's report and pictures."""
        return self.folder / "reports" / name
