"""The topics of one installation on a Kafka: made with chosen partitions, replicas and retention; taken away.

Without this, each topic is made with the defaults when it is first used, where the brokers let us.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from nextem.wire.broker_log import MAX_REQUEST_BYTES, addresses
from nextem.wire.kafka_client import (
    CLIENT,
    ConfigResource,
    ConfigResourceType,
    KafkaAdminClient,
    connecting,
    errors,
    made,
)
from nextem.wire.kafka_security import split_address
from nextem.wire.log import ACQUISITIONS, AUDIT, CONFLUENT, FRAMES, KAFKA, PRODUCTS, FatalLogError

TOPICS = (ACQUISITIONS, FRAMES, PRODUCTS, AUDIT)
KEPT = (ACQUISITIONS, AUDIT)
"""The record of what was done: small, and never taken away by time."""

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """``partitions``: of the frames topic; the others have one, because the order of their records counts.

    ``replication``: copies of each partition; with three or more, two must have a record before it counts.
    ``retention_hours``: how long frames and products stay on the log; None: until space is needed.
    """

    partitions: int = 4
    replication: int = 1
    retention_hours: float | None = 168.0

    def settings(self, topic: str) -> dict[str, str]:
        """Kafka's own settings of ``topic``."""
        hours = None if topic in KEPT else self.retention_hours
        return {
            "max.message.bytes": str(MAX_REQUEST_BYTES),
            "min.insync.replicas": str(2 if self.replication >= 3 else 1),
            "retention.ms": str(-1 if hours is None else int(hours * HOUR_MS)),
            **({"retention.bytes": "-1"} if topic in KEPT else {}),
        }

    def count(self, topic: str) -> int:
        return self.partitions if topic == FRAMES else 1


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as it is now. ``was``: what happened to it: "made", "there", "grown", "deleted"."""

    name: str
    partitions: int
    replication: int
    was: str


def ensure_topics(address: str, plan: TopicPlan) -> list[Topic]:
    """Makes what is not there, and gives what is there the settings of ``plan``; may be repeated.

    The frames topic grows where it has fewer partitions; no topic shrinks, and no number of replicas
    changes: :class:`Topic` says what is. Raises :class:`~nextem.wire.log.LogError`.
    """
    with _admin(address, "making the topics") as admin:
        there = _described(admin)
        for topic in TOPICS:
            if topic in there:
                continue
            wanted = {
                "num_partitions": plan.count(topic),
                "replication_factor": plan.replication,
                "configs": plan.settings(topic),
            }
            with contextlib.suppress(errors.TopicAlreadyExistsError):  # another made it meanwhile
                admin.create_topics({topic: wanted})
        admin.wait_for_topics(list(TOPICS))
        grown = {topic for topic in TOPICS if there.get(topic, (0, 0))[0] in range(1, plan.count(topic))}
        for topic in grown:
            admin.create_partitions({topic: plan.count(topic)})
        admin.alter_configs(
            [
                ConfigResource(ConfigResourceType.TOPIC, topic, plan.settings(topic))
                for topic in TOPICS
                if topic in there
            ]
        )
        now = {topic: _described(admin)[topic] for topic in TOPICS}
        was = {t: "grown" if t in grown else "there" if t in there else "made" for t in TOPICS}
    return [
        Topic(topic, max(count, plan.count(topic) if topic in grown else 0), copies, was[topic])
        for topic, (count, copies) in now.items()
    ]


def delete_topics(address: str) -> list[Topic]:
    """Takes our topics away, with everything in them; what was there. Raises :class:`LogError`."""
    with _admin(address, "deleting the topics") as admin:
        there = {name: facts for name, facts in _described(admin).items() if name in TOPICS}
        if there:
            admin.delete_topics(sorted(there))
    return [Topic(name, *facts, "deleted") for name, facts in there.items()]


@contextlib.contextmanager
def _admin(address: str, doing: str) -> Iterator[KafkaAdminClient]:
    scheme = next((s for s in (KAFKA, CONFLUENT) if address.startswith(s)), None)
    if scheme is None:
        raise FatalLogError(f"only a Kafka has topics to make beforehand, and {address} is none")
    brokers, security = split_address(address.removeprefix(scheme))
    settings = {**CLIENT, **security.kafka_python(), "bootstrap_servers": addresses(brokers)}
    with (
        connecting(f"{doing} at {brokers}{security.acting}", brokers, security),
        made(KafkaAdminClient, **settings) as admin,
    ):
        yield admin


def _described(admin: KafkaAdminClient) -> dict[str, tuple[int, int]]:
    """Partitions and replicas of every topic that we may see."""
    return {
        topic["name"]: (
            len(topic["partitions"]),
            max((len(part["replica_nodes"]) for part in topic["partitions"]), default=0),
        )
        for topic in admin.describe_topics()
    }
