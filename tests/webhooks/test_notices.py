"""Mails: one for each fact and address, with it or not at all, to whom it concerns, never what was turned off."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection, transaction
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from marketplace.accounts.models import AuditEntry, Membership
from marketplace.accounts.services import SYSTEM, add_member, create_user
from marketplace.billing.services.dunning import advance_dunning
from marketplace.billing.services.payout_destinations import request_destination
from marketplace.contracts.cap_notices import tell_of_near_caps
from marketplace.contracts.models import SpendCap, SpendCounter
from marketplace.contracts.spending import set_spend_cap, spend_window
from marketplace.errors import InvalidInput
from marketplace.webhooks.catalogue import EVENT_TYPES
from marketplace.webhooks.models import Notice, WebhookEvent
from marketplace.webhooks.notice_texts import KINDS, OPTIONAL, mail_of
from marketplace.webhooks.notices import forget_old_notices, set_notices
from marketplace.webhooks.services import Fact, deliver_now, record_event, record_events
from pricing.models import Grade
from tests.billing.test_lifecycle import in_arrears
from tests.cast import PASSWORD, Party, Plant

LOW = {
    "currency": "USD", "available_micros": 1_500_000, "threshold_micros": 5_000_000, "auto_top_up": "off",
}  # fmt: skip


def tell(
    party: Party, now: datetime, *, fact_id: UUID | None = None, event_type: str = "balance.low"
) -> None:
    with transaction.atomic():
        record_event(
            organization_id=party.id, event_type=event_type, fact_id=fact_id or uuid4(), data=LOW, now=now
        )


def choose(party: Party, now: datetime, *, addresses: list[str] | None = None, muted: Any = ()) -> None:
    set_notices(organization_id=party.id, addresses=addresses or [], muted=muted, now=now, actor=SYSTEM)


def subjects(kind: str) -> list[str]:
    return list(
        Notice.objects.filter(type=kind).order_by("created_at", "id").values_list("subject", flat=True)
    )


def test_a_fact_is_mailed_once_with_it_or_not_at_all(acme: Party, now: datetime) -> None:
    fact = uuid4()

    with transaction.atomic():
        tell(acme, now, fact_id=fact)
        assert Notice.objects.count() == 1
        transaction.set_rollback(True)
    assert not Notice.objects.exists()
    for _ in range(2):
        tell(acme, now, fact_id=fact)
    (notice,) = Notice.objects.all()
    assert (notice.address, notice.status, notice.subject) == (
        acme.user.email,
        "pending",
        "Your balance is low",
    )
    assert "1.50 USD of your prepaid balance is free" in notice.body
    # Nobody's program listens, so there is no event: mails do not need one.
    assert not WebhookEvent.objects.exists()


def test_addresses_and_what_is_turned_off_hold_for_what_happens_later(
    acme: Party, mallory: Party, now: datetime
) -> None:
    choose(acme, now, addresses=["books@acme.example", "cfo@acme.example"])
    tell(acme, now)
    assert sorted(Notice.objects.values_list("address", flat=True)) == [
        "books@acme.example",
        "cfo@acme.example",
    ]
    choose(acme, now, muted=["balance.low"])
    tell(acme, now)
    assert Notice.objects.count() == 2
    tell(mallory, now)
    assert list(Notice.objects.filter(organization_id=mallory.id).values_list("address", flat=True)) == [
        mallory.user.email
    ]
    entry = AuditEntry.objects.filter(action="notices.set").latest("id")
    assert (entry.organization_id, entry.detail["muted"]) == (acme.id, ["balance.low"])


@pytest.mark.parametrize(
    ("addresses", "muted", "field"),
    [
        (["nobody"], [], "addresses"),
        (["a@b.example", "a@b.example"], [], "addresses"),
        ([f"a{n}@b.example" for n in range(6)], [], "addresses"),
        (["a@b.example\nBcc: c@d.example"], [], "addresses"),
        ([], ["invoice.issued"], "muted"),
        ([], ["invoice.nothing"], "muted"),
    ],
)
def test_bad_settings_name_their_field(
    acme: Party, now: datetime, addresses: list[str], muted: list[str], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        choose(acme, now, addresses=addresses, muted=muted)
    assert refused.value.field == field


def test_a_change_of_where_payouts_go_reaches_every_owner(hyperion: Party, now: datetime) -> None:
    second = create_user(email="second@hyperion.example", password=PASSWORD, name="", now=now)
    viewer = create_user(email="viewer@hyperion.example", password=PASSWORD, name="", now=now)
    for user, role in ((second, Membership.Role.OWNER), (viewer, Membership.Role.VIEWER)):
        add_member(organization_id=hyperion.id, user_id=user.id, role=role, now=now, actor=SYSTEM)
    choose(hyperion, now, addresses=["thief@elsewhere.example"])
    request_destination(
        organization_id=hyperion.id, destination="DE-89", operation_id=uuid4(), now=now, actor=SYSTEM
    )
    told = Notice.objects.filter(type="payout_destination.changed")
    assert set(told.values_list("address", flat=True)) == {hyperion.user.email, "second@hyperion.example"}
    assert "DE-89" not in told[0].body
    assert "cancel it at once" in told[0].body


def test_an_invoice_its_reminders_and_the_end_of_patience(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    invoice = in_arrears(acme, grade, plant, now)
    (issued,) = Notice.objects.filter(type="invoice.issued", organization_id=acme.id)
    assert "14.40 USD is issued" in issued.body
    assert "2.40 USD is to be paid" in issued.body
    assert f"/buyer/invoices/{invoice.id}" in issued.body
    assert invoice.due_at is not None
    for days in (0, 3, 3, 4, 7):
        advance_dunning(now=invoice.due_at + timedelta(days=days))
    reminders = Notice.objects.filter(type="invoice.reminder").order_by("created_at")
    assert [one.body.count("was due 3 days ago") for one in reminders] == [1, 0]
    assert "was due 7 days ago" in reminders[1].body
    # Not looked at for two weeks: one reminder for what has come together, and delivery stops.
    advance_dunning(now=invoice.due_at + timedelta(days=21))
    assert reminders.all().count() == 3
    (stopped,) = Notice.objects.filter(type="contract.suspended")
    assert "an invoice is overdue" in stopped.body


def test_contracts_that_stop_together_are_one_mail(acme: Party, mallory: Party, now: datetime) -> None:
    def fact(party: Party) -> Fact:
        return Fact(party.id, uuid4(), {"contract_id": str(uuid4()), "kind": "x", "reason": "past_due"})

    with transaction.atomic():
        record_events([fact(acme), fact(acme), fact(mallory)], event_type="contract.suspended", now=now)
    bodies = dict(Notice.objects.values_list("organization_id", "body"))
    assert len(bodies) == 2
    assert "2 contracts are suspended" in bodies[acme.id]
    assert "A contract is suspended" in bodies[mallory.id]


def test_many_facts_cost_a_constant_number_of_queries(
    acme: Party, mallory: Party, now: datetime, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    facts = [Fact(party.id, uuid4(), LOW) for party in (acme, mallory) for _ in range(20)]
    with transaction.atomic(), django_assert_max_num_queries(6):
        record_events(facts, event_type="balance.low", now=now)
    assert Notice.objects.count() == 40


def test_a_cap_is_near_at_nine_tenths_once_in_its_window(acme: Party, now: datetime) -> None:
    cap = set_spend_cap(
        organization_id=acme.id,
        scope="organization",
        period="day",
        limit_micros=10_000,
        now=now,
        actor=SYSTEM,
    )
    assert isinstance(cap, SpendCap)
    start = spend_window("day", now).start
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO contracts_spendcounter (cap_id, window_start, spent_micros) VALUES (%s, %s, 8999)",
            [cap.id, start],
        )
    assert tell_of_near_caps(now=now) == 0
    SpendCounter.objects.filter(cap_id=cap.id).update(spent_micros=9_000)
    for _ in range(2):
        assert tell_of_near_caps(now=now) == 1
    (notice,) = Notice.objects.all()
    assert "0.009 USD of the 0.01 USD that the organization may spend per day" in notice.body
    assert tell_of_near_caps(now=now + timedelta(days=1)) == 0


def test_what_is_mailed_is_in_the_catalogue_and_no_name_gets_into_a_header() -> None:
    assert set(KINDS) <= set(EVENT_TYPES)
    assert set(OPTIONAL) == {"balance.low", "auto_top_up.failed", "spend_cap.near"}
    data = {
        **LOW,
        "number": "TY-1\r\nBcc: x@y.example",
        "total_micros": 1,
        "outstanding_micros": 0,
        "invoice_id": "7",
    }
    subject, body = mail_of("invoice.issued", data, organization="A\n\nhttps://evil", portal_url="https://m")
    assert "\n" not in subject
    assert "\r" not in subject
    assert body.startswith("For A https://evil.\n")


def test_old_mails_are_forgotten_and_waiting_ones_never(acme: Party, now: datetime) -> None:
    tell(acme, now)
    tell(acme, now)
    first = Notice.objects.order_by("id")[0]
    Notice.objects.filter(pk=first.pk).update(status="sent", next_attempt_at=None, ended_at=now)
    assert forget_old_notices(now=now + timedelta(days=90)) == 0
    assert forget_old_notices(now=now + timedelta(days=91)) == 1
    assert Notice.objects.count() == 1


def test_what_a_test_clock_dates_ahead_is_mailed_now(acme: Party, mallory: Party, now: datetime) -> None:
    ahead = now + timedelta(days=200)
    for party in (acme, mallory):
        tell(party, ahead)
    # Nobody waits half a year for the mail of a fact that has happened to him.
    deliver_now(organization_id=acme.id, now=now)
    due = Notice.objects.get(next_attempt_at__lte=now)
    assert (due.organization_id, due.created_at) == (acme.id, ahead)
    assert now < due.give_up_at < now + timedelta(days=7)
    assert Notice.objects.get(organization_id=mallory.id).next_attempt_at == ahead


def test_a_mail_of_a_test_clock_that_was_not_taken_keeps_its_pause(acme: Party, now: datetime) -> None:
    tell(acme, now + timedelta(days=200))
    deliver_now(organization_id=acme.id, now=now)
    later = now + timedelta(minutes=5)
    assert Notice.objects.update(next_attempt_at=later, attempts=1) == 1
    deliver_now(organization_id=acme.id, now=now)
    assert Notice.objects.get().next_attempt_at == later


def test_the_page_sets_and_shows_them_and_viewers_only_read(
    acme: Party, hyperion: Party, now: datetime
) -> None:
    client = Client()
    assert client.login(username=acme.user.email, password=PASSWORD)
    tell(acme, now)
    tell(hyperion, now)
    form = {"addresses": "books@acme.example\n\n cfo@acme.example ", "wanted": ["balance.low"]}
    assert client.post("/notices", form).status_code == 302
    page = client.get("/notices").content.decode()
    assert "books@acme.example\ncfo@acme.example" in page
    assert "Your balance is low" in page
    assert hyperion.user.email not in page
    tell(acme, now, event_type="balance.low")
    assert Notice.objects.filter(address="cfo@acme.example").count() == 1
    for change, said in (
        ({"addresses": "nobody"}, "id_addresses_error"),
        ({"wanted": ["invoice.issued"]}, "Select a valid choice"),
    ):
        answer = client.post("/notices", {**form, **change})
        assert (answer.status_code, said in answer.content.decode()) == (422, True)
    viewer = create_user(email="vi@acme.example", password=PASSWORD, name="", now=now)
    add_member(organization_id=acme.id, user_id=viewer.id, role=Membership.Role.VIEWER, now=now, actor=SYSTEM)
    reader = Client()
    assert reader.login(username=viewer.email, password=PASSWORD)
    assert "books@acme.example" in reader.get("/notices").content.decode()
    assert reader.post("/notices", form).status_code == 403
