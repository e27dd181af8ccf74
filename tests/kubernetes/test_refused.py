"""What must not be: wrong experiments, rights that a component does not need, pods that ask for root."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cluster_kit import Refused, Release, run
from experiment_kit import FINAL, carried_out, experiment, plan, until_phase

_TOO_BRIGHT = 1e9
"""Electrons a frame: far over the simulator's limits."""


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in plan().items() if name != key}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"plan": {**plan(), "scam": {}}}, "scam"),
        ({"plan": {**plan(), "doseEPerFrame": "many"}}, "doseEPerFrame"),
        ({"plan": _without("scan")}, "scan"),
        ({"plan": plan(), "busy": "Perhaps"}, "busy"),
        ({"plan": plan(), "retries": -1}, "retries"),
        ({"plan": plan(0)}, "sizeY"),
    ],
)
def test_an_invalid_experiment_is_refused_at_once_with_the_reason(
    release: Release, spec: dict[str, Any], told: str
) -> None:
    wrong = experiment("wrong", spec.pop("plan"), **spec)
    with pytest.raises(Refused, match=told):
        release.namespace.kubectl("apply", "--validate=strict", "-f", "-", input=json.dumps(wrong))


def test_a_dose_over_the_limit_is_refused_with_the_reason(release: Release) -> None:
    """By the API server where it knows the limit, else by the edge."""
    told = ""
    try:
        with carried_out(release.namespace, "bright", plan(doseEPerFrame=_TOO_BRIGHT)):
            ended = until_phase(release.namespace, "bright", FINAL, 30)
            assert ended["phase"] == "Failed"
            told = ended["message"]
    except Refused as error:
        told = str(error)
    assert "dose" in told


@pytest.mark.parametrize("component", ["edge", "analysis", "steering", "simulator"])
@pytest.mark.parametrize("verb", ["get", "list", "create", "delete"])
def test_a_component_s_account_can_do_nothing_with_secrets(
    release: Release, component: str, verb: str
) -> None:
    assert not _may(release, component, verb, "secrets")


def test_the_operator_s_account_has_its_own_objects_and_no_secret(release: Release) -> None:
    assert _may(release, "operator", "patch", "experiments.nextem.dev")
    for verb in ("get", "list"):
        assert not _may(release, "operator", verb, "secrets")
    assert not _may(release, "operator", "create", "pods")


def test_the_analysis_pod_holds_no_token_and_reads_no_secret_of_another(release: Release) -> None:
    (head, *_) = release.namespace.pods("analysis")
    name = head["metadata"]["name"]
    script = "ls /var/run/secrets/kubernetes.io/serviceaccount /etc/nextem-keys 2>/dev/null; true"
    assert release.namespace.kubectl("exec", name, "--", "sh", "-c", script) == ""


@pytest.mark.parametrize(
    "security",
    [{"runAsUser": 0}, {"privileged": True}, {"allowPrivilegeEscalation": True}, {}],
    ids=["root", "privileged", "escalation", "nothing said"],
)
def test_a_container_that_asks_for_more_is_refused(release: Release, security: dict[str, Any]) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "greedy"},
        "spec": {"containers": [{"name": "greedy", "image": "nextem-edge", "securityContext": security}]},
    }
    with pytest.raises(Refused, match="violates PodSecurity"):
        release.namespace.apply(pod)


def _may(release: Release, component: str, verb: str, resource: str) -> bool:
    account = f"system:serviceaccount:{release.namespace.name}:{release.name}-{component}"
    try:
        told = release.namespace.kubectl("auth", "can-i", verb, resource, f"--as={account}")
    except Refused as error:
        told = str(error).split()[-1]
    assert told.strip() in ("yes", "no"), told
    return told.strip() == "yes"


def test_the_node_s_labels_are_not_ours_to_change(release: Release) -> None:
    """The operator works in one namespace: nothing of the cluster is in its hands."""
    account = f"--as=system:serviceaccount:{release.namespace.name}:{release.name}-operator"
    with pytest.raises(Refused):
        run("kubectl", "label", "nodes", "--all", "mine=yes", account)
