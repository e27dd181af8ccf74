"""Who may drive the instrument: a driver behind TLS, and edges that are to be believed or not."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from driver_kit import FakeColumn
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nextem.cli.key_maker import init_keys, make_driver, renew_keys, revoke
from nextem.cli.main import main
from nextem.edge.control.driver import DriverRefused, DriverUnreachable
from nextem.edge.control.drivers import conformance
from nextem.edge.control.drivers.column import ColumnDriver
from nextem.edge.control.drivers.serve import serve_driver
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.edge.service import _open_driver
from nextem.simulator.service import SimulatorOptions, SimulatorPorts, run_simulator
from nextem.v1.control_pb2 import Stage
from nextem.wire.certificates import driver_name, hosts_of, uris_of
from nextem.wire.dial import Peer, PeerRefused
from nextem.wire.health import Health
from nextem.wire.key_folder import KeyFolder, driver_files, edge_files
from nextem.wire.tls import CertificateUnusable, Party, PlaintextRefused, open_channel

Drive = Callable[[KeyFolder | None, str], GrpcDriver]


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    keys = KeyFolder(tmp_path / "keys")
    init_keys(keys, ["tem", "tem-2"], [], operator="anna", days=1)
    return keys


@pytest.fixture
def column() -> FakeColumn:
    return FakeColumn()


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def drive(keys: KeyFolder, column: FakeColumn, closing: ExitStack) -> Drive:
    """Makes a driver that dials the served one, by the keys and for the instrument given."""
    server, port = serve_driver(ColumnDriver(column), keys=keys, instrument="tem")
    closing.callback(lambda: server.stop(None).wait())

    def dial(by: KeyFolder | None, instrument: str) -> GrpcDriver:
        driver = GrpcDriver(f"127.0.0.1:{port}", keys=by, instrument=instrument)
        closing.callback(driver.close)
        return driver

    return dial


def copied(keys: KeyFolder, to: Path) -> KeyFolder:
    return KeyFolder(shutil.copytree(keys.folder, to))


def test_the_edge_of_the_instrument_drives_it(drive: Drive, keys: KeyFolder) -> None:
    driver = drive(keys, "tem")
    assert driver.move_stage(1, Stage(x_nm=5.0)).stage.x_nm == 5.0
    assert driver.get_state().command_epoch == 1


def test_without_a_certificate_nobody_gets_in(drive: Drive) -> None:
    with pytest.raises(DriverUnreachable):
        drive(None, "").get_state()


def test_a_certificate_of_another_authority_is_of_no_use(
    drive: Drive, keys: KeyFolder, tmp_path: Path
) -> None:
    other = KeyFolder(tmp_path / "other")
    init_keys(other, ["tem"], [], operator="anna", days=1)
    with pytest.raises(DriverUnreachable, match="certificate verify failed"):
        drive(other, "tem").get_state()  # it does not believe the driver
    other.certificate("ca").write_bytes(keys.certificate("ca").read_bytes())
    other.revoked.unlink()
    with pytest.raises(DriverUnreachable):
        drive(other, "tem").get_state()  # and the driver does not believe it


def test_the_edge_of_another_instrument_is_refused_by_both(
    drive: Drive, keys: KeyFolder, tmp_path: Path
) -> None:
    with pytest.raises(
        DriverUnreachable, match=r"is for \['urn:nextem:driver:tem'\], not urn:nextem:driver:tem-2"
    ):
        drive(keys, "tem-2").get_state()
    posing = copied(keys, tmp_path / "posing")  # with its own key where the right edge has its
    for path in (KeyFolder.certificate, KeyFolder.key):
        shutil.copy(path(keys, edge_files("tem-2")), path(posing, edge_files("tem")))
    with pytest.raises(
        DriverRefused, match=r"it is for \['urn:nextem:edge:tem-2'\], this takes urn:nextem:edge:tem"
    ):
        drive(posing, "tem").get_state()


def test_a_revoked_edge_is_cut_off(drive: Drive, keys: KeyFolder, tmp_path: Path) -> None:
    driver = drive(copied(keys, tmp_path / "edge"), "tem")
    assert driver.get_state()
    revoke(keys, keys.certificate(edge_files("tem")))
    with pytest.raises(DriverRefused, match="is revoked"):
        driver.stop(1, "now")


def test_a_revoked_driver_is_believed_no_more(drive: Drive, keys: KeyFolder, column: FakeColumn) -> None:
    driver = drive(keys, "tem")
    before = driver.get_state().stage.x_nm
    revoke(keys, keys.certificate(driver_files("tem")))
    for one in (driver, drive(keys, "tem")):
        with pytest.raises(DriverUnreachable, match="is revoked"):
            one.move_stage(1, Stage(x_nm=before + 5))
    renew_keys(keys, days=1)
    assert driver.get_state().stage.x_nm == before


def test_a_driver_s_certificate_is_no_service_s(drive: Drive, keys: KeyFolder) -> None:
    driver = drive(keys, "tem")
    driver.get_state()
    with pytest.raises(PeerRefused, match="no service's"):
        Peer(driver.address, Party(keys, edge_files("tem")), "").certificate()


def test_an_edge_dials_its_driver_by_tls_where_it_is_told_to(
    drive: Drive, keys: KeyFolder, closing: ExitStack
) -> None:
    port = drive(keys, "tem").address
    driver = _open_driver(closing, f"tls://{port}", keys, "tem")
    assert driver.get_state().instrument
    with pytest.raises(DriverUnreachable):
        _open_driver(closing, port, keys, "tem").get_state()  # on loopback in plain text
    with pytest.raises(PlaintextRefused, match="needs the folder of the certificates"):
        _open_driver(closing, f"tls://{port}", None, "tem")
    with pytest.raises(PlaintextRefused, match="the instrument at"):
        _open_driver(closing, "192.0.2.1:50061", None, "tem")


def test_the_conformance_suite_runs_over_tls(
    drive: Drive, keys: KeyFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by = ["--keys", str(keys.folder), "--instrument", "tem"]
    monkeypatch.setattr("sys.argv", ["conformance", drive(keys, "tem").address, *by])
    assert conformance.main() == 0
    assert "FAILED" not in capsys.readouterr().out


def test_a_driver_without_its_certificate_is_not_served(keys: KeyFolder) -> None:
    with pytest.raises(CertificateUnusable, match=r"driver-tem-9\.crt"):
        serve_driver(ColumnDriver(FakeColumn()), keys=keys, instrument="tem-9")


def test_a_certificate_for_another_computer(keys: KeyFolder) -> None:
    asked = ["keys", "driver", "--instrument", "tem-9", "--host", "scope-pc", "--keys", str(keys.folder)]
    made = CliRunner().invoke(main, asked)
    assert made.exit_code == 0, made.output
    certificate = keys.certificate(driver_files("tem-9")).read_bytes()
    assert uris_of(certificate) == (driver_name("tem-9"),)
    make_driver(keys, "tem-9", ["192.0.2.1"], 1)
    assert keys.certificate(driver_files("tem-9")).read_bytes() != certificate


@pytest.fixture
def simulated(keys: KeyFolder) -> Iterator[str]:
    """The address of a simulated microscope that is served with certificates."""
    stop, ports, health = threading.Event(), queue.Queue[SimulatorPorts](), Health()
    options = SimulatorOptions(
        detector_px=128, data_port=0, control_port=0, instrument_port=0, name="tem", keys=keys
    )
    running = threading.Thread(target=run_simulator, args=(options, stop, ports.put, health))
    running.start()
    yield f"127.0.0.1:{ports.get(timeout=60).instrument}"
    stop.set()
    running.join()


def test_a_simulated_microscope_obeys_its_edge_alone(
    simulated: str, keys: KeyFolder, closing: ExitStack
) -> None:
    def dial(by: KeyFolder | None, name: str) -> GrpcDriver:
        driver = GrpcDriver(simulated, keys=by, instrument=name)
        closing.callback(driver.close)
        return driver

    assert dial(keys, "tem").get_state().instrument == "tem"
    with pytest.raises(DriverUnreachable):
        dial(None, "").get_state()
    with pytest.raises(DriverUnreachable, match="urn:nextem:driver:tem"):
        dial(keys, "tem-2").get_state()


def test_health_is_told_to_every_certificate_that_is_not_revoked(simulated: str, keys: KeyFolder) -> None:
    def check(name: str) -> health_pb2.HealthCheckResponse:
        with open_channel(simulated, Party(keys, name)) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return stub.Check(health_pb2.HealthCheckRequest(service="nextem.v1.Instrument"), timeout=10)

    assert check(edge_files("tem-2")).status == health_pb2.HealthCheckResponse.SERVING
    revoke(keys, keys.certificate(edge_files("tem-2")))
    with pytest.raises(grpc.RpcError, match="is revoked"):
        check(edge_files("tem-2"))


def test_a_simulated_microscope_without_certificates_stays_on_loopback() -> None:
    told = CliRunner().invoke(main, ["simulate", "--host", "0.0.0.0", "--home", "/nowhere"])
    assert told.exit_code == 1
    assert "needs TLS: only loopback may do without" in told.output


def test_names_of_a_service_in_a_cluster(keys: KeyFolder, tmp_path: Path) -> None:
    asked = ["keys", "driver", "--instrument", "tem-9", "--service", "nextem-simulator.lab"]
    made = CliRunner().invoke(main, [*asked, "--keys", str(keys.folder)])
    assert made.exit_code == 0, made.output
    names = [f"nextem-simulator{end}" for end in ("", ".lab", ".lab.svc", ".lab.svc.cluster.local")]
    assert hosts_of(keys.certificate(driver_files("tem-9")).read_bytes()) == tuple(names)
    place = str(tmp_path / "others")
    made = CliRunner().invoke(main, ["keys", "init", place, "--service", "nextem-steering.lab"])
    assert made.exit_code == 0, made.output
    found = hosts_of(KeyFolder(Path(place)).certificate("steering").read_bytes())
    assert {"localhost", "127.0.0.1", "nextem-steering.lab.svc"} <= set(found)
    refused = CliRunner().invoke(main, [*asked[:4], "--service", "nextem-simulator"])
    assert refused.exit_code == 2
    assert "is no SERVICE.NAMESPACE" in refused.output
