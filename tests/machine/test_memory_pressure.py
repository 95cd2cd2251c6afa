"""What memory asks for, in exact numbers."""

from __future__ import annotations

import pytest

from llmtrain.machine.memory_pressure import Bound, OtherUse, choose_action, with_growth

MIB, GIB = 2**20, 2**30
LIMIT_MIB = 2400  # of which 200 are left for comfort, and 100 in any case
HELD_MIB = 1000


def bound(used_mib: int = HELD_MIB, *, swap_mib: int = 0, growth_mib: int = 0) -> Bound:
    """A bound within which others hold what is used beyond 1000 MiB."""
    limit = LIMIT_MIB * MIB
    return Bound("the group", limit, used_mib * MIB, swap_mib * MIB, growth_mib * MIB)


def asked(peaks_mib: tuple[int, ...], *bounds: Bound) -> int | str:
    found = choose_action(bounds, HELD_MIB * MIB, [peak * MIB for peak in peaks_mib])
    return "stop" if found.stop else found.smaller


@pytest.mark.parametrize(
    ("peaks_mib", "expected"),
    [
        ((2200, 1100), 0),
        ((2201, 1100), 1),
        ((2900, 2500, 2200, 1100), 2),  # the largest that is comfortable
        ((2300, 2250), 0),  # none is, and as it is it survives
        ((2301, 2300, 2299), 1),  # the largest that does
        ((2400, 2301), "stop"),
        ((2300,), 0),
        ((2301,), "stop"),
    ],
)
def test_the_largest_plan_that_fits(peaks_mib: tuple[int, ...], expected: int | str) -> None:
    assert asked(peaks_mib, bound()) == expected


def test_what_others_hold_counts() -> None:
    assert asked((1700,), bound(1500)) == 0
    assert asked((1701, 1600), bound(1500)) == 1
    assert asked((1801,), bound(1500)) == "stop"


def test_swap_puts_off_the_end_but_is_no_comfort() -> None:
    assert asked((2201, 2200), bound(swap_mib=500)) == 1
    assert asked((2800,), bound(swap_mib=500)) == 0
    assert asked((2801,), bound(swap_mib=500)) == "stop"


def test_what_others_will_take_counts() -> None:
    assert asked((2100,), bound(growth_mib=100)) == 0
    assert asked((2101, 2100), bound(growth_mib=100)) == 1
    assert asked((2201,), bound(growth_mib=100)) == "stop"


def test_every_bound_has_to_hold() -> None:
    roomy = Bound("the machine", 64 * GIB, 2 * GIB)
    assert asked((2100, 1500), roomy, bound()) == 0
    assert asked((2300, 1500), roomy, bound()) == 1
    assert asked((2500,), bound(), roomy) == "stop"


def test_a_limit_of_each_process_leaves_room_for_what_is_not_checked() -> None:
    """Libraries die of allocations that fail at it: 96 MiB are left, or the usual share."""
    own = Bound("RLIMIT_DATA", 1000 * MIB, 800 * MIB, is_per_process=True)
    assert own.is_comfortable_with(104 * MIB)
    assert not own.is_comfortable_with(105 * MIB)
    assert own.survives(104 * MIB)
    assert not own.survives(105 * MIB)


def test_so_many_processes_have_so_many_limits_of_their_own() -> None:
    own = Bound("RLIMIT_DATA", 1000 * MIB, 800 * MIB, is_per_process=True)
    assert own.of_processes(3) == Bound("RLIMIT_DATA", 3000 * MIB, 2400 * MIB, is_per_process=True)
    assert bound().of_processes(3) == bound()


def test_nothing_is_asked_where_nothing_is_known() -> None:
    assert asked((10**9,)) == 0


def test_a_plan_that_shows_less_than_is_held_takes_nothing_more() -> None:
    assert asked((900,), bound(2200)) == 0


def test_margins_do_not_grow_with_the_machine() -> None:
    large = Bound("the machine", 512 * GIB, 400 * GIB)
    assert large.is_comfortable_with(111 * GIB)
    assert not large.is_comfortable_with(111 * GIB + 1)
    assert large.survives(112 * GIB - 256 * MIB)
    assert not large.survives(112 * GIB - 256 * MIB + 1)


def test_the_reason_has_the_figures_of_the_tightest_bound() -> None:
    machine = Bound("the machine", 4 * GIB, int(3.5 * GIB))
    group = Bound("the control group", 2 * GIB, int(1.9 * GIB), growth_bytes=50 * MIB)
    found = choose_action([machine, group], GIB, [GIB + 300 * MIB])
    assert found.stop
    assert found.reason == (
        "1.9 GiB of the control group's 2 GiB are in use, and a step takes 300 MiB more, "
        "others 50 MiB"
    )


def grown_mib(others_mib: list[int], *, seconds: float, next_check_in_s: float) -> list[int]:
    """The growth that is expected at each of several looks, so many seconds apart."""
    others_use, expected = OtherUse(), []
    for number, others in enumerate(others_mib):
        bounds = [bound(others + HELD_MIB)]
        now = others_use.updated(bounds, HELD_MIB * MIB, number * seconds)
        found = with_growth(bounds, others_use, now, next_check_in_s)
        expected.append(found[0].growth_bytes // MIB)
        others_use = now
    return expected


def test_growth_is_what_others_took_both_times() -> None:
    others_mib = [500, 600, 650, 700, 600, 700]
    assert grown_mib(others_mib, seconds=1, next_check_in_s=1) == [0, 0, 50, 50, 0, 0]


def test_growth_is_as_long_as_it_takes_to_look_again() -> None:
    assert grown_mib([500, 600, 700], seconds=2, next_check_in_s=2) == [0, 0, 100]
    assert grown_mib([500, 600, 700], seconds=2, next_check_in_s=10) == [0, 0, 500]
    assert grown_mib([500, 600, 700], seconds=20, next_check_in_s=10) == [0, 0, 50]


def test_two_checks_at_one_reading_of_the_clock_are_one() -> None:
    first = OtherUse().updated([bound(700)], HELD_MIB * MIB, 5.0)
    assert first.updated([bound(900)], HELD_MIB * MIB, 5.0) == first


def test_a_program_that_starts_once_is_no_growth() -> None:
    assert grown_mib([500, 500, 1300, 1300], seconds=1, next_check_in_s=1) == [0, 0, 0, 0]


def test_what_the_run_itself_takes_is_no_growth() -> None:
    others_use = OtherUse()
    for number, held in enumerate((100, 500, 900)):
        bounds = [bound(held + 700)]
        now = others_use.updated(bounds, held * MIB, number)
        assert with_growth(bounds, others_use, now, 10.0)[0].growth_bytes == 0
        others_use = now
