"""``nextem store`` and ``nextem products`` on a folder and on two S3 servers."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from s3_kit import SERVERS, S3Server, serving
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from nextem.cli.main import main
from nextem.v1.product_pb2 import Product
from nextem.wire import bucket_store, s3_store
from nextem.wire.certificates import new_authority, new_certificate
from nextem.wire.object_store import Objects, StoreUnavailable, open_objects
from nextem.wire.store import open_store, picture_key

ADDRESS = "s3://bucket-of-tests/scope-1"


def run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.output


@pytest.fixture(params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Server]:
    with serving(request.param, tmp_path / request.param, monkeypatch) as server:
        yield server


def states(output: str) -> dict[str, str]:
    """What `store check` said, by what it looked at."""
    lines = [line.split("  ") for line in output.splitlines()]
    return {words[0].strip(): next(word for word in words[1:] if word.strip()).strip() for words in lines}


def test_a_bucket_is_made_and_what_is_not_offered_is_said(server: S3Server, tmp_path: Path) -> None:
    expiry = "not offered" if server.name == "versitygw" else "made"
    first = states(run("store", "check", ADDRESS))
    assert first["bucket"] == "made"
    assert first["conditional writes"] == first["write, read, remove"] == "works"
    assert first["expiry"] == expiry
    assert first["versioning"] == first["policy"] == "left as it is"
    policy = tmp_path / "policy.json"
    resource = "arn:aws:s3:::bucket-of-tests"
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteBucket", "Resource": resource}
    policy.write_text(json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    again = states(run("store", "check", ADDRESS, "--versioning", "--policy", str(policy)))
    assert (again["bucket"], again["expiry"]) == ("is there", expiry)
    assert again["versioning"] == again["policy"] == "made"
    assert states(run("store", "check", ADDRESS, "--versioning"))["versioning"] == "is there"
    assert list(open_objects(ADDRESS).keys("check")) == []


def test_expiry_of_one_prefix_leaves_that_of_others(server: S3Server) -> None:
    if server.name == "versitygw":
        pytest.skip("the gateway offers no expiry")
    run("store", "check", ADDRESS)
    run("store", "check", "s3://bucket-of-tests/scope-2", "--raw-days", "3")
    run("store", "check", ADDRESS, "--raw-days", "5")
    found = bucket_store._client().get_bucket_lifecycle(bucket_name="bucket-of-tests")
    assert found is not None
    rules = {
        rule.rule_filter.prefix: rule.expiration.days
        for rule in found.rules
        if rule.rule_filter is not None and rule.expiration is not None
    }
    assert rules == {"scope-1/raw/": 5, "scope-2/raw/": 3}


def test_wrong_keys_are_told(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    run("store", "check", ADDRESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "AWS_SECRET_ACCESS_KEY" in run("store", "check", ADDRESS, exit_code=1)
    assert "AWS_SECRET_ACCESS_KEY" in run("products", "--store", ADDRESS, exit_code=1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3_store, "RETRY_S", 0.5)
    assert ADDRESS in run("store", "check", ADDRESS, exit_code=1)


def test_a_server_that_ignores_conditions_is_unfit(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store.S3Objects, "ignored_conditions", lambda self: ["If-Match"])
    assert "the server ignores If-Match" in run("store", "check", ADDRESS, exit_code=1)


def product(name: str) -> Product:
    made = Product(product_id=f"acq/{name}", acquisition_id="0198c2f1-0000-7000-8000-000000000000", name=name)
    made.product_id, made.kind = f"{made.acquisition_id}/{name}", "map"
    return made


def links(output: str) -> dict[str, str]:
    return {what: address for _, what, address in (line.split("  ") for line in output.splitlines())}


def check_links(address: str) -> None:
    """The picture and every object of the array come without credentials, and make the array again."""
    store, array = open_store(address), np.arange(48.0).reshape(6, 8)
    made = product("com/divergence")
    store.write(made, array)
    found = links(run("products", "--store", address, "link", "0198c2f1"))
    assert list(found) == ["picture", "zarr", "zarr.json", "c/0/0"]
    assert found.pop("zarr") == f"{store.objects.address}/{store.version(made.product_id)}"
    got = {}
    for what, link in found.items():
        with urllib.request.urlopen(link) as answer:
            got[what] = answer.read()
    assert got.pop("picture") == store.objects.get(picture_key(made.product_id))
    assert store.objects.get(picture_key(made.product_id)).startswith(b"\x89PNG")
    again = zarr.open_array(
        MemoryStore({name: Buffer.from_bytes(data) for name, data in got.items()}), mode="r"
    )
    assert np.array_equal(np.asarray(again[...]), array)
    assert made.product_id in run("products", "--store", address)


def test_links_of_a_bucket(server: S3Server) -> None:
    run("store", "check", ADDRESS)
    check_links(ADDRESS)
    assert "up to 168 h" in run("products", "--store", ADDRESS, "link", "x", "--hours", "200", exit_code=2)


def test_links_of_a_folder(tmp_path: Path) -> None:
    assert states(run("store", "check", str(tmp_path / "store")))["write, read, remove"] == "works"
    check_links(str(tmp_path / "store"))
    assert "no product's id" in run("products", "--store", str(tmp_path), "link", "none", exit_code=1)


def test_sweep(tmp_path: Path) -> None:
    objects: Objects = open_objects(tmp_path)
    objects.put(f"versions/{1:020d}-dead.zarr/zarr.json", b"{}")
    assert "0 removed" in run("store", "sweep", str(tmp_path), "--older-than-h", "1e8")
    assert "1 removed" in run("store", "sweep", str(tmp_path))
    assert list(objects.keys("versions")) == []


def test_tls_with_an_authority_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = new_authority("facility", 1)
    pair = new_certificate(authority, "s3", hosts=["127.0.0.1"], days=1)
    certificate, key, bundle = (tmp_path / name for name in ("s3.pem", "s3.key", "authority.pem"))
    certificate.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    bundle.write_bytes(authority.certificate)
    server = S3Server("versitygw", tmp_path / "s3", (certificate, key))
    server.start()
    try:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(s3_store, "RETRY_S", 0.5)
        with pytest.raises(StoreUnavailable):
            open_objects(ADDRESS).put("a", b"x")
        assert "certificate" in run("store", "check", ADDRESS, exit_code=1)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
        assert "AWS_CA_BUNDLE" in run("products", "--store", ADDRESS, exit_code=1)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        assert states(run("store", "check", ADDRESS))["policy"] == "left as it is"
        found = states(run("store", "check", ADDRESS, "--tls-only"))
        assert (found["policy"], found["write, read, remove"]) == ("made", "works")
    finally:
        server.stop()
