"""A market whose payment processor is the simulated Stripe: real SDK, real HTTP, real commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings
from django.db.models import F
from django.test import Client

from marketplace import clock
from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import ProcessorAccount, ProcessorEvent, ProcessorOperation, TopUp
from marketplace.billing.services.collecting import save_card
from marketplace.billing.services.operations import resume_operations
from marketplace.billing.services.processor_events import apply_events
from marketplace.billing.services.provider_accounts import onboarding_link
from marketplace.billing.services.top_ups import top_up
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import Balance, balance, check_ledger
from tests.cast import Party, make_party
from tests.stripe_sim.app import SECRET_KEY
from tests.stripe_sim.server import StripeSim

UNIT = 1_000_000


@dataclass
class StripeMarket:
    sim: StripeSim
    now: datetime
    operator: Party
    acme: Party

    def receive(self, raw: bytes, signature: str) -> int:
        """The market's door for webhooks, as Stripe comes to it."""
        answer = Client().post(
            "/webhooks/stripe", raw, content_type="application/json", HTTP_STRIPE_SIGNATURE=signature
        )
        return answer.status_code

    def settle(self) -> None:
        """All webhooks arrive and are applied."""
        assert set(self.sim.deliver(self.receive)) <= {204}
        self.apply()

    def apply(self) -> None:
        ProcessorEvent.objects.update(next_attempt_at=clock.wall_now())
        apply_events(now=self.now)

    def sweep(self) -> None:
        """The sweeper, once everything is due."""
        ProcessorOperation.objects.update(
            next_attempt_at=clock.wall_now() - timedelta(seconds=1), lease_until=None
        )
        resume_operations(now=self.now)

    def save_card(self, card: str = "pm_card_visa") -> None:
        page = save_card(organization_id=self.acme.id, operation_id=uuid7(), currency="USD", now=self.now)
        assert page.action_url.startswith("https://checkout.stripe.test/")
        self.sim.world.pay_checkout(page.object_id, card)
        self.settle()

    def top_up(self, units: int = 10, *, operation_id: UUID | None = None) -> TopUp:
        return self.top_up_micros(units * UNIT, operation_id=operation_id)

    def top_up_micros(self, amount_micros: int, *, operation_id: UUID | None = None) -> TopUp:
        return top_up(
            organization_id=self.acme.id,
            amount_micros=amount_micros,
            operation_id=operation_id or uuid7(),
            now=self.now,
            actor=SYSTEM,
        )

    def collection(self, top_up_id: UUID) -> ProcessorOperation:
        return ProcessorOperation.objects.get(subject_id=top_up_id, kind__in=("charge", "checkout"))

    def balance(self, party: Party, kind: AccountKind) -> Balance:
        return balance(organization_id=party.id, kind=kind, currency="USD")

    def prepaid(self) -> int:
        return self.balance(self.acme, AccountKind.PREPAID).available_micros

    def onboard(self, party: Party, *, due: list[str] | None = None) -> ProcessorAccount:
        Organization.objects.filter(pk=party.id).update(country="DE")
        assert onboarding_link(organization_id=party.id, now=self.now).startswith(
            "https://connect.stripe.test/"
        )
        account = ProcessorAccount.objects.get(organization_id=party.id)
        self.sim.world.onboard(account.account_id, due=due)
        self.settle()
        account.refresh_from_db()
        return account

    def objects(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """What really is at Stripe."""
        return [
            one
            for one in self.sim.world.objects.values()
            if one["object"] == kind and all(one[name] == value for name, value in wanted.items())
        ]

    def make_older(self, delta: timedelta) -> None:
        """As if all that was asked so far had been asked that much earlier."""
        ProcessorOperation.objects.update(
            key_sent_at=F("key_sent_at") - delta, called_at=F("called_at") - delta
        )

    def assert_books_balance(self) -> None:
        assert check_ledger() == []


@contextmanager
def pay_by(sim: StripeSim) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(settings, "PAYMENT_PROCESSOR", "stripe")
    patch.setattr(settings, "STRIPE_SECRET_KEY", SECRET_KEY)
    patch.setattr(settings, "STRIPE_WEBHOOK_SECRETS", list(sim.secrets))
    patch.setattr(settings, "STRIPE_API_BASE", sim.url)
    patch.setattr(settings, "STRIPE_TIMEOUT_S", 3)
    # Tests do in a second what people do in an hour; those of the budget set their own.
    patch.setattr(settings, "STRIPE_CALLS_PER_S", 1_000)
    try:
        yield
    finally:
        patch.undo()


def make_stripe_market(sim: StripeSim, now: datetime) -> StripeMarket:
    return StripeMarket(
        sim, now, make_party("Operator", ["operator"], now), make_party("Acme", ["buyer"], now)
    )
