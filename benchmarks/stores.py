"""The store: checkpoints, products and raw frames, in a folder and in S3. Best of many runs.

Addresses are given as arguments, such as a folder or s3://BUCKET/PREFIX with the environment that it needs;
without any, a new folder. The peer of a row is the same bytes as one bare object, or a mark.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from table import Row, parser, report

from nextem.v1.product_pb2 import Product
from nextem.wire import raw_objects
from nextem.wire.store import ProductStore, open_store

REPEATS = 15
MIB = 1 << 20
MARK_CHECKPOINT_MS = 20.0  # every two seconds: a hundredth of the time


def best_ms(work: Callable[[], object]) -> float:
    """Shortest time of one run: what machine and server can do, with others kept out."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def rows(name: str, store: ProductStore) -> Iterator[Row]:
    """Figures of the store that is called ``name``; what it writes is removed."""
    rng = np.random.default_rng(0)
    state = rng.normal(size=MIB)
    small, large = rng.normal(size=(128, 128)), rng.poisson(3, (512, 512, 32)).astype(np.uint16)
    raw = rng.bytes(8 * MIB)

    def put(size: int) -> float:
        return best_ms(lambda: store.objects.put("bench", raw[:size]))

    def row(what: str, work: Callable[[], object], peer: str, peer_ms: float) -> Row:
        return Row(f"{what}, {name}", best_ms(work), "ms", peer, peer_ms)

    whole = put(8 * MIB)
    yield row(
        "checkpoint written, 8 MiB",
        lambda: store.write_checkpoint("bench", {"x": state}, {}),
        "one put",
        whole,
    )
    yield row("checkpoint read, 8 MiB", lambda: store.read_checkpoint("bench"), "mark", MARK_CHECKPOINT_MS)
    for what, array in (("128x128", small), ("512x512x32", large)):
        product = Product(product_id=f"bench/{what}", acquisition_id="bench", name=what)
        size = min(array.nbytes, 8 * MIB)
        one = put(size) * array.nbytes / size
        yield row(
            f"product written, {what}", lambda p=product, a=array: store.write(p, a), "its bytes put", one
        )
        read = best_ms(lambda p=product: store.read(p.product_id))
        yield Row(f"product read, {what}, {name}", read, "ms")
    parts = [(np.array([MIB], np.int64), raw[:MIB])] * 32
    took = best_ms(lambda: raw_objects.write(store.objects, "bench", 0, iter(parts)))
    yield Row(
        f"raw frames written, {name}", 32 * 1.048576 / took * 1e3, "MB/s", "one put", 8.388608 / whole * 1e3
    )
    clear(store)


def clear(store: ProductStore) -> None:
    for product in store.list():
        if product.acquisition_id == "bench":
            store.objects.delete_tree(store.version(product.product_id))
    for tree in ("products/bench", "raw/bench", "checkpoints/bench"):
        store.objects.delete_tree(tree)
    store.objects.delete("bench")


def main() -> None:
    made: Any = parser(__doc__)
    made.add_argument("addresses", nargs="*", metavar="ADDRESS")
    options = made.parse_args()
    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as folder:
        places = {address: open_store(address) for address in options.addresses}
        found = [
            row
            for name, store in (places or {"folder": open_store(folder)}).items()
            for row in rows(name, store)
        ]
    report("the store", found, options.json)


if __name__ == "__main__":
    main()
