"""Mails sent: by Django's own backends, over a real SMTP conversation, retried, refused, and never by two at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from django.core import mail
from django.db import connection, transaction
from pytest_django import Settings

from marketplace.accounts.services import SYSTEM
from marketplace.webhooks.mailing import Outcome, record_sent, send_due_notices
from marketplace.webhooks.models import Notice
from marketplace.webhooks.notices import set_notices
from marketplace.webhooks.services import record_event
from tests.cast import Party, make_party
from tests.conftest import TestDatabase
from tests.webhooks.smtp import MailServer, mail_server
from tests.webhooks.test_notices import LOW

HOUR = timedelta(hours=1)


@pytest.fixture
def acme_alone(committed_db: TestDatabase, now: datetime) -> Party:
    return make_party("Acme", ["buyer"], now)


@pytest.fixture
def smtp(settings: Settings) -> Iterator[MailServer]:
    with mail_server() as server:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.port
        settings.EMAIL_USE_TLS = settings.EMAIL_USE_SSL = False
        settings.EMAIL_TIMEOUT = 5
        settings.DEFAULT_FROM_EMAIL = "Tokenyard <billing@market.example>"
        yield server


def tell(party: Party, now: datetime, *, times: int = 1) -> None:
    for _ in range(times):
        with transaction.atomic():
            record_event(
                organization_id=party.id, event_type="balance.low", fact_id=uuid4(), data=LOW, now=now
            )


def one() -> Notice:
    return Notice.objects.get()


def test_it_is_sent_by_the_beat_once_with_a_way_to_turn_it_off(
    acme_alone: Party, now: datetime, settings: Settings
) -> None:
    settings.PORTAL_URL = "https://market.example"
    tell(acme_alone, now)
    assert [send_due_notices(now=now + n * HOUR) for n in range(2)] == [1, 0]
    (sent,) = mail.outbox
    assert (sent.to, sent.subject, sent.cc, sent.bcc) == (
        [acme_alone.user.email], "Your balance is low", [], [],
    )  # fmt: skip
    assert "/buyer/top-up" in str(sent.body)
    assert sent.extra_headers["List-Unsubscribe"] == "<https://market.example/notices>"
    assert (one().status, one().ended_at, one().attempts) == ("sent", now, 1)


def test_a_real_conversation_carries_several_and_each_is_written_down(
    acme_alone: Party, now: datetime, smtp: MailServer
) -> None:
    tell(acme_alone, now, times=3)
    assert send_due_notices(now=now) == 3
    assert smtp.conversations == 1
    assert smtp.recipients == [acme_alone.user.email] * 3
    ids = {str(notice.id) for notice in Notice.objects.filter(status="sent")}
    assert {message["Message-ID"] for message in smtp.mails} == {f"<{id_}@market.example>" for id_ in ids}
    assert smtp.mails[0]["From"] == "Tokenyard <billing@market.example>"
    assert smtp.mails[0]["Auto-Submitted"] == "auto-generated"
    assert "1.50 USD of your prepaid balance is free." in smtp.mails[0].get_content()


def test_one_address_that_does_not_exist_holds_up_nobody_else(
    acme_alone: Party, now: datetime, smtp: MailServer
) -> None:
    addresses = ["gone@acme.example", "later@acme.example", "here@acme.example"]
    set_notices(organization_id=acme_alone.id, addresses=addresses, muted=[], now=now, actor=SYSTEM)
    smtp.refuse = {"gone@acme.example": "550 no such user", "later@acme.example": "451 try later"}
    tell(acme_alone, now)
    assert send_due_notices(now=now) == 3
    state = {row.address.partition("@")[0]: row for row in Notice.objects.all()}
    assert {name: row.status for name, row in state.items()} == {
        "gone": "failed", "later": "pending", "here": "sent",
    }  # fmt: skip
    assert state["gone"].problem == "the mail server answered 550 no such user"
    smtp.refuse = {}
    assert send_due_notices(now=now + HOUR) == 1
    assert sorted(smtp.recipients) == ["here@acme.example", "later@acme.example"]


def test_without_a_server_it_is_tried_again_and_given_up_after_three_days(
    acme_alone: Party, now: datetime, smtp: MailServer, settings: Settings
) -> None:
    settings.EMAIL_PORT = 1
    tell(acme_alone, now)
    at, tries = now, 0
    while (notice := one()).status == "pending":
        assert notice.next_attempt_at is not None
        at = notice.next_attempt_at
        assert send_due_notices(now=at) == 1
        tries += 1
        assert tries < 20
    assert (notice.status, notice.ended_at) == ("failed", now + timedelta(hours=72))
    assert tries > 5
    assert "cannot be reached" in notice.problem
    assert smtp.mails == []


def test_what_a_server_has_against_the_market_fails_no_mail(
    acme_alone: Party, now: datetime, smtp: MailServer
) -> None:
    smtp.refuse = {"MAIL": "553 not your sender"}
    tell(acme_alone, now)
    assert send_due_notices(now=now) == 1
    assert (one().status, one().problem) == ("pending", "the mail server answered 553 not your sender")
    smtp.refuse = {}
    assert send_due_notices(now=now + HOUR) == 1
    assert one().status == "sent"


def test_what_cannot_be_written_fails_alone(acme_alone: Party, now: datetime, smtp: MailServer) -> None:
    tell(acme_alone, now, times=2)
    first = Notice.objects.order_by("id")[0]
    Notice.objects.filter(pk=first.pk).update(address="a@b.example\nBcc: c@d.example")
    assert send_due_notices(now=now) == 2
    assert sorted(Notice.objects.values_list("status", flat=True)) == ["failed", "sent"]
    assert smtp.recipients == [acme_alone.user.email]


def test_a_server_that_breaks_off_gets_the_same_message_id_again(
    acme_alone: Party, now: datetime, smtp: MailServer
) -> None:
    """It took the mail and nobody was told: the mail goes again, to be known by its id."""
    smtp.drop = True
    tell(acme_alone, now)
    assert send_due_notices(now=now) == 1
    assert one().status == "pending"
    smtp.drop = False
    assert send_due_notices(now=now + HOUR) == 1
    assert one().status == "sent"
    assert len({message["Message-ID"] for message in smtp.mails}) == 1
    assert len(smtp.mails) == 2


def test_workers_at_once_send_each_mail_once(acme_alone: Party, now: datetime, smtp: MailServer) -> None:
    tell(acme_alone, now, times=12)
    sent: list[int] = []

    def work() -> None:
        try:
            sent.append(send_due_notices(now=now, most=5))
        finally:
            connection.close()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(sent) == len(smtp.mails) == 12
    assert len({message["Message-ID"] for message in smtp.mails}) == 12


def test_who_comes_late_does_not_overwrite_what_another_has_found(acme_alone: Party, now: datetime) -> None:
    tell(acme_alone, now)
    Notice.objects.update(attempts=2)
    assert not record_sent(notice_id=one().id, attempt=1, outcome=Outcome("", is_final=False), now=now)
    assert one().status == "pending"
    assert record_sent(notice_id=one().id, attempt=2, outcome=Outcome(""), now=now)
    assert not record_sent(notice_id=one().id, attempt=2, outcome=Outcome("broken"), now=now)
    assert (one().status, one().problem) == ("sent", "")


def test_no_transaction_is_open_while_a_mail_server_is_waited_for(acme_alone: Party, now: datetime) -> None:
    with transaction.atomic(), pytest.raises(AssertionError):
        send_due_notices(now=now)
