"""An ``Experiment`` object as values: what is asked for, and what has become of it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from google.protobuf import json_format

from nextem.operator.crd import BUSY, DEFAULT_RETRIES
from nextem.operator.schema import MOST_CHARACTERS
from nextem.v1 import plan_pb2
from nextem.wire.ids import derived_id

FINAL = frozenset({"Complete", "Failed", "Stopped"})
ACCEPTED, ACQUIRED, ANALYSED = "Accepted", "Acquired", "Analysed"
"""Conditions: the edge has said yes; every frame is stored; every product is whole."""

_TIMES = {
    "started_at": "startedAt",
    "first_frame_at": "firstFrameAt",
    "acquired_at": "acquiredAt",
    "completed_at": "completedAt",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """As Kubernetes has conditions; ``since`` is when ``status`` ("True", "False") came to be so."""

    status: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True, slots=True)
class Product:
    """One result: "<acquisition>/<name>", and where it lies relative to the store."""

    id: str
    name: str
    analysis: str
    kind: str
    uri: str


@dataclass(frozen=True, slots=True)
class Frames:
    """announced = stored + lost, once the acquisition has ended; until then stored counts up."""

    announced: int = 0
    stored: int = 0
    lost: int = 0


NO_FRAMES = Frames()


@dataclass(frozen=True, slots=True)
class Status:
    """What is written to the object. Times are RFC 3339, UTC; empty: not yet."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    submissions: int = 0
    cut_short: int = 0
    acquisition_id: str = ""
    frames: Frames = NO_FRAMES
    products: tuple[Product, ...] = ()
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    started_at: str = ""
    first_frame_at: str = ""
    acquired_at: str = ""
    completed_at: str = ""

    @property
    def final(self) -> bool:
        return self.phase in FINAL

    def told(self, kind: str, value: bool, reason: str, message: str, now: str) -> Status:
        """With this condition; ``now`` is its time where its status is new."""
        before = self.conditions.get(kind)
        status = str(value)
        since = before.since if before is not None and before.status == status else now
        return replace(self, conditions={**self.conditions, kind: Condition(status, reason, message, since)})

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> Status:
        """From the object's ``status``."""
        return cls(
            phase=status.get("phase", "Pending"),
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            submissions=status.get("submissions", 0),
            cut_short=status.get("cutShort", 0),
            acquisition_id=status.get("acquisitionID", ""),
            frames=Frames(**status.get("frames", {})),
            products=tuple(Product(**product) for product in status.get("products", [])),
            conditions={
                each["type"]: Condition(
                    each["status"], each["reason"], each.get("message", ""), each["lastTransitionTime"]
                )
                for each in status.get("conditions", [])
            },
            **{ours: status.get(theirs, "") for ours, theirs in _TIMES.items()},
        )

    def to_object(self, generation: int) -> dict[str, Any]:
        """For the object's ``status``; ``generation`` of the spec that it answers."""
        made: dict[str, Any] = {
            "phase": self.phase,
            "reason": self.reason,
            "message": _fitting(self.message),
            "observedGeneration": generation,
            "submissions": self.submissions,
            "cutShort": self.cut_short,
            "acquisitionID": self.acquisition_id,
            "frames": {name: getattr(self.frames, name) for name in ("announced", "stored", "lost")},
            "products": [
                {name: getattr(product, name) for name in ("id", "name", "analysis", "kind", "uri")}
                for product in self.products
            ],
            "productCount": len(self.products),
            "conditions": [
                {
                    "type": kind,
                    "status": each.status,
                    "reason": each.reason,
                    "message": _fitting(each.message),
                    "lastTransitionTime": each.since,
                    "observedGeneration": generation,
                }
                for kind, each in self.conditions.items()
            ],
        }
        return made | {theirs: value for ours, theirs in _TIMES.items() if (value := getattr(self, ours))}


def _fitting(text: str) -> str:
    """As much as the schema takes: the API server would refuse the whole status for a longer one."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


class NoPlan(Exception):
    """What the object has as plan is none; says which field."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is asked for. ``stop``: by ``spec.stop``, or because the object is being deleted."""

    namespace: str
    name: str
    uid: str
    created_ms: int
    generation: int
    instrument: str
    plan: Mapping[str, Any]
    waits: bool
    retries: int
    stop: bool
    status: Status

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Experiment:
        """From the whole object, which its schema has let in."""
        metadata, spec = body["metadata"], body["spec"]
        created = datetime.fromisoformat(metadata["creationTimestamp"].replace("Z", "+00:00"))
        return cls(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            created_ms=round(created.timestamp() * 1000),
            generation=metadata.get("generation", 0),
            instrument=spec["instrument"],
            plan=spec["plan"],
            waits=spec.get("busy", BUSY[0]) == BUSY[0],
            retries=spec.get("retries", DEFAULT_RETRIES),
            stop=bool(spec.get("stop") or metadata.get("deletionTimestamp")),
            status=Status.of(body.get("status") or {}),
        )

    @property
    def label(self) -> str:
        """For people and for the record: "namespace/name"."""
        return f"{self.namespace}/{self.name}"

    @property
    def place(self) -> tuple[int, str]:
        """Its place in the queue of its instrument: who was made earlier comes first."""
        return self.created_ms, self.uid

    def command_id(self, number: int) -> str:
        """Of the ``number``-th command: always the same, so that the edge runs none twice."""
        rest = uuid.UUID(self.uid).int & ((1 << 80) - 1)
        origin = uuid.UUID(int=(self.created_ms << 80) | rest)
        return derived_id(str(origin), f"{self.uid}/{number}")

    def read_plan(self) -> plan_pb2.Plan:
        """Raises :class:`NoPlan`."""
        try:
            plan = json_format.ParseDict(dict(self.plan), plan_pb2.Plan())
        except json_format.ParseError as error:
            raise NoPlan(str(error)) from error
        if not plan.plan_id:
            plan.plan_id = self.command_id(0)
        return plan
