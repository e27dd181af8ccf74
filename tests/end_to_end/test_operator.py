"""Experiments as objects: a real API server, and everything from the operator to a simulated microscope."""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kube_kit import Cluster, api_server
from up_kit import NEXTEM, up_running

pytest.importorskip("kopf")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
WAIT_S = 90.0
_NAMES = itertools.count()
PLAN: dict[str, Any] = {
    "title": "a test",
    "scan": {"sizeY": 16, "sizeX": 16, "stepNm": 2, "dwellS": 0.0005},
    "doseEPerFrame": 100,
    "reduction": {"masks": [{"name": "bright", "centerYPx": 127.5, "centerXPx": 127.5, "outerPx": 20}]},
    "analyses": [{"name": "virtual_images"}, {"name": "mean_pattern"}],
}
LONG = {"sizeY": 320, "sizeX": 80, "stepNm": 2, "dwellS": 0.0005}
"""Positions for over twelve seconds."""


@dataclass
class Place:
    """Where everything runs; ``operator`` is started and ended by the test."""

    cluster: Cluster
    home: Path
    steering: str
    up: int
    operators: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def operator(self, *options: str) -> subprocess.Popen[bytes]:
        command = [*NEXTEM, "operator", "run", "--steering", self.steering, "--home", str(self.home)]
        command += options
        with (self.home / "operator.log").open("ab") as output:
            process = subprocess.Popen(command, stderr=output, env=self.cluster.environment)
        self.operators.append(process)
        return process

    def child(self, name: str) -> int:
        """Process id of one part of ``nextem up``."""
        for child in Path(f"/proc/{self.up}/task/{self.up}/children").read_text().split():
            if name in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
                return int(child)
        raise AssertionError(f"no {name}")

    def experiment(self, *, scan: object = None, **spec: object) -> str:
        """The name of a new one."""
        name = f"e{next(_NAMES)}"
        done = self.try_apply(name, scan=scan, **spec)
        assert done.returncode == 0, done.stderr
        return name

    def try_apply(
        self, name: str, *, scan: object = None, **spec: object
    ) -> subprocess.CompletedProcess[str]:
        plan = copy.deepcopy(PLAN)
        if scan is not None:
            plan["scan"] = scan
        body = {
            "apiVersion": "nextem.dev/v1alpha1",
            "kind": "Experiment",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"instrument": "simulator", "plan": plan, **spec},
        }
        return self.cluster.apply(body, check=False)

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.cluster.get("experiment", name).get("status", {})
        return status

    def until(self, name: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status that holds; fails with the operator's log."""
        until_s = time.monotonic() + WAIT_S
        while not holds(status := self.status(name)):
            if time.monotonic() > until_s:
                log = (self.home / "operator.log").read_text(errors="replace")
                pytest.fail(f"{name}: {status}\n{log[-4000:]}")
            time.sleep(0.1)
        return status

    def phase(self, name: str, *wanted: str) -> dict[str, Any]:
        return self.until(name, lambda status: status.get("phase") in wanted)

    def final(self, name: str) -> dict[str, Any]:
        return self.phase(name, "Complete", "Failed", "Stopped")


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("operator")
    with api_server(folder / "kubernetes") as cluster:
        crds = Path(__file__).parents[2] / "helm" / "nextem" / "crds"
        cluster.kubectl("apply", "--server-side", "-f", str(crds))
        cluster.kubectl("wait", "--for=condition=Established", "crd/experiments.nextem.dev")
        with up_running(folder / "home", timeout_s=600) as (up, steering):
            place = Place(cluster, folder / "home", steering, up.pid)
            yield place
            for process in place.operators:
                process.terminate()
                assert process.wait(30) == 0


@pytest.fixture
def place(around: Place) -> Place:
    """With one operator running."""
    if not around.operators:
        around.operator()
    return around


def test_an_experiment_ends_complete_with_every_frame_and_product(place: Place) -> None:
    name = place.experiment()
    status = place.final(name)
    assert (status["phase"], status["frames"]) == ("Complete", {"announced": 256, "stored": 256, "lost": 0})
    assert {each["name"] for each in status["products"]} == {"virtual/bright", "virtual/sum", "mean_pattern"}
    assert {each["type"]: each["status"] for each in status["conditions"]} == {
        "Accepted": "True", "Acquired": "True", "Analysed": "True",
    }  # fmt: skip
    shown = place.cluster.kubectl("get", "exp", name, "--no-headers").stdout.split()
    assert shown[1:7] == ["simulator", "Complete", "256", "256", "0", "3"]
    told = place.cluster.kubectl("describe", "exp", name).stdout
    assert "256 of 256 frames stored" in told


def test_an_analysis_that_cannot_be_is_told_with_its_reason(place: Place) -> None:
    plan = {**PLAN, "analyses": [{"name": "mean_pattern"}, {"name": "center_of_mass"}]}
    status = place.final(place.experiment(plan=plan))
    assert (status["phase"], status["reason"], status["frames"]["lost"]) == ("Failed", "AnalysisFailed", 0)
    why = "no result of center_of_mass: AnalysisError: center_of_mass needs reduction.center_of_mass"
    assert status["message"].startswith(why)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"plan": {"doseEPerFrame": 1}}, "spec.plan.scan: Required value"),
        ({"plan": {**PLAN, "doseEPerFrame": 0}}, "spec.plan.doseEPerFrame"),
        ({"plan": {**PLAN, "scan": {**PLAN["scan"], "sizeY": 0}}}, "spec.plan.scan.sizeY"),
        ({"plan": {**PLAN, "dose": 1}}, 'unknown field "spec.plan.dose"'),
        ({"plan": {**PLAN, "rules": [{"name": "two"}]}}, "exactly one of saturation, drift, event"),
        (
            {"plan": {**PLAN, "reduction": {"masks": [{"name": "m", "innerPx": 5, "outerPx": 2}]}}},
            "outerPx must be above innerPx",
        ),
        ({"busy": "Perhaps"}, 'supported values: "Wait", "Refuse"'),
        ({"retries": -1}, "spec.retries"),
        ({"instrument": ""}, "spec.instrument"),
    ],
)
def test_what_is_no_experiment_is_refused_at_once_in_words(
    around: Place, change: dict[str, Any], told: str
) -> None:
    done = around.try_apply("refused", **change)
    assert (done.returncode, told in done.stderr) == (1, True), done.stderr


def test_what_was_asked_for_is_not_changed_afterwards(place: Place) -> None:
    name = place.experiment()
    place.final(name)
    done = place.try_apply(name, scan=LONG)
    assert (done.returncode, "plan is fixed: make another experiment" in done.stderr) == (1, True), (
        done.stderr
    )


def test_over_the_dose_limit_it_fails_at_once_with_the_edge_s_reason(place: Place) -> None:
    name = place.experiment(plan={**PLAN, "doseEPerFrame": 1e9})
    status = place.final(name)
    assert (status["phase"], status["reason"]) == ("Failed", "Refused")
    assert "dose_e_per_frame: 1000000000.0 > 1000000.0" in status["message"]
    assert status["submissions"] == 1


def test_over_the_dose_limit_it_fails_at_once_also_while_another_runs(place: Place) -> None:
    first = place.experiment(scan=LONG)
    place.until(first, lambda status: status.get("frames", {}).get("stored", 0) > 0)
    waits = place.experiment()
    refused = place.final(place.experiment(plan={**PLAN, "doseEPerFrame": 1e9}))
    assert (refused["phase"], refused["reason"], refused["submissions"]) == ("Failed", "Refused", 0), refused
    assert refused["message"] == "limit:scan.dose_e_per_frame: 1000000000.0 > 1000000.0"
    assert place.status(first)["phase"] == "Running"
    assert place.phase(waits, "Waiting")["message"] == f"default/{first} comes first"
    done = place.final(first)
    assert (done["phase"], done["cutShort"], done["frames"]["lost"]) == ("Complete", 0, 0), done
    assert place.final(waits)["phase"] == "Complete"


def test_deleting_it_stops_the_scan_and_leaves_no_finalizer(place: Place) -> None:
    name = place.experiment(scan=LONG)
    started = place.phase(name, "Running")
    place.cluster.kubectl("delete", "experiment", name, "--timeout=60s")
    log = (place.home / "operator.log").read_text()
    assert f"default/{name}: Stopped" in log
    after = place.experiment()
    status = place.final(after)  # and the instrument is free
    assert status["phase"] == "Complete"
    assert status["acquisitionID"] != started["acquisitionID"]


def test_stopped_by_its_owner_it_ends_with_an_exact_account(place: Place) -> None:
    name = place.experiment(scan=LONG)
    place.until(name, lambda status: status.get("frames", {}).get("stored", 0) > 0)
    place.cluster.kubectl("patch", "experiment", name, "--type=merge", "-p", '{"spec": {"stop": true}}')
    status = place.final(name)
    assert (status["phase"], status["reason"]) == ("Stopped", "Stopped"), status
    frames = status["frames"]
    assert frames["announced"] == frames["stored"] + frames["lost"] == 25_600


def test_a_second_one_waits_its_turn_or_is_refused_as_it_says(place: Place) -> None:
    first = place.experiment(scan=LONG)
    place.phase(first, "Running")
    waits = place.experiment()
    refused = place.final(place.experiment(busy="Refuse"))
    assert (refused["phase"], refused["reason"]) == ("Failed", "Busy"), refused
    assert refused["message"].startswith((f"default/{first} ", f"default/{waits} "))
    assert place.phase(waits, "Waiting")["message"] == f"default/{first} comes first"
    done, later = place.final(first), place.final(waits)
    assert (done["phase"], later["phase"]) == ("Complete", "Complete"), (done, later)
    assert later["startedAt"] >= done["acquiredAt"]


@pytest.mark.parametrize("moment", ["Waiting", "Running", "Analysing"])
def test_an_operator_that_dies_at_any_point_changes_nothing(place: Place, moment: str) -> None:
    name = place.experiment(scan=LONG if moment == "Running" else None)
    place.phase(name, moment, "Running", "Complete")
    dead = place.operators.pop()
    dead.kill()
    dead.wait()
    place.operator()  # leads once the lease of the dead one has run out
    status = place.final(name)
    assert (status["phase"], status["frames"]["lost"], status["submissions"]) == ("Complete", 0, 1), status
    assert status["cutShort"] == 0


def test_a_scan_that_is_cut_short_is_done_again_with_the_beam_on(place: Place) -> None:
    """The steering service is silent: the edge stops the scan and blanks the beam."""
    name = place.experiment(scan=LONG)
    first = place.until(name, lambda status: status.get("frames", {}).get("stored", 0) > 0)
    steering = place.child("steer")
    os.kill(steering, signal.SIGSTOP)
    try:
        place.until(name, lambda status: status["reason"] == "NotAttached" and status["cutShort"] == 1)
    finally:
        os.kill(steering, signal.SIGCONT)
    status = place.final(name)
    assert (status["phase"], status["cutShort"], status["submissions"]) == ("Complete", 1, 2), status
    assert (status["frames"]["stored"], status["frames"]["lost"]) == (25_600, 0)
    assert status["acquisitionID"] != first["acquisitionID"]


def test_a_person_submits_watches_and_stops_with_and_without_objects(place: Place, tmp_path: Path) -> None:
    def experiment(*arguments: str) -> tuple[int, str]:
        command = [*NEXTEM, "experiment", *arguments, "--steering", place.steering, "--home", str(place.home)]
        done = subprocess.run(
            command, env=place.cluster.environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout + done.stderr

    plan, long = tmp_path / "Plan one.json", tmp_path / "long.yaml"
    plan.write_text(json.dumps(PLAN))
    long.write_text(json.dumps({"kind": "Experiment", "spec": {"plan": {**PLAN, "scan": LONG}}}))
    code, told = experiment("submit", str(plan), "--instrument", "simulator", "--wait")
    assert (code, "in the cluster at https://127.0.0.1" in told) == (0, True), told
    assert "experiment plan-one-" in told
    assert "Complete: 256 of 256 frames stored" in told
    code, told = experiment("submit", str(plan))
    assert (code, "--instrument NAME" in told) == (2, True), told
    code, told = experiment("submit", str(plan), "--no-kubernetes", "--wait", "--instrument", "simulator")
    assert (code, "256 of 256 frames stored" in told) == (0, True), told
    code, told = experiment("submit", str(long), "--no-kubernetes")
    acquisition = told.split("acquisition ")[1].split()[0]
    code, told = experiment("stop", acquisition, "--no-kubernetes")
    assert (code, "DONE" in told) == (0, True), told
    name = place.experiment(scan=LONG)
    place.phase(name, "Running")
    code, told = experiment("stop", name)
    assert code == 0, told
    code, told = experiment("watch", name)
    assert (code, "Stopped: " in told) == (1, True), told
    assert experiment("watch", "nobody")[0] == 1


RAY_CLUSTERS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "rayclusters.ray.io"},
    "spec": {
        "group": "ray.io",
        "scope": "Namespaced",
        "names": {"kind": "RayCluster", "plural": "rayclusters", "singular": "raycluster"},
        "versions": [
            {
                "name": "v1", "served": True, "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                },
            }
        ],
    },
}  # fmt: skip


def test_workers_of_the_analysis_follow_what_is_open(place: Place) -> None:
    cluster = place.cluster
    if cluster.kubectl("get", "crd", "rayclusters.ray.io", check=False).returncode:
        cluster.apply(RAY_CLUSTERS)
        cluster.kubectl("wait", "--for=condition=Established", "crd/rayclusters.ray.io")
    group = {"groupName": "workers", "replicas": 1, "minReplicas": 1, "maxReplicas": 3}
    body = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "ray"}}
    until_s = time.monotonic() + WAIT_S
    while cluster.apply({**body, "spec": {"workerGroupSpecs": [group]}}, check=False).returncode:
        assert time.monotonic() < until_s  # discovery lists a new kind a moment after it is established
        time.sleep(0.2)
    while place.operators:
        place.operators[-1].terminate()
        assert place.operators.pop().wait(30) == 0
    place.operator("--ray-cluster", "ray", "--images-per-worker", "900")
    name = place.experiment(scan=LONG)
    until_s = time.monotonic() + WAIT_S
    while cluster.get("raycluster", "ray")["spec"]["workerGroupSpecs"][0]["replicas"] != 3:
        assert time.monotonic() < until_s, (place.home / "operator.log").read_text()[-3000:]
        time.sleep(0.2)
    assert place.final(name)["phase"] == "Complete"
    while place.operators:
        place.operators[-1].terminate()
        assert place.operators.pop().wait(30) == 0


def test_keys_are_made_once_and_cleaned_up(place: Place) -> None:
    def nextem(*arguments: str) -> str:
        command = [sys.executable, "-m", "nextem.cli.main", "operator", *arguments]
        done = subprocess.run(
            command, env=place.cluster.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "secret default/nextem-keys-operator: made" in nextem("bootstrap-keys", "--host", "steering")
    before = place.cluster.get("secret", "nextem-keys-steering")["data"]
    place.cluster.kubectl("delete", "secret", "nextem-keys-steering")
    told = nextem("bootstrap-keys", "--host", "steering")
    assert "nextem-keys-steering: made" in told
    assert "nextem-keys-operator: is there already" in told
    assert place.cluster.get("secret", "nextem-keys-steering")["data"] == before
    _renewed_unless_somebody_else_s(place.cluster, nextem)
    place.experiment(scan=LONG)
    told = nextem("cleanup")
    assert "left on purpose: products in the store" in told
    for kind in ("experiments", "secrets", "leases"):
        assert place.cluster.get(kind)["items"] == [], kind
    assert place.operators.pop().wait(30) == 1  # its lease is gone: it acts no more


def _renewed_unless_somebody_else_s(cluster: Cluster, nextem: Callable[..., str]) -> None:
    def content(name: str) -> dict[str, str]:
        data: dict[str, str] = cluster.get("secret", f"nextem-keys-{name}")["data"]
        return data

    label = ("label", "secret", "nextem-keys-client", "--overwrite")
    cluster.kubectl(*label, "nextem.dev/generated=no")
    before = {name: content(name) for name in ("steering", "client")}
    told = nextem("bootstrap-keys", "--renew-only", "--left", "1")
    assert "nextem-keys-steering: renewed: policy.token, steering.crt" in told
    after = content("steering")
    changed = {file for file in after if after[file] != before["steering"][file]}
    assert changed == {"policy.token", "steering.crt", "steering.key"}
    assert content("client") == before["client"]
    assert "renewed" not in nextem("bootstrap-keys")
    assert (content("steering"), content("client")) == (after, before["client"])
    cluster.kubectl(*label, "nextem.dev/generated=true")
