"""A Kafka that asks who we are: SCRAM over TLS, mutual TLS, and ACLs; with both clients."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from nextem.cli import broker
from nextem.cli.broker import BrokerSettings, Listener
from nextem.cli.kafka_jars import BrokerUnavailable
from nextem.cli.main import main
from nextem.edge.uplink.publisher import Publisher
from nextem.edge.uplink.spool import Entry, Kind, Spool
from nextem.v1 import acquisition_pb2
from nextem.wire.certificates import Pair, new_authority, new_certificate
from nextem.wire.clock import MonotonicClock
from nextem.wire.ids import uuid7
from nextem.wire.kafka_client import ConfigResource, ConfigResourceType, KafkaAdminClient
from nextem.wire.kafka_security import KafkaSecurityError, with_security
from nextem.wire.log import ACQUISITIONS, AUDIT, CONFLUENT, FRAMES, KAFKA, LogForbidden, Record, open_log

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.usefixtures("no_sockets_left"),
    pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning"),  # of TLS too
]
PATIENCE_S = 30.0
USERS = {f"edge-{site}": f"the word of {site}" for site in "abcde"}
_SASL = {
    "sasl.enabled.mechanisms": "SCRAM-SHA-512",
    "scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
}


@dataclass(frozen=True)
class Guarded:
    """A broker that asks, and the folder of what one may show it. Its loopback listener is the operator's."""

    folder: Path
    plain: str
    scram: str
    mutual: str

    def address(self, scheme: str, host_port: str, **settings: str) -> str:
        file = self.folder / f"{uuid7()}.toml"
        file.write_text("".join(f'{key} = "{value}"\n' for key, value in settings.items()))
        return with_security(f"{scheme}{host_port}", file)

    def by_scram(self, scheme: str, user: str, **other: str) -> str:
        (self.folder / "password").write_text(USERS[user] + "\n")
        told = {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "username": user}
        files = {"password_file": "password", "ca_file": "ca.crt"}
        return self.address(scheme, self.scram, **(told | files | other))

    def by_certificate(self, scheme: str, name: str) -> str:
        files = {"certificate_file": f"{name}.crt", "key_file": f"{name}.key", "ca_file": "ca.crt"}
        return self.address(scheme, self.mutual, protocol="SSL", **files)

    def grant(self, principal: str, kind: str, prefix: str, *operations: str) -> None:
        from kafka import admin as acls  # after nextem.wire.kafka_client, which silences its import

        made = [
            acls.ACL(
                principal,
                "*",
                acls.ACLOperation[operation],
                acls.ACLPermissionType.ALLOW,
                acls.ResourcePattern(acls.ResourceType[kind], prefix, acls.ACLResourcePatternType.PREFIXED),
            )
            for operation in operations
        ]
        with KafkaAdminClient(bootstrap_servers=self.plain) as admin:
            assert not admin.create_acls(made)["failed"]

    def grant_site(self, principal: str, prefix: str) -> None:
        """What the processes of one site need on their own topics."""
        self.grant(principal, "TOPIC", prefix, "CREATE", "DESCRIBE", "WRITE", "READ")
        self.grant(principal, "GROUP", prefix, "READ")


def _write(folder: Path, name: str, pair: Pair) -> None:
    (folder / f"{name}.crt").write_bytes(pair.certificate)
    (folder / f"{name}.key").write_bytes(pair.key)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    authority = new_authority("test", 1)
    _write(folder, "ca", authority)
    _write(folder, "other-ca", new_authority("another", 1))
    _write(folder, "edge-a", new_certificate(authority, "edge-a", days=1))
    stranger = new_authority("stranger", 1)
    _write(folder, "stranger", new_certificate(stranger, "edge-a", days=1))
    server = new_certificate(authority, "broker", hosts=["127.0.0.1"], days=1)
    (folder / "broker.pem").write_bytes(server.key + server.certificate)
    ports = _free_port(), _free_port()
    more: dict[str, object] = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listener.name.extra_1.ssl.client.auth": "required",
    }
    for number in (0, 1):
        listener = f"listener.name.extra_{number}"
        more[f"{listener}.ssl.keystore.type"] = more[f"{listener}.ssl.truststore.type"] = "PEM"
        more[f"{listener}.ssl.keystore.location"] = folder / "broker.pem"
        more[f"{listener}.ssl.truststore.location"] = folder / "ca.crt"
    more |= {f"listener.name.extra_0.{key}": value for key, value in _SASL.items()}
    settings = BrokerSettings(
        [Listener(ports[0], protocol="SASL_SSL"), Listener(ports[1], protocol="SSL")], more, USERS
    )
    try:
        plain = broker.start(folder / "data", settings=settings)
    except BrokerUnavailable as error:
        pytest.skip(str(error))
    yield Guarded(folder, plain.removeprefix(KAFKA), f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
    broker.stop(folder / "data")


@pytest.fixture(params=[KAFKA, CONFLUENT])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("way", ["scram", "certificate"])
def test_who_is_known_and_granted_appends_and_reads(guarded: Guarded, scheme: str, way: str) -> None:
    by_name = way == "scram"
    topic = f"{way}.{uuid7()}"
    guarded.grant_site("User:edge-a" if by_name else "User:CN=edge-a", f"{way}.")
    address = guarded.by_scram(scheme, "edge-a") if by_name else guarded.by_certificate(scheme, "edge-a")
    with closing(open_log(address)) as log:
        assert log.append(topic, b"value").result(PATIENCE_S).offset == 0
        with closing(log.consumer([topic], f"{way}.{uuid7()}")) as consumer:
            found = []
            while not found:
                found = consumer.poll(timeout_s=1.0)
            consumer.commit()
        assert bytes(found[0].value) == b"value"


def test_a_wrong_password_is_told_with_the_name(guarded: Guarded, scheme: str) -> None:
    (guarded.folder / "wrong").write_text("not it")
    with pytest.raises(KafkaSecurityError, match=r"User:edge-a.*uthentication"):
        open_log(guarded.by_scram(scheme, "edge-a", password_file="wrong"))


def test_a_broker_of_another_authority_is_not_trusted(guarded: Guarded, scheme: str) -> None:
    with pytest.raises(KafkaSecurityError, match="certificate verify failed"):
        open_log(guarded.by_scram(scheme, "edge-a", ca_file="other-ca.crt"))


def test_a_certificate_of_another_authority_is_refused(guarded: Guarded, scheme: str) -> None:
    with pytest.raises(KafkaSecurityError, match=r"stranger\.crt"):
        open_log(guarded.by_certificate(scheme, "stranger"))


def test_nothing_in_the_clear_passes_a_listener_that_asks(guarded: Guarded) -> None:
    with pytest.raises(Exception, match="connecting to"):
        open_log(f"{KAFKA}{guarded.scram}")


@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "seen"])
def test_another_sites_name_cannot_write(guarded: Guarded, scheme: str, seen: bool) -> None:
    topic = f"site-a.{uuid7()}"
    with closing(open_log(f"{KAFKA}{guarded.plain}")) as operator:
        operator.append(topic, b"ours").result(PATIENCE_S)
    user = "edge-b"
    if seen:
        user = "edge-c"
        guarded.grant("User:edge-c", "TOPIC", "site-a.", "DESCRIBE")
    log = open_log(guarded.by_scram(scheme, user))
    with pytest.raises(LogForbidden, match=f"{topic} as User:{user}"):
        log.append(topic, b"theirs").result(PATIENCE_S)
    with contextlib.suppress(LogForbidden):  # told again
        log.close()
    with closing(open_log(f"{KAFKA}{guarded.plain}")) as operator:
        assert operator.append(topic, b"ours").result(PATIENCE_S).offset == 1  # nothing came between


def test_an_edge_that_may_not_write_loses_nothing(
    guarded: Guarded, scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so and spools; once its name is granted, everything is on the log, in order."""
    user = "edge-d" if scheme == KAFKA else "edge-e"
    with closing(open_log(f"{KAFKA}{guarded.plain}")) as operator:
        operator.partitions(ACQUISITIONS)
    name = uuid7()
    started = acquisition_pb2.AcquisitionStarted(acquisition_id=name).SerializeToString()
    ended = acquisition_pb2.AcquisitionFinished(acquisition_id=name).SerializeToString()
    spool = Spool(tmp_path)
    log = open_log(guarded.by_scram(scheme, user))
    with closing(spool), contextlib.suppress(LogForbidden), closing(log):  # told once more at the end
        for kind, value in ((Kind.STARTED, started), (Kind.FINISHED, ended)):
            spool.append(Entry(kind, name, value))
        publisher = Publisher(spool, log, MonotonicClock())
        publisher.start()
        wait_for(lambda: f"{ACQUISITIONS} as User:{user}" in caplog.text)
        assert "LogForbidden" in caplog.text
        assert "spooling goes on" in caplog.text
        assert spool.committed == 0
        guarded.grant_site(f"User:{user}", "nextem.")
        assert publisher.close(PATIENCE_S)
    with (
        closing(open_log(f"{KAFKA}{guarded.plain}")) as operator,
        closing(operator.consumer([ACQUISITIONS], None)) as reader,
    ):
        found: list[str] = []
        wait_for(lambda: found.extend(_of(reader.poll(), name)) or len(found) == 2)
    assert found == ["started", "finished"]


def _of(records: list[Record], name: str) -> list[str]:
    events = [acquisition_pb2.AcquisitionEvent.FromString(bytes(record.value)) for record in records]
    kinds = [str(event.WhichOneof("event")) for event in events]
    return [
        kind for event, kind in zip(events, kinds, strict=True) if getattr(event, kind).acquisition_id == name
    ]


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_topics_are_made_adapted_and_taken_away(guarded: Guarded) -> None:
    address = f"{CONFLUENT}{guarded.plain}"

    def topics(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["kafka", "topics", "--log", address, *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    def settings(topic: str, name: str) -> str:
        with KafkaAdminClient(bootstrap_servers=guarded.plain) as admin:
            told = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            return str(told["topic"][topic][name]["value"])

    topics("--delete")
    made = topics("--partitions", "3", "--retention-hours", "2")
    assert f"{FRAMES}: made, 3 partitions, 1 replicas" in made
    assert f"{AUDIT}: made, 1 partitions" in made
    assert settings(FRAMES, "retention.ms") == str(2 * 3_600_000)
    assert settings(AUDIT, "retention.ms") == "-1"
    assert f"{FRAMES}: grown, 6 partitions" in topics("--partitions", "6", "--retention-hours", "3")
    wait_for(lambda: settings(FRAMES, "retention.ms") == str(3 * 3_600_000))
    assert f"{FRAMES}: there, 6 partitions" in topics("--partitions", "2")  # never shrinks
    assert f"{ACQUISITIONS}: deleted" in topics("--delete")
    assert topics("--delete") == "there was no topic of ours\n"
    refused = CliRunner().invoke(main, ["kafka", "topics", "--log", "a/folder"])
    assert refused.exit_code != 0
    assert "a/folder" in refused.output
