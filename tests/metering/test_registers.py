"""Differences of an engine's counters: over restarts, without benches, never negative."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.models import RegisterRead
from metering.registers import RegisterDelta, register_delta
from metering.selectors import register_reads
from metering.services import record_register_read


@dataclass
class Read:
    boot_id: str = "b1"
    input_tokens: int | None = 0
    cache_read_tokens: int | None = 0
    output_tokens: int | None = 0
    energy_millijoules: int | None = None
    bench_input_tokens: int = 0
    bench_output_tokens: int = 0


def counted(delta: RegisterDelta) -> tuple[int | None, int | None, bool]:
    return delta.input_tokens, delta.output_tokens, delta.is_complete


def test_one_boot_is_last_less_first() -> None:
    reads = [Read("b1", 100, 40, 10, 5), Read("b1", 150, 60, 30, 9), Read("b1", 400, 300, 70, 12)]
    assert register_delta(reads) == RegisterDelta(300, 260, 60, 7, 0, 0, 0, True)


def test_a_restart_adds_what_the_new_boot_counted_and_says_that_something_went_by_unread() -> None:
    reads = [Read("b1", 100, 0, 10), Read("b1", 150, 0, 30), Read("b2", 20, 0, 5), Read("b2", 60, 0, 9)]
    delta = register_delta(reads)
    assert counted(delta) == (50 + 60, 20 + 9, False)
    assert delta.resets == 1


def test_a_new_boot_that_has_overtaken_the_old_one_is_still_a_new_boot() -> None:
    assert counted(register_delta([Read("b1", 100, 0, 10), Read("b2", 500, 0, 90)])) == (500, 90, False)


@pytest.mark.parametrize("after", [Read("b1", 30, 0, 40), Read("b1", 130, 0, 4)])
def test_a_counter_that_goes_down_was_restarted_whatever_the_boot_id_says(after: Read) -> None:
    delta = register_delta([Read("b1", 100, 0, 10), after])
    assert counted(delta) == (after.input_tokens, after.output_tokens, False)


def test_benches_are_nobodys_usage() -> None:
    before = Read("b1", 100, 0, 10, bench_input_tokens=100, bench_output_tokens=10)
    after = Read("b1", 190, 0, 60, bench_input_tokens=130, bench_output_tokens=30)
    delta = register_delta([before, after])
    assert counted(delta) == (60, 30, True)
    assert (delta.bench_input_tokens, delta.bench_output_tokens) == (30, 20)


def test_an_agent_that_lost_its_state_begins_its_benches_at_nought() -> None:
    before = Read("b1", 100, 0, 10, bench_input_tokens=100)
    after = Read("b1", 190, 0, 60, bench_input_tokens=30)
    assert register_delta([before, after]).input_tokens == 60


def test_more_benched_than_counted_is_nought_not_less() -> None:
    assert register_delta([Read(), Read("b1", 5, 0, 5, bench_input_tokens=9)]).input_tokens == 0


def test_a_counter_that_one_read_lacks_is_not_told_in_part() -> None:
    delta = register_delta([Read(), Read("b1", 5, None, 5, 3), Read("b1", 7, 1, 9, 4)])
    assert (delta.input_tokens, delta.cache_read_tokens, delta.energy_millijoules) == (7, None, None)


def test_a_read_at_which_the_engine_did_not_answer_is_passed_over_but_not_at_an_end() -> None:
    silent = Read("b1", None, None, None, 3)
    assert counted(register_delta([Read("b1", 1), silent, Read("b1", 9)])) == (8, 0, True)
    assert counted(register_delta([Read("b1", 1), Read("b1", 9), silent])) == (None, None, False)
    assert counted(register_delta([silent, Read("b1", 1), Read("b1", 9)])) == (None, None, False)


@pytest.mark.parametrize("reads", [[], [Read("b1", 5, 5, 5, 5)]])
def test_fewer_than_two_reads_tell_nothing(reads: list[Read]) -> None:
    assert register_delta(reads) == RegisterDelta(None, None, None, None, 0, 0, 0, False)


counts = st.integers(0, 10**6)
reads_of_anything = st.builds(
    Read,
    st.sampled_from(["b1", "b2"]),
    st.none() | counts,
    st.none() | counts,
    st.none() | counts,
    st.none() | counts,
    counts,
    counts,
)


@given(st.lists(reads_of_anything, max_size=8))
def test_no_difference_is_ever_negative(reads: list[Read]) -> None:
    delta = register_delta(reads)
    for value in (delta.input_tokens, delta.cache_read_tokens, delta.output_tokens, delta.energy_millijoules):
        assert value is None or value >= 0
    assert delta.is_complete <= (delta.resets == 0)


@given(st.lists(counts, min_size=2, max_size=8), st.integers(0, 7))
def test_a_difference_does_not_depend_on_how_often_was_read(steps: list[int], cut: int) -> None:
    total, reads = 0, []
    for step in steps:
        total += step
        reads.append(Read("b1", total, total, total))
    sparse = [reads[0], *reads[1 + cut : -1], reads[-1]]
    assert register_delta(sparse) == register_delta(reads)


# The reads of a period ----------------------------------------------------------------------------------------


def keep(host_id: UUID, at: datetime, count: int) -> None:
    record_register_read(
        host_id=host_id,
        boot_id="b1",
        read_at=at,
        input_tokens=count,
        cache_read_tokens=None,
        output_tokens=count,
        energy_millijoules=None,
        bench_input_tokens=count // 2,
    )


def test_the_reads_of_a_period_enclose_it(db: None, now: datetime) -> None:
    host_id, other = UUID(int=1), UUID(int=2)
    minute = timedelta(minutes=1)
    for number in range(10):
        keep(host_id, now + number * minute, number * 10)
        keep(other, now + number * minute, 1)
    since, until = now + 2.5 * minute, now + 5 * minute
    found = register_reads(host_id, since=since, until=until)
    assert [read.output_tokens for read in found] == [20, 30, 40, 50]
    delta = register_delta(found)
    assert counted(delta) == (15, 30, True)
    assert RegisterRead.objects.filter(host_id=host_id).count() == 10
    # Where nothing was read before or after, what there is.
    assert len(register_reads(host_id, since=now - minute, until=now + 20 * minute)) == 10
    assert register_reads(UUID(int=3), since=since, until=until) == []
