"""The operator's pages of billing: look, then do; errors at their inputs; the trail; and nobody else."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client

from marketplace.accounts.models import AuditEntry
from marketplace.billing.models import CreditNote, Discount, DocumentNumber, Invoice, InvoicePayment, TaxRule
from marketplace.ids import uuid7
from marketplace.ledger.checking import check_ledger
from marketplace.ledger.models import AccountKind, Grant, GrantRefund
from marketplace.ledger.selectors import balance
from marketplace.portal.figures import money
from marketplace.webhooks.models import WebhookEvent
from tests.cast import Party
from tests.portal.conftest import SignIn
from tests.portal.papers import papers
from tests.portal.world import Day

BILLING = "/operator/billing"
Form = dict[str, Any]


@pytest.fixture
def seat(day: Day, operator: Party, sign_in: SignIn) -> Client:
    return sign_in(operator)


@pytest.fixture
def desk(operator: Party, clock_at: datetime, sign_in: SignIn) -> Client:
    """As `seat`, of a market where nothing has happened yet."""
    return sign_in(operator)


def shown_in(page: str) -> str:
    found = re.search(r'name="shown" value="([^"]*)"', page)
    assert found is not None, page
    return found[1]


def look(client: Client, path: str, form: Form) -> str:
    answer = client.post(path, {**form, "step": "look"})
    assert answer.status_code == 200, answer.content.decode()
    return answer.content.decode()


def look_and_do(client: Client, path: str, form: Form) -> str:
    shown = shown_in(look(client, path, form))
    answer = client.post(path, {**form, "step": "do", "shown": shown}, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def prepaid(party: Party) -> int:
    return balance(organization_id=party.id, kind=AccountKind.PREPAID, currency="USD").posted_micros


def credit_path(day: Day) -> str:
    return f"{BILLING}/invoices/{day.invoice.id}/credit"


def test_a_whole_invoice_is_credited_after_its_amounts_were_looked_at(
    day: Day, seat: Client, acme: Party
) -> None:
    form = {"operation": str(uuid7()), "what": "all", "reason": "Courtesy"}
    before, numbers = prepaid(acme), list(DocumentNumber.objects.values_list("series", "last_number"))
    page = look(seat, credit_path(day), form)
    assert money(day.invoice.total_micros, "USD") in page
    assert "cannot be taken back" in page
    # Looking leaves nothing behind: no note, no number, no money, no event.
    assert not CreditNote.objects.exists()
    assert list(DocumentNumber.objects.values_list("series", "last_number")) == numbers
    assert (prepaid(acme), WebhookEvent.objects.count()) == (before, 0)
    form |= {"step": "do", "shown": shown_in(page)}
    pages = [seat.post(credit_path(day), form, follow=True).content.decode() for _ in range(2)]
    note = CreditNote.objects.get()
    assert all(f"Credit note {note.number} is issued." in page for page in pages)
    assert note.total_micros == day.invoice.total_micros
    assert prepaid(acme) == before + note.total_micros - note.due_micros
    assert "credit note: issued" in pages[0]
    assert AuditEntry.objects.filter(action="credit_note.issued").count() == 1
    assert "Nothing is left to credit" in seat.get(credit_path(day)).content.decode()
    assert check_ledger() == []


def test_an_amount_is_taken_from_the_lines_in_their_order(day: Day, seat: Client) -> None:
    lines = list(day.invoice.lines.order_by("number"))
    first = lines[0].amount_micros
    assert len(lines) > 1
    whole = f"{(first + 10_000) // 10_000 * 10_000 / 1e6:.2f}"
    look_and_do(
        seat,
        credit_path(day),
        {"operation": str(uuid7()), "what": "amount", "amount": whole, "reason": "Outage"},
    )
    note = CreditNote.objects.get()
    taken = {row.line_id: row.net_micros for row in note.lines.all()}
    assert taken[lines[0].id] == first
    assert sum(taken.values()) == round(float(whole) * 1e6)


def test_lines_are_credited_by_what_was_typed_and_refused_at_the_input(day: Day, seat: Client) -> None:
    line = day.invoice.lines.order_by("number")[0]
    form = {"operation": str(uuid7()), "what": "lines", f"line_{line.number}": "0.50", "reason": "Price"}
    look_and_do(seat, credit_path(day), form)
    row = CreditNote.objects.get().lines.get()
    assert (row.line_id, row.net_micros) == (line.id, 500_000)
    # Back, other figures, the same form: said, and the next click is another operation.
    again = seat.post(credit_path(day), {**form, f"line_{line.number}": "0.60", "step": "look"})
    assert again.status_code == 422
    assert "issued another credit note before" in again.content.decode()


def test_a_bad_credit_note_is_refused_where_it_is_wrong(day: Day, seat: Client) -> None:
    """One test, because making the day costs seconds."""
    wrong: list[tuple[Form, str]] = [
        ({"what": "amount", "amount": ""}, "How much?"),
        ({"what": "amount", "amount": "x"}, "id_amount_error"),
        ({"what": "amount", "amount": "999999999"}, "id_amount_error"),
        ({"what": "amount", "amount": "0"}, "id_amount_error"),
        ({"what": "lines"}, "Name an amount for at least one line."),
        ({"what": "lines", "line_1": "99999999"}, "left to credit"),
        ({"what": "lines", "line_1": "-1"}, "left to credit"),
        ({"reason": ""}, "id_reason_error"),
        ({"what": "half"}, "Select a valid choice"),
        ({"operation": "x"}, "Enter a valid UUID"),
    ]
    for change, said in wrong:
        form = {"operation": str(uuid7()), "what": "all", "reason": "Courtesy", "step": "do", **change}
        answer = seat.post(credit_path(day), form)
        assert answer.status_code == 422, change
        assert said in answer.content.decode(), change
    assert not CreditNote.objects.exists()


def test_what_was_not_shown_is_not_done(day: Day, seat: Client) -> None:
    """Without a look, with another figure, or where it has changed meanwhile: the new figures are shown."""
    form = {"operation": str(uuid7()), "what": "all", "reason": "Courtesy"}
    shown = shown_in(look(seat, credit_path(day), form))
    look_and_do(
        seat,
        credit_path(day),
        {"operation": str(uuid7()), "what": "lines", "line_1": "0.50", "reason": "Price"},
    )
    for stale in (shown, "", "1:2:3:4"):
        answer = seat.post(credit_path(day), {**form, "step": "do", "shown": stale})
        assert answer.status_code == 409
        page = answer.content.decode()
        assert "The figures have changed" in page
        assert shown_in(page) not in (shown, stale)
    assert CreditNote.objects.count() == 1


def test_an_invoice_is_voided_and_reissued_under_the_rules_of_now(
    day: Day, seat: Client, acme: Party
) -> None:
    path = f"{BILLING}/invoices/{day.invoice.id}/reissue"
    acme.organization.legal_name, acme.organization.country = "Acme Trading Ltd", "ZZ"
    acme.organization.save()
    page = look(seat, path, {"reason": "Wrong name"})
    assert "Acme Trading Ltd" in page
    assert Invoice.objects.get(pk=day.invoice.id).status != "void"
    assert Invoice.objects.count() == 1
    done = seat.post(path, {"reason": "Wrong name", "step": "do", "shown": shown_in(page)}, follow=True)
    old, new = Invoice.objects.order_by("created_at", "number")
    assert (old.status, new.replaces_id, new.parties["buyer"]["legal_name"]) == (
        "void", old.id, "Acme Trading Ltd",
    )  # fmt: skip
    assert f"{old.number} is void; invoice {new.number} stands for it." in done.content.decode()
    again = seat.post(path, {"reason": "Wrong name", "step": "do", "shown": ""}, follow=True)
    assert "It was voided before" in again.content.decode()
    assert Invoice.objects.count() == 2
    assert (
        f'replaced by <a href="{BILLING}/invoices/{new.id}"'
        in seat.get(f"{BILLING}/invoices/{old.id}").content.decode()
    )
    assert check_ledger() == []


def test_an_invoice_whose_payment_failed_may_be_reissued(day: Day, seat: Client, acme: Party) -> None:
    path = f"{BILLING}/invoices/{day.invoice.id}"
    for status, may_be in ((InvoicePayment.Status.FAILED, True), (InvoicePayment.Status.PENDING, False)):
        InvoicePayment.objects.create(
            id=uuid7(),
            invoice=day.invoice,
            organization=acme.organization,
            source=InvoicePayment.Source.PROCESSOR,
            amount_micros=1,
            status=status,
            failure="card_declined" if may_be else "",
            created_at=day.now,
        )
        assert (f'href="{path}/reissue"' in seat.get(path).content.decode()) is may_be


def test_an_invoice_with_a_credit_note_is_not_reissued(day: Day, seat: Client) -> None:
    look_and_do(
        seat,
        credit_path(day),
        {"operation": str(uuid7()), "what": "lines", "line_1": "0.50", "reason": "Price"},
    )
    answer = seat.post(f"{BILLING}/invoices/{day.invoice.id}/reissue", {"reason": "Name"})
    assert answer.status_code == 422
    assert "credit the rest instead" in answer.content.decode()


def test_invoices_are_found_by_buyer_number_and_state(day: Day, seat: Client) -> None:
    number = day.invoice.number
    assert number is not None
    for query, is_found in {
        "": True, "?named=acm": True, f"?named={number}": True, "?named=hyperion": False,
        f"?status={day.invoice.status}": True, "?status=uncollectible": False,
    }.items():  # fmt: skip
        assert (number in seat.get(BILLING + query).content.decode()) is is_found, query
    assert seat.get(f"{BILLING}?status=draft").status_code == 422


RULE = {
    "jurisdiction": "ZZ", "code": "vat", "title": "VAT", "kind": "percent", "rate": "19", "buyers": "all",
    "valid_from": "2026-06-01T00:00",
}  # fmt: skip


def test_tax_rules_stack_begin_and_end(desk: Client) -> None:
    seat = desk
    path = f"{BILLING}/tax-rules"
    look_and_do(seat, path, RULE)
    page = look(seat, path, {**RULE, "code": "city", "title": "City tax", "rate": "0.5"})
    # Both hold then: 19 % and 0.5 %, so 19.50 on 100.
    assert "19.5\u2009%" in page
    assert "19.50\u00a0USD" in page
    assert TaxRule.objects.count() == 1
    levy = {
        **RULE, "code": "levy", "kind": "levy", "title": "Levy", "rate": "", "levy": "0.025",
        "home_regions": "eu-west, eu-north", "reverse_charge": "on", "buyers": "business",
    }  # fmt: skip
    shown = look_and_do(seat, path, levy)
    made = TaxRule.objects.get(code="levy")
    assert (made.levy_micros_per_mtok, made.home_regions, made.reverse_charge, made.buyers) == (
        25_000, ["eu-west", "eu-north"], True, "business",
    )  # fmt: skip
    assert "tax rule: added" in shown
    rule = TaxRule.objects.get(code="vat")
    one = f"{path}/{rule.id}"
    past = seat.post(one, {"valid_until": "2020-01-01T00:00", "step": "look"})
    assert (past.status_code, "id_valid_until_error" in past.content.decode()) == (422, True)
    look_and_do(seat, one, {"valid_until": "2027-01-01T00:00"})
    rule.refresh_from_db()
    assert rule.valid_until is not None
    assert rule.valid_until.isoformat() == "2027-01-01T00:00:00+00:00"
    look_and_do(seat, path, {**RULE, "rate": "21", "valid_from": "2027-01-01T00:00"})
    assert TaxRule.objects.filter(code="vat").count() == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"jurisdiction": "de"}, "jurisdiction"),
        ({"code": "V A T"}, "code"),
        ({"rate": "101"}, "rate"),
        ({"rate": "-1"}, "rate"),
        ({"levy": "1"}, "levy"),
        ({"kind": "levy", "rate": "", "levy": ""}, "levy"),
        ({"valid_until": "2026-05-01T00:00"}, "valid_until"),
        ({"valid_from": "soon"}, "valid_from"),
        ({"kind": "levy", "rate": "", "levy": "1", "home_regions": "x" * 65}, "home_regions"),
    ],
)
def test_a_bad_rule_is_refused_at_its_input(desk: Client, change: Form, field: str) -> None:
    answer = desk.post(f"{BILLING}/tax-rules", {**RULE, **change, "step": "look"})
    assert answer.status_code == 422
    assert f"id_{field}_error" in answer.content.decode()
    assert not TaxRule.objects.exists()


def test_a_second_rule_of_a_code_is_refused_where_it_begins(desk: Client) -> None:
    look_and_do(desk, f"{BILLING}/tax-rules", RULE)
    answer = desk.post(f"{BILLING}/tax-rules", {**RULE, "step": "look"})
    assert (answer.status_code, "id_valid_from_error" in answer.content.decode()) == (422, True)


def test_a_discount_is_given_and_ended(desk: Client, acme: Party, clock_at: datetime) -> None:
    seat = desk
    path = f"{BILLING}/discounts"
    form = {
        "organization": str(acme.id), "title": "Pilot", "rate": "12.5", "line_kind": "usage",
        "max_invoices": "3", "valid_from": "2026-03-01T00:00",
    }  # fmt: skip
    assert "Pilot is given to Acme." in look_and_do(seat, path, form)
    found = Discount.objects.get()
    assert (found.rate_ppm, found.amount_micros, found.line_kind, found.max_invoices) == (
        125_000, None, "usage", 3,
    )  # fmt: skip
    one = f"{path}/{found.id}"
    assert "discount: given" in seat.get(one).content.decode()
    for _ in range(2):
        assert seat.post(one).status_code == 302
    found.refresh_from_db()
    assert found.valid_until == clock_at
    assert AuditEntry.objects.filter(action="discount.ended").count() == 1
    for change, field in (
        ({"amount": "5"}, "rate"),
        ({"rate": ""}, "rate"),
        ({"rate": "0"}, "rate"),
        ({"rate": "100.1"}, "rate"),
        ({"max_invoices": "0"}, "max_invoices"),
        ({"organization": str(uuid7())}, "organization"),
        ({"valid_until": "2026-02-01T00:00"}, "valid_until"),
    ):
        answer = seat.post(path, {**form, **change, "step": "do"})
        assert answer.status_code == 422, change
        assert f"id_{field}_error" in answer.content.decode(), change
    assert Discount.objects.count() == 1


def test_credit_is_given_refunded_and_revoked(day: Day, seat: Client, acme: Party) -> None:
    before = prepaid(acme)
    gift = {
        "operation": str(uuid7()), "organization": str(acme.id), "kind": "purchased", "amount": "8",
        "cost_basis": "50", "priority": "5", "grade": str(day.grade.id),
    }  # fmt: skip
    page = look(seat, f"{BILLING}/grants", gift)
    assert page.count("4.00\u00a0USD") == 2
    assert (prepaid(acme), Grant.objects.count()) == (before, 0)
    look_and_do(seat, f"{BILLING}/grants", gift)
    grant = Grant.objects.get()
    assert (prepaid(acme), grant.priority, grant.grade_id) == (before - 4_000_000, 5, day.grade.id)
    one = f"{BILLING}/grants/{grant.id}"
    back = {"operation": str(uuid7()), "amount": "3.000001", "payment": ""}
    page = look(seat, one, back)
    assert "1.50\u00a0USD" in page
    assert "1.500001\u00a0USD" in page
    form = {**back, "step": "do", "shown": shown_in(page)}
    for _ in range(2):
        assert "It is given back." in seat.post(one, form, follow=True).content.decode()
    refund = GrantRefund.objects.get()
    assert (refund.amount_micros, refund.paid_micros) == (3_000_001, 1_500_000)
    assert prepaid(acme) == before - 2_500_000
    # To the card: what a card can take of what was paid.
    [choice] = re.findall(r'<option value="([0-9a-f-]{36})">Its card', seat.get(one).content.decode())
    to_card = {"operation": str(uuid7()), "amount": "", "payment": choice}
    assert "Paid for: to the card" in look(seat, one, to_card)
    assert prepaid(acme) == before - 2_500_000
    too_much = seat.post(one, {**back, "operation": str(uuid7()), "amount": "5.5", "step": "look"})
    assert (too_much.status_code, "id_amount_error" in too_much.content.decode()) == (422, True)
    revoked = seat.post(f"{one}/revoke", follow=True).content.decode()
    assert "Revoked: 4.999999" in revoked
    assert prepaid(acme) == before - 1
    assert "grant: refunded" in revoked
    assert check_ledger() == []


def test_a_card_gets_what_was_shown_and_the_rest_stays(day: Day, seat: Client, acme: Party) -> None:
    papers(day)
    grant = Grant.objects.get()
    one, before = f"{BILLING}/grants/{grant.id}", prepaid(acme)
    [choice] = re.findall(r'<option value="([0-9a-f-]{36})">Its card', seat.get(one).content.decode())
    look_and_do(seat, one, {"operation": str(uuid7()), "amount": "2.02", "payment": choice})
    assert (GrantRefund.objects.get().paid_micros, prepaid(acme)) == (1_010_000, before)
    look_and_do(seat, one, {"operation": str(uuid7()), "amount": "2.03", "payment": choice})
    # 1.015 were paid for: 1.01 to the card, half a cent stays.
    assert prepaid(acme) == before + 5_000
    assert check_ledger() == []


def test_what_was_promotional_is_voided_without_money(day: Day, seat: Client, acme: Party) -> None:
    gift = {
        "operation": str(uuid7()), "organization": str(acme.id), "kind": "granted", "amount": "8",
        "priority": "5", "expires_at": (day.now + timedelta(days=9)).strftime("%Y-%m-%dT%H:%M"),
    }  # fmt: skip
    look_and_do(seat, f"{BILLING}/grants", gift)
    before = prepaid(acme)
    one = f"{BILLING}/grants/{Grant.objects.get().id}"
    assert "Nothing was paid for it" in seat.get(one).content.decode()
    page = look(seat, one, {"operation": str(uuid7()), "amount": ""})
    assert "Void it" in page
    look_and_do(seat, one, {"operation": str(uuid7()), "amount": ""})
    assert (Grant.objects.get().free_micros, prepaid(acme)) == (0, before)
    assert "Nothing of it is unused" in seat.get(one).content.decode()
    for change, field in (
        ({"cost_basis": "5"}, "cost_basis"),
        ({"amount": "0"}, "amount"),
        ({"priority": "1000"}, "priority"),
        ({"expires_at": "2020-01-01T00:00"}, "expires_at"),
        ({"grade": str(uuid7())}, "grade"),
    ):
        answer = seat.post(f"{BILLING}/grants", {**gift, "operation": str(uuid7()), **change, "step": "look"})
        assert (answer.status_code, f"id_{field}_error" in answer.content.decode()) == (422, True), change


def test_the_trail_names_who_did_what(desk: Client, operator: Party) -> None:
    look_and_do(desk, f"{BILLING}/tax-rules", {**RULE, "title": "A <b>rule</b>", "code": "x"})
    page = desk.get(f"{BILLING}/trail").content.decode()
    assert operator.user.email in page
    assert "tax rule: added" in page


def test_viewers_of_the_operator_read_and_change_nothing(
    day: Day, operator: Party, viewer_of: Callable[[Party], Client]
) -> None:
    viewer = viewer_of(operator)
    ids = papers(day)
    pages = (
        f"{BILLING}/tax-rules", f"{BILLING}/tax-rules/{ids['rule_id']}", f"{BILLING}/discounts",
        f"{BILLING}/discounts/{ids['discount_id']}", f"{BILLING}/grants", f"{BILLING}/grants/{ids['grant_id']}",
        credit_path(day), f"{BILLING}/invoices/{day.invoice.id}/reissue",
    )  # fmt: skip
    for path in pages:
        answer = viewer.get(path)
        assert answer.status_code == 200, path
        assert 'name="step"' not in answer.content.decode(), path
        assert viewer.post(path, {"step": "look"}).status_code == 403, path
    assert viewer.post(f"{BILLING}/grants/{ids['grant_id']}/revoke").status_code == 403
    assert Grant.objects.get().status == "open"


def test_nobody_but_the_operator_has_these_pages(
    day: Day, acme: Party, hyperion: Party, mallory: Party, sign_in: SignIn
) -> None:
    ids = papers(day)
    for party in (acme, hyperion, mallory):
        client = sign_in(party)
        for path in (
            BILLING, f"{BILLING}/trail", f"{BILLING}/tax-rules", f"{BILLING}/discounts", f"{BILLING}/grants",
            f"{BILLING}/grants/{ids['grant_id']}", f"{BILLING}/invoices/{day.invoice.id}", credit_path(day),
        ):  # fmt: skip
            assert client.get(path).status_code == 404, path
            assert client.post(path, {}).status_code in (404, 405), path
