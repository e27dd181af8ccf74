"""The hook jobs that make the topics of a facility's own Kafka and take them away again, on a real broker."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import pytest
from cluster_kit import ROOT, VALUES, Namespace, run, until_done, wait_until

BROKER = ("kafka-config", "kafka-service", "kafka", "serviceaccounts")
DATA = "/var/lib/kafka"


def rendered(namespace: Namespace, templates: list[str], *settings: str) -> str:
    shown = [word for name in templates for word in ("--show-only", f"templates/{name}.yaml")]
    sets = [word for value in settings for word in ("--set", value)]
    chart = str(ROOT / "helm" / "nextem")
    return run(
        "helm", "template", "nextem", chart, "-n", namespace.name, "-f", str(VALUES),
        "--kube-version", "1.34.0", *shown, *sets,
    )  # fmt: skip


@pytest.fixture
def broker(loaded: dict[str, str]) -> Iterator[Namespace]:
    """A namespace with nothing but a Kafka, which no release of the chart made."""
    namespace = Namespace("nextem-test-topics")
    run("kubectl", "create", "namespace", namespace.name)
    try:
        there = rendered(namespace, [f"quickstart/{name}" for name in BROKER])
        namespace.kubectl("apply", "-f", "-", input=there)
        wait_until("kafka is ready", partial(namespace.ready, "kafka"), 300)
        yield namespace
    finally:
        run("kubectl", "delete", "namespace", namespace.name, timeout_s=400)


def test_topics_are_made_and_taken_away(broker: Namespace) -> None:
    outside = (
        "quickstart.enabled=false", "kafka.bootstrap=nextem-kafka:9092", "store.address=s3://unused",
        "store.check.enabled=false", "kafka.topics.deleteOnUninstall=true",
    )  # fmt: skip

    def topics() -> set[str]:
        listed = broker.kubectl("exec", "nextem-kafka-0", "--", "find", DATA, "-maxdepth", "3", "-type", "d")
        found = (re.fullmatch(r".*/(nextem\.[a-z]+)-\d+", line) for line in listed.splitlines())
        return {one[1] for one in found if one}

    assert topics() == set()
    for job, hook in (("nextem-setup", "setup"), ("nextem-topics-removal", "topics-removal")):
        broker.kubectl("apply", "-f", "-", input=rendered(broker, [f"hooks/{hook}"], *outside))
        print(until_done(broker, job))
        if hook == "setup":
            assert topics() >= {"nextem.frames", "nextem.products", "nextem.acquisitions", "nextem.audit"}
    wait_until("no topic is left", lambda: not topics() or None, 60)
