"""Every rendered object is valid, and every pod and role asks for no more than it must."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from chart_kit import CHARTS, EXAMPLES, Object, named, pods, render, render_text
from google.protobuf import json_format

from nextem.analysis.registry import AnalysisSet
from nextem.v1 import acquisition_pb2, plan_pb2

JOBS = ("Job/", "CronJob/")
FOREIGN = ("nextem.dev/", "ray.io/", "kafka.strimzi.io/", "monitoring.coreos.com/")
"""API groups whose schemas are not Kubernetes' own."""


@pytest.fixture(scope="module", params=list(EXAMPLES))
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(request.param)


def test_kubernetes_takes_each_object(objects: list[Object]) -> None:
    for one in objects:
        if not one["apiVersion"].startswith(FOREIGN):
            kubernetes_validate.validate(one, "1.34", strict=True)


OUTSIDE = ("kafka.bootstrap=k:9093", "store.address=s3://tem", "quickstart.enabled=false")
MTLS = ("kafka.security.protocol=SSL", "kafka.security.caSecret.name=ca")
USERS = tuple(f"kafka.users.{user}.secret=u" for user in ("steering", "analysis", "operator", "topics"))
CHOICES: dict[str, tuple[str, ...]] = {
    "quickstart, nothing measured": ("quickstart.enabled=true", "telemetry.metrics.enabled=false"),
    "quickstart that keeps": ("quickstart.enabled=true", "quickstart.persistence.enabled=true"),
    "certificates for Kafka": (*OUTSIDE, *MTLS, *USERS),
    "confluent, topics deleted": (
        *OUTSIDE,
        *MTLS,
        *USERS,
        "kafka.client=confluent-kafka",
        "kafka.topics.deleteOnUninstall=true",
    ),
    "a collector": (
        *OUTSIDE,
        "telemetry.otlp.endpoint=https://c:4317",
        "telemetry.otlp.caSecret.name=ca",
        "telemetry.otlp.headersSecret.name=h",
    ),
    "no jobs": (
        *OUTSIDE,
        "store.check.enabled=false",
        "store.sweep.enabled=false",
        "kafka.topics.create=false",
    ),
    "the pod's own identity": (
        *OUTSIDE,
        "steering.persistence.enabled=true",
        "steering.persistence.storageClass=fast",
    ),
    "an authority of the store": (
        *OUTSIDE,
        "store.caSecret.name=ca",
        "store.check.versioning=true",
        "image.pullSecrets[0]=m",
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_kubernetes_takes_what_other_choices_render(choice: str) -> None:
    objects = render(sets=CHOICES[choice])
    for one in objects:
        if not one["apiVersion"].startswith(FOREIGN):
            kubernetes_validate.validate(one, "1.34", strict=True)
    for at, template in pods(objects).items():
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **template}, "1.34", strict=True)
        _volumes_and_mounts_fit(at, template["spec"])
        assert not _restricted(template)


def _volumes_and_mounts_fit(at: str, spec: dict[str, Any]) -> None:
    there = [volume["name"] for volume in spec.get("volumes", ())]
    mounted = {mount["name"] for each in spec["containers"] for mount in each.get("volumeMounts", ())}
    assert len(there) == len(set(there)), f"{at}: {there}"
    assert mounted - set(there) <= {"data"}, f"{at} mounts {mounted - set(there)}, which is no volume"
    assert set(there) <= mounted, f"{at} has {set(there) - mounted}, which nobody mounts"


def test_the_pods_of_ray_are_valid_too(objects: list[Object]) -> None:
    for at, template in pods(objects).items():
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, "1.34", strict=True)
        _volumes_and_mounts_fit(at, template["spec"])


def _restricted(pod: dict[str, Any]) -> list[str]:
    """What the Pod Security Standard "restricted" has against ``pod``; its controls by name.

    Source: Kubernetes, Pod Security Standards.
    """
    wrong = []
    spec, security = pod["spec"], pod["spec"].get("securityContext", {})
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        wrong.append("host namespaces")
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"}
    allowed |= {"projected", "secret", "name"}
    wrong += [f"volume {volume['name']}" for volume in spec.get("volumes", ()) if not set(volume) <= allowed]
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        own = security | container.get("securityContext", {})
        tests = {
            "privileged": not own.get("privileged"),
            "privilege escalation": own.get("allowPrivilegeEscalation") is False,
            "non-root": own.get("runAsNonRoot") is True and own.get("runAsUser", 1) != 0,
            "seccomp": own.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "host ports": not any("hostPort" in port for port in container.get("ports", ())),
        }
        wrong += [f"{container['name']}: {name}" for name, passed in tests.items() if not passed]
    return wrong


def test_every_pod_passes_restricted(objects: list[Object]) -> None:
    assert [f"{at}: {wrong}" for at, pod in pods(objects).items() for wrong in _restricted(pod)] == []


def test_every_root_file_system_is_read_only_and_every_container_has_bounds(objects: list[Object]) -> None:
    for at, template in pods(objects).items():
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, at
            assert container["resources"]["requests"], at
            assert container["resources"]["limits"]["memory"], at


def test_the_quickstart_fits_two_processors_and_six_gibibytes() -> None:
    asked = [
        (container["resources"]["requests"]["cpu"], container["resources"]["requests"]["memory"])
        for at, template in pods(render("quickstart")).items()
        if not at.startswith(JOBS)
        for container in template["spec"]["containers"]
    ]
    assert sum(int(cpu.removesuffix("m")) for cpu, _ in asked) <= 1800
    assert sum(int(memory.removesuffix("Mi")) for _, memory in asked) <= 6 * 1024


def test_every_long_lived_container_is_probed(objects: list[Object]) -> None:
    for at, template in pods(objects).items():
        if not at.startswith(JOBS):
            for container in template["spec"]["containers"]:
                assert {"readinessProbe", "livenessProbe"} <= set(container), at


def test_no_image_is_without_version(objects: list[Object]) -> None:
    for template in pods(objects).values():
        for container in template["spec"]["containers"]:
            _, _, version = container["image"].rpartition("/")
            assert re.search(r":[^:@]+$|@sha256:[0-9a-f]{64}$", version), container["image"]
            assert not version.endswith(":latest")


def test_only_the_operator_and_the_jobs_of_keys_speak_to_the_api(objects: list[Object]) -> None:
    speak = {at for at, t in pods(objects).items() if t["spec"]["automountServiceAccountToken"]}
    assert speak <= {
        "Deployment/nextem-operator",
        "Job/nextem-keys",
        "Job/nextem-cleanup",
        "CronJob/nextem-keys-renewal",
    }


def test_every_component_has_an_account_of_its_own() -> None:
    accounts = {
        at: template["spec"].get("serviceAccountName") for at, template in pods(render("quickstart")).items()
    }
    del accounts["Job/nextem-setup"]  # asks nobody but Kafka and the store
    by_account = {
        account: {at.split("/")[1] for at in accounts if accounts[at] == account}
        for account in accounts.values()
    }
    assert all(len(owners) == 1 for owners in by_account.values()), by_account
    assert None not in by_account


def test_no_role_reaches_beyond_the_namespace(objects: list[Object]) -> None:
    assert not [one for one in objects if one["kind"] in ("ClusterRole", "ClusterRoleBinding")]


def test_who_may_ask_the_api_for_what() -> None:
    may = {
        (one["metadata"]["name"], group, resource, *sorted(rule["verbs"]))
        for one in render("quickstart")
        if one["kind"] == "Role"
        for rule in one["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert may == {
        ("nextem-operator", "nextem.dev", "experiments", "get", "list", "patch", "update", "watch"),
        ("nextem-operator", "nextem.dev", "experiments/status", "get", "patch", "update"),
        ("nextem-operator", "", "events", "create"),
        ("nextem-operator", "coordination.k8s.io", "leases", "create", "get", "update"),
        ("nextem-operator", "ray.io", "rayclusters", "get", "patch"),
        ("nextem-keys", "", "secrets", "create"),
        ("nextem-keys", "", "secrets", "get", "update"),
        ("nextem-keys-renewal", "", "secrets", "get", "update"),
        ("nextem-cleanup", "nextem.dev", "experiments", "delete", "list", "patch"),
        ("nextem-cleanup", "", "secrets", "delete", "list"),
        ("nextem-cleanup", "", "persistentvolumeclaims", "list"),
        ("nextem-cleanup", "coordination.k8s.io", "leases", "delete", "list"),
    }


@pytest.mark.parametrize("example", ["quickstart", "strimzi"])
def test_the_jobs_of_keys_reach_the_secrets_that_they_make_and_no_others(example: str) -> None:
    objects = render(example)
    made = {f"nextem-keys-{name}" for name in ("authority", "steering", "operator", "client")}
    more = {
        "quickstart": {"nextem-keys-edge-simulator", "nextem-keys-driver"},
        "strimzi": {"nextem-keys-edge-tem-1", "nextem-keys-edge-tem-2"},
    }
    for name in ("nextem-keys", "nextem-keys-renewal"):
        for rule in named(objects, "Role", name)["rules"]:
            if rule["verbs"] != ["create"]:  # which no rule can bind to names
                assert set(rule["resourceNames"]) == made | more[example]


@pytest.mark.parametrize("example", sorted(set(EXAMPLES) - {"quickstart", "air-gapped"}))
def test_no_secret_is_rendered(example: str) -> None:
    """The quickstart alone makes one, of its own S3 server."""
    assert not [one for one in render(example) if one["kind"] == "Secret"]


def test_nothing_that_is_not_a_reference_looks_like_a_secret() -> None:
    for example in EXAMPLES:
        for line in render_text(example).splitlines():
            assert not re.search(r"(password|token) *[=:] *\S", line), line


@pytest.mark.parametrize(
    ("example", "create", "job", "settings"),
    [
        ("one-facility", "true", "post-delete", "pre-install,pre-upgrade,post-delete"),
        ("one-facility", "false", "post-delete", "post-delete"),
        ("quickstart", "true", None, None),  # its broker goes, and Strimzi's operator removes its topics
        ("strimzi", "true", None, None),
    ],
)
def test_by_value_an_uninstall_takes_the_topics_away_once_nobody_writes_to_them(
    example: str, create: str, job: str | None, settings: str | None
) -> None:
    sets = ("kafka.topics.deleteOnUninstall=true", f"kafka.topics.create={create}")
    hooks = {
        (one["kind"], one["metadata"]["name"]): one["metadata"]["annotations"]["helm.sh/hook"]
        for one in render(example, sets)
        if "helm.sh/hook" in one["metadata"].get("annotations", {})
    }
    assert hooks.get(("Job", "nextem-topics-removal")) == job
    assert hooks.get(("ConfigMap", "nextem-setup")) == settings
    assert "Job/nextem-topics-removal" not in pods(render(example))


def test_with_strimzi_topics_and_users_are_its_own_and_no_job_makes_them() -> None:
    objects = render("strimzi")
    topics = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "KafkaTopic"}
    assert set(topics) == {f"nextem.{name}" for name in ("acquisitions", "audit", "frames", "products")}
    assert topics["nextem.frames"]["partitions"] == 12
    jobs = pods(objects)["Job/nextem-setup"]["spec"]["containers"]
    assert [container["name"] for container in jobs] == ["store"]


def test_a_kafka_user_may_do_what_its_part_does_and_no_more() -> None:
    may: dict[tuple[str, str], str] = {}
    for one in render("strimzi"):
        if one["kind"] == "KafkaUser":
            user = one["metadata"]["name"].removeprefix("nextem-")
            for rule in one["spec"]["authorization"]["acls"]:
                name = rule["resource"]["name"].removeprefix("nextem.")
                may[user, name] = " ".join([*may.get((user, name), "").split(), *rule["operations"]])
    assert may == {
        ("edge", "acquisitions"): "Write Describe",
        ("edge", "frames"): "Write Describe",
        ("edge", "audit"): "Write Describe",
        ("steering", "acquisitions"): "Read Describe",
        ("steering", "products"): "Read Describe",
        ("steering", "steering"): "Read Describe",
        ("analysis", "acquisitions"): "Read Describe",
        ("analysis", "frames"): "Read Describe",
        ("analysis", "products"): "Write Describe Read Describe",
        ("analysis", "analysis"): "Read Describe",
        ("operator", "acquisitions"): "Read Describe",
        ("operator", "products"): "Read Describe",
        ("operator", "audit"): "Read Describe",
        ("operator", "frames"): "Describe",
        ("operator", "analysis"): "Describe",
    }


def test_the_namespace_is_labelled_by_value_and_outlives_the_release() -> None:
    objects = render(sets=("quickstart.enabled=true", "namespace.manage=true"))
    (space,) = (one["metadata"] for one in objects if one["kind"] == "Namespace")
    assert space["name"] == "tem"
    assert space["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert space["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_first_experiment_is_one_that_the_cluster_takes() -> None:
    definition = yaml.safe_load((CHARTS / "nextem" / "crds" / "experiments.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    experiment = yaml.safe_load((CHARTS / "examples" / "experiment.yaml").read_text())
    assert experiment["apiVersion"] == f"{definition['spec']['group']}/{version['name']}"
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    jsonschema.Draft4Validator(schema).validate(experiment["spec"])  # OpenAPI 3.0 is of that draft's time
    plan = json_format.ParseDict(experiment["spec"]["plan"], plan_pb2.Plan())
    analyses = AnalysisSet.of(acquisition_pb2.AcquisitionStarted(plan=plan))
    assert (len(analyses.running), analyses.failed) == (len(plan.analyses), {})


def test_alerts_and_dashboard_come_as_their_files_are() -> None:
    objects, files = render("one-facility"), CHARTS / "nextem" / "files"
    rules = named(objects, "PrometheusRule", "nextem")["spec"]
    assert rules == yaml.safe_load((files / "alerts.yaml").read_text())
    assert rules["groups"]
    board = named(objects, "ConfigMap", "nextem-dashboard")["data"]["nextem.json"]
    assert json.loads(board) == json.loads((files / "dashboard.json").read_text())


def test_one_file_one_object() -> None:
    several = {
        "users.yaml",
        "topics.yaml",
        "networkpolicies.yaml",
        "serviceaccounts.yaml",
    }  # a list of alike ones
    for chart in ("nextem", "nextem-edge"):
        for file in (CHARTS / chart / "templates").rglob("*.yaml"):
            assert file.name in several or file.read_text().count("\nkind:") <= 1, file
