"""Invoices recomputed from their evidence: by the command, and by the file that buyers run on their own machine."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from marketplace.accounts.services import SYSTEM
from marketplace.billing.evidence import VERIFIER, evidence_of
from marketplace.billing.evidence_verifier import Difference, Verifier, verify
from marketplace.billing.models import CreditNote, Invoice
from marketplace.billing.services.invoicing import issue_invoices, reissue_invoice
from marketplace.billing.verifying import verify_document
from metering.models import UsageRollup
from pricing.models import Grade
from pricing.units import Bucket
from tests.billing.evidence_world import carry, settle, whole_month
from tests.billing.test_disputes import supply
from tests.billing.test_invoicing import APRIL_2, MARCH, use
from tests.billing.world import FUNDS, LOT, accrue, on_demand
from tests.cast import Party, Plant, fund

pytestmark = pytest.mark.usefixtures("hyperion", "operator")
# Figures that name something, or that nothing depends on: all others are amounts, counts and rates.
_NAMES = {("event", "attempt"), ("event", "part"), ("charge", "run"), ("head", "form")}
Record = dict[str, Any]


@pytest.fixture
def invoice(acme: Party, grade: Grade, plant: Plant, now: datetime) -> Invoice:
    return whole_month(acme, grade, plant, now)


def file_of(invoice: Invoice) -> bytes:
    return b"".join(evidence_of(invoice))


def records_of(file: bytes) -> list[Record]:
    return [json.loads(line) for line in file.splitlines()][:-1]


def sealed(records: list[Record]) -> bytes:
    """A file that says so, with a digest of its own: what a forger would hand in."""
    lines = [(json.dumps(record, ensure_ascii=False) + "\n").encode() for record in records]
    end = {"t": "end", "records": len(lines), "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    return b"".join(lines) + json.dumps(end).encode() + b"\n"


def is_refused(records: list[Record]) -> bool:
    try:
        verify(BytesIO(sealed(records)))
    except Difference:
        return True
    return False


def figures(record: Record) -> Iterator[tuple[dict[str, Any], str]]:
    """Every integer of a record and where it stands; the document's text is proved by its digest."""
    for name, value in record.items():
        if type(value) is int and (record.get("t"), name) not in _NAMES:
            yield record, name
        elif isinstance(value, dict) and name != "content":
            yield from figures(value)


def test_a_whole_month_is_recomputed_and_the_same_rows_give_the_same_bytes(invoice: Invoice) -> None:
    file = file_of(invoice)
    assert file == file_of(Invoice.objects.get(pk=invoice.id))
    verifier, sums = verify(BytesIO(file))
    assert (verifier.unsettled, verifier.stated) == ([], [])
    assert sums == {
        "subtotal": invoice.subtotal_micros,
        "discount": invoice.discount_micros,
        "tax": invoice.tax_micros,
        "rounding": invoice.rounding_micros,
        "total": invoice.total_micros,
        "prepaid": invoice.prepaid_micros,
        "amount_due": invoice.amount_due_micros,
    }
    counts = verifier.counts
    assert (counts["event"], counts["rollup"], counts["tax"], counts["note"]) == (7, 10, 2, 2)
    kinds = {record["kind"] for record in records_of(file) if record["t"] == "charge"}
    assert kinds == {"usage", "adjustment", "spot", "minimum_take", "remedy", "committed_fee"}


def test_the_verifier_is_one_file_that_needs_python_alone(invoice: Invoice, tmp_path: Path) -> None:
    tree = ast.parse(VERIFIER.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names
    program, good, bad = tmp_path / "verify_invoice.py", tmp_path / "good.ndjson", tmp_path / "bad.ndjson"
    program.write_bytes(VERIFIER.read_bytes())
    file = file_of(invoice)
    good.write_bytes(file)
    bad.write_bytes(file.replace(b'"output":4300000', b'"output":4300001', 1))

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", str(program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    told = run(good)
    assert (told.returncode, told.stderr) == (0, "")
    assert f"invoice {invoice.number}: recomputed to the micro" in told.stdout
    assert f"{invoice.total_micros:,} micros USD total" in told.stdout
    told = run(bad)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("difference: event ")
    assert run().returncode == 64
    assert run(tmp_path / "none").returncode == 66


def test_one_other_digit_anywhere_in_a_figure_is_found_though_the_file_is_sealed_anew(
    invoice: Invoice,
) -> None:
    records = records_of(file_of(invoice))
    assert not is_refused(records)
    missed, tried = [], 0
    for record in records:
        for place, name in figures(record):
            kept = place[name]
            text = str(kept)
            for at, digit in enumerate(text):
                if digit == "-":
                    continue
                place[name] = int(f"{text[:at]}{(int(digit) + 1) % 10}{text[at + 1 :]}")
                tried += 1
                if not is_refused(records):
                    missed.append((record["t"], name, kept, place[name]))
            place[name] = kept
    assert missed == []
    assert tried > 1_000


def test_a_record_left_out_or_told_twice_is_found(invoice: Invoice) -> None:
    records = records_of(file_of(invoice))
    for at, record in enumerate(records):
        assert is_refused(records[:at] + records[at + 1 :]), f"left out: {record}"
        assert is_refused([*records[:at], record, *records[at:]]), f"twice: {record}"


def test_a_file_that_was_cut_or_touched_is_found(invoice: Invoice) -> None:
    file = file_of(invoice)
    for bad in (file[:-2], file[: len(file) // 2], file + b"{}\n", b"", b"[]\n", b"\xff\n", b'{"t":1}\n'):
        with pytest.raises(Difference):
            verify(BytesIO(bad))
    # A word that no figure depends on: the seal.
    with pytest.raises(Difference, match="sha256"):
        verify(BytesIO(file.replace(b'"occurred_at":"2026', b'"occurred_at":"2025', 1)))


def test_the_command_verifies_invoices_and_credit_notes(invoice: Invoice) -> None:
    notes = list(CreditNote.objects.order_by("number").values_list("number", flat=True))
    for number in (str(invoice.number), *notes):
        out = StringIO()
        call_command("verifyinvoice", number, stdout=out)
        report = json.loads(out.getvalue())
        assert (report["ok"], report["number"], report["invoice_number"]) == (True, number, invoice.number)
        assert report["sums"]["total_micros"] == invoice.total_micros
    with pytest.raises(CommandError, match="no such document"):
        call_command("verifyinvoice", "TY-1999-000001")


@pytest.mark.parametrize("figure", ["numerator", "native_tokens", "events"])
def test_the_command_names_the_roll_up_that_its_events_do_not_bear_out(
    invoice: Invoice, grade: Grade, plant: Plant, now: datetime, figure: str
) -> None:
    row = UsageRollup.objects.filter(rate_id=plant.offering.list_rate_id, bucket="output").first()
    assert row is not None
    UsageRollup.objects.filter(pk=row.pk).update(**{figure: getattr(row, figure) + 1})
    out, complaint = StringIO(), StringIO()
    with pytest.raises(SystemExit, match="1"):
        call_command("verifyinvoice", str(invoice.number), stdout=out, stderr=complaint)
    assert "roll-up output of offering" in complaint.getvalue()
    assert json.loads(out.getvalue())["ok"] is False


def test_roll_ups_without_events_are_not_believed(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    use(acme, grade, plant, LOT, now, 600)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    found = verify_document(number=str(invoice.number))
    assert found.difference is not None
    assert "of the events: stated 1, recomputed 0" in found.difference


def test_later_usage_is_said_to_be_uncharged_and_then_stands_on_the_next_invoice(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = on_demand(acme, grade, now)
    supply(contract, plant, now)
    rate = plant.offering.list_rate
    carry(contract, plant, rate, now, {Bucket.OUTPUT: 123_457})
    accrue(contract, now, 80_000, now)
    settle(now)
    (march,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    carry(contract, plant, rate, now, {Bucket.OUTPUT: 1_003})
    verifier, sums = verify(BytesIO(file_of(march)))
    assert len(verifier.unsettled) == 1
    assert sums["subtotal"] == 74_074
    settle(now)
    (april,) = issue_invoices(
        month_start=datetime.fromisoformat("2026-04-01T00:00:00Z"), now=now.replace(month=5)
    )
    for document, subtotal in ((march, 74_074), (april, 602)):
        verifier, sums = verify(BytesIO(file_of(document)))
        assert (verifier.unsettled, sums["subtotal"]) == ([], subtotal)
        # Both charges of the period stand in both files.
        assert verifier.counts["charge"] == 2


def test_a_document_that_was_replaced_says_where_its_charges_are(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    old = whole_month(acme, grade, plant, now, notes=False)
    new = reissue_invoice(invoice_id=old.id, reason="wrong address", now=APRIL_2, actor=SYSTEM)
    head = records_of(file_of(Invoice.objects.get(pk=old.id)))[0]
    assert head["charges_moved_to"] == new.number
    for number in (old.number, new.number):
        assert verify_document(number=str(number)).difference is None


def test_only_its_buyer_downloads_it_and_anyone_the_verifier(
    acme: Party, mallory: Party, invoice: Invoice
) -> None:
    answer = acme.api.get(f"/api/v1/invoices/{invoice.id}/evidence")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/x-ndjson")
    assert answer["Content-Disposition"] == f'attachment; filename="{invoice.number}-evidence.ndjson"'
    file = b"".join(answer.streaming_content)  # type: ignore[attr-defined]
    assert file == file_of(invoice)
    assert mallory.api.get(f"/api/v1/invoices/{invoice.id}/evidence").status_code == 404
    program = acme.api.get("/api/v1/evidence-verifier")
    assert program.content == VERIFIER.read_bytes()
    assert program["Content-Disposition"] == 'attachment; filename="verify_invoice.py"'
    assert b"prompt" not in file
    assert str(invoice.organization_id).encode() in file


def test_memory_does_not_grow_with_the_events() -> None:
    """The verifier keeps sums by roll-up, never events."""
    verifier = Verifier()
    verifier.read(b'{"t":"head","form":1}\n')
    verifier.read(b'{"t":"weight","grade_id":"g","bucket":"output","standard_ppm":1000000}\n')
    verifier.read(
        b'{"t":"cell","contract_id":"c","contract_kind":"on_demand","start":"2026-03-10T12:00:00Z",'
        b'"end":"2026-03-10T13:00:00Z","settled":true}\n'
    )
    event = (
        b'{"t":"event","id":"%d","rate_id":"r","grade_id":"g","offering_id":"o","api_key_id":"k",'
        b'"period_start":"2026-03-10T12:00:00Z","tokens":{"output":3},"numerator":3000000,"estimated":false}\n'
    )
    for number in range(1_000):
        verifier.read(event % number)
    assert verifier.cell is not None
    assert list(verifier.cell.sums.values()) == [[1_000, 3_000, 3_000_000_000, 0, 0]]
