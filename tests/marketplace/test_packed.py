"""Arrays in binary form arrive as they were, and what they are not is refused."""

from __future__ import annotations

from uuid import UUID

import pytest
from django.db import DataError, IntegrityError, connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace.packed import packed_bigints, packed_cursor, packed_uuids

IDS = st.lists(st.uuids(), max_size=9)
NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=IDS, numbers=NUMBERS)
def test_ids_and_numbers_arrive_as_they_were(db: None, ids: list[UUID], numbers: list[int]) -> None:
    with packed_cursor() as cursor:
        cursor.execute(
            "SELECT %(ids)s::uuid[], %(ids)s::uuid[], %(hex)s::uuid[], %(mixed)s::uuid[], %(numbers)s::bigint[]",
            {
                "ids": packed_uuids(ids),
                "hex": packed_uuids(each.hex for each in ids),
                "mixed": packed_uuids(str(each) if each.int % 2 else each for each in ids),
                "numbers": packed_bigints(numbers),
            },
        )
        assert cursor.fetchone() == (ids, ids, ids, ids, numbers)


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "0" * 30, "0" * 40, "g" * 32, "NULL"])
def test_what_is_no_id_is_not_sent(text: str) -> None:
    with pytest.raises((ValueError, AssertionError)):
        packed_uuids([UUID(int=5), text])
    with pytest.raises((ValueError, AssertionError)):
        # Together as long as three ids are.
        packed_uuids([UUID(int=5), text, "0" * (64 - len(text))])


def test_a_number_beyond_64_bits_is_not_sent() -> None:
    with pytest.raises(OverflowError):
        packed_bigints([1, 2**63])


def test_the_cursor_belongs_to_the_transaction_and_its_errors_are_djangos(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE packed_once (id uuid PRIMARY KEY) ON COMMIT DROP")
    one = packed_uuids([UUID(int=1)])
    add = "INSERT INTO packed_once SELECT unnest(%s::uuid[])"
    with packed_cursor() as cursor:
        cursor.execute(add, (one,))
    with pytest.raises(IntegrityError), transaction.atomic(), packed_cursor() as cursor:
        cursor.execute(add, (one,))
    with pytest.raises(DataError), transaction.atomic(), packed_cursor() as cursor:
        cursor.execute("SELECT 1 / cardinality(%s::uuid[])", (packed_uuids([]),))
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM packed_once")
        assert cursor.fetchone() == (1,)


def test_text_travels_as_it_is(db: None) -> None:
    text = "' \\ %s ␀ \n \" $1 é"
    with packed_cursor() as cursor:
        cursor.execute("SELECT %s::text", (text,))
        assert cursor.fetchone() == (text,)
