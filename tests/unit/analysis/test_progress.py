from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nextem.analysis.progress import Progress
from nextem.wire.log import Position


def at(offset: int, partition: int = 0) -> Position:
    return Position("t", partition, offset)


def test_an_open_record_holds_back_those_after_it() -> None:
    progress = Progress()
    for offset in range(4):
        progress.begin(at(offset))
    progress.finish([at(1), at(2)])
    assert progress.take() == []
    progress.finish([at(0)])
    assert progress.take() == [at(2)]
    assert progress.take() == []
    assert len(progress) == 1


def test_a_record_that_comes_again_is_open_again() -> None:
    progress = Progress()
    for offset in (5, 6, 7):
        progress.begin(at(offset))
    progress.finish([at(6), at(7)])
    progress.begin(at(5))
    progress.finish([at(5)])
    assert progress.take() == [at(5)]


@given(st.permutations([(p, o) for p in range(3) for o in range(5)]))
def test_every_commit_is_covered_by_what_is_done(order: list[tuple[int, int]]) -> None:
    progress = Progress()
    for partition in range(3):
        for offset in range(5):
            progress.begin(at(offset, partition))
    done: set[tuple[int, int]] = set()
    committed = dict.fromkeys(range(3), -1)
    for partition, offset in order:
        progress.finish([at(offset, partition)])
        done.add((partition, offset))
        for position in progress.take():
            assert position.offset > committed[position.partition]
            committed[position.partition] = position.offset
            assert all((position.partition, o) in done for o in range(position.offset + 1))
    assert committed == dict.fromkeys(range(3), 4)
    assert len(progress) == 0
