"""The custom resource is the contract: nothing of it is typed twice, and the chart has the newest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from nextem.cli.main import main
from nextem.operator.crd import REFINED, as_yaml, custom_resource_definition
from nextem.operator.experiment import Status
from nextem.v1 import plan_pb2

ROOT = Path(__file__).parents[3]
PLANS = sorted((ROOT / "docs" / "plans").glob("*.json"))


def _schema() -> dict[str, Any]:
    version = custom_resource_definition()["spec"]["versions"][0]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]
    return schema


PLAN: dict[str, Any] = _schema()["spec"]["properties"]["plan"]


def unknown(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """What a document has and its schema has not."""
    if isinstance(value, dict) and "x-kubernetes-preserve-unknown-fields" not in schema:
        for name, inner in value.items():
            if name in schema["properties"]:
                yield from unknown(inner, schema["properties"][name], f"{path}.{name}")
            else:
                yield f"{path}.{name}"
    elif isinstance(value, list):
        for inner in value:
            yield from unknown(inner, schema["items"], path)


def test_the_chart_s_file_is_what_the_contract_gives() -> None:
    assert (ROOT / "helm" / "nextem" / "crds" / "experiments.yaml").read_text() == as_yaml()
    assert CliRunner().invoke(main, ["operator", "crd"]).output == as_yaml()


@pytest.mark.parametrize("file", PLANS, ids=[path.stem for path in PLANS])
def test_plans_of_the_docs_fit_the_schema(file: Path) -> None:
    assert list(unknown(json.loads(file.read_text()), PLAN)) == []


def test_every_field_of_a_plan_is_in_the_schema_and_described_where_the_contract_does() -> None:
    assert set(PLAN["properties"]) == {field.json_name for field in plan_pb2.Plan.DESCRIPTOR.fields}
    scan = PLAN["properties"]["scan"]["properties"]
    assert scan["dwellS"]["description"] == "time per frame"
    assert scan["sizeY"]["maximum"] == 65_535
    fine = PLAN["properties"]["steering"]["properties"]["fine"]
    assert fine["properties"]["scan"] == PLAN["properties"]["scan"]
    assert "fine" not in fine["properties"]["steering"]["properties"]


def test_a_status_is_taken_however_much_there_is_to_say() -> None:
    status = Status(message="why " * 1000).told(
        "Accepted", False, "Refused", "why " * 1000, "2026-01-01T00:00:00Z"
    )
    written = status.to_object(1)
    jsonschema.Draft4Validator(_schema()["status"]).validate(written)
    assert written["message"].endswith("why…")


def test_what_is_refined_exists() -> None:
    messages = {f"nextem.v1.{name}" for name in plan_pb2.DESCRIPTOR.message_types_by_name}
    assert set(REFINED) <= messages
