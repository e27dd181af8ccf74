"""A place where a store may be, and what is put there."""

from __future__ import annotations

from dataclasses import dataclass

from s3_kit import S3Server

from nextem.v1.product_pb2 import Product


@dataclass(frozen=True)
class Place:
    """A kind of store; each test has an address of its own."""

    address: str
    server: S3Server | None  # None: a folder


def product(name: str = "map") -> Product:
    return Product(product_id=f"acq/{name}", acquisition_id="acq", name=name, kind="map")
