"""Work on many items: one that fails is recorded, waits longer and longer, and keeps none of the others."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta

import pytest
from django.db import OperationalError, connection, transaction

from marketplace.isolating import TRIES, for_each, isolated, items_left_to_people
from marketplace.models import FailingItem

pytestmark = pytest.mark.django_db


class Poison(Exception):
    pass


def work(items: list[str], bad: set[str], now: datetime) -> list[str]:
    done = []

    def do(item: str) -> None:
        if item in bad:
            raise Poison(f"{item} is bad")
        done.append(item)

    for_each("test", items, do, key=str, now=now)
    return done


def test_the_others_are_done_and_the_one_that_failed_is_recorded(now: datetime) -> None:
    assert work(["a", "b", "c"], {"b"}, now) == ["a", "c"]
    row = FailingItem.objects.get()
    assert (row.job, row.item, row.attempts, row.error) == ("test", "b", 1, "Poison: b is bad")
    assert work(["a", "b", "c"], set(), now) == ["a", "b", "c"]
    assert not FailingItem.objects.exists()


def test_after_five_failures_it_waits_for_minutes_then_for_an_hour_and_is_never_given_up(
    now: datetime,
) -> None:
    tried = []

    def do(item: str) -> None:
        tried.append(moment - now)
        raise Poison

    for minute in range(48 * 60):
        moment = now + timedelta(minutes=minute)
        for_each("test", ["b"], do, key=str, now=moment)
    pauses = [after - before for before, after in itertools.pairwise(tried)]
    minutes = [pause // timedelta(minutes=1) for pause in pauses]
    assert minutes[: TRIES + 6] == [1, 1, 1, 1, 1, 2, 4, 8, 16, 32, 60]
    assert set(minutes[TRIES + 6 :]) == {60}
    [left] = items_left_to_people()
    assert left.attempts == len(tried)
    assert left.first_failed_at == now


def test_the_same_item_of_another_job_goes_on(now: datetime) -> None:
    for _ in range(TRIES):
        work(["b"], {"b"}, now)
    assert work(["b"], set(), now + timedelta(seconds=1)) == []
    done: list[str] = []
    for_each("another", ["b"], done.append, key=str, now=now + timedelta(seconds=1))
    assert done == ["b"]


def test_an_error_of_one_statement_leaves_the_others_a_sound_transaction(now: datetime) -> None:
    seen = []

    def do(item: str) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1 / %s", [0 if item == "b" else 1])
        seen.append(item)

    for_each("test", ["a", "b", "c"], do, key=str, now=now)
    assert seen == ["a", "c"]
    assert FailingItem.objects.get().error.startswith("DataError: division by zero")


def test_a_step_that_fails_lets_the_next_one_run(now: datetime) -> None:
    ran = []

    def fail() -> None:
        raise OperationalError("a statement was cancelled; the database is there")

    isolated("first", fail, now=now)
    isolated("second", lambda: ran.append(True), now=now)
    assert ran
    assert FailingItem.objects.get().item == "all"


def test_what_is_no_longer_due_is_forgotten_after_two_days(now: datetime) -> None:
    for _ in range(TRIES):
        work(["a", "b"], {"b"}, now)
    work(["a"], set(), now + timedelta(days=2))
    assert items_left_to_people().count() == 1
    work(["a"], set(), now + timedelta(days=2, seconds=1))
    assert not FailingItem.objects.exists()
