from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st

from marketplace.ids import derived_id, uuid7, uuid7_time_ms

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
moments = st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def test_new_ids_are_version_7_of_this_moment_and_sort_by_time() -> None:
    before_ms = (datetime.now(UTC) - EPOCH) // timedelta(milliseconds=1)
    made = [uuid7() for _ in range(1_000)]
    after_ms = (datetime.now(UTC) - EPOCH) // timedelta(milliseconds=1)
    assert {value.version for value in made} == {7}
    assert all(before_ms <= uuid7_time_ms(value) <= after_ms for value in made)
    assert made == sorted(made)
    assert len(set(made)) == len(made)


@given(moments)
def test_an_id_of_a_moment_carries_it_to_the_millisecond(at: datetime) -> None:
    value = uuid7(at)
    assert (value.version, value.variant) == (7, RFC_4122)
    assert uuid7_time_ms(value) == (at - EPOCH) // timedelta(milliseconds=1)


@given(st.uuids(version=4), st.text())
def test_a_derived_id_is_a_version_8_id_with_its_parents_time(parent: UUID, code: str) -> None:
    value = derived_id(parent, code)
    assert (value.version, value.variant) == (8, RFC_4122)
    assert uuid7_time_ms(value) == uuid7_time_ms(parent)
    assert value == derived_id(parent, code)


@given(st.uuids(), st.uuids(), st.text(), st.text())
def test_other_parent_or_other_code_gives_another_id(one: UUID, other: UUID, a: str, b: str) -> None:
    assert (derived_id(one, a) == derived_id(other, b)) == ((one, a) == (other, b))


def test_the_derivation_never_changes() -> None:
    parent = UUID("0195f0a0-0000-7000-8000-000000000001")
    assert derived_id(parent, "payout") == UUID("0195f0a0-0000-8670-9302-627604d277b7")
