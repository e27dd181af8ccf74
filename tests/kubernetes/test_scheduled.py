"""What a release does by the clock, done now: keys and tokens are renewed, the store is swept."""

from __future__ import annotations

import json
from functools import partial

from cluster_kit import COMPONENTS, Release, until_done, wait_until
from experiment_kit import FINAL, assert_whole, carried_out, plan, until_phase

SIDE = 16
KEYS = "nextem-keys-steering"


def test_keys_are_renewed_and_the_next_experiment_is_carried_out_with_them(release: Release) -> None:
    """All of them, not only what is soon over."""
    namespace = release.namespace
    before = (namespace.get("secret", KEYS) or {})["data"]
    job = json.loads(
        namespace.kubectl(
            "create", "job", "renewal-now", f"--from=cronjob/{release.name}-keys-renewal",
            "--dry-run=client", "-o", "json",
        )
    )  # fmt: skip
    job["spec"]["template"]["spec"]["containers"][0]["args"] += ["--left", "1"]
    namespace.apply(job)
    print(until_done(namespace, "renewal-now"))
    namespace.kubectl("delete", "job", "renewal-now")
    after = (namespace.get("secret", KEYS) or {})["data"]
    assert after.keys() == before.keys()
    assert after != before
    for component in COMPONENTS:
        wait_until(f"{component} is ready", partial(namespace.ready, component), 300)
    with carried_out(namespace, "renewed", plan(SIDE)):
        assert_whole(until_phase(namespace, "renewed", FINAL, 120), SIDE)


def test_the_store_is_swept(release: Release) -> None:
    namespace = release.namespace
    namespace.kubectl("create", "job", "sweep-now", f"--from=cronjob/{release.name}-sweep")
    print(until_done(namespace, "sweep-now"))
    namespace.kubectl("delete", "job", "sweep-now")
