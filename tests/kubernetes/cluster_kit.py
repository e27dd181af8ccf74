"""A cluster at hand: kubectl and helm as functions, waits that tell what they waited for, forwarded ports."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Object = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
VALUES = Path(__file__).with_name("values.yaml")
VERSION = next(
    line.split('"')[1] for line in (ROOT / "pyproject.toml").read_text().splitlines() if "version =" in line
)
DEPLOYABLES = ("edge", "simulator", "analysis", "steering", "operator")
COMPONENTS = ("kafka", "s3", "simulator", "steering", "operator", "analysis", "edge")


def image_of(deployable: str) -> str:
    return f"nextem-{deployable}:{VERSION}"


class Refused(Exception):
    """kubectl or helm ended with an error; the message is what it said."""


class TimeOut(Exception):
    """What was waited for did not come; the message says what, and what was there instead."""


def run(*command: str, input: str | None = None, timeout_s: float = 120) -> str:
    """The command's output. Raises :class:`Refused`."""
    done = subprocess.run(
        command, input=input, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        raise Refused(f"{' '.join(command[:6])} …: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_until(what: str, probe: Callable[[], T | None], timeout_s: float, poll_s: float = 0.2) -> T:
    """What ``probe`` gives once it is not None. Raises :class:`TimeOut`."""
    end = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found is not None:
            return found
        if time.monotonic() > end:
            raise TimeOut(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(poll_s)


@dataclass(frozen=True)
class Namespace:
    """One namespace of the cluster that KUBECONFIG names."""

    name: str

    def kubectl(self, *arguments: str, input: str | None = None, timeout_s: float = 120) -> str:
        return run("kubectl", "-n", self.name, *arguments, input=input, timeout_s=timeout_s)

    def apply(self, *objects: Object) -> None:
        """Raises :class:`Refused` with the API server's reason."""
        self.kubectl("apply", "-f", "-", input="\n---\n".join(json.dumps(each) for each in objects))

    def get(self, kind: str, name: str) -> Object | None:
        """The object, or None where there is none."""
        found = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(found) if found.strip() else None

    def objects(self, kind: str, selector: str = "") -> list[Object]:
        listed = self.kubectl("get", kind, "-o", "json", *(("-l", selector) if selector else ()))
        items: list[Object] = json.loads(listed)["items"]
        return items

    def pods(self, component: str) -> list[Object]:
        """Pods of a component that are not on their way out."""
        found = self.objects("pods", f"app.kubernetes.io/component={component}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, component: str) -> list[Object] | None:
        """The component's pods, if there are any and all are ready."""
        pods = self.pods(component)
        return pods if pods and all(map(is_ready, pods)) else None

    def logs(self, component: str, lines: int = 60) -> str:
        selector = f"app.kubernetes.io/component={component}"
        return self.kubectl("logs", "-l", selector, f"--tail={lines}", "--all-containers", "--prefix")

    @contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[str]:
        """``HOST:PORT`` of this machine, which leads to ``port`` of ``target`` (service/NAME, pod/NAME)."""
        command = ("kubectl", "-n", self.name, "port-forward", target, f":{port}")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        try:
            told = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", told)
            if found is None:
                raise Refused(f"port-forward {target}: {told}{process.stdout.read()}")
            yield f"127.0.0.1:{found[1]}"
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def until_done(namespace: Namespace, job: str, timeout_s: float = 180) -> str:
    """What the pods of a job have said, once it is complete; fails with that where it fails."""

    def ended() -> Object | None:
        counts: Object = (namespace.get("job", job) or {}).get("status", {})
        return counts if counts.get("succeeded") or counts.get("failed") else None

    counts = wait_until(f"job {job} ends", ended, timeout_s)
    told = namespace.kubectl("logs", f"job/{job}")
    assert counts.get("succeeded"), told
    return told


@dataclass(frozen=True)
class Release:
    """A release of the charts, its namespace, and the time from `helm install` until all was ready.

    ``persistence`` is the value by which its Kafka and S3 server outlive their pods, or do not.
    """

    name: str
    namespace: Namespace
    install_s: float
    persistence: str


def helm(verb: str, name: str, namespace: Namespace, *settings: str) -> list[str]:
    """``helm install`` or ``upgrade`` of the quickstart with ``KEY=VALUE`` values of one's own."""
    sets = (a for value in settings for a in ("--set", value))
    return ["helm", verb, name, str(ROOT / "helm" / "nextem"), "-n", namespace.name, "-f", str(VALUES), *sets]


def local_volume(namespace: str, claim: str, folder: Path) -> Object:
    """A volume in a folder of the one node, for that claim."""
    node = json.loads(run("kubectl", "get", "nodes", "-o", "json"))["items"][0]["metadata"]["name"]
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": claim},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": claim},
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }
