"""The file that says how a Kafka is spoken to."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextem.wire.kafka_security import KafkaSecurity, KafkaSecurityError, split_address, with_security

_SCRAM = 'protocol = "SASL_SSL"\nmechanism = "SCRAM-SHA-512"\nusername = "a"\n'


def written(folder: Path, text: str) -> Path:
    (folder / "password").write_text("a secret\n")
    file = folder / "kafka.toml"
    file.write_text(text)
    return file


def test_both_clients_are_told_the_same(tmp_path: Path) -> None:
    file = written(tmp_path, _SCRAM + 'password_file = "password"\n')
    brokers, security = split_address(with_security("kafka://a:1,b:2", file).removeprefix("kafka://"))
    assert brokers == "a:1,b:2"
    assert security.kafka_python() == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "a",
        "sasl_plain_password": "a secret",
    }
    assert security.librdkafka() == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "a",
        "sasl.password": "a secret",
    }
    assert "a secret" not in repr(security)
    assert security.acting == " as User:a"


def test_an_address_without_a_file_is_in_the_clear() -> None:
    assert split_address("a:1") == ("a:1", KafkaSecurity())
    assert KafkaSecurity().acting == ""


def test_a_mounted_file_keeps_its_name(tmp_path: Path) -> None:
    """As Kubernetes mounts it: a link into a folder whose name changes."""
    link = tmp_path / "mounted.toml"
    link.symlink_to(written(tmp_path, ""))
    assert with_security("kafka://a:1", link) == f"kafka://a:1?security={link}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('user = "a"\n', "did you mean 'username'"),
        ("protocol = 1\n", "protocol must be a string"),
        ("protocol =\n", "Invalid value"),
        ('protocol = "TLS"\n', "'TLS' is none of PLAINTEXT, SSL"),
        ('protocol = "SASL_SSL"\nmechanism = "GSSAPI"\n', "'GSSAPI' is none of"),
        (_SCRAM, "needs username and password_file"),
        (_SCRAM + 'password_file = "none"\n', "password_file: there is no file"),
        ('protocol = "SSL"\nusername = "a"\n', "SSL takes no mechanism"),
        ('protocol = "SSL"\nkey_file = "password"\n', "go together"),
        ('ca_file = "password"\n', "PLAINTEXT takes no ca_file"),
        ('protocol = "SSL"\nca_file = "password"\n', "password: "),
    ],
)
def test_a_file_that_makes_no_sense_is_told(tmp_path: Path, text: str, why: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(KafkaSecurityError, match=why):
        split_address(with_security("a:1", file))


def test_an_address_takes_nothing_else() -> None:
    with pytest.raises(KafkaSecurityError, match="and no acks"):
        split_address("a:1?acks=0")
