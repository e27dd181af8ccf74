"""Each adapter: what it asks of its vendor's library, and what it says where there is none."""

from __future__ import annotations

import socket

import pytest
from driver_kit import AutoScriptClient, FakeColumn, StagePosition, Tem3, ceos_server
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.control.driver import CapabilityMissing, DriverError, DriverRefused, DriverUnreachable
from nextem.edge.control.drivers.address import Together, UnknownAddress, is_adapter, open_column
from nextem.edge.control.drivers.autoscript import AutoScriptColumn
from nextem.edge.control.drivers.ceos import CeosColumn, CeosRpc, netstring, open_ceos, read_netstring
from nextem.edge.control.drivers.column import AdapterUnavailable, Column, ColumnDriver
from nextem.edge.control.drivers.jeol import JeolColumn
from nextem.v1 import control_pb2 as pb


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("autoscript://10.0.0.1", "autoscript_tem_microscope_client comes with AutoScript TEM"),
        ("jeol://", "PyJEM comes from JEOL"),
        ("nion://", "nionutils is not installed here"),
        ("ceos://127.0.0.1:1", "CEOS getInfo"),
    ],
)
def test_without_the_vendor_an_adapter_says_what_is_missing(address: str, what: str) -> None:
    with pytest.raises(AdapterUnavailable, match=what):
        open_column(address)


@pytest.mark.parametrize("address", ["zeiss://host", "127.0.0.1:50061", "autoscript://", "jeol://host"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(UnknownAddress, match="is none of"):
        open_column(address)
    assert is_adapter(address) == ("://" in address)


def test_autoscript_counts_in_metres() -> None:
    client = AutoScriptClient()
    driver = ColumnDriver(AutoScriptColumn(client, StagePosition))
    state = driver.move_stage(1, pb.Stage(y_nm=100.0, x_nm=-50.0))
    assert (client.stage.position.x, client.stage.position.y) == pytest.approx((-50e-9, 100e-9))
    assert (state.stage.y_nm, state.stage.x_nm) == pytest.approx((100.0, -50.0))
    wanted = pb.Optics(energy_kv=200.0, defocus_nm=-30.0, beam_blanked=True)
    assert driver.set_optics(2, wanted).optics.energy_kv == 200.0
    assert client.optics.defocus == pytest.approx(-30e-9)
    assert client.optics.is_beam_blanked


def test_a_stop_reaches_autoscript_only_while_it_moves() -> None:
    client = AutoScriptClient()
    column = AutoScriptColumn(client, StagePosition)
    column.halt()
    assert client.stage.stops == 0
    column.begin({"stage.x_nm": 1e6})
    column.halt()
    while column.moving():
        column.halt()
    assert client.stage.stops >= 1


@pytest.mark.parametrize("adapter", ["autoscript", "jeol", "autoscript with ceos"])
def test_a_blank_is_the_vendor_s_own_call_also_while_the_stage_moves(adapter: str) -> None:
    client, tem3 = AutoScriptClient(), Tem3()
    with ceos_server() as server:
        columns: dict[str, Column] = {
            "autoscript": AutoScriptColumn(client, StagePosition),
            "jeol": JeolColumn(tem3),
        }
        columns["autoscript with ceos"] = Together(
            [columns["autoscript"], CeosColumn(CeosRpc("127.0.0.1", server.port))]
        )
        column = columns[adapter]
        column.begin({"stage.x_nm": 10.0, "stage.y_nm": 20.0})
        assert ColumnDriver(column).blank_beam(1).optics.beam_blanked
        while column.moving():
            pass
        stage = column.read().stage
    assert (stage.x_nm, stage.y_nm) == pytest.approx((10.0, 20.0))


def test_columns_without_a_blanker_together_have_none() -> None:
    with ceos_server() as server, pytest.raises(CapabilityMissing, match="no blanker"):
        Together([CeosColumn(CeosRpc("127.0.0.1", server.port))]).blank()


def test_jeol_moves_one_axis_after_the_other() -> None:
    tem3 = Tem3()
    driver = ColumnDriver(JeolColumn(tem3))
    state = driver.move_stage(1, pb.Stage(y_nm=20.0, x_nm=10.0, z_nm=5.0))
    assert (state.stage.y_nm, state.stage.x_nm, state.stage.z_nm) == (20.0, 10.0, 5.0)
    assert tem3.column.asked == [{"x": 10.0}, {"y": 20.0}, {"z": 5.0}]


def test_a_stopped_jeol_stage_does_not_begin_its_next_axis() -> None:
    tem3 = Tem3()
    column = JeolColumn(tem3)
    column.begin({"stage.x_nm": 10.0, "stage.y_nm": 20.0})
    column.halt()
    assert not column.moving()
    assert tem3.column.asked == [{"x": 10.0}]


def test_jeol_sets_the_lens_only_where_its_step_is_known_and_within_its_range() -> None:
    tem3 = Tem3()
    assert "optics.defocus_nm" not in JeolColumn(tem3).capabilities
    driver = ColumnDriver(JeolColumn(tem3, nm_per_step=0.5))
    state = driver.set_optics(1, pb.Optics(energy_kv=200.0, defocus_nm=-10.2))
    assert tem3.olf == 30_000 - 20
    assert state.optics.defocus_nm == -10.0
    with pytest.raises(DriverRefused, match="is step 230000"):
        driver.set_optics(2, pb.Optics(energy_kv=200.0, defocus_nm=1e5))


def test_ceos_corrects_from_what_it_found() -> None:
    with ceos_server() as server:
        driver = ColumnDriver(open_ceos("127.0.0.1", server.port))
        driver.set_optics(1, pb.Optics(astigmatism_a_nm=-12.0, astigmatism_b_nm=8.0))
        assert server.planted["A1"] == pytest.approx([0.0, 0.0], abs=1e-15)
        driver.set_optics(2, pb.Optics(astigmatism_a_nm=-12.0, astigmatism_b_nm=8.0, coma_b_nm=-5.0))
        assert server.planted["B2"] == pytest.approx([40e-9, 20e-9])
        driver.set_optics(3, pb.Optics())
        assert server.planted["A1"] == pytest.approx([12e-9, -8e-9])


def test_what_ceos_answers_is_told() -> None:
    with ceos_server() as server:
        rpc = CeosRpc("127.0.0.1", server.port)
        with pytest.raises(DriverError, match="no value for aberration C9"):
            rpc.call("correctAberration", {"name": "C9"})
        for raw, error in (
            (netstring(b"{"), "is no JSON"),
            (netstring(b"{}"), "is no answer to call"),
            (netstring(b"[1]"), "is no answer to call"),
            (b"12", "ended after"),
            (b"x:", "is no length"),
            (b"99999999999:", "is no length"),
            (b"9999999:", "are allowed"),
            (b"2:{};", "ends with"),
        ):
            server.raw = raw
            with pytest.raises(DriverError, match=error):
                rpc.call("getInfo", {})
    with pytest.raises(DriverUnreachable, match="CEOS getInfo"):
        rpc.call("getInfo", {})


@given(st.binary(max_size=2000))
def test_netstrings_come_back(body: bytes) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(netstring(body) + b"rest")
        assert read_netstring(other) == body


def test_columns_together_do_what_the_first_of_them_can() -> None:
    with ceos_server() as server:
        fake = FakeColumn()
        both = Together([fake, CeosColumn(CeosRpc("127.0.0.1", server.port))])
        assert both.name == "fake+ceos"
        driver = ColumnDriver(both)
        wanted = pb.Optics(energy_kv=200.0, defocus_nm=4.0, coma_a_nm=1.0)
        told = driver.set_optics(1, wanted).optics
        assert (told.defocus_nm, told.coma_a_nm) == (4.0, 1.0)
        assert fake.asked == [{"optics.defocus_nm": 4.0}]
        assert server.planted["B2"] == pytest.approx([41e-9, 25e-9])
