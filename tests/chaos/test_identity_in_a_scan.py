"""Certificates, tokens and leases that are no good, while somebody else's scan runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chaos_kit import NAME, WAIT_S, Lab, Microscope, final, nextem, until

from nextem.cli.key_maker import renew_keys, revoke, write_token
from nextem.client import NotAuthenticated, NotPermitted, SteeringClient, SteeringError
from nextem.v1 import control_pb2 as pb
from nextem.wire import signing, tokens
from nextem.wire.ids import uuid7
from nextem.wire.key_folder import OPERATOR, KeyFolder, edge_files
from nextem.wire.proof import Credential

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, microscope: Microscope) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("lab")
    nextem("keys", "init", "--home", str(home), "--operator", "anna")
    lab = Lab(home, microscope)
    yield lab
    lab.close()


@pytest.fixture
def keys(lab: Lab) -> KeyFolder:
    return KeyFolder(lab.home / "keys")


def move_of(issuer: str, lease: pb.Lease) -> pb.Command:
    return pb.Command(
        command_id=uuid7(),
        issuer=issuer,
        instrument=NAME,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        move_stage=pb.Stage(z_nm=1.0),
    )


def test_forged_and_expired_tokens_and_a_stolen_lease_move_nothing(lab: Lab, keys: KeyFolder) -> None:
    """Whoever they are, the scan of the one who leads goes on as if they were not there."""
    lab.microscope.reset()
    lease = lab.lease()
    roles = {NAME: "operator"}
    private, _ = signing.new_key()
    key_id = tokens.jwt.get_unverified_header(Credential.read(keys.token(OPERATOR)).token)["kid"]
    thief = lab.home / "bert.token"
    write_token(keys, "bert", roles, hours=1, to=thief)
    with lab.scanning(lease) as running:
        before = lab.microscope.state()
        bad: list[tuple[str, object, type[SteeringError]]] = [
            ("anna", write_token(keys, "anna", roles, hours=-1), NotAuthenticated),
            ("anna", tokens.issue(private, key_id, "anna", roles, hours=1), NotAuthenticated),
            ("anna", thief, NotPermitted),  # speaks for another
        ]
        for issuer, token, error in bad:
            with SteeringClient(lab.address, keys=keys, token=token) as client, pytest.raises(error):
                client.submit_and_wait(move_of(issuer, lease), timeout_s=WAIT_S)
        with SteeringClient(lab.address, keys=keys, token=thief) as client:  # in his own name, on her lease
            stolen = client.submit_and_wait(move_of("bert", lease), timeout_s=WAIT_S)
        assert stolen.state == pb.COMMAND_STATE_REJECTED, stolen
        assert "was given to 'anna', not to 'bert'" in stolen.detail
        until(lambda: lab.microscope.state().frames_sent > before.frames_sent + 20, "the scan goes on")
        now = lab.microscope.state()
        assert (now.stage, now.optics, now.command_epoch) == (
            before.stage,
            before.optics,
            before.command_epoch,
        )
        lab.client.stop("anna", "enough", instrument=NAME)
        assert final(running).rule == "stopped"
    lab.client.release_lease("anna", instrument=NAME)


def test_a_token_that_ends_in_a_scan_ends_the_scan(lab: Lab, keys: KeyFolder) -> None:
    """The lease cannot be renewed any more and lapses: the scan is stopped and the beam blanked."""
    lab.microscope.reset()
    good = keys.token(OPERATOR).read_bytes()
    running = lab.scanning(lab.lease(ttl_ms=20_000))
    lab.lease(ttl_ms=2_000)
    write_token(keys, "anna", {NAME: "operator"}, hours=-1, to=keys.token(OPERATOR))
    with pytest.raises(NotAuthenticated, match="expired"):
        lab.client.request_lease("anna", 20_000, instrument=NAME)
    safe = lab.until_safe()
    keys.token(OPERATOR).write_bytes(good)
    assert final(running).rule == "stopped"
    assert lab.microscope.state().stage == safe.stage


def test_an_edge_whose_certificate_is_revoked_makes_safe(lab: Lab, keys: KeyFolder) -> None:
    """It is cut off from the service, and so from whoever leads; with a new certificate it is back."""
    lab.microscope.reset()
    lease = lab.lease()
    running = lab.scanning(lease)
    revoke(keys, keys.certificate(edge_files(NAME)))
    safe = lab.until_safe()
    renew_keys(keys, days=1)
    assert final(running).rule == "stopped"
    refused = final(lab.submit(lease, move_stage=pb.Stage(z_nm=1.0)))
    assert (refused.state, lab.microscope.state().stage) == (pb.COMMAND_STATE_REJECTED, safe.stage)
    lab.unblank(lab.lease())
    lab.client.release_lease("anna", instrument=NAME)
