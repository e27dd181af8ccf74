"""Analyses by name: the built-in ones, and those that installed packages bring.

A package brings one by an entry point of the group ``nextem.analyses``:

    [project.entry-points."nextem.analyses"]
    brightest = "my_package.brightest:Brightest"
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points

from google.protobuf import json_format

from nextem.analysis import (
    center_of_mass,
    image_statistics,
    mean_pattern,
    movie_average,
    novelty,
    shift,
    virtual_images,
)
from nextem.analysis.frame_run import FrameRun
from nextem.analysis.plugin import Analysis, AnalysisError, Factory, Partial, needs_pixels
from nextem.v1 import acquisition_pb2, plan_pb2

logger = logging.getLogger(__name__)

GROUP = "nextem.analyses"

BUILT_IN: Mapping[str, Factory] = {
    virtual_images.NAME: virtual_images.VirtualImages,
    center_of_mass.NAME: center_of_mass.CenterOfMass,
    mean_pattern.NAME: mean_pattern.MeanPattern,
    movie_average.NAME: movie_average.MovieAverage,
    novelty.NAME: novelty.Novelty,
    image_statistics.NAME: image_statistics.ImageStatistics,
    shift.NAME: shift.Shift,
}


class UnknownAnalysis(AnalysisError):
    """A plan names an analysis that is not installed here."""


def find(name: str) -> Factory:
    """The analysis that is called ``name``. Raises :class:`UnknownAnalysis`."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    installed = entry_points(group=GROUP)
    for point in installed.select(name=name):
        factory: Factory = point.load()
        return factory
    known = sorted({*BUILT_IN, *installed.names})
    raise UnknownAnalysis(f"no analysis {name!r} is installed; known are {known}")


@dataclass(slots=True)
class AnalysisSet:
    """The analyses of one acquisition's plan, by name, and why others of them do not run."""

    running: dict[str, Analysis] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, started: acquisition_pb2.AcquisitionStarted) -> AnalysisSet:
        """Makes every analysis of the plan; where one cannot be made, the others are not touched."""
        made = cls()
        for wanted in started.plan.analyses:
            if wanted.name in made.running or wanted.name in made.failed:
                made.fail(
                    started.acquisition_id, wanted.name, AnalysisError("the plan names it more than once")
                )
                continue
            try:
                made.running[wanted.name] = find(wanted.name)(started, parameters_of(wanted))
            except Exception as error:  # noqa: BLE001  plug-ins may raise anything, and must not stop the others
                made.fail(started.acquisition_id, wanted.name, error)
        return made

    def process(self, run: FrameRun) -> dict[str, Partial]:
        """What each running analysis makes of ``run``; those that need pixels that it lacks make nothing.

        An analysis that raises is switched off.
        """
        partials = {}
        for name, analysis in list(self.running.items()):
            if not run.whole and needs_pixels(analysis):
                continue
            try:
                partials[name] = analysis.process(run)
            except Exception as error:  # noqa: BLE001  plug-ins may raise anything
                self.fail(run.acquisition_id, name, error)
        return partials

    def fail(self, acquisition_id: str, name: str, error: Exception | str) -> None:
        """Switches ``name`` off for this acquisition; the first reason is kept and logged."""
        self.running.pop(name, None)
        if name in self.failed:
            return
        self.failed[name] = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        text = "analysis %s of acquisition %s is switched off: %s"
        trace = error if isinstance(error, Exception) and not isinstance(error, AnalysisError) else None
        logger.error(text, name, acquisition_id, self.failed[name], exc_info=trace)


def parameters_of(analysis: plan_pb2.Analysis) -> dict[str, object]:
    """The plan's parameters as JSON values."""
    values: dict[str, object] = json.loads(json_format.MessageToJson(analysis.parameters))
    return values
