"""The products of a release, read from its S3 server as anybody would: through a forwarded port."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from cluster_kit import Release

from nextem.wire.store import ProductStore, open_store

ADDRESS = "s3://nextem"


@contextmanager
def credentials(release: Release) -> Iterator[dict[str, str]]:
    """The environment by which the release's store is reached from here."""
    secret = release.namespace.get("secret", f"{release.name}-s3")
    assert secret is not None
    told = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    with release.namespace.forwarded(f"service/{release.name}-s3", 7070) as address:
        yield {
            "AWS_ENDPOINT_URL": f"http://{address}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": told["access-key-id"],
            "AWS_SECRET_ACCESS_KEY": told["secret-access-key"],
        }


@contextmanager
def opened(release: Release) -> Iterator[ProductStore]:
    with credentials(release) as environment, mock.patch.dict(os.environ, environment):
        yield open_store(ADDRESS)


def arrays(store: ProductStore, acquisition_id: str) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each product of an acquisition, by the product's name."""
    found = {}
    for product in store.list():
        if product.acquisition_id == acquisition_id:
            _, array = store.read(product.product_id)
            found[product.name] = (array.dtype.str, array.shape, array.tobytes())
    return found
