"""Run by the peer's python: LiberTEM-live receives an acquisition and computes the same set as we do.

Reads one line for each run: ``merlin`` or ``dectris``, data port, control port; or ``qd``, data port, bytes
of a pixel. Answers with one line of JSON: seconds from the acquisition's header to the merged result, and
the total that it summed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from typing import Any

import libertem_qd_mpx
import numpy as np
from libertem.udf.com import CoMUDF
from libertem.udf.masks import ApplyMasksUDF
from libertem.udf.sum import SumUDF
from libertem.udf.sumsigudf import SumSigUDF
from libertem_live.api import LiveContext

EDGES = (0.0, 12.0, 40.0, 80.0, 1e9)
"""Radii of the four annuli, px, round the middle."""


def annuli(shape: tuple[int, int]) -> list[Any]:
    """Mask factories of the set."""

    def make(k: int) -> Any:
        y, x = np.ogrid[: shape[0], : shape[1]]
        r_squared = (y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2
        return ((r_squared >= EDGES[k] ** 2) & (r_squared < EDGES[k + 1] ** 2)).astype(np.float32)

    return [lambda k=k: make(k) for k in range(4)]


def run(context: Any, kind: str, ports: list[int], shape: tuple[int, int]) -> dict[str, float]:
    udfs = [
        SumUDF(),
        ApplyMasksUDF(mask_factories=annuli(shape), mask_count=4, mask_dtype=np.float32, use_sparse=False),
        CoMUDF.with_params(cy=shape[0] / 2, cx=shape[1] / 2),
        SumSigUDF(),
    ]
    where = {"data_host": "127.0.0.1", "data_port": ports[0], "api_host": "localhost", "api_port": ports[1]}
    with context.make_connection(kind).open(**where) as connection:
        if kind == "dectris":
            arm(ports[1])
        pending = connection.wait_for_acquisition(30.0)
        side = round(pending.nimages**0.5)
        acquisition = context.make_acquisition(
            conn=connection, nav_shape=(side, side), pending_aq=pending, frames_per_partition=512
        )
        start_s = time.perf_counter()
        results = context.run_udf(dataset=acquisition, udf=udfs)
        seconds = time.perf_counter() - start_s
        total = float(results[0]["intensity"].data.astype(np.float64).sum())
    return {"images": side * side, "seconds": seconds, "total": total}


def drain(port: int, itemsize: int, shape: tuple[int, int]) -> dict[str, float]:
    """The wheel libertem-qd-mpx alone: every frame received and turned into native words."""
    with tempfile.TemporaryDirectory() as folder:
        connection = libertem_qd_mpx.QdConnection(
            data_host="127.0.0.1",
            data_port=port,
            frame_stack_size=16,
            shm_handle_path=f"{folder}/shm",
            drain=False,
            recovery_strategy="immediate_reconnect",
            huge=False,
        )
        connection.start_passive()
        header = connection.wait_for_arm(timeout=30.0)
        images, got = header.frames_in_acquisition(), 0
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        client = libertem_qd_mpx.CamClient(connection.get_socket_path())
        buffer = np.zeros((64, *shape), f"u{itemsize}")
        total = 0.0
        while got < images:
            stack = connection.get_next_stack(max_size=64)
            client.decode_range_into_buffer(stack, buffer[: len(stack)], 0, len(stack))
            total += float(buffer[0, shape[0] // 2].sum())  # of some: that it was decoded
            got += len(stack)
            client.done(stack)
        seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        client.close()
        connection.close()
    return {"images": images, "seconds": seconds, "total": total, "processor_s": cpu_s}


def arm(api_port: int) -> None:
    """Arms the simulated DCU; its recorded stream has an external trigger."""
    url = f"http://localhost:{api_port}/detector/api/1.8.0/command/arm"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30).read()


def main() -> None:
    shape = (int(sys.argv[1]), int(sys.argv[1]))
    with LiveContext() as context:
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            kind, *ports = line.split()
            numbers = [int(port) for port in ports]
            answer = (
                drain(numbers[0], numbers[1], shape) if kind == "qd" else run(context, kind, numbers, shape)
            )
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
