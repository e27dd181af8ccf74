"""The charts at a real API server: taken, upgraded, removed; who may do what by its rules. No pod runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import chart_kit
import pytest
from kube_kit import Cluster, api_server, program

SPACE = "tem"
FOREIGN = {
    "ray.io": ("v1", {"RayCluster": "rayclusters"}),
    "monitoring.coreos.com": ("v1", {"PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"}),
    "kafka.strimzi.io": (
        "v1",
        {
            "Kafka": "kafkas",
            "KafkaNodePool": "kafkanodepools",
            "KafkaTopic": "kafkatopics",
            "KafkaUser": "kafkausers",
        },
    ),
}
"""Kinds of other operators, by group: here with any content."""

KINDS = "deploy,sts,jobs,cronjobs,rayclusters,svc,cm,secret,sa,role,rolebinding,netpol,pvc"


def _definition(group: str, version: str, kind: str, plural: str) -> dict[str, Any]:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if chart_kit.binary() is None:
        pytest.skip("no helm on PATH; go install helm.sh/helm/v3/cmd/helm@v3.19.2 makes one")
    program("kubectl")
    with api_server(tmp_path_factory.mktemp("api")) as cluster:
        names = []
        for group, (version, kinds) in FOREIGN.items():
            for kind, plural in kinds.items():
                cluster.apply(_definition(group, version, kind, plural))
                names.append(f"crd/{plural}.{group}")
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
        cluster.kubectl("create", "namespace", SPACE)
        level = "pod-security.kubernetes.io"
        cluster.kubectl(
            "label", "namespace", SPACE, f"{level}/enforce=restricted", f"{level}/warn=restricted"
        )
        yield cluster


def _helm(cluster: Cluster, *arguments: str) -> str:
    command = (str(chart_kit.binary()), *arguments, "-n", SPACE, "--no-hooks")
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


QUICKSTART = (str(chart_kit.CHARTS / "nextem"), "--set", "quickstart.enabled=true")


@pytest.fixture
def installed(cluster: Cluster) -> Iterator[Cluster]:
    _helm(cluster, "install", "nextem", *QUICKSTART)
    yield cluster
    if "nextem" in cluster.kubectl("-n", SPACE, "get", "secret").stdout:
        _helm(cluster, "uninstall", "nextem")


@pytest.mark.parametrize("example", chart_kit.EXAMPLES)
def test_the_server_takes_every_object_and_warns_of_none(cluster: Cluster, example: str) -> None:
    text = chart_kit.render_text(example)
    done = cluster.kubectl("apply", "-n", SPACE, "--dry-run=server", "-f", "-", stdin=text)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == len(chart_kit.render(example))


def test_the_first_experiment_is_taken(installed: Cluster) -> None:
    """Its kind is there, because Helm installs the chart's `crds`."""
    installed.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/experiments.nextem.dev")
    file = str(chart_kit.CHARTS / "examples" / "experiment.yaml")
    installed.kubectl("apply", "-n", SPACE, "--dry-run=server", "-f", file)


def test_an_upgrade_keeps_the_store_s_key_and_the_number_of_workers(installed: Cluster) -> None:
    key = installed.get("-n", SPACE, "secret", "nextem-s3")["data"]
    scaled = '[{"op": "replace", "path": "/spec/workerGroupSpecs/0/replicas", "value": 3}]'
    installed.kubectl("-n", SPACE, "patch", "raycluster", "nextem-ray", "--type=json", "-p", scaled)
    for most, workers in ((7, 3), (2, 2)):
        _helm(installed, "upgrade", "nextem", *QUICKSTART, "--set", f"analysis.workers.max={most}")
        (group,) = installed.get("-n", SPACE, "raycluster", "nextem-ray")["spec"]["workerGroupSpecs"]
        assert (group["maxReplicas"], group["replicas"]) == (most, workers)
    assert installed.get("-n", SPACE, "secret", "nextem-s3")["data"] == key


def test_an_uninstall_leaves_no_object(installed: Cluster) -> None:
    assert "nextem-steering" in installed.kubectl("-n", SPACE, "get", KINDS).stdout
    _helm(installed, "uninstall", "nextem")
    left = installed.kubectl("-n", SPACE, "get", KINDS, "-o", "name").stdout.split()
    assert [name for name in left if "nextem" in name] == []


MAY = {
    ("nextem-operator", "patch", "experiments/status", True),
    ("nextem-operator", "patch", "rayclusters/nextem-ray", True),
    ("nextem-operator", "patch", "rayclusters/another", False),
    ("nextem-operator", "delete", "rayclusters/nextem-ray", False),
    ("nextem-operator", "get", "secrets", False),
    ("nextem-operator", "create", "pods", False),
    ("nextem-analysis", "get", "secrets/nextem-keys-steering", False),
    ("nextem-steering", "list", "experiments", False),
    ("nextem-keys-renewal", "update", "secrets/nextem-keys-steering", True),
    ("nextem-keys-renewal", "update", "secrets/nextem-s3", False),
    ("nextem-keys-renewal", "get", "secrets", False),
    ("nextem-keys-renewal", "create", "secrets", False),
    ("nextem-sweep", "get", "secrets/nextem-s3", False),
    ("nextem-edge", "get", "configmaps", False),
    ("nextem-simulator", "list", "pods", False),
}


def test_what_an_account_may_do_by_the_server_s_own_rules(installed: Cluster) -> None:
    installed.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/experiments.nextem.dev")
    for account, verb, what, may in sorted(MAY):
        resource, _, sub = what.partition("/")
        asked = ["--subresource=status", resource] if sub == "status" else [what]
        who = f"--as=system:serviceaccount:{SPACE}:{account}"
        done = installed.kubectl("auth", "can-i", verb, *asked, who, "-n", SPACE, check=False)
        assert done.stdout.strip() == ("yes" if may else "no"), f"{account} {verb} {what}: {done.stdout}"


def test_the_namespace_is_labelled_by_value_and_stays(cluster: Cluster) -> None:
    cluster.kubectl("create", "namespace", "other")
    chart = (str(chart_kit.CHARTS / "nextem"), "-n", "other", "--no-hooks")
    values = ("--set", "quickstart.enabled=true,namespace.manage=true", "--take-ownership")
    for command in (
        ("install", "nextem", *chart, *values),
        ("uninstall", "nextem", "-n", "other", "--no-hooks"),
    ):
        subprocess.run(
            [str(chart_kit.binary()), *command], env=cluster.environment, check=True, capture_output=True
        )
        labels = cluster.get("namespace", "other")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
