"""Who may reach whom, computed from the rendered NetworkPolicies as a network that enforces them would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from chart_kit import Object, pods, render

Labels = dict[str, str]
NAMESPACE = {"kubernetes.io/metadata.name": "tem"}


@dataclass(frozen=True, slots=True)
class Network:
    """The policies of one namespace. ``labels``: of each pod, by its component."""

    policies: list[dict[str, Any]]
    labels: dict[str, Labels]

    def allows(self, source: str, target: str, port: int) -> bool:
        """Whether ``source`` may open a connection to ``port`` of ``target``."""
        out = self._passes(source, "Egress", "to", self.labels[target], port)
        return out and self._passes(target, "Ingress", "from", self.labels[source], port)

    def lets_out(self, source: str, address: str, port: int) -> bool:
        """Whether ``source`` may reach a machine outside at ``address``."""
        return any(
            _has_port(rule, port) and any(_peer_is(peer, None, address) for peer in rule.get("to") or [{}])
            for rule in self._rules(source, "Egress")
        )

    def _rules(self, pod: str, way: str) -> list[dict[str, Any]]:
        mine = [
            spec
            for spec in self.policies
            if way in spec["policyTypes"] and _selects(spec["podSelector"], self.labels[pod])
        ]
        assert mine, f"nothing denies {way} of {pod} by default"
        return [rule for spec in mine for rule in spec.get(way.lower()) or ()]

    def _passes(self, pod: str, way: str, peers: str, other: Labels, port: int) -> bool:
        return any(
            _has_port(rule, port) and any(_peer_is(peer, other) for peer in rule.get(peers) or [{}])
            for rule in self._rules(pod, way)
        )


def _selects(selector: dict[str, Any], labels: Labels) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def _has_port(rule: dict[str, Any], port: int) -> bool:
    return "ports" not in rule or any(one["port"] == port for one in rule["ports"])


def _peer_is(peer: dict[str, Any], labels: Labels | None, address: str = "") -> bool:
    if not peer:
        return True  # an empty list of peers is everybody
    if "ipBlock" in peer:
        return labels is None and address.startswith(peer["ipBlock"]["cidr"].split(".0/")[0])
    if labels is None:
        return False
    here = _selects(peer.get("namespaceSelector", {"matchLabels": NAMESPACE}), NAMESPACE)
    return here and _selects(peer.get("podSelector", {}), labels)


def _network(objects: list[Object], names: dict[str, str]) -> Network:
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    templates = pods(objects)
    return Network(policies, {name: templates[at]["metadata"]["labels"] for name, at in names.items()})


QUICKSTART = {
    "steering": "Deployment/nextem-steering",
    "operator": "Deployment/nextem-operator",
    "head": "RayCluster/nextem-ray/head",
    "worker": "RayCluster/nextem-ray/workers",
    "edge": "Deployment/nextem-edge",
    "simulator": "Deployment/nextem-simulator",
    "kafka": "StatefulSet/nextem-kafka",
    "s3": "StatefulSet/nextem-s3",
    "jobs": "Job/nextem-setup",
    "sweep": "CronJob/nextem-sweep",
    "keys": "CronJob/nextem-keys-renewal",
}
PORTS = {"steering": 50051, "instrument": 50061, "merlin": 6342, "kafka": 9092, "s3": 7070, "ray": 6379}
PORTS |= {"ray's own": 34567, "health": 8081, "metrics": 9464}

FLOWS = {
    ("edge", "steering", "steering"),
    ("operator", "steering", "steering"),
    ("edge", "simulator", "instrument"),
    ("edge", "simulator", "merlin"),
    *((who, "kafka", "kafka") for who in ("edge", "steering", "operator", "head", "worker", "jobs")),
    *((who, "s3", "s3") for who in ("edge", "operator", "head", "worker", "jobs", "sweep")),
    *((a, b, port) for a in ("head", "worker") for b in ("head", "worker") for port in PORTS),
}
"""Everything that is allowed within the quickstart: from, to, port."""


def test_in_the_quickstart_exactly_these_may_reach_each_other() -> None:
    network = _network(render("quickstart"), QUICKSTART)
    allowed = {
        (source, target, name)
        for source in QUICKSTART
        for target in QUICKSTART
        for name, port in PORTS.items()
        if network.allows(source, target, port)
    }
    assert allowed == FLOWS


FACILITY = {
    name: at for name, at in QUICKSTART.items() if name in ("steering", "operator", "head", "worker", "sweep")
}
KAFKA, S3, ELSEWHERE = ("10.40.0.7", 9093), ("10.40.1.7", 443), ("10.99.0.1", 443)


@pytest.mark.parametrize(
    ("source", "reaches"),
    [
        ("steering", {KAFKA}),
        ("operator", {KAFKA, S3, ELSEWHERE}),  # 443 anywhere is the API server's, see networkPolicy.apiServer
        ("head", {KAFKA, S3}),
        ("worker", {KAFKA, S3}),
        ("sweep", {S3}),
    ],
)
def test_in_a_facility_pods_reach_what_they_need(source: str, reaches: set[tuple[str, int]]) -> None:
    network = _network(render("one-facility"), FACILITY)
    assert {out for out in (KAFKA, S3, ELSEWHERE) if network.lets_out(source, *out)} == reaches


def test_edges_and_people_reach_the_steering_service_from_their_networks_alone() -> None:
    objects = render("one-facility")
    (rule,) = (
        rule
        for one in objects
        if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "nextem-steering"
        for rule in one["spec"]["ingress"]
        if _has_port(rule, 50051)
    )
    blocks = [peer["ipBlock"]["cidr"] for peer in rule["from"] if "ipBlock" in peer]
    assert blocks == ["10.20.0.0/16", "10.30.0.0/16"]


def test_nobody_but_prometheus_reaches_an_edge() -> None:
    (policy,) = (one["spec"] for one in render("edge-only") if one["kind"] == "NetworkPolicy")
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 9464}]
    assert rule["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]


def test_with_no_prometheus_nobody_reaches_an_edge_or_the_operator() -> None:
    sets = ("quickstart.enabled=true", "networkPolicy.monitoring.from=[]")
    sets += ("nextem-edge.networkPolicy.monitoring.from=[]",)
    for name in ("nextem-edge", "nextem-operator"):
        (policy,) = (
            one["spec"]
            for one in render(sets=sets)
            if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == name
        )
        assert policy["ingress"] == []


def test_without_policies_nothing_is_denied() -> None:
    sets = (
        "quickstart.enabled=true",
        "networkPolicy.enabled=false",
        "nextem-edge.networkPolicy.enabled=false",
    )
    assert not [one for one in render(sets=sets) if one["kind"] == "NetworkPolicy"]
