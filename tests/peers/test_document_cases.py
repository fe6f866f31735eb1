"""Discounts, taxes, credit notes and whole minor units as peers' tests have them; in cents where they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from marketplace.billing.amounts import DiscountTerm, TaxedLine, TaxTerm, credited_part, work_out
from marketplace.billing.documents import foot, whole_minor_units
from pricing.months import Period, prorated
from pricing.tariffs import true_up
from pricing.units import div_half_up, micros_per_minor_unit
from tests.peers.cases import expected, micros, ppm, runs


def in_cents(amount: str) -> int:
    scaled = Fraction(amount) * 100
    assert scaled.denominator == 1
    return int(scaled)


@runs("tax-01")
def test_stacked_taxes_are_rounded_each_for_itself(case: dict[str, Any]) -> None:
    rates = case["input"]["rates_pct"]
    taxes = [TaxTerm(str(place), ppm=ppm(rate)) for place, rate in enumerate(rates)]
    amount = in_cents(case["input"]["amount"])
    worked = work_out({1: TaxedLine(amount, taxes=tuple(tax.key for tax in taxes))}, [], taxes)
    assert list(worked.taxes.values()) == [in_cents(tax) for tax in case["expected"]["taxes"]]
    assert worked.tax == in_cents(case["expected"]["tax_total"])
    # In one go it would be 11.50.
    assert div_half_up(amount * sum(tax.ppm for tax in taxes), 10**6) == worked.tax + 1


@runs("tax-02")
def test_discount_then_tax(case: dict[str, Any]) -> None:
    given_ = case["input"]
    worked = work_out(
        {1: TaxedLine(in_cents(given_["amount"]), taxes=("t",))},
        [DiscountTerm("d", amount=in_cents(given_["discount"]))],
        [TaxTerm("t", ppm=ppm(given_["tax_pct"]))],
    )
    assert (worked.tax, worked.net + worked.tax) == (
        in_cents(case["expected"]["tax"]),
        in_cents(case["expected"]["total"]),
    )


@runs("disc-01")
def test_a_fixed_discount_never_exceeds_its_line(case: dict[str, Any]) -> None:
    share, fixed = case["input"]["rows"]
    found = [
        DiscountTerm("d", ppm=ppm(share["discount_pct"])).of(in_cents(share["amount"])),
        DiscountTerm("d", amount=in_cents(fixed["discount_fixed"])).of(in_cents(fixed["amount"])),
    ]
    assert found == [in_cents(amount) for amount in case["expected"]["discount"]]


@runs("inv-02")
def test_line_discount_then_document_discount_then_prepaid(case: dict[str, Any]) -> None:
    given_ = {name: micros(amount) for name, amount in case["input"].items()}
    discounts = [
        DiscountTerm("a", amount=given_["invoice_discount"]),
        DiscountTerm("b", amount=given_["line_discount"], kind="usage"),
    ]
    worked = work_out({1: TaxedLine(given_["gross"], kind="usage")}, discounts, [])
    assert worked.net == micros(case["expected"]["eligible"])
    # What the balance had is charged prepaid, the rest in arrears.
    paid = min(given_["wallet"], worked.net)
    found = foot(
        prepaid_net=paid, arrears_net=worked.net - paid, tax=0, currency="USD", discount=worked.discount
    )
    assert (found.prepaid, found.amount_due) == (
        micros(case["expected"]["wallet_used"]),
        micros(case["expected"]["due"]),
    )
    assert (found.subtotal, found.total) == (given_["gross"], worked.net)


@runs("credit-18")
def test_prepaid_pays_the_amount_with_tax(case: dict[str, Any]) -> None:
    balance, charged, left = in_cents(case["input"]["wallet"]), [], []
    for fee in case["input"]["fees"]:
        worked = work_out(
            {1: TaxedLine(in_cents(fee), taxes=("t",))}, [], [TaxTerm("t", ppm=ppm(case["input"]["tax_pct"]))]
        )
        charged.append(worked.net + worked.tax)
        balance -= charged[-1]
        left.append(balance)
    assert charged == [in_cents(amount) for amount in case["expected"]["charged_with_tax"]]
    assert left == [in_cents(amount) for amount in case["expected"]["balance"]]


@runs("round-01")
def test_documents_round_down_to_whole_minor_units(case: dict[str, Any]) -> None:
    rows = case["input"]["rows"]
    found = [whole_minor_units(micros(row["amount"]), row["currency"]) for row in rows]
    assert found == [micros(amount) for amount in expected(case)["amounts"]]
    # The peer's answers are half-up; a micro is what tax is rounded to, by the same rule.
    minors = [micros_per_minor_unit(row["currency"]) for row in rows]
    theirs = [
        div_half_up(micros(row["amount"]), minor) * minor for row, minor in zip(rows, minors, strict=True)
    ]
    assert theirs == [micros(amount) for amount in case["expected"]["amounts"]]


@runs("cn-01")
def test_credit_note_of_an_unused_part(case: dict[str, Any]) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for place, row in enumerate(case["input"]["rows"]):
        fee, unused, of = row["fee_cents"], row["unused_days"], row["of"]
        taxes = [TaxTerm("t", ppm=ppm(row["tax_pct"]))]
        charged = work_out({1: TaxedLine(fee, taxes=("t",))}, [], taxes).tax
        whole = Period(start, start + timedelta(days=of))
        net = prorated(fee, Period(whole.end - timedelta(days=unused), whole.end), whole=whole)
        part = credited_part(charged, credited=net, of=fee)
        answer = {"credit_cents": net, "tax_cents": part, "total_cents": net + part}
        assert answer == {name: amounts[place] for name, amounts in case["expected"].items()}


@runs("commit-04")
def test_a_minimum_is_taxed_as_any_line(case: dict[str, Any]) -> None:
    given_ = case["input"]
    minimum = true_up(charged_micros=0, minimum_micros=given_["minimum_prorated_cents"])
    worked = work_out({1: TaxedLine(minimum, taxes=("t",))}, [], [TaxTerm("t", ppm=ppm(given_["tax_pct"]))])
    assert (worked.tax, worked.net + worked.tax) == (
        case["expected"]["tax_cents"],
        case["expected"]["total_cents"],
    )
