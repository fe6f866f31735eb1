"""The wake-ups of the ledger: what they check in a night and in a week, and what they end every minute."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import time_machine
from django.conf import settings

from marketplace.ids import uuid7
from marketplace.ledger.models import Hold, Transfer
from marketplace.ledger.services import open_hold
from marketplace.ledger.tasks import check_ledger_nightly, check_ledger_weekly, expire_due
from marketplace.models import JobRun
from tests.ledger.books import Books
from tests.ledger.conftest import Tamper


def finished(job: str) -> list[bool]:
    return [run.finished_at is not None for run in JobRun.objects.filter(job=job).order_by("period_start")]


def test_the_night_checks_what_is_new_and_the_week_everything(
    sealed_books: Books, tamper: Tamper, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    old = Transfer.objects.earliest("number")
    tamper("UPDATE ledger_transfer SET code = 'x' WHERE id = %s", old.id)
    with time_machine.travel(now, tick=False):
        check_ledger_nightly()
        assert (finished("check_ledger"), caplog.records) == ([True], [])
        check_ledger_weekly()
    # Below an older seal; its week stays open until somebody has cleared it up.
    assert finished("check_ledger_full") == [False]
    assert [record.message for record in caplog.records] == ["the ledger does not agree"]
    assert str(old.id) in str(vars(caplog.records[0])["difference"])
    tamper("UPDATE ledger_transfer SET code = 'top_up' WHERE id = %s", old.id)
    # Somebody else is handed the hint meanwhile: the week is claimed, for longer than the check may take.
    with time_machine.travel(now + timedelta(hours=6), tick=False):
        check_ledger_weekly()
        assert finished("check_ledger_full") == [False]
    with time_machine.travel(now + timedelta(hours=7), tick=False):
        check_ledger_weekly()
        assert finished("check_ledger_full") == [True]
        check_ledger_weekly()
    assert JobRun.objects.get(job="check_ledger_full").attempts == 2
    # Newer than the last seal: seen in the next night.
    sealed_books.post(sealed_books.prepaid, sealed_books.payable, 3)
    tamper("UPDATE ledger_transfer SET amount_micros = 4 WHERE amount_micros = 3")
    with time_machine.travel(now + timedelta(days=1), tick=False):
        check_ledger_nightly()
    assert finished("check_ledger") == [True, False]


def test_a_hold_whose_time_has_come_is_given_back_within_the_minute(books: Books, now: datetime) -> None:
    entry = settings.CELERY_BEAT_SCHEDULE["marketplace.ledger.tasks.expire_due"]
    assert entry["schedule"] == 60
    books.fund(1_000)
    hold_id = uuid7()
    open_hold(
        id=hold_id,
        account_id=books.prepaid,
        amount_micros=50,
        code="usage",
        expires_at=now + timedelta(seconds=30),
        now=now,
    )
    with time_machine.travel(now + timedelta(seconds=29), tick=False):
        expire_due()
        assert Hold.objects.get(pk=hold_id).status == "open"
    with time_machine.travel(now + timedelta(seconds=60), tick=False):
        expire_due()
    assert Hold.objects.get(pk=hold_id).status == "expired"
