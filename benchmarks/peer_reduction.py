"""The peer's half of ``benchmarks/reduction.py``; runs in the peer's own environment.

Reads one request a line from standard input, JSON, and answers each with a line of JSON: seconds, or an
error. The figures are asked for in one of two ways: "udfs" as LiberTEM offers them, SumUDF, SumSigUDF,
ApplyMasksUDF and CoMUDF in one run; "stacked" in the fastest way that we know, frame sum, masks and first
moments in one ApplyMasksUDF, so that a tile of frames meets all weights in one matrix product, and SumUDF.
"""

from __future__ import annotations

import functools
import json
import sys
import time
import warnings
from typing import Any

import libertem.api as lt
import numpy as np
import sparse
from libertem.executor.concurrent import ConcurrentJobExecutor
from libertem.executor.inline import InlineJobExecutor
from libertem.executor.pipelined import PipelinedExecutor
from libertem.io.corrections import CorrectionSet
from libertem.udf.com import CoMUDF
from libertem.udf.masks import ApplyMasksUDF
from libertem.udf.sum import SumUDF
from libertem.udf.sumsigudf import SumSigUDF

THREADS = 2
ROW = 64  # frames in one row of the scan; every scan has whole rows


def executor(name: str) -> Any:
    if name == "pipelined":
        return PipelinedExecutor(PipelinedExecutor.make_spec(cpus=range(THREADS), cudas=[]))
    if name == "concurrent":
        return ConcurrentJobExecutor.make_local(n_threads=THREADS)
    return InlineJobExecutor()


class Peer:
    """Contexts, one for each executor, and the datasets opened in them."""

    def __init__(self) -> None:
        self.contexts: dict[str, Any] = {}
        self.frames: dict[str, np.ndarray] = {}
        self.total = 0.0

    def seconds(self, request: dict[str, Any]) -> float:
        context = self._context(request["executor"])
        dataset = self._dataset(context, request)
        shape = tuple(request["shape"])
        stacked = request["way"] == "stacked"
        stack = functools.partial(weights, request["masks"], shape[1:], stacked)
        masks = ApplyMasksUDF(
            mask_factories=stack, use_sparse=False, mask_count=len(stack()), mask_dtype=np.float32
        )
        udfs = [SumUDF(), masks] if stacked else [SumUDF(), masks, SumSigUDF(), CoMUDF.with_params()]
        corrections = None
        if "dark" in request:
            bad = np.array(np.nonzero(np.load(request["bad"])))
            corrections = CorrectionSet(
                dark=np.load(request["dark"]),
                gain=np.load(request["gain"]),
                excluded_pixels=sparse.COO(coords=bad, data=True, shape=shape[1:]),
            )
        start = time.perf_counter()
        result = context.run_udf(dataset=dataset, udf=udfs, corrections=corrections)
        taken = time.perf_counter() - start
        self.total = float(np.sum(result[0]["intensity"].data, dtype=np.float64))
        return taken

    def _context(self, name: str) -> Any:
        if name not in self.contexts:
            self.contexts[name] = lt.Context(executor=executor(name))
        return self.contexts[name]

    def _dataset(self, context: Any, request: dict[str, Any]) -> Any:
        n, y, x = request["shape"]
        if request["from"] == "file":
            return context.load(
                "raw",
                path=request["path"],
                dtype=request["dtype"],
                nav_shape=(n // ROW, ROW),
                sig_shape=(y, x),
            )
        path = request["path"]
        if path not in self.frames:
            self.frames.clear()
            self.frames[path] = np.fromfile(path, request["dtype"]).reshape(n // ROW, ROW, y, x)
        return context.load("memory", data=self.frames[path], sig_dims=2, num_partitions=2 * THREADS)


def weights(path: str, shape: tuple[int, int], stacked: bool) -> np.ndarray:
    """The masks (masks, y, x) of a file; if ``stacked`` then ones, y and x as well; all float32."""
    if not stacked:
        return np.load(path)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return np.concatenate([np.load(path), np.ones_like(y)[None], y[None], x[None]])


def main() -> None:
    warnings.simplefilter("ignore")
    peer = Peer()
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"seconds": peer.seconds(json.loads(line)), "total": peer.total}
        except Exception as error:  # noqa: BLE001  told to the benchmark, which says so
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    for context in peer.contexts.values():
        context.close()


if __name__ == "__main__":
    main()
