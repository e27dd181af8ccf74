"""One release of the charts with the quickstart, on the cluster that KUBECONFIG names, for the whole folder.

``make test-kubernetes`` runs this folder; ``make test`` leaves it out. Tests run in the order of their files:
the images, the install, what is refused, what a running release survives, the uninstall.

NEXTEM_TEST_LOAD is the command that brings images to the nodes (``kind load docker-image`` unless told);
NEXTEM_TEST_IMAGES=ready says that this checkout's images are there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator

import pytest
from cluster_kit import (
    COMPONENTS,
    DEPLOYABLES,
    ROOT,
    Namespace,
    Refused,
    Release,
    helm,
    image_of,
    run,
    wait_until,
)

RUNS = bool(os.environ.get("NEXTEM_TEST_KUBERNETES"))
if not RUNS:
    collect_ignore_glob = ["test_*"]


@pytest.fixture(scope="session")
def engine() -> str:
    """The command of the image engine."""
    engine = os.environ.get("ENGINE", "docker")
    try:
        run(engine, "version", timeout_s=20)
    except (Refused, OSError) as error:
        pytest.skip(f"needs an image engine ({engine}): {error}")
    return engine


@pytest.fixture(scope="session")
def built(engine: str) -> dict[str, str]:
    """The images by deployable, built from this checkout unless NEXTEM_TEST_IMAGES says ready."""
    if os.environ.get("NEXTEM_TEST_IMAGES") != "ready":
        subprocess.run(["images/make.sh"], cwd=ROOT, check=True, timeout=1200)
    return {deployable: image_of(deployable) for deployable in DEPLOYABLES}


@pytest.fixture(scope="session")
def cluster() -> str:
    """The API server's version."""
    try:
        return run("kubectl", "version", "-o", "json", timeout_s=20)
    except (Refused, OSError) as error:
        pytest.skip(f"needs a cluster, which KUBECONFIG names: {error}")


@pytest.fixture(scope="session")
def loaded(cluster: str, built: dict[str, str]) -> dict[str, str]:
    """The images, on the cluster's nodes."""
    if os.environ.get("NEXTEM_TEST_IMAGES") != "ready":
        load = shlex.split(os.environ.get("NEXTEM_TEST_LOAD", "kind load docker-image"))
        run(*load, *built.values(), timeout_s=600)
    return built


@pytest.fixture(scope="session")
def release(loaded: dict[str, str]) -> Iterator[Release]:
    """The quickstart, installed and ready. What `test_uninstall` has not removed is removed at the end."""
    name, namespace = "nextem", Namespace("nextem-test")
    run("kubectl", "create", "namespace", namespace.name)
    run("kubectl", "label", "namespace", namespace.name, "pod-security.kubernetes.io/enforce=restricted")
    started = time.monotonic()
    try:
        run(*helm("install", name, namespace), "--wait=false", timeout_s=600)
        for component in COMPONENTS:
            wait_until(f"{component} is ready", lambda c=component: namespace.ready(c), 400)  # type: ignore[misc]
        yield Release(name, namespace, time.monotonic() - started)
    except BaseException:
        for component in COMPONENTS:
            print(namespace.logs(component))
        raise
    finally:
        subprocess.run(["helm", "uninstall", name, "-n", namespace.name, "--ignore-not-found"], timeout=400)
        run("kubectl", "delete", "namespace", namespace.name, "--ignore-not-found", timeout_s=400)
