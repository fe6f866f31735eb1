"""A market on the simulated Stripe in which acme owes an invoice of 2.40 that nothing covered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Invoice, InvoicePayment, ProcessorOperation
from marketplace.billing.services.paying import pay_invoice
from marketplace.ledger.models import AccountKind
from tests.billing.stripe_market import StripeMarket, make_stripe_market, pay_by
from tests.billing.test_invoicing import APRIL_2
from tests.billing.test_lifecycle import in_arrears
from tests.cast import make_grade, make_party, make_plant
from tests.stripe_sim.server import stripe_sim

DUE = 2_400_000


@dataclass
class Owing(StripeMarket):
    invoice: Invoice

    def pay(
        self, source: str = "processor", *, operation_id: UUID | None = None, now: datetime | None = None
    ) -> InvoicePayment:
        return pay_invoice(
            organization_id=self.acme.id,
            invoice_id=self.invoice.id,
            source=source,
            operation_id=operation_id or uuid4(),
            now=now or self.now,
            actor=SYSTEM,
        )

    def status(self) -> str:
        return str(Invoice.objects.values_list("status", flat=True).get(pk=self.invoice.pk))

    def receivable(self) -> int:
        return self.balance(self.acme, AccountKind.RECEIVABLE).posted_micros

    def operation_of(self, payment: InvoicePayment) -> ProcessorOperation:
        return self.collection(payment.id)


@contextmanager
def owing_market(now: datetime) -> Iterator[Owing]:
    """The invoice is made while the sandbox still pays: buyers' money is not what is looked at here."""
    with stripe_sim() as sim:
        base = make_stripe_market(sim, now)
        hyperion = make_party("Hyperion", ["provider"], now)
        grade = make_grade(now)
        plant = make_plant(hyperion, grade, now)
        invoice = in_arrears(base.acme, grade, plant, now)
        with pay_by(sim):
            yield Owing(base.sim, APRIL_2, base.operator, base.acme, invoice)
