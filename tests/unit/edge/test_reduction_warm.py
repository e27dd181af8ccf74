"""Nothing is compiled while frames come: the ring would fill meanwhile, and frames be lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A process of its own: in this one other tests have compiled whatever they needed.
SCRIPT = """
import sys
import numpy as np
from numba.core.dispatcher import Dispatcher
from nextem.edge.reduction.reducer import compile_reduction
from nextem.edge.reduction.formats import PixelFormat
from nextem.v1 import plan_pb2
from nextem.wire.events import Events

def compiled():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("nextem."):
            for value in list(vars(module).values()):
                if isinstance(value, Dispatcher):
                    found[f"{value.py_func.__module__}.{value.py_func.__name__}"] = len(value.signatures)
    return found

itemsize = int(sys.argv[1])
reducer = compile_reduction(plan_pb2.Reduction(), (16, 16), PixelFormat(itemsize), 8)
before = compiled()
few = np.zeros((4, 16, 16), f"u{itemsize}")
few[:, 3, 4] = 2
many = np.ones((4, 16, 16), f"u{itemsize}")
events = Events(np.arange(5, dtype=np.uint32), np.full(4, 3 * 16 + 4, np.uint32), few[:, 3, 4].copy())
for frames in (few, few, many, many, few, few):
    reduced = reducer.reduce(frames.astype(frames.dtype.newbyteorder(">")).view(np.uint8).reshape(4, -1))
    reduced.pixels.part(1, 2).frames
reducer.reduce_events(events).pixels.streams.pack()
print(sorted(name for name, n in compiled().items() if n != before.get(name, 0)))
"""


@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_a_reduction_that_is_ready_compiles_nothing_more(itemsize: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(itemsize)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
