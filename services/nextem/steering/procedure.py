"""How a policy that chooses from measured values steers a live instrument: step by step.

A procedure says which commands it wants next and takes what came of each. :class:`Stepwise` makes an
acquisition policy of it: it numbers the steps, names their cause, keeps the budget, waits for the outcome of
each and, of a scan, for the product that it was taken for; and it is saved with all that has no answer yet.

Results are handed over one by one in the order of the steps, whatever order they come in, and after each the
procedure is asked what it wants: so what it wants depends on the values and never on how fast they came.
"""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf import json_format

from nextem.steering.policy import Action, Answer, Evidence, PolicyError, Suggestion
from nextem.v1 import acquisition_pb2, control_pb2, plan_pb2, product_pb2
from nextem.wire.ids import derived_id

logger = logging.getLogger(__name__)

ENDED_BY_HAND = (acquisition_pb2.FINISH_REASON_STOPPED, acquisition_pb2.FINISH_REASON_FAILED)
VERSION = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One command that a procedure wants.

    ``key`` comes back with the result. ``analysis``, ``product``: of a scan, whose product is its result.
    ``not_before_ns``: on the edge's clock.
    """

    action: Action
    key: tuple[float, ...]
    reason: str
    analysis: str = ""
    product: str = ""
    not_before_ns: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a step: its final outcome, and the product that it was for; None where there is none."""

    outcome: control_pb2.Outcome
    product: product_pb2.Product | None

    @property
    def failure(self) -> str:
        """Why there is nothing to go on from; empty where all went well."""
        if self.outcome.state != control_pb2.COMMAND_STATE_DONE:
            name = control_pb2.CommandState.Name(self.outcome.state).removeprefix("COMMAND_STATE_")
            return f"{name} {self.outcome.rule}: {self.outcome.detail}"
        if self.product is not None and self.product.kind == "failed":
            error = json_format.MessageToDict(self.product.provenance).get("notes", {}).get("error", "")
            return f"no product: {error}"
        return ""

    def value(self, key: str) -> float:
        """``notes.values[key]`` of the product; NaN where it has none. Raises :class:`PolicyError`."""
        if self.product is None:
            raise PolicyError("a step without a product has no value")
        values = json_format.MessageToDict(self.product.provenance).get("notes", {}).get("values", {})
        if key not in values:
            raise PolicyError(f"{self.product.name} has no value {key!r}; it has {sorted(values)}")
        return math.nan if values[key] is None else float(values[key])


class Procedure(Protocol):
    """Called from one thread; a function of what it took, so that a restored one goes on the same way."""

    def next(self, open_steps: int) -> list[Step]:
        """What may be commanded now, while ``open_steps`` have no result yet."""
        ...

    def took(self, key: tuple[float, ...], result: Result) -> None:
        """A result, good or not. Raises :class:`PolicyError`, which ends the procedure."""
        ...

    def done(self) -> bool: ...

    def checkpoint(self) -> dict[str, Any]: ...

    def restore(self, saved: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Task:
    """What a plan asks of a procedure.

    ``scan``: of the steered acquisition. ``fine``: template of the scans to command; ``scans``: how many both
    budgets allow.
    """

    parameters: Mapping[str, Any]
    scan: plan_pb2.Scan
    fine: plan_pb2.Plan
    scans: int

    @classmethod
    def of(cls, name: str, plan: plan_pb2.Plan, parameters: Mapping[str, Any]) -> Task:
        """Raises :class:`PolicyError` where the plan has no template with a dose."""
        steering, fine = plan.steering, plan.steering.fine
        frames = fine.scan.size_y * fine.scan.size_x
        if (
            not steering.HasField("fine")
            or frames < 1
            or fine.scan.step_nm <= 0
            or fine.dose_e_per_frame <= 0
        ):
            raise PolicyError(
                f"{name}: steering.fine must be a plan with positions, step_nm > 0 and dose_e_per_frame > 0"
            )
        affordable = math.floor(steering.dose_budget_e / (frames * fine.dose_e_per_frame) + 1e-9)
        return cls(parameters, plan.scan, fine, min(steering.max_acquisitions, affordable))

    def needs(self, name: str, *analyses: str) -> None:
        """Raises :class:`PolicyError` unless ``fine`` runs these."""
        missing = sorted(set(analyses) - {analysis.name for analysis in self.fine.analyses})
        if missing:
            raise PolicyError(f"{name}: steering.fine must run the analyses {missing}")

    def fine_at(self, y_nm: float, x_nm: float) -> plan_pb2.Plan:
        """A scan of the template whose first position is there."""
        plan = plan_pb2.Plan()
        plan.CopyFrom(self.fine)
        plan.ClearField("steering")  # nobody steers on it
        plan.scan.origin_y_nm, plan.scan.origin_x_nm = y_nm, x_nm
        return plan


MakeProcedure = Callable[[acquisition_pb2.AcquisitionStarted], tuple[Procedure, int]]
"""A procedure for a plan, and how many scans it may take. Raises :class:`PolicyError`."""


@dataclass(slots=True)
class _Open:
    """A step that was suggested, and whose result the procedure does not have yet."""

    step: Step
    cause: control_pb2.Cause
    outcome: control_pb2.Outcome | None = None
    product: product_pb2.Product | None = None

    @property
    def result(self) -> Result | None:
        if self.outcome is None:
            return None
        done = self.outcome.state == control_pb2.COMMAND_STATE_DONE
        if done and self.step.product and self.product is None:
            return None
        return Result(self.outcome, self.product)


class Stepwise:
    """Implements :class:`nextem.steering.policy.AcquisitionPolicy` and ``Following``.

    It begins when the steered acquisition has ended, and not if that was stopped or failed.
    """

    def __init__(self, name: str, scopes: frozenset[control_pb2.LeaseScope], make: MakeProcedure) -> None:
        self._name, self._scopes, self._make = name, scopes, make
        self._procedure: Procedure | None = None
        self._event = acquisition_pb2.AcquisitionStarted()
        self._scans = self._acquired = self._number = 0
        self._begun = self._over = False
        self._open: dict[int, _Open] = {}
        self._again: list[int] = []  # open ones that must be suggested once more, after a restart
        self._newest = control_pb2.Cause()

    @property
    def scopes(self) -> frozenset[control_pb2.LeaseScope]:
        return self._scopes

    def started(self, event: acquisition_pb2.AcquisitionStarted) -> None:
        self._event = event
        self._procedure, self._scans = self._make(event)
        self._over = self._scans == 0
        self._newest = control_pb2.Cause(acquisition_id=event.acquisition_id, edge_boot_id=event.edge_boot_id)

    def ingest(self, item: Evidence) -> None:
        if isinstance(item, acquisition_pb2.AcquisitionFinished) and not self._begun:
            self._begun = True
            self._over = self._over or item.reason in ENDED_BY_HAND
            self._newest.last_byte_ns = item.last_byte_ns

    def suggest(self, n: int | None = None) -> list[Suggestion]:
        if self._procedure is None or not self._begun or self._over:
            return []
        made, self._again = self._again, []
        made += self._wanted(self._procedure)
        while self._hand_over(self._procedure):
            made += self._wanted(self._procedure)
        if not self._open and not self._over and not self._procedure.done():
            self._end("it wants nothing more, and is not done")
        return [self._suggestion(number) for number in made]

    def _wanted(self, procedure: Procedure) -> list[int]:
        """Numbers of the steps that the procedure wants now."""
        made: list[int] = []
        for step in [] if self._over else procedure.next(len(self._open)):
            self._number += 1
            if isinstance(step.action, plan_pb2.Plan):
                self._acquired += 1
                plan_id = derived_id(self._event.acquisition_id, f"{self._name}/plan/{self._number}")
                step.action.plan_id = plan_id
                step.action.scan.purpose = step.action.scan.purpose or self._name
            if self._acquired > self._scans:
                self._end(f"it wants more than the {self._scans} scans of its budget")
                break
            cause = control_pb2.Cause()
            cause.CopyFrom(self._newest)
            cause.reason = step.reason
            self._open[self._number] = _Open(step, cause)
            made.append(self._number)
        return made

    def _hand_over(self, procedure: Procedure) -> bool:
        """Gives the oldest open step's result to the procedure; whether there was one."""
        number = min(self._open, default=0)
        result = self._open[number].result if number else None
        if result is None:
            return False
        key = self._open.pop(number).step.key
        if result.product is not None:
            self._newest = control_pb2.Cause(
                acquisition_id=result.outcome.acquisition_id,
                product_id=result.product.product_id,
                edge_boot_id=self._event.edge_boot_id,
                last_byte_ns=result.outcome.accounting.last_byte_ns,
            )
        if result.failure:
            logger.warning("%s, step %d: %s", self._name, number, result.failure)
        try:
            procedure.took(key, result)
        except PolicyError as error:
            self._end(str(error))
        return True

    def done(self) -> bool:
        finished = self._begun and not self._open and self._procedure is not None and self._procedure.done()
        return self._over or finished

    def answered(self, answer: Answer) -> None:
        waiting = self._open.get(answer.number)
        if waiting is None:
            return
        if isinstance(answer.item, control_pb2.Outcome):
            waiting.outcome = answer.item
        elif answer.item.name in (waiting.step.product, f"{waiting.step.analysis}/failed"):
            waiting.product = answer.item

    def _end(self, why: str) -> None:
        logger.error("%s ends on acquisition %s: %s", self._name, self._event.acquisition_id, why)
        self._over = True

    def _suggestion(self, number: int) -> Suggestion:
        step, cause = self._open[number].step, self._open[number].cause
        return Suggestion(number, step.action, cause, -number, step.reason, step.not_before_ns)

    # ---- Checkpointable ------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "begun": self._begun,
            "over": self._over,
            "number": self._number,
            "acquired": self._acquired,
            "newest": _packed(self._newest),
            "open": {str(number): _saved(waiting) for number, waiting in self._open.items()},
            "procedure": None if self._procedure is None else self._procedure.checkpoint(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        if saved.get("version") != VERSION or self._procedure is None:
            raise PolicyError(f"{self._name}: no checkpoint of version {VERSION}: {saved.get('version')!r}")
        self._procedure.restore(saved["procedure"])
        self._begun, self._over = bool(saved["begun"]), bool(saved["over"])
        self._number, self._acquired = int(saved["number"]), int(saved["acquired"])
        self._newest = control_pb2.Cause.FromString(base64.b64decode(saved["newest"]))
        self._open = {int(number): _restored(value) for number, value in saved["open"].items()}
        self._again = sorted(number for number, waiting in self._open.items() if waiting.result is None)


def _packed(
    message: control_pb2.Cause | control_pb2.Command | control_pb2.Outcome | product_pb2.Product,
) -> str:
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()


def command_of(action: Action) -> control_pb2.Command:
    """A command that has nothing but this action."""
    if isinstance(action, plan_pb2.Plan):
        return control_pb2.Command(acquire=action)
    if isinstance(action, control_pb2.Optics):
        return control_pb2.Command(set_optics=action)
    return control_pb2.Command(move_stage=action)


def _saved(waiting: _Open) -> dict[str, Any]:
    command, step = command_of(waiting.step.action), waiting.step
    command.cause.CopyFrom(waiting.cause)
    return {
        "command": _packed(command),
        "key": list(step.key),
        "wants": [step.analysis, step.product],
        "not_before_ns": step.not_before_ns,
        "outcome": None if waiting.outcome is None else _packed(waiting.outcome),
        "product": None if waiting.product is None else _packed(waiting.product),
    }


def _restored(saved: Mapping[str, Any]) -> _Open:
    command = control_pb2.Command.FromString(base64.b64decode(saved["command"]))
    action = getattr(command, str(command.WhichOneof("action")))
    analysis, product = saved["wants"]
    step = Step(
        action, tuple(saved["key"]), command.cause.reason, analysis, product, int(saved["not_before_ns"])
    )
    made = _Open(step, command.cause)
    if saved["outcome"] is not None:
        made.outcome = control_pb2.Outcome.FromString(base64.b64decode(saved["outcome"]))
    if saved["product"] is not None:
        made.product = product_pb2.Product.FromString(base64.b64decode(saved["product"]))
    return made
