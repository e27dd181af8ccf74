"""What a steering policy is: it takes what is known and suggests what to do next.

The shape is the ``suggest`` / ``ingest`` of bluesky-adaptive's ``Optimizer`` protocol, with its optional
stop criterion and checkpoint. What is known and what is wanted differ by policy: the runner's take messages
and want acquisitions (:class:`AcquisitionPolicy`), those of :mod:`nextem.steering.policies` take measured
values and want points, shifts or pixels. A policy is pure: no sockets, no files, no clock, no randomness that
it was not given. The same messages in the same order give the same suggestions; that is what makes a restart
safe, because the suggestions get the same command ids and the edge's journal knows those it had.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from google.protobuf import struct_pb2

from nextem.v1 import acquisition_pb2, control_pb2, plan_pb2, product_pb2

Evidence = product_pb2.LiveUpdate | product_pb2.Product | acquisition_pb2.AcquisitionFinished


class PolicyError(Exception):
    """A policy cannot work with a plan or a message; the text names the field and the value."""


Action = plan_pb2.Plan | control_pb2.Optics | control_pb2.Stage
"""What a policy may have done: a scan acquired, the optics set, the stage moved."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One command that a policy wants. ``number`` counts up from 1 within the steered acquisition.

    ``priority``: the larger, the sooner. ``reason``: one sentence for people, with the figures.
    ``not_before_ns``: on the edge's clock; 0: at once.
    """

    number: int
    action: Action
    cause: control_pb2.Cause
    priority: float
    reason: str
    not_before_ns: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of suggestion ``number``: a final outcome, or a product of what it acquired."""

    number: int
    item: control_pb2.Outcome | product_pb2.Product


Known = TypeVar("Known", contravariant=True)
Wanted = TypeVar("Wanted")


class Policy(Protocol[Known, Wanted]):
    """Methods are called from one thread."""

    def ingest(self, item: Known) -> None:
        """Something became known. Raises :class:`PolicyError`, and then leaves it out."""
        ...

    def suggest(self, n: int | None = None) -> list[Wanted]:
        """What to do because of what came in, at most ``n``; each suggestion is made once."""
        ...

    def done(self) -> bool:
        """The stop criterion: whether no further suggestion will come."""
        ...


@runtime_checkable
class Checkpointable(Protocol):
    """A policy that can be saved, as JSON: what it took in and what it suggested."""

    def checkpoint(self) -> dict[str, Any]:
        """All that a policy made with the same arguments needs to go on with the same suggestions."""
        ...

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes the place of everything so far. Raises :class:`PolicyError` on what is no such checkpoint."""
        ...


class AcquisitionPolicy(Policy[Evidence, Suggestion], Protocol):
    """Steers on one acquisition."""

    @property
    def scopes(self) -> frozenset[control_pb2.LeaseScope]:
        """What it may command: for exactly these a lease is held while it steers."""
        ...

    def started(self, event: acquisition_pb2.AcquisitionStarted) -> None:
        """The acquisition begins. Raises :class:`PolicyError` when this policy cannot steer on its plan."""
        ...


@runtime_checkable
class Following(Checkpointable, Protocol):
    """An :class:`AcquisitionPolicy` that goes on from what came of its own suggestions.

    Its checkpoint holds those that have no answer yet, and :meth:`restore` has them suggested again.
    """

    def answered(self, answer: Answer) -> None:
        """Raises :class:`PolicyError`, and then leaves it out. An answer that comes again changes nothing."""
        ...


PolicyFactory = Callable[[], AcquisitionPolicy]


def read_parameters(given: struct_pb2.Struct, defaults: Mapping[str, object]) -> dict[str, object]:
    """``defaults`` with the ``given`` ones put in. Raises :class:`PolicyError` on a name or type not known.

    A whole number is wanted where the default is an int, any number where it is a float.
    """
    values = dict(defaults)
    for name, value in given.items():
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, 1)
            meant = f", did you mean {near[0]!r}" if near else ""
            raise PolicyError(f"unknown parameter {name!r}{meant}; known are {sorted(defaults)}")
        wanted = type(defaults[name])
        if wanted in (int, float):
            if isinstance(value, bool) or not isinstance(value, float) or wanted(value) != value:
                raise PolicyError(f"parameter {name!r} must be of type {wanted.__name__}, not {value!r}")
            values[name] = wanted(value)
        elif not isinstance(value, wanted):
            raise PolicyError(f"parameter {name!r} must be of type {wanted.__name__}, not {value!r}")
        else:
            values[name] = value
    return values
