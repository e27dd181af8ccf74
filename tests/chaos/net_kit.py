"""A real network between the edge and the steering service, in which frames are lost in either direction."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wire_kit import FROM_EDGE, TO_EDGE

_CLONE_NEWNET = 0x40000000
_NOBODY = "02:00:00:00:00:99"


class NoNetwork(Exception):
    """This machine lets nobody make namespaces, or this user may not."""


class Network:
    """A namespace for the service, and two cables to it: one is the edge's, the other that of people.

    A direction is held by giving its sender nobody's hardware address for the other end: the kernel
    sends, the frames are dropped on arrival, and nobody is told.
    """

    def __init__(self) -> None:
        """Raises :class:`NoNetwork`."""
        if os.geteuid() != 0:
            raise NoNetwork("network namespaces take root")
        self._name, self._net = f"nextem{os.getpid()}", f"10.213.{os.getpid() % 250}"
        self.for_edge, self.for_people = f"{self._net}.2", f"{self._net}.6"
        self.address = ""  # of the service for the edge, once it has a port
        _ip("netns", "add", self._name)
        try:
            for cable, ours, theirs in (("e", 1, 2), ("p", 5, 6)):
                near, far = self._cable(cable)
                _ip("link", "add", "name", near, "type", "veth", "peer", "name", far)
                _ip("link", "set", far, "netns", self._name)
                _ip("addr", "add", f"{self._net}.{ours}/30", "dev", near)
                _ip("link", "set", near, "up")
                self._inside("addr", "add", f"{self._net}.{theirs}/30", "dev", far)
                self._inside("link", "set", far, "up")
            self._inside("link", "set", "lo", "up")
        except NoNetwork:
            self.close()
            raise

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What this thread starts in the meantime lives in the namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (
            Path("/proc/thread-self/ns/net").open() as here,
            Path(f"/run/netns/{self._name}").open() as there,
        ):
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise NoNetwork(os.strerror(ctypes.get_errno()))
            try:
                yield
            finally:
                libc.setns(here.fileno(), _CLONE_NEWNET)

    def hold(self, *ways: str) -> None:
        near, far = self._cable("e")
        if FROM_EDGE in ways:
            _ip("neigh", "replace", self.for_edge, "lladdr", _NOBODY, "nud", "permanent", "dev", near)
        if TO_EDGE in ways:
            to = ("neigh", "replace", f"{self._net}.1", "lladdr", _NOBODY, "nud", "permanent", "dev", far)
            self._inside(*to)

    def release(self) -> None:
        near, far = self._cable("e")
        for run, end, dev in ((_ip, self.for_edge, near), (self._inside, f"{self._net}.1", far)):
            run("neigh", "flush", "to", end, "dev", dev, "nud", "permanent")

    def close(self) -> None:
        """Harmless twice."""
        if Path("/run/netns", self._name).exists():
            _ip("netns", "del", self._name)  # its ends of the cables go with it, and so do ours

    def _cable(self, letter: str) -> tuple[str, str]:
        return f"nx{letter}{os.getpid()}", f"ny{letter}{os.getpid()}"

    def _inside(self, *words: str) -> None:
        _ip("-n", self._name, *words)


def _ip(*words: str) -> None:
    try:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoNetwork(f"ip {' '.join(words)}: {getattr(error, 'stderr', error)}") from error
