from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from nextem.wire.ids import derived_id, uuid7


@given(st.text(max_size=40), st.text(max_size=40))
def test_derived_ids_are_uuid7_and_always_the_same(acquisition_id: str, what: str) -> None:
    made = uuid.UUID(derived_id(acquisition_id, what))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert str(made) == derived_id(acquisition_id, what)


def test_derived_ids_differ_and_keep_the_time() -> None:
    acquisition_id = uuid7()
    made = {derived_id(acquisition_id, f"look_closer/{n}") for n in range(1000)}
    assert len(made) == 1000
    assert {name[:13] for name in made} == {acquisition_id[:13]}
