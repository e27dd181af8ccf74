"""What values may be: wrong ones are refused in words that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chart_kit import CHARTS, HelmError, render, render_text

OUTSIDE = ("kafka.bootstrap=k:9092", "store.address=s3://tem")
"""The least that the chart nextem needs."""

EDGE = ("detector=merlin:6342", "driver=scope:50061", "steering=steer:50051", *OUTSIDE)


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["quickstart.enbled=true"], "additional properties 'enbled' not allowed"),
        (["kafka.security.protocol=TLS"], "at '/kafka/security/protocol': value must be one of 'PLAINTEXT'"),
        (["kafka.bootstrap=kafka"], "at '/kafka/bootstrap': 'kafka' does not match pattern"),
        (["store.address=http://s3"], "at '/store/address': 'http://s3' does not match pattern"),
        (["store.sweep.schedule=at night"], "at '/store/sweep/schedule': 'at night' does not match pattern"),
        (["analysis.workers.min=two"], "at '/analysis/workers/min': got string, want integer"),
        (["steering.resources.limits.memory=lots"], "'lots' does not match pattern"),
        (["steering.settings.ring-mib=3"], "propertyName 'ring-mib'"),
        (["image.tag=latest"], "image.tag is latest: nobody would know what runs"),
        (["quickstart.s3.image=docker.io/versity/versitygw:latest"], "quickstart.s3.image is"),
        (["quickstart.s3.image=docker.io/versity/versitygw"], "does not match pattern"),
        (["analysis.workers.min=5"], "analysis.workers.min is 5, more than analysis.workers.max, which is 4"),
        (["kafka.bootstrap="], "kafka.bootstrap is empty: give HOST:PORT"),
        (["store.address="], "store.address is empty: give s3://BUCKET"),
        (
            ["kafka.security.protocol=SASL_SSL"],
            "kafka.users.steering.secret is empty, but kafka.security.pro",
        ),
        (["quickstart.enabled=true", "kafka.strimzi.enabled=true"], "both bring a Kafka: choose one"),
        (["quickstart.enabled=true"], "leave kafka.bootstrap empty"),
        (["quickstart.enabled=true", "kafka.bootstrap="], "leave store.address and store.endpoint empty"),
        (["kafka.strimzi.enabled=true", "kafka.topics.replication=4"], "more than kafka.strimzi.brokers"),
        (["quickstart.enabled=true", "nextem-edge.detectr=x"], "additional properties 'detectr' not allowed"),
    ],
)
def test_a_wrong_value_is_refused_in_words(sets: list[str], told: str) -> None:
    with pytest.raises(HelmError) as refused:
        render_text(None, (*OUTSIDE, *sets))
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["detector="], "detector is empty: give the detector's address"),
        (["driver="], "driver is empty: give HOST:PORT"),
        (["steering="], "steering is empty: give HOST:PORT"),
        (["storage.kind=hostPath"], "value must be one of 'emptyDir', 'claim', 'local'"),
        (["storage.kind=local"], "storage.node is empty"),
        (["instrument=TEM 1"], "at '/instrument': 'TEM 1' does not match pattern"),
    ],
)
def test_a_wrong_value_of_an_edge_is_refused_in_words(sets: list[str], told: str) -> None:
    with pytest.raises(HelmError) as refused:
        render_text(None, (*EDGE, *sets), "nextem-edge")
    assert told in str(refused.value)


def test_the_least_that_is_needed_is_enough() -> None:
    assert render(sets=OUTSIDE)
    assert render(sets=EDGE, chart="nextem-edge")


def test_listening_only_needs_neither_driver_nor_steering_nor_keys() -> None:
    sets = ("listenOnly=true", "detector=merlin:6342", *OUTSIDE)
    text = render_text(None, sets, "nextem-edge")
    assert not any(word in text for word in ("--instrument", "--steering", "--tls", "nextem-keys"))


def _schema(chart: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CHARTS / chart / "values.schema.json").read_text())
    return loaded


def _parts(at: str, part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield at, part
    for under in ("properties", "$defs"):
        for name, inner in part.get(under, {}).items():
            yield from _parts(f"{at}.{name}", inner)


@pytest.mark.parametrize("chart", ["nextem", "nextem-edge"])
def test_the_schema_describes_everything_and_lets_nothing_else_in(chart: str) -> None:
    for at, part in _parts("", _schema(chart)):
        assert "description" in part or "$ref" in part, f"{chart}{at} has no description"
        if "properties" in part:
            assert part["additionalProperties"] is False, f"{chart}{at} lets anything in"


def test_what_both_charts_have_they_describe_alike() -> None:
    one, other = _schema("nextem")["$defs"], _schema("nextem-edge")["$defs"]
    both = one.keys() & other.keys()
    assert both
    assert all(one[name] == other[name] for name in both)
