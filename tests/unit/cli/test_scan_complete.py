"""When whoever waits for a scan has all of it: with every product of every analysis, not with the first."""

from __future__ import annotations

import pytest

from nextem.cli.experiment import Scan
from nextem.v1 import acquisition_pb2, plan_pb2, product_pb2

PRODUCTS = {"images": ("virtual/sum", "virtual/bright"), "com": ("com",)}


def scan() -> Scan:
    plan = plan_pb2.Plan(analyses=[plan_pb2.Analysis(name=name) for name in PRODUCTS])
    return Scan(
        acquisition_pb2.AcquisitionStarted(acquisition_id="a", plan=plan),
        acquisition_pb2.AcquisitionFinished(acquisition_id="a"),
    )


def take(waiting: Scan, analysis: str, name: str, made_with: int) -> None:
    product = product_pb2.Product(analysis=analysis, name=name, made_with=made_with)
    waiting.products[name] = product


@pytest.mark.parametrize("last", [name for names in PRODUCTS.values() for name in names])
def test_it_is_complete_with_the_last_product(last: str) -> None:
    waiting = scan()
    for analysis, names in PRODUCTS.items():
        for name in set(names) - {last}:
            take(waiting, analysis, name, len(names))
    assert not waiting.complete
    (of,) = [analysis for analysis, names in PRODUCTS.items() if last in names]
    take(waiting, of, last, len(PRODUCTS[of]))
    assert waiting.complete
    waiting.finished = None
    assert not waiting.complete


def test_products_that_do_not_say_how_many_they_are_count_as_before() -> None:
    waiting = scan()
    take(waiting, "com", "com", 0)
    assert not waiting.complete
    take(waiting, "images", "virtual/sum", 0)
    assert waiting.complete
