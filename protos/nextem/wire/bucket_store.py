"""Makes a bucket fit for a store, and says what of it the server does not offer.

obstore, which moves the objects, knows nothing of buckets: this is done by the minio client, with the same
environment (see :func:`nextem.wire.s3_store.open_s3`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.credentials.providers import IamAwsProvider
from minio.error import MinioException, S3Error
from minio.lifecycleconfig import (
    AbortIncompleteMultipartUpload,
    Expiration,
    LifecycleConfig,
    NoncurrentVersionExpiration,
    Rule,
)
from minio.versioningconfig import VersioningConfig

from nextem.wire.object_store import StoreError, StoreRefused, StoreUnavailable, open_objects
from nextem.wire.raw_objects import FOLDER as RAW
from nextem.wire.s3_store import WHAT_TO_CHECK, S3Objects, bucket_and_prefix, endpoint

MADE, THERE, TRIED = "made", "is there", "works"
NOT_OFFERED, LEFT = "not offered", "left as it is"
_NONE_SO_FAR = ("NoSuchLifecycleConfiguration", "NoSuchBucketPolicy", "NoSuchPolicy")
_NOT_OFFERED = ("NotImplemented", "MethodNotAllowed", "XNotImplemented")
_NO_SUCH_RULE = ("InvalidArgument", "MalformedXML")  # MinIO ends unfinished uploads itself, and wants no rule
_OURS = "nextem"


class UnfitServer(StoreError):
    """The server does not do what a store rests on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, one of the states above, and what follows from it."""

    what: str
    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a bucket shall have; days of 0 mean never.

    ``policy``: JSON of a bucket policy, "" for none. ``tls_only``: otherwise one that refuses plain HTTP,
    beside what is there; not where a proxy before the server ends TLS, for then it refuses everybody.
    """

    raw_days: int = 30
    versioning: bool = False
    old_versions_days: int = 7
    policy: str = ""
    tls_only: bool = False


def check_bucket(address: str, wanted: Wanted) -> Iterator[Finding]:
    """Makes what is missing of the bucket in ``s3://BUCKET/PREFIX``, step by step. Safe to repeat.

    Raises :class:`StoreRefused`, :class:`StoreUnavailable` and :class:`UnfitServer`.
    """
    bucket, prefix = bucket_and_prefix(address)
    client = _client()
    with _errors(address):
        yield _bucket(client, bucket)
        yield _conditions(address)
        yield _expiry(client, bucket, prefix, wanted)
        yield _versioning(client, bucket, wanted)
        yield _policy(client, bucket, wanted)


def _client() -> Minio:
    url = urlsplit(endpoint() or "https://s3.amazonaws.com")
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if bundle and not os.path.exists(bundle):
        raise StoreRefused(f"AWS_CA_BUNDLE={bundle}: no such file")
    return Minio(
        url.netloc,
        access_key=key,
        secret_key=secret,
        session_token=os.environ.get("AWS_SESSION_TOKEN"),
        secure=url.scheme == "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        credentials=None if key and secret else IamAwsProvider(),
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5, read=60),
            retries=urllib3.Retry(5, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
            ca_certs=bundle,
        ),
    )


def _bucket(client: Minio, bucket: str) -> Finding:
    if client.bucket_exists(bucket_name=bucket):
        return Finding("bucket", THERE, bucket)
    client.make_bucket(bucket_name=bucket)
    return Finding("bucket", MADE, bucket)


def _conditions(address: str) -> Finding:
    objects = open_objects(address)
    assert isinstance(objects, S3Objects)
    ignored = objects.ignored_conditions()
    if ignored:
        raise UnfitServer(
            f"{address}: the server ignores {' and '.join(ignored)}: two writers would undo each other's work"
        )
    return Finding("conditional writes", TRIED, "create-only and replace-if-unchanged")


def _expiry(client: Minio, bucket: str, prefix: str, wanted: Wanted) -> Finding:
    raw = f"raw frames after {wanted.raw_days} days" if wanted.raw_days else "raw frames never"
    mine = f"{_OURS} /{prefix} "  # rules of other prefixes and of other people stay
    try:
        found = client.get_bucket_lifecycle(bucket_name=bucket)
        kept = [rule for rule in found.rules if not (rule.rule_id or "").startswith(mine)] if found else []
        rules = _rules(mine, prefix, wanted)
        try:
            client.set_bucket_lifecycle(
                bucket_name=bucket, config=LifecycleConfig([*kept, _uploads(mine, prefix), *rules])
            )
        except S3Error as error:
            if error.code not in _NO_SUCH_RULE:
                raise
            if kept or rules:
                client.set_bucket_lifecycle(bucket_name=bucket, config=LifecycleConfig([*kept, *rules]))
            return Finding("expiry", MADE, f"{raw}; no rule for unfinished uploads, the server has its own")
    except S3Error as error:
        if error.code not in _NOT_OFFERED:
            raise
        without = "unfinished uploads and raw frames stay until somebody removes them"
        return Finding("expiry", NOT_OFFERED, without)
    return Finding("expiry", MADE, f"unfinished uploads after a day; {raw}")


def _uploads(name: str, prefix: str) -> Rule:
    abort = AbortIncompleteMultipartUpload(days_after_initiation=1)
    return Rule(ENABLED, _below(prefix), f"{name}uploads", abort_incomplete_multipart_upload=abort)


def _rules(name: str, prefix: str, wanted: Wanted) -> list[Rule]:
    rules = []
    if wanted.raw_days:
        raw = _below(f"{prefix}/{RAW}" if prefix else RAW)
        rules.append(Rule(ENABLED, raw, f"{name}raw", expiration=Expiration(days=wanted.raw_days)))
    if wanted.versioning and wanted.old_versions_days:
        old = NoncurrentVersionExpiration(noncurrent_days=wanted.old_versions_days)
        rules.append(Rule(ENABLED, _below(prefix), f"{name}versions", noncurrent_version_expiration=old))
    return rules


def _below(folder: str) -> Filter:
    return Filter(prefix=f"{folder}/" if folder else "")


def _versioning(client: Minio, bucket: str, wanted: Wanted) -> Finding:
    try:
        now = client.get_bucket_versioning(bucket_name=bucket).status
        if not wanted.versioning:
            why = "versions of products are objects of their own; with versioning every checkpoint would stay"
            return Finding("versioning", LEFT, f"{(now or 'off').lower()}; {why}")
        if now == ENABLED:
            return Finding("versioning", THERE, "on")
        client.set_bucket_versioning(bucket_name=bucket, config=VersioningConfig(status=ENABLED))
    except S3Error as error:
        if error.code not in (*_NOT_OFFERED, "VersioningNotConfigured"):
            raise
        return Finding("versioning", NOT_OFFERED, "what is removed or replaced is gone")
    return Finding(
        "versioning", MADE, f"on; old versions stay {wanted.old_versions_days} days where they expire"
    )


def _policy(client: Minio, bucket: str, wanted: Wanted) -> Finding:
    try:
        if wanted.policy:
            client.set_bucket_policy(bucket_name=bucket, policy=wanted.policy)
            return Finding("policy", MADE, "as given")
        if not wanted.tls_only:
            return Finding("policy", LEFT, "--policy or --tls-only sets one")
        try:
            policy = json.loads(client.get_bucket_policy(bucket_name=bucket))
        except S3Error as error:
            if error.code not in _NONE_SO_FAR:
                raise
            policy = {"Version": "2012-10-17", "Statement": []}
        others = [each for each in policy["Statement"] if each.get("Sid") != "NextemTlsOnly"]
        policy["Statement"] = [*others, _tls_only(bucket)]
        client.set_bucket_policy(bucket_name=bucket, policy=json.dumps(policy))
    except S3Error as error:
        if error.code not in _NOT_OFFERED:
            raise
        return Finding("policy", NOT_OFFERED, "the server's own rights alone say who may do what")
    return Finding("policy", MADE, "plain HTTP is refused")


def _tls_only(bucket: str) -> dict[str, object]:
    return {
        "Sid": "NextemTlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


@contextmanager
def _errors(address: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        code = error.code or "refused"
        detail = WHAT_TO_CHECK.get(code, error.message or "")
        raise StoreRefused(f"{address}: {code}: {detail}") from error
    except (MinioException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise StoreUnavailable(f"{address}: {error}") from error
