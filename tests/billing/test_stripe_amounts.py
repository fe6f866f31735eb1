"""Stripe's units, steps and bounds: as numbers, and through the simulator in currencies that differ from ISO 4217."""

from __future__ import annotations

from typing import Any

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import PaymentDispute, Payout, ProcessorOperation, TopUp
from marketplace.billing.payout_status import payout_status
from marketplace.billing.processors.stripe_amounts import (
    charge_bounds_micros,
    micros_of,
    payout_step_micros,
    step_micros,
    unit_micros,
    units_of,
)
from marketplace.billing.services.collecting import save_card
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.processor_reconciling import compare_balances
from marketplace.billing.services.refunds import refund_payment
from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import NewTransfer, account_id, post_transfers
from pricing.units import CURRENCY_EXPONENTS, micros_per_minor_unit
from tests.billing.stripe_market import StripeMarket
from tests.billing.test_stripe_payouts import Selling, market

__all__ = ["market"]


@pytest.mark.parametrize(
    ("amount_micros", "currency", "units"),
    [
        (10_000_000, "USD", 1_000),
        (500_000_000, "JPY", 500),
        (5_000_000, "ISK", 500),  # whole, but sent with two decimals
        (5_000_000, "UGX", 500),
        (5_120_000, "KWD", 5_120),
        (3_000_000, "MGA", 3),  # two decimals in ISO, none at Stripe
        (10_450_000, "HUF", 1_045),
    ],
)
def test_amounts_are_sent_in_stripes_unit_and_read_in_it(
    amount_micros: int, currency: str, units: int
) -> None:
    assert units_of(amount_micros, currency) == units
    assert micros_of(units, currency) == amount_micros


@pytest.mark.parametrize(
    ("currency", "step", "payout_step"),
    [
        ("USD", 10_000, 10_000),
        ("JPY", 1_000_000, 1_000_000),
        ("ISK", 1_000_000, 1_000_000),
        ("KWD", 10_000, 10_000),
        ("HUF", 10_000, 1_000_000),
        ("TWD", 10_000, 1_000_000),
    ],
)
def test_the_steps_of_charges_and_payouts(currency: str, step: int, payout_step: int) -> None:
    assert (step_micros(currency), payout_step_micros(currency)) == (step, payout_step)


@pytest.mark.parametrize("currency", sorted(CURRENCY_EXPONENTS))
def test_every_step_is_whole_units_and_never_finer_than_the_currency(currency: str) -> None:
    step, payout_step = step_micros(currency), payout_step_micros(currency)
    least, most = charge_bounds_micros(currency)
    assert step % unit_micros(currency) == payout_step % step == least % step == most % step == 0
    assert 0 < step <= least < most
    # Four decimals (CLF, UYW) are no currencies of Stripe's.
    if CURRENCY_EXPONENTS[currency] < 4:
        assert step % min(step, micros_per_minor_unit(currency)) == 0


def test_the_least_and_the_most_of_a_charge() -> None:
    assert charge_bounds_micros("USD") == (500_000, 999_999_990_000)
    assert charge_bounds_micros("JPY") == (50_000_000, 99_999_999_000_000)
    assert charge_bounds_micros("HUF") == (175_000_000, 999_999_990_000)
    assert charge_bounds_micros("ISK") == (1_000_000, 999_999_000_000)
    assert charge_bounds_micros("IDR")[1] == 9_999_999_999_990_000


@pytest.mark.parametrize("amount_micros", [10_000, 490_000, 1_000_000_000_000, 505_000, -10_000, 0])
def test_a_top_up_that_stripe_would_refuse_never_reaches_it(market: Selling, amount_micros: int) -> None:
    market.save_card()
    answer = market.acme.api.post(
        "/api/v1/top-ups", {"amount_micros": amount_micros}, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid7())
    )
    assert answer.status_code in (400, 422), answer.content
    assert answer.json()["field"] == "amount_micros"
    assert not market.objects("payment_intent")
    assert market.top_up_micros(500_000).status == TopUp.Status.SUCCEEDED


@pytest.mark.parametrize(
    ("currency", "amount", "refused", "units"),
    [
        ("JPY", 500_000_000, 500_500_000, 500),
        ("KWD", 5_120_000, 5_124_000, 5_120),
        ("ISK", 700_000_000, 700_500_000, 70_000),
        ("HUF", 500_450_000, 500_455_000, 50_045),
    ],
)
def test_money_goes_around_in_a_currency_whose_units_are_its_own(
    market: Selling, settings: Any, currency: str, amount: int, refused: int, units: int
) -> None:
    """Paid in, part sent back, earned, paid out, taken back by the bank: each amount is one that Stripe takes."""
    settings.MARKET_CURRENCY = currency
    of_acme = in_currency(market, currency)
    step = step_micros(currency)
    with pytest.raises(InvalidInput):
        market.top_up_micros(refused)
    made = market.top_up_micros(amount)
    assert made.status == TopUp.Status.SUCCEEDED
    [intent] = market.objects("payment_intent", status="succeeded")
    assert (intent["amount"], intent["currency"]) == (units, currency.lower())
    back: dict[str, Any] = {"organization_id": market.acme.id, "payment_id": made.id, "now": market.now}
    back |= {"operation_id": uuid7(), "actor": SYSTEM}
    with pytest.raises(InvalidInput):
        refund_payment(**back, amount_micros=step // 2)
    assert refund_payment(**back, amount_micros=step).status == ProcessorOperation.Status.SUCCEEDED
    # What he earned is finer than anything that can be paid out.
    market.onboard(market.hyperion)
    earned = amount // 2 + step // 2 + 1
    pay(market, earned, currency)
    [payout] = pay_out_statements(now=market.now)
    assert payout.status == Payout.Status.PAID
    assert payout.amount_micros == earned // payout_step_micros(currency) * payout_step_micros(currency)
    assert payout_status(market.hyperion.id, now=market.now).ready_micros == 0
    [at_bank] = market.objects("payout")
    assert micros_of(at_bank["amount"], currency) == payout.amount_micros
    assert compare_balances(now=market.now).difference_micros == 0
    # The bank takes it all back; he has spent odd micros, so what is to be reversed is odd too.
    ProcessorOperation.objects.filter(subject_id=payout.id, kind="transfer").update(
        parent=market.collection(made.id)
    )
    held = of_acme(AccountKind.PREPAID)
    market.sim.world.dispute(market.charge_of(made))
    market.settle()
    dispute = PaymentDispute.objects.get()
    assert dispute.from_balance_micros == held
    for reversal in ProcessorOperation.objects.filter(kind="reversal"):
        assert reversal.amount_micros % step == 0
        assert reversal.status in (ProcessorOperation.Status.SUCCEEDED, ProcessorOperation.Status.FAILED)
    market.assert_books_balance()


def in_currency(market: StripeMarket, currency: str) -> Any:
    page = save_card(organization_id=market.acme.id, operation_id=uuid7(), currency=currency, now=market.now)
    market.sim.world.pay_checkout(page.object_id, "pm_card_bypassPending")
    market.settle()
    return lambda kind: balance(organization_id=market.acme.id, kind=kind, currency=currency).available_micros


def pay(market: Selling, amount_micros: int, currency: str) -> None:
    ids: dict[str, Any] = {"currency": currency, "now": market.now}
    transfer = NewTransfer(
        id=uuid7(),
        debit_id=account_id(organization_id=market.acme.id, kind=AccountKind.PREPAID, **ids),
        credit_id=account_id(organization_id=market.hyperion.id, kind=AccountKind.PAYABLE, **ids),
        amount_micros=amount_micros,
        code="usage",
    )
    post_transfers([transfer], now=market.now)
