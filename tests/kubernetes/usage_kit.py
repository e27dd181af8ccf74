"""Memory and processor time of each pod, as the kubelet counts them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from cluster_kit import Namespace, run, wait_until

COUNTS_S = 60
"""The kubelet counts every ten to fifteen seconds, each pod at its own time."""


@dataclass(frozen=True)
class Usage:
    """Of one pod: its working set, and the processors that it kept busy."""

    memory_mib: float
    processors: float


@dataclass(frozen=True)
class _Count:
    memory_bytes: int
    cpu_ns: int
    at: datetime


def usage(namespace: Namespace, seconds: float) -> dict[str, Usage]:
    """By pod: memory at the end of ``seconds`` or a little later, processors since their start."""
    before = _counted_from_now(namespace)
    time.sleep(seconds)  # the interval that is measured
    after = _counted_from_now(namespace)
    return {
        name: Usage(
            count.memory_bytes / 2**20,
            (count.cpu_ns - before[name].cpu_ns) / 1e9 / (count.at - before[name].at).total_seconds(),
        )
        for name, count in after.items()
        if name in before
    }


def table(rest: dict[str, Usage], busy: dict[str, Usage], head: str) -> str:
    lines = [f"{'pod':44} {'at rest':>22} {head:>22}"]
    for name in sorted(rest.keys() & busy.keys()):
        both = (f"{u.memory_mib:7.0f} MiB {u.processors:6.3f} CPU" for u in (rest[name], busy[name]))
        lines.append(f"{name:44} " + " ".join(f"{text:>22}" for text in both))
    return "\n".join(lines)


def _counted_from_now(namespace: Namespace) -> dict[str, _Count]:
    """By pod, each counted after this was called."""
    begun = datetime.now(UTC)

    def all_new() -> dict[str, _Count] | None:
        found = _counted(namespace)
        return found if found and all(count.at > begun for count in found.values()) else None

    return wait_until("the kubelet counts every pod anew", all_new, COUNTS_S)


def _counted(namespace: Namespace) -> dict[str, _Count]:
    found = {}
    for node in run("kubectl", "get", "nodes", "-o", "name").split():
        path = f"/api/v1/nodes/{node.removeprefix('node/')}/proxy/stats/summary?only_cpu_and_memory=true"
        for pod in json.loads(run("kubectl", "get", "--raw", path))["pods"]:
            if pod["podRef"]["namespace"] == namespace.name and "cpu" in pod and "memory" in pod:
                at = datetime.fromisoformat(pod["cpu"]["time"].replace("Z", "+00:00"))
                cpu_ns = pod["cpu"].get("usageCoreNanoSeconds", 0)
                found[pod["podRef"]["name"]] = _Count(pod["memory"]["workingSetBytes"], cpu_ns, at)
    return found
