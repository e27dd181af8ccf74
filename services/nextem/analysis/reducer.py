"""The state of one acquisition: which frames it has, and what every analysis made of them.

Plain code without threads, log or Ray: the reducer host feeds it while frames arrive, and
:func:`nextem.analysis.offline.analyse_offline` feeds it from a list of blocks. Both ways give the same bits.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import json_format, struct_pb2

from nextem.analysis.messages import Item
from nextem.analysis.plugin import (
    LiveAnalysis,
    Partial,
    ReadProduct,
    Result,
    State,
    Summary,
    needs_pixels,
    no_products,
)
from nextem.analysis.registry import AnalysisSet
from nextem.v1 import acquisition_pb2, product_pb2
from nextem.wire.coverage import FrameSet

Array = npt.NDArray[Any]

logger = logging.getLogger(__name__)

VERSIONED = ("nextem", "numpy", "numba")

Finished = tuple[product_pb2.Product, Array]


@dataclass(slots=True)
class Reducer:
    """Takes every frame once, whatever comes how often. Make one by :meth:`of` or :meth:`restored`."""

    started: acquisition_pb2.AcquisitionStarted
    analyses: AnalysisSet
    states: dict[str, State]
    covered: FrameSet = field(default_factory=FrameSet)
    without_pixels: FrameSet = field(default_factory=FrameSet)  # of these; see FrameRun.whole
    reasons: set[str] = field(default_factory=set)  # why
    reduction_ids: set[str] = field(default_factory=set)
    edge_boot_id: str = ""  # of the newest frame ...
    last_byte_ns: int = 0  # ... and when its last byte came in

    @classmethod
    def of(cls, started: acquisition_pb2.AcquisitionStarted) -> Reducer:
        """The state of no frames."""
        made = cls(started, AnalysisSet.of(started), {})
        for name, analysis in list(made.analyses.running.items()):
            try:
                made.states[name] = analysis.start()
            except Exception as error:  # noqa: BLE001  plug-ins may raise anything
                made.fail(name, error)
        return made

    @property
    def acquisition_id(self) -> str:
        return self.started.acquisition_id

    def missing(self, item: Item) -> list[tuple[int, int]]:
        """Which frames of ``item`` are new: all as one range, none, or some."""
        return self.covered.missing(item.first_frame, item.stop_frame)

    def add(self, item: Item) -> bool:
        """Merges ``item`` if all its frames are new; whether it did.

        Frames that are covered are never merged again. An item that is covered in part is refused as a whole:
        a partial cannot be cut. That happens when blocks were joined or split otherwise than before a
        restart; the worker then sends the missing ranges as items of their own.
        """
        if self.missing(item) != [(item.first_frame, item.stop_frame)]:
            return False
        for name, reason in item.failed.items():
            self.fail(name, reason)
        for name in list(self.states):
            if name in item.partials:
                self._merge(name, item.partials[name])
            elif item.whole or not needs_pixels(self.analyses.running[name]):
                self.fail(name, f"no partial of frames {item.first_frame}..{item.stop_frame - 1}")
        self.covered.add(item.first_frame, item.stop_frame)
        if not item.whole:
            self.without_pixels.add(item.first_frame, item.stop_frame)
        self.reasons |= item.reasons
        self.reduction_ids |= item.reduction_ids
        if item.edge_boot_id != self.edge_boot_id or item.last_byte_ns > self.last_byte_ns:
            self.edge_boot_id, self.last_byte_ns = item.edge_boot_id, item.last_byte_ns
        return True

    def fail(self, name: str, error: Exception | str) -> None:
        """Switches one analysis off; the others go on."""
        self.analyses.fail(self.acquisition_id, name, error)
        self.states.pop(name, None)

    def _merge(self, name: str, partial: Partial) -> None:
        try:
            self.states[name] = self.analyses.running[name].merge(self.states[name], partial)
        except Exception as error:  # noqa: BLE001  plug-ins may raise anything
            self.fail(name, error)

    def live(self) -> dict[str, LiveAnalysis]:
        """The running analyses that give live values."""
        return {n: a for n, a in self.analyses.running.items() if isinstance(a, LiveAnalysis)}

    def covered_by(self, analysis: str) -> FrameSet:
        """The frames that the products of ``analysis`` hold."""
        running = self.analyses.running.get(analysis)
        if running is None or not needs_pixels(running) or not self.without_pixels:
            return self.covered
        return FrameSet(part for span in self.covered for part in self.without_pixels.missing(*span))

    # ---- the end -------------------------------------------------------------------------------

    def finish(
        self, finished: acquisition_pb2.AcquisitionFinished, earlier: ReadProduct = no_products
    ) -> list[Finished]:
        """The products of the frames covered, in the plan's order; the same frames give the same products.

        An analysis that was switched off gives one product of kind "failed" without an array's worth of
        data: shape (0,), so that nobody waits for it.
        """
        results: list[tuple[str, Result]] = []
        for name, analysis in list(self.analyses.running.items()):
            summary = Summary(self.covered_by(name), finished, earlier)
            try:
                results += [(name, result) for result in analysis.finish(self.states[name], summary)]
            except Exception as error:  # noqa: BLE001  plug-ins may raise anything
                self.fail(name, error)
        for name, reason in self.analyses.failed.items():
            results.append((name, Result(f"{name}/failed", "failed", np.empty(0), "", {"error": reason})))
        return self._products(results, finished)

    def of_the_edge(
        self, maps: Mapping[str, Array], finished: acquisition_pb2.AcquisitionFinished
    ) -> list[Finished]:
        """The edge's own maps of all stored frames as products "edge/<name>", with their provenance."""
        kinds = {1: "histogram", 2: "pattern"}
        results = [Result(f"edge/{name}", kinds[array.ndim], array, "") for name, array in maps.items()]
        return self._products([("edge", result) for result in results], finished)

    def _products(
        self, results: Sequence[tuple[str, Result]], finished: acquisition_pb2.AcquisitionFinished
    ) -> list[Finished]:
        together = Counter(name for name, _ in results)
        return [
            (self._product(name, result, finished, together[name]), result.array) for name, result in results
        ]

    def _product(
        self, analysis: str, result: Result, finished: acquisition_pb2.AcquisitionFinished, made_with: int
    ) -> product_pb2.Product:
        return product_pb2.Product(
            product_id=f"{self.acquisition_id}/{result.name}",
            acquisition_id=self.acquisition_id,
            analysis=analysis,
            name=result.name,
            kind=result.kind,
            shape=result.array.shape,
            dtype=result.array.dtype.name,
            unit=result.unit,
            frames_announced=finished.frames_announced,
            covered=self.covered_by(analysis).to_proto(),
            provenance=self._provenance(analysis, result.notes),
            made_with=made_with,
        )

    def _provenance(self, analysis: str, notes: Mapping[str, object]) -> struct_pb2.Struct:
        asked = [a for a in self.started.plan.analyses if a.name == analysis]
        values: dict[str, Any] = {
            "plan_id": self.started.plan.plan_id,
            "title": self.started.plan.title,
            "instrument": self.started.instrument,
            "parameters": json_format.MessageToDict(asked[0].parameters) if asked else {},
            "reduction_ids": sorted(self.reduction_ids),
            "versions": {package: _version(package) for package in VERSIONED},
            "failed_analyses": dict(self.analyses.failed),
            "notes": dict(notes),
        }
        if self.without_pixels:
            values["not_whole"] = {"frames": len(self.without_pixels), "reasons": sorted(self.reasons)}
        provenance = struct_pb2.Struct()
        provenance.update(values)
        return provenance

    # ---- checkpoints ---------------------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Copies of everything, as arrays and JSON values."""
        arrays = {
            f"{name}/{key}": np.array(value)
            for name, state in self.states.items()
            for key, value in state.items()
        }
        meta = {
            "covered": [list(span) for span in self.covered],
            "without_pixels": [list(span) for span in self.without_pixels],
            "reasons": sorted(self.reasons),
            "reduction_ids": sorted(self.reduction_ids),
            "failed": dict(self.analyses.failed),
            "edge_boot_id": self.edge_boot_id,
            "last_byte_ns": self.last_byte_ns,
        }
        return arrays, meta

    @classmethod
    def restored(
        cls,
        started: acquisition_pb2.AcquisitionStarted,
        arrays: Mapping[str, Array],
        meta: Mapping[str, Any],
    ) -> Reducer:
        """What :meth:`snapshot` was taken of."""
        made = cls.of(started)
        for name, reason in meta["failed"].items():
            made.fail(name, reason)
        for path, array in arrays.items():
            name, _, key = path.partition("/")
            if name in made.states:
                made.states[name][key] = np.array(array)
        made.covered = FrameSet((start, stop) for start, stop in meta["covered"])
        made.without_pixels = FrameSet((start, stop) for start, stop in meta.get("without_pixels", ()))
        made.reasons = set(meta.get("reasons", ()))
        made.reduction_ids = set(meta["reduction_ids"])
        made.edge_boot_id, made.last_byte_ns = meta["edge_boot_id"], meta["last_byte_ns"]
        return made


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
