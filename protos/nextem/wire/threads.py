"""How the threads of one process share the interpreter."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TURN_S = 0.0002


@contextmanager
def short_turns() -> Iterator[None]:
    """Threads of this process give the interpreter up after 0.2 ms while another waits for it.

    The default of 5 ms is a long time on the way from a frame to a command: it is crossed by the log
    client's threads, gRPC's and our own, each of which only needs the interpreter for a moment.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def spared_collector() -> Iterator[None]:
    """What is loaded by now is not looked through for garbage; to be entered when the process is ready.

    A full collection over the modules of an edge stops every thread for 40 ms. It comes seldom, but a rule
    may fire just then.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
