"""The custom resource ``Experiment``: its spec is the contract's plan, its rules are told in words."""

from __future__ import annotations

from typing import Any

import yaml

from nextem.operator.schema import MOST_CHARACTERS, Schema, schema_of
from nextem.v1 import plan_pb2

GROUP, VERSION, KIND, PLURAL = "nextem.dev", "v1alpha1", "Experiment", "experiments"
API_VERSION = f"{GROUP}/{VERSION}"
BUSY = ("Wait", "Refuse")
PHASES = ("Pending", "Waiting", "Running", "Analysing", "Complete", "Failed", "Stopped")
DEFAULT_RETRIES, MOST_RETRIES = 2, 10
MOST_SIDE = 65_535
_PLAN: Any = plan_pb2.Plan.DESCRIPTOR
_POSITIVE = {"minimum": 0, "exclusiveMinimum": True}
_SIDE = {"minimum": 1, "maximum": MOST_SIDE}


def _rule(rule: str, message: str) -> Schema:
    return {"rule": rule, "message": message}


REFINED: dict[str, Schema] = {
    "nextem.v1.Plan": {
        "required": ["scan", "doseEPerFrame"],
        "properties": {
            "schemaVersion": {"default": 1, "minimum": 1, "maximum": 1},
            "doseEPerFrame": _POSITIVE,
        },
    },
    "nextem.v1.Scan": {
        "required": ["sizeY", "sizeX", "stepNm", "dwellS"],
        "properties": {"sizeY": _SIDE, "sizeX": _SIDE, "stepNm": _POSITIVE, "dwellS": _POSITIVE},
    },
    "nextem.v1.Mask": {
        "required": ["name", "outerPx"],
        "properties": {"innerPx": {"minimum": 0}},
        "x-kubernetes-validations": [
            _rule(
                "self.outerPx < 0.0 || self.outerPx > (has(self.innerPx) ? double(self.innerPx) : 0.0)",
                "outerPx must be above innerPx, or negative for 'to the corner'",
            )
        ],
    },
    "nextem.v1.Counting": {
        "properties": {"threshold": {"minimum": 0}, "xrayThreshold": {"minimum": 0}},
        "x-kubernetes-validations": [
            _rule(
                "!has(self.threshold) || !has(self.xrayThreshold) || self.xrayThreshold == 0.0"
                " || self.xrayThreshold > self.threshold",
                "xrayThreshold must be above threshold, or 0 to have it found",
            )
        ],
    },
    "nextem.v1.RadialProfile": {"required": ["bins"], "properties": {"bins": {"minimum": 1}}},
    "nextem.v1.Analysis": {"required": ["name"], "properties": {"name": {"minLength": 1}}},
    "nextem.v1.SteeringPlan": {
        "required": ["policy"],
        "properties": {"policy": {"minLength": 1}, "doseBudgetE": {"minimum": 0}},
    },
    "nextem.v1.EdgeRule": {"required": ["name"], "properties": {"name": {"minLength": 1}}},
    "nextem.v1.DriftRule": {"properties": {"thresholdNm": _POSITIVE}},
    "nextem.v1.EventRule": {"required": ["column"]},
}
"""What every plan must keep, by message. What one instrument allows, its edge says: see docs/control.md."""


def custom_resource_definition() -> dict[str, Any]:
    """The whole object, ready for ``kubectl apply``."""
    columns = [
        ("Instrument", "string", ".spec.instrument", 0),
        ("Phase", "string", ".status.phase", 0),
        ("Frames", "integer", ".status.frames.stored", 0),
        ("Of", "integer", ".status.frames.announced", 0),
        ("Lost", "integer", ".status.frames.lost", 0),
        ("Products", "integer", ".status.productCount", 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
        ("Message", "string", ".status.message", 1),
    ]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "priority": priority}
            for name, kind, path, priority in columns
        ],
        "schema": {"openAPIV3Schema": _experiment()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "nextem"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": "experiment",
                "shortNames": ["exp"],
                "categories": ["nextem"],
            },
            "versions": [version],
        },
    }


def as_yaml() -> str:
    """The object as text, always the same."""
    head = "# Made by `nextem operator crd` from the contract; a test keeps the two equal.\n"
    return head + str(yaml.safe_dump(custom_resource_definition(), sort_keys=False, width=110))


def _experiment() -> Schema:
    return {
        "description": "One plan, carried out on one instrument.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _spec(),
            "status": _status(),
        },
    }


def _spec() -> Schema:
    fixed = [
        _rule(f"self.{name} == oldSelf.{name}", f"{name} is fixed: make another experiment")
        for name in ("instrument", "plan", "busy")
    ]
    once = _rule("!oldSelf.stop || self.stop", "what was stopped stays so: make another experiment")
    return {
        "type": "object",
        "required": ["instrument", "plan"],
        "properties": {
            "instrument": {
                "description": "Name of the instrument, as its edge attaches it.",
                "type": "string",
                "minLength": 1,
                "maxLength": 128,
            },
            "plan": schema_of(_PLAN, REFINED, told="What to acquire, reduce and analyse."),
            "busy": {
                "description": "Where the instrument does something else: wait for its turn, or be refused.",
                "type": "string",
                "enum": list(BUSY),
                "default": BUSY[0],
            },
            "retries": {
                "description": "How often a scan that was cut short by a failure is done again.",
                "type": "integer",
                "minimum": 0,
                "maximum": MOST_RETRIES,
                "default": DEFAULT_RETRIES,
            },
            "stop": {
                "description": "Set to true, it stops the scan and ends the experiment.",
                "type": "boolean",
                "default": False,
            },
        },
        "x-kubernetes-validations": [*fixed, once],
    }


def _text(told: str = "") -> Schema:
    return {"type": "string", "maxLength": MOST_CHARACTERS, **({"description": told} if told else {})}


def _count(told: str = "") -> Schema:
    return {"type": "integer", "format": "int64", "minimum": 0, **({"description": told} if told else {})}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _status() -> Schema:
    condition = _object(
        type=_text(),
        status={"type": "string", "enum": ["True", "False", "Unknown"]},
        reason=_text(),
        message=_text(),
        lastTransitionTime={"type": "string", "format": "date-time"},
        observedGeneration=_count(),
    )
    condition["required"] = ["type", "status", "reason", "lastTransitionTime"]
    time = {"type": "string", "format": "date-time"}
    return _object(
        phase={"type": "string", "enum": list(PHASES)},
        reason=_text("Why, in one word."),
        message=_text("Why, in words."),
        observedGeneration=_count(),
        conditions={
            "type": "array",
            "items": condition,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
        frames=_object(announced=_count(), stored=_count(), lost=_count()),
        products={
            "type": "array",
            "items": _object(id=_text(), name=_text(), analysis=_text(), kind=_text(), uri=_text()),
        },
        productCount=_count(),
        acquisitionID=_text("Of the last acquisition."),
        submissions=_count("Commands given so far; their ids come from this experiment's."),
        cutShort=_count("Scans that a failure has cut short."),
        startedAt=time,
        firstFrameAt=time,
        acquiredAt=time,
        completedAt=time,
    )
