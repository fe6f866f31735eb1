"""The invoice page with what happened to it, its files, and who documents are made out to."""

from __future__ import annotations

from datetime import datetime
from uuid import uuid4

from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM
from marketplace.billing.services.crediting import issue_credit_note
from pricing.models import Grade
from tests.billing.test_invoicing import APRIL_2
from tests.billing.test_lifecycle import in_arrears
from tests.cast import Party, Plant, fund
from tests.portal.conftest import SignIn


def test_an_invoice_is_credited_paid_and_downloaded(
    acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime, sign_in: SignIn
) -> None:
    invoice = in_arrears(acme, grade, plant, now)
    (line,) = invoice.lines.all()
    note = issue_credit_note(
        invoice_id=invoice.id,
        amounts_micros={line.id: 1_000_000},
        reason="Courtesy",
        operation_id=uuid4(),
        now=APRIL_2,
        actor=SYSTEM,
    )
    browser, path = sign_in(acme), f"/buyer/invoices/{invoice.id}"
    shown = browser.get(path).content.decode()
    assert "Pay from the balance" in shown
    assert f"?note={note.number}" in shown
    refused = browser.post(f"{path}/pay", follow=True).content.decode()
    assert "Paid from the balance." not in refused
    fund(acme, 3_000_000, now)
    assert "Paid from the balance." in browser.post(f"{path}/pay", follow=True).content.decode()
    assert "Pay from the balance" not in browser.get(path).content.decode()
    assert f'href="{path}/evidence"' in shown
    evidence = b"".join(browser.get(f"{path}/evidence").streaming_content)  # type: ignore[attr-defined]
    assert evidence.splitlines()[-1].startswith(b'{"t":"end"')
    files = {browser.get(f"{path}/pdf").content, browser.get(f"{path}/pdf?note={note.number}").content}
    assert len(files) == 2
    assert {pdf[:5] for pdf in files} == {b"%PDF-"}
    assert browser.get(f"{path}/pdf?note=TC-2026-999999").status_code == 404
    assert sign_in(mallory).get(f"{path}/pdf?note={note.number}").status_code == 404


def test_the_legal_identity_is_given_and_refused_at_its_field(
    acme: Party, hyperion: Party, now: datetime, sign_in: SignIn
) -> None:
    browser = sign_in(acme)
    given = {"legal_name": "Acme Ltd", "address": "1 Road", "country": "DE", "tax_number": "DE123456789"}
    assert browser.post("/buyer/identity", given).status_code == 302
    assert Organization.objects.get(pk=acme.id).legal_name == "Acme Ltd"
    refused = browser.post("/buyer/identity", {**given, "country": "de"})
    assert (refused.status_code, "two capital letters" in refused.content.decode()) == (422, True)
    refused = browser.post("/buyer/identity", {**given, "tax_number": "a b?"})
    assert (refused.status_code, "tax number" in refused.content.decode().lower()) == (422, True)
    assert sign_in(hyperion).get("/provider/identity").status_code == 200
