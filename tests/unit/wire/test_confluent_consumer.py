"""What a moment without a leader does to a consumer; the rest is asked of a real broker."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("confluent_kafka")

from nextem.wire.confluent_client import KafkaError, KafkaException, TopicPartition
from nextem.wire.confluent_consumer import ConfluentConsumer

PLACE = ("frames", 0)


class Settling:
    """A client whose partition has no leader the first ``moments`` times."""

    def __init__(self, moments: int, code: int) -> None:
        self.left, self._code = moments, code

    def offsets_for_times(self, asked: Sequence[TopicPartition], timeout: float) -> list[TopicPartition]:
        assert timeout > 0
        if self.left:
            self.left -= 1
            raise KafkaException(KafkaError(self._code))
        return [TopicPartition(each.topic, each.partition, 42) for each in asked]


def reader(client: Settling) -> ConfluentConsumer:
    consumer = object.__new__(ConfluentConsumer)
    consumer._consumer = client  # type: ignore[assignment]
    return consumer


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    ],
)
def test_a_partition_that_is_about_to_have_a_leader_is_asked_again(code: int) -> None:
    client = Settling(2, code)
    assert reader(client)._offsets([PLACE], -2) == {PLACE: 42}
    assert client.left == 0


def test_other_errors_are_told_at_once() -> None:
    client = Settling(2, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(KafkaException):
        reader(client)._offsets([PLACE], -2)
    assert client.left == 1


def test_one_that_never_gets_a_leader_is_told_in_the_end() -> None:
    client = Settling(1_000_000, KafkaError.NOT_LEADER_FOR_PARTITION)
    with pytest.raises(KafkaException):
        reader(client)._offsets([PLACE], -2, timeout_s=0.2)
