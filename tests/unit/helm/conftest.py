"""The tests of the charts are skipped where there is no Helm."""

from __future__ import annotations

import chart_kit
import pytest


@pytest.fixture(scope="session", autouse=True)
def helm() -> None:
    """Helm is there."""
    if chart_kit.binary() is None:
        pytest.skip("no helm on PATH; go install helm.sh/helm/v3/cmd/helm@v3.19.2 makes one")
