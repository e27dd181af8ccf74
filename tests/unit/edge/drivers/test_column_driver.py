"""What the driver over a vendor's column adds: order, versions, errors, a stop that gets through."""

from __future__ import annotations

import pytest
from driver_kit import FakeColumn
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.control.capability import check_capability
from nextem.edge.control.driver import CapabilityMissing, DriverError, DriverRefused
from nextem.edge.control.drivers.column import BLANKED, Background, ColumnDriver, ColumnOptions
from nextem.edge.control.drivers.serve import serve_driver
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.v1 import control_pb2 as pb

OPTICS = pb.Optics(energy_kv=200.0)


@pytest.fixture
def column() -> FakeColumn:
    return FakeColumn()


@pytest.fixture
def driver(column: FakeColumn) -> ColumnDriver:
    return ColumnDriver(column)


def optics(defocus_nm: float, *, blanked: bool) -> pb.Optics:
    return pb.Optics(energy_kv=200.0, defocus_nm=defocus_nm, beam_blanked=blanked)


def test_only_what_differs_is_set(driver: ColumnDriver, column: FakeColumn) -> None:
    driver.move_stage(1, pb.Stage(y_nm=5.0, x_nm=3.0))
    driver.move_stage(2, pb.Stage(y_nm=5.0, x_nm=4.0))
    driver.move_stage(3, pb.Stage(y_nm=5.0, x_nm=4.0))
    assert column.asked == [{"stage.y_nm": 5.0, "stage.x_nm": 3.0}, {"stage.x_nm": 4.0}]
    assert driver.get_state().command_epoch == 3


def test_the_beam_is_blanked_first_and_unblanked_last(driver: ColumnDriver, column: FakeColumn) -> None:
    driver.set_optics(1, optics(7.0, blanked=True))
    driver.set_optics(2, optics(9.0, blanked=False))
    assert [list(step) for step in column.asked] == [
        [BLANKED],
        ["optics.defocus_nm"],
        ["optics.defocus_nm"],
        [BLANKED],
    ]


def test_what_somebody_moves_by_hand_is_counted_and_noise_is_not(
    driver: ColumnDriver, column: FakeColumn
) -> None:
    first = driver.get_state().state_version
    column.values["stage.y_nm"] = 0.9
    assert driver.get_state().state_version == first
    column.values["stage.y_nm"] = 1.1
    assert driver.get_state().state_version == first + 1
    assert driver.get_state().state_version == first + 1


def test_whatever_a_vendor_raises_is_a_driver_error(driver: ColumnDriver, column: FakeColumn) -> None:
    column.error = RuntimeError("COM is gone")
    with pytest.raises(DriverError, match="fake: read: RuntimeError: COM is gone") as caught:
        driver.move_stage(1, pb.Stage())
    assert caught.value.rule == "driver_failed"


def test_a_change_that_does_not_end_is_told(column: FakeColumn) -> None:
    column.moving = lambda: True  # type: ignore[method-assign]
    driver = ColumnDriver(column, ColumnOptions(change_s=0.02, stop_s=0.02))
    with pytest.raises(DriverError, match=r"still changes after 0\.02 s"):
        driver.move_stage(1, pb.Stage(y_nm=5.0))
    with pytest.raises(DriverError, match=r"still moves 0\.02 s after a stop"):
        driver.stop(2, "test")


def test_a_stop_halts_again_what_started_after_the_first_halt(column: FakeColumn) -> None:
    halts = 0

    def halt() -> None:
        nonlocal halts
        halts += 1

    column.halt = halt  # type: ignore[method-assign]
    column.moving = lambda: halts < 3  # type: ignore[method-assign]
    ColumnDriver(column, ColumnOptions(halt_again_s=0.001)).stop(1, "test")
    assert halts == 3


def test_a_move_that_is_stopped_on_the_way_is_told_and_later_ones_of_its_time_are_refused(
    column: FakeColumn,
) -> None:
    driver = ColumnDriver(column)
    looks = column.moving

    def moving() -> bool:
        column.moving = looks  # type: ignore[method-assign]
        driver.stop(9, "on the way")
        return looks()

    column.moving = moving  # type: ignore[method-assign]
    with pytest.raises(DriverError, match="was stopped on the way") as caught:
        driver.move_stage(5, pb.Stage(y_nm=100.0))
    assert not isinstance(caught.value, DriverRefused)
    with pytest.raises(DriverRefused, match="command_epoch 6 is older than 9"):
        driver.set_optics(6, OPTICS)


def test_a_blank_is_the_blanker_alone_and_fences_off_what_came_before(
    driver: ColumnDriver, column: FakeColumn
) -> None:
    driver.set_optics(4, optics(7.0, blanked=False))
    column.asked.clear()
    assert [driver.blank_beam(2).command_epoch, driver.blank_beam(9).command_epoch] == [5, 9]
    assert column.asked == [{BLANKED: True}, {BLANKED: True}]
    assert driver.get_state().optics == optics(7.0, blanked=True)
    with pytest.raises(DriverRefused, match="command_epoch 8 is older than 9"):
        driver.set_optics(8, optics(7.0, blanked=False))


def test_a_stage_goes_on_under_a_blank_and_a_beam_that_was_to_come_does_not(
    driver: ColumnDriver, column: FakeColumn
) -> None:
    looks = column.moving

    def moving() -> bool:
        column.moving = looks  # type: ignore[method-assign]
        driver.blank_beam(0)
        return looks()

    column.moving = moving  # type: ignore[method-assign]
    assert driver.move_stage(5, pb.Stage(y_nm=100.0)).stage.y_nm == 100.0
    column.moving = moving  # type: ignore[method-assign]
    with pytest.raises(DriverRefused, match="command_epoch 6 is older than 7"):
        driver.set_optics(6, optics(7.0, blanked=False))
    assert driver.get_state().optics.beam_blanked


def test_a_column_without_a_blanker_of_its_own_says_so(driver: ColumnDriver, column: FakeColumn) -> None:
    column.capabilities = column.capabilities - {BLANKED}
    with pytest.raises(CapabilityMissing, match="fake has no blanker"):
        driver.blank_beam(1)
    assert driver.get_state().command_epoch == 0


def test_the_capability_rule_is_the_same_at_edge_driver_and_over_grpc(
    driver: ColumnDriver,
) -> None:
    to = pb.Stage(z_nm=1.0)
    told = check_capability(pb.Command(move_stage=to), driver.get_state())
    assert told is not None
    server, port = serve_driver(driver)
    remote = GrpcDriver(f"127.0.0.1:{port}")
    for one in (driver, remote):
        with pytest.raises(CapabilityMissing, match=r"fake cannot do stage\.z_nm") as caught:
            one.move_stage(1, to)
        assert caught.value.rule == told.rule == "capability"
    remote.close()
    server.stop(None).wait()


def test_the_state_of_the_column_is_told(driver: ColumnDriver, column: FakeColumn) -> None:
    column.state = pb.COLUMN_STATE_VACUUM
    refusal = check_capability(pb.Command(set_optics=optics(1.0, blanked=False)), driver.get_state())
    assert refusal is not None
    assert refusal.rule == "column"


def test_a_call_in_the_background_tells_its_failure_once() -> None:
    def fail() -> None:
        raise OSError("no")

    def wait() -> None:
        while call.moving():
            pass

    call = Background()
    call.start(fail)
    with pytest.raises(OSError, match="no"):
        wait()
    wait()


calls = st.lists(
    st.tuples(
        st.sampled_from(["move", "optics", "stop", "blank"]),
        st.integers(0, 6),
        st.sampled_from([0.0, 5.0, 50.0]),
    ),
    max_size=30,
)


@given(calls)
def test_in_any_order_epochs_never_fall_and_nothing_older_acts(
    sequence: list[tuple[str, int, float]],
) -> None:
    column = FakeColumn()
    driver = ColumnDriver(column, ColumnOptions(poll_s=0.0, halt_again_s=0.0))
    newest = 0
    for kind, epoch, value in sequence:
        before = dict(column.values)
        try:
            if kind == "stop":
                driver.stop(epoch, "test")
            elif kind == "blank":
                epoch = driver.blank_beam(epoch).command_epoch
                assert epoch > newest
            elif kind == "move":
                driver.move_stage(epoch, pb.Stage(y_nm=value))
            else:
                driver.set_optics(epoch, optics(value, blanked=bool(value)))
        except DriverRefused:
            assert epoch < newest
            assert column.values == before
        else:
            assert kind == "stop" or epoch >= newest
            newest = max(newest, epoch)
        assert driver.get_state().command_epoch == newest
