"""Ray itself: started in place, started as the head of a cluster, or joined where it runs."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from nextem.analysis.options import AnalysisOptions

OBJECT_STORE_BYTES = 128 << 20
GCS_LOST_S = 20
"""After so long without the head, whoever belongs to it ends; Ray's own default is a minute."""

HOST_PLACE = "nextem-host"
"""A resource that only the head has: the reducer host works there and nobody else."""

_COMMON: Mapping[str, Any] = {"log_to_driver": False, "configure_logging": False}


@contextmanager
def ray_running(options: AnalysisOptions) -> Iterator[None]:
    """Ray, for as long as the block; a temporary folder of its own where it is started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    if options.on_cluster:
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(GCS_LOST_S))
    if options.ray_address is not None:
        with _kept_signals():
            ray.init(address=options.ray_address, **_COMMON)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # The host is on the way from a frame to a command; Ray would put all behind whatever else runs here.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # The paths of Ray's sockets lie in here and must stay below 107 characters.
    folder = tempfile.mkdtemp(prefix="nxr")
    try:
        with _kept_signals(), _port(options.ray_head):
            ray.init(
                address="local",
                num_cpus=options.workers + 1 if options.ray_head is None else 0,
                resources=None if options.ray_head is None else {HOST_PLACE: 1},
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
                **_COMMON,
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def processors() -> int:
    """How many worker actors the nodes that are there now can hold, beside the host."""
    there = ray.cluster_resources()
    return int(there.get("CPU", 0)) - (0 if HOST_PLACE in there else 1)


@contextmanager
def _port(port: int | None) -> Iterator[None]:
    """Has the head listen at ``port``, where one is given; Ray takes it from the environment."""
    before = os.environ.get("RAY_GCS_SERVER_PORT")
    if port is not None:
        os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    try:
        yield
    finally:
        if port is not None and before is None:
            del os.environ["RAY_GCS_SERVER_PORT"]
        elif before is not None:
            os.environ["RAY_GCS_SERVER_PORT"] = before


@contextmanager
def _kept_signals() -> Iterator[None]:
    """Puts back the handler of SIGTERM, which Ray replaces by one that exits without a clean stop."""
    ours = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if ours and handler is not None:
        signal.signal(signal.SIGTERM, handler)
