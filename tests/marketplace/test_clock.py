from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from pytest_django import Settings

from marketplace import clock


@pytest.mark.django_db
def test_the_clock_is_the_machines_until_it_is_moved() -> None:
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=1)
    assert clock.now().tzinfo is UTC


@pytest.mark.django_db
def test_advancing_moves_every_later_reading_and_adds_up() -> None:
    clock.advance(timedelta(hours=1))
    moved = clock.advance(timedelta(days=31))
    expected = datetime.now(UTC) + timedelta(days=31, hours=1)
    assert abs(moved - expected) < timedelta(seconds=1)
    with connection.cursor() as cursor:
        cursor.execute(clock.OFFSET_SQL)
        assert cursor.fetchone() == (timedelta(days=31, hours=1) // timedelta(milliseconds=1),)


@pytest.mark.django_db
def test_the_clock_never_goes_back() -> None:
    with pytest.raises(ValueError, match="delta"):
        clock.advance(timedelta(seconds=-1))
    assert clock.offset() == timedelta(0)


def test_without_test_clock_it_cannot_be_moved_and_reads_no_row(settings: Settings) -> None:
    settings.TEST_CLOCK = False
    with pytest.raises(clock.ClockNotMovable):
        clock.advance(timedelta(seconds=1))
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=1)
