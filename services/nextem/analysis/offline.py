"""The same analyses on frames that lie there already: no log, no Ray, the same bits."""

from __future__ import annotations

from collections.abc import Iterable

from nextem.analysis.frame_run import join
from nextem.analysis.messages import Item
from nextem.analysis.reducer import Finished, Reducer
from nextem.v1 import acquisition_pb2
from nextem.wire.blocks import Block


def analyse_offline(
    started: acquisition_pb2.AcquisitionStarted,
    blocks: Iterable[Block],
    finished: acquisition_pb2.AcquisitionFinished,
) -> list[Finished]:
    """The products of ``blocks``, each with its array.

    Blocks may come in any order, again, or overlapping. Raises :class:`nextem.wire.blocks.BlockError`.
    """
    reducer = Reducer.of(started)
    for block in blocks:
        for run in join([block]):
            for start, stop in reducer.covered.missing(run.first_frame, run.stop_frame):
                part = run.part(start, stop)
                partials = reducer.analyses.process(part)
                reducer.add(Item.of(part, partials, dict(reducer.analyses.failed)))
    return reducer.finish(finished)
