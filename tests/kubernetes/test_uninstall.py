"""`helm uninstall` leaves nothing that it made, and says what data it left on purpose."""

from __future__ import annotations

import json
import subprocess
import time

import pytest
from cluster_kit import Refused, Release, run, wait_until
from experiment_kit import experiment, plan, until_frames

_KINDS = (
    "pods,services,deployments,statefulsets,jobs,cronjobs,rayclusters,secrets,configmaps,"
    "serviceaccounts,roles,rolebindings,networkpolicies,leases,experiments"
)
_OF_THE_CLUSTER = {"configmap/kube-root-ca.crt", "serviceaccount/default"}


def test_an_uninstall_in_mid_scan_leaves_no_object_and_no_finalizer(release: Release) -> None:
    namespace = release.namespace
    namespace.apply(experiment("running-still", plan(128)))
    until_frames(namespace, "running-still", 100)
    started = time.monotonic()
    uninstall = ["helm", "uninstall", release.name, "-n", namespace.name]
    done = subprocess.run(uninstall, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400)
    told = done.stdout  # Helm prints what hooks say on stderr
    assert done.returncode == 0, told
    print(told)
    print(f"helm uninstall in mid-scan: {time.monotonic() - started:.1f} s")

    def left() -> set[str]:
        listed = json.loads(namespace.kubectl("get", _KINDS, "-o", "json"))["items"]
        return {f"{o['kind'].lower()}/{o['metadata']['name']}" for o in listed} - _OF_THE_CLUSTER

    wait_until(f"nothing is left: {left()}", lambda: not left() or None, 120, poll_s=1)
    for claim in namespace.objects("persistentvolumeclaims"):
        assert f"left on purpose: volume claim {claim['metadata']['name']}" in told


def test_an_uninstall_leaves_nothing_in_the_cluster_at_large(release: Release) -> None:
    label = "app.kubernetes.io/part-of=nextem"
    for kind in ("clusterroles", "clusterrolebindings", "persistentvolumes", "namespaces"):
        assert run("kubectl", "get", kind, "-l", label, "-o", "name") == ""
    with pytest.raises(Refused, match="not found"):
        run("helm", "status", release.name, "-n", release.namespace.name)
