"""Says which kernels an edge compiles, or reads from disk, only after it has started. Run by its test.

In a process of its own: what an earlier test called is ready already.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher

from nextem.simulator.csr import CsrFormat
from nextem.simulator.timepix3 import Timepix3Camera, Timepix3Scan, record
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2

kit: Any = importlib.import_module("conftest")  # of this folder

FRAMES = 40
MASK = plan_pb2.Mask(name="all", inner_px=0, outer_px=-1)
COUNTING = plan_pb2.Counting(threshold=3, xray_threshold=200)
MOVIE = plan_pb2.Movie(bin_px=2, average_frames=4, drift=True, key_frames=plan_pb2.KeyFrames())


def compiled() -> set[str]:
    """Our kernels that are ready, each with the types it is ready for."""
    kernels = (one for one in gc.get_objects() if isinstance(one, Dispatcher))
    return {
        f"{one.py_func.__module__}.{one.py_func.__name__}{signature}"
        for one in kernels
        if one.py_func.__module__.startswith("nextem.edge")
        or one.py_func.__module__.startswith("nextem.wire")
        for signature in one.signatures
    }


class Case:
    """An edge in a folder of its own. What is compiled from ``ready`` on is told by ``end``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rig = kit.Rig(Path(tempfile.mkdtemp()))
        self.finished: list[pb.AcquisitionFinished] = []

    def start(self, reduction: plan_pb2.Reduction, **config: Any) -> None:
        plan = plan_pb2.Plan(scan=plan_pb2.Scan(size_y=1, size_x=FRAMES), reduction=reduction)
        self.rig.start(on_finished=self.finished.append, **{"passive_plan": plan} | config)
        self.ready()

    def ready(self) -> None:
        self._before = compiled()

    def end(self) -> None:
        self.rig.wait_for(lambda: self.finished)
        late = compiled() - self._before
        self.rig.close()
        assert self.finished[0].reason == pb.FINISH_REASON_COMPLETE, self.finished
        names = sorted({one.partition("(")[0] for one in late})
        print(f"{self.name}: {', '.join(names) or 'nothing'}", flush=True)


def play(script: Any, images: Any) -> None:
    script.open(FRAMES)
    script.frames(images)
    script.end()


def reductions() -> None:
    for itemsize in (1, 2, 4):
        sparse = kit.sparse_frames(FRAMES, dtype=f"u{itemsize}")
        bright = np.random.default_rng(0).integers(0, 200, sparse.shape).astype(sparse.dtype)
        for kind, images in (("sparse", sparse), ("bright", bright)):
            for policy in plan_pb2.RepresentationPolicy.values():
                case, script = Case(f"{8 * itemsize} bit, {kind}, policy {policy}"), kit.Scripted()
                reduction = plan_pb2.Reduction(representation=policy, masks=[MASK], center_of_mass=True)
                case.start(reduction, make_detector=script)
                play(script, images)
                case.end()


def plans() -> None:
    """What a plan adds: known before its acquisition, whether passive or expected."""
    images = np.random.default_rng(0).integers(0, 200, (FRAMES, 32, 48)).astype("u2")
    for name, reduction, expected in (
        ("counting, passive", plan_pb2.Reduction(counting=COUNTING), False),
        ("movie, expected", plan_pb2.Reduction(movie=MOVIE), True),
    ):
        case, script = Case(name), kit.Scripted()
        if expected:
            case.start(plan_pb2.Reduction(), make_detector=script)
            plan = plan_pb2.Plan(scan=plan_pb2.Scan(size_y=1, size_x=FRAMES), reduction=reduction)
            case.rig.pipeline.expect("expected", plan, "")
            case.ready()
        else:
            case.start(reduction, make_detector=script)
        play(script, images)
        case.end()


def receivers() -> None:
    for values in ("u1bit", "uint8", "uint16", "uint32", "uint64"):
        case = Case(f"CSR {values}")
        case.start(plan_pb2.Reduction(), detector=f"csr://127.0.0.1:{case.rig.camera.port}")
        images = (kit.sparse_frames(FRAMES) > 0).astype(np.uint32)
        case.rig.camera.send(b"".join(CsrFormat((4, 10), (32, 48), values=values).messages(images)))
        case.end()
    case = Case("Merlin")
    case.start(plan_pb2.Reduction())
    case.rig.camera.send(kit.acquisition_header(FRAMES) + kit.stream(kit.sparse_frames(FRAMES)))
    case.end()
    scan, rng = Timepix3Scan((4, 10), dwell_ns=2000, flyback_ns=2000), np.random.default_rng(0)
    places = rng.uniform(5, 250, (2, FRAMES))
    case = Case("Timepix3")
    address = f"tpx3://127.0.0.1:{case.rig.camera.port}?scan=4x10&dwell_ns=2000"
    case.start(plan_pb2.Reduction(), detector=address)
    case.rig.camera.send(record(Timepix3Camera(), scan, np.arange(FRAMES), places[0], places[1], rng).data)
    case.end()


if __name__ == "__main__":
    kit.WAIT_S = 300.0
    reductions()
    plans()
    receivers()
