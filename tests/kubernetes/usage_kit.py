"""Memory and processor time of each pod, as the kubelet counts them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from cluster_kit import Namespace, run


@dataclass(frozen=True)
class Usage:
    """Of one pod: its working set, and the processors that it kept busy."""

    memory_mib: float
    processors: float


def usage(namespace: Namespace, seconds: float) -> dict[str, Usage]:
    """By pod: memory at the end of ``seconds``, processors over them."""
    before = _counted(namespace)
    time.sleep(seconds)  # the interval that is measured
    after = _counted(namespace)
    return {
        name: Usage(memory / 2**20, (cpu_ns - before[name][1]) / max(at_ns - before[name][2], 1))
        for name, (memory, cpu_ns, at_ns) in after.items()
        if name in before
    }


def table(rest: dict[str, Usage], busy: dict[str, Usage], head: str) -> str:
    lines = [f"{'pod':44} {'at rest':>22} {head:>22}"]
    for name in sorted(rest.keys() & busy.keys()):
        both = (f"{u.memory_mib:7.0f} MiB {u.processors:6.3f} CPU" for u in (rest[name], busy[name]))
        lines.append(f"{name:44} " + " ".join(f"{text:>22}" for text in both))
    return "\n".join(lines)


def _counted(namespace: Namespace) -> dict[str, tuple[int, int, int]]:
    """By pod: bytes of memory, nanoseconds of processor, and when that was (nanoseconds)."""
    found = {}
    for node in run("kubectl", "get", "nodes", "-o", "name").split():
        path = f"/api/v1/nodes/{node.removeprefix('node/')}/proxy/stats/summary?only_cpu_and_memory=true"
        for pod in json.loads(run("kubectl", "get", "--raw", path))["pods"]:
            if pod["podRef"]["namespace"] == namespace.name and "cpu" in pod and "memory" in pod:
                cpu_ns = pod["cpu"].get("usageCoreNanoSeconds", 0)
                found[pod["podRef"]["name"]] = (pod["memory"]["workingSetBytes"], cpu_ns, time.monotonic_ns())
    return found
