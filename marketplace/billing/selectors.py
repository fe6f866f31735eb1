"""Reads across rows: what is due for settlement, what was metered, what a charge is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import QuerySet, Sum

from marketplace.billing.models import Charge, Earning, Invoice, InvoiceLine, Statement, TopUp
from marketplace.contracts.models import Hold
from marketplace.errors import NotFound
from metering.models import MeterKind, UsageEvent, UsageRollup
from metering.selectors import pending_before
from providers.models import Provider


@dataclass(frozen=True, slots=True)
class Due:
    """A contract with something to square up in the settlement period that begins then."""

    contract_id: UUID
    settlement_start: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Metered:
    """What the gateway carried of one rate and delivery period: exact numerators by offering."""

    rate_id: UUID
    grade_id: UUID
    period_start: datetime
    numerators: Mapping[UUID, int]


# Four reasons to settle: roll-ups that no run has seen, an accrual whose hold is open, an award not settled yet,
# a prepaid month whose remainder is not paid. The last three do not depend on `since`.
_UNSETTLED = """
WITH usage AS (
    SELECT contract_id, date_bin(%(period)s, period_start, 'epoch'::timestamptz) AS settlement_start,
           sum(numerator) AS numerator
    FROM metering_usagerollup
    WHERE meter = 'gateway' AND period_start >= %(since)s AND period_start < %(until)s
    GROUP BY 1, 2
), latest AS (
    SELECT DISTINCT ON (contract_id, settlement_start) contract_id, settlement_start, usage_numerator
    FROM billing_settlement
    WHERE settlement_start >= %(since)s AND settlement_start < %(until)s
    ORDER BY contract_id, settlement_start, run DESC
), unsettled AS (
    SELECT usage.contract_id, usage.settlement_start
    FROM usage LEFT JOIN latest USING (contract_id, settlement_start)
    WHERE latest.usage_numerator IS DISTINCT FROM usage.numerator
    UNION
    SELECT accrual.contract_id, accrual.settlement_start
    FROM contracts_accrual accrual JOIN ledger_hold hold ON hold.id = accrual.ledger_hold_id
    WHERE hold.status = 'open' AND accrual.settlement_start < %(until)s
    UNION
    SELECT entitlement.contract_id, date_bin(%(period)s, entitlement.period_start, 'epoch'::timestamptz)
    FROM contracts_entitlement entitlement JOIN contracts_contract contract ON contract.id = entitlement.contract_id
    WHERE contract.kind = 'spot' AND entitlement.settled_at IS NULL AND entitlement.period_start < %(until)s
    UNION
    SELECT entitlement.contract_id,
           date_bin(%(period)s, entitlement.period_end - interval '1 microsecond', 'epoch'::timestamptz)
    FROM contracts_entitlement entitlement JOIN contracts_contract contract ON contract.id = entitlement.contract_id
    WHERE contract.kind = 'committed' AND contract.payment = 'prepaid' AND entitlement.paid_at IS NOT NULL
      AND entitlement.settled_at IS NULL AND entitlement.period_end - interval '1 microsecond' < %(until)s
)
SELECT contract.id, unsettled.settlement_start,
       unsettled.settlement_start + %(period)s + make_interval(secs => grade.max_request_s) + %(grace)s AS due_at
FROM unsettled
JOIN contracts_contract contract ON contract.id = unsettled.contract_id
JOIN pricing_grade grade ON grade.id = contract.grade_id
WHERE unsettled.settlement_start < %(until)s
ORDER BY unsettled.settlement_start, contract.id
"""


def unsettled_contracts(*, since: datetime, until: datetime) -> list[Due]:
    """What settlement periods that begin before `until` still owe a run, due or not, oldest first.

    Late usage is looked for in periods from `since` on; what is held or awarded is found whatever its age.
    """
    parameters: dict[str, Any] = {
        "period": timedelta(seconds=settings.SETTLEMENT_PERIOD_S),
        "grace": timedelta(seconds=settings.SETTLEMENT_GRACE_S),
        "since": since,
        "until": until,
    }
    with connection.cursor() as cursor:
        cursor.execute(_UNSETTLED, parameters)
        return [Due(*row) for row in cursor.fetchall()]


def waiting_reason(due: Due, *, now: datetime) -> str | None:
    """Why a period of a contract cannot be settled yet; None when it can."""
    if now < due.due_at:
        return "not_due"
    # A request's event is written at its capture, so what belongs to the period was received before it was due.
    if pending_before(due.due_at):
        return "usage_pending"
    period_end = due.settlement_start + timedelta(seconds=settings.SETTLEMENT_PERIOD_S)
    open_holds = Hold.objects.filter(
        contract_id=due.contract_id,
        status=Hold.Status.OPEN,
        period_start__gte=due.settlement_start,
        period_start__lt=period_end,
    )
    return "holds_open" if open_holds.exists() else None


def metered_usage(contract_id: UUID, start: datetime, end: datetime) -> list[Metered]:
    """The gateway's roll-ups of a contract in `[start, end)`, by rate and delivery period, in that order."""
    rows = (
        UsageRollup.objects.filter(
            contract_id=contract_id, meter=MeterKind.GATEWAY, period_start__gte=start, period_start__lt=end
        )
        .values("rate_id", "grade_id", "period_start", "offering_id")
        .annotate(numerator_sum=Sum("numerator"))
    )
    grouped: dict[tuple[datetime, UUID, UUID], dict[UUID, int]] = defaultdict(dict)
    for row in rows:
        key = (row["period_start"], row["rate_id"], row["grade_id"])
        grouped[key][row["offering_id"]] = int(row["numerator_sum"])
    return [
        Metered(rate_id, grade_id, period_start, numerators)
        for (period_start, rate_id, grade_id), numerators in sorted(grouped.items())
    ]


def rollups_of_charge(charge: Charge) -> QuerySet[UsageRollup]:
    """The roll-up rows a charge was computed from, and no others."""
    return UsageRollup.objects.filter(
        contract_id=charge.contract_id,
        rate_id=charge.rate_id,
        meter=MeterKind.GATEWAY,
        period_start__gte=charge.period_start,
        period_start__lt=charge.period_end,
    ).order_by("period_start", "offering_id", "api_key_id", "bucket")


def events_of_charge(charge: Charge) -> QuerySet[UsageEvent]:
    """The gateway's usage events behind a charge's roll-ups, newest first."""
    return UsageEvent.objects.filter(
        contract_id=charge.contract_id,
        rate_id=charge.rate_id,
        source__kind=MeterKind.GATEWAY,
        period_start__gte=charge.period_start,
        period_start__lt=charge.period_end,
    ).order_by("-id")


def payout_blocked_reason(organization_id: UUID) -> str | None:
    """Why a provider's balance stays in payable; None when it can be paid out."""
    provider = Provider.objects.filter(organization_id=organization_id).first()
    if provider is None:
        return "the organization has no provider profile"
    if provider.self_billing_consent_at is None:
        return "the provider has not consented to self-billing"
    if not provider.payout_destination:
        return "the provider has named no payout destination"
    return None


def earnings_total(organization_id: UUID, start: datetime, end: datetime) -> dict[str, int]:
    """What a provider earned in `[start, end)`: gross, fee and net in micros."""
    sums = Earning.objects.filter(
        organization_id=organization_id, period_start__gte=start, period_start__lt=end
    ).aggregate(gross=Sum("gross_micros"), fee=Sum("fee_micros"))
    gross, fee = sums["gross"] or 0, sums["fee"] or 0
    return {"gross_micros": gross, "fee_micros": fee, "net_micros": gross - fee}


def top_ups_of(organization_id: UUID) -> QuerySet[TopUp]:
    return TopUp.objects.filter(organization_id=organization_id).order_by("-id")


def charges_of(organization_id: UUID) -> QuerySet[Charge]:
    """Newest period first."""
    return (
        Charge.objects.filter(organization_id=organization_id)
        .select_related("contract", "grade__family")
        .order_by("-period_start", "-id")
    )


def find_charge(organization_id: UUID, charge_id: UUID) -> Charge:
    """Raises NotFound, also for another organization's."""
    charge = charges_of(organization_id).filter(pk=charge_id).first()
    if charge is None:
        raise NotFound("There is no such charge.")
    return charge


def invoices_of(organization_id: UUID) -> QuerySet[Invoice]:
    """Finalised ones: a draft is nobody's document yet."""
    return (
        Invoice.objects.filter(organization_id=organization_id)
        .exclude(status=Invoice.Status.DRAFT)
        .order_by("-id")
    )


def find_invoice(organization_id: UUID, invoice_id: UUID) -> Invoice:
    """With its lines. Raises NotFound, also for another organization's."""
    invoice = invoices_of(organization_id).filter(pk=invoice_id).prefetch_related("lines__contract").first()
    if invoice is None:
        raise NotFound("There is no such invoice.")
    return invoice


def find_invoice_line(organization_id: UUID, line_id: UUID) -> InvoiceLine:
    """Raises NotFound, also for another organization's."""
    line = (
        InvoiceLine.objects.filter(pk=line_id, invoice__in=invoices_of(organization_id))
        .select_related("invoice", "contract")
        .first()
    )
    if line is None:
        raise NotFound("There is no such invoice line.")
    return line


def charges_of_line(line: InvoiceLine) -> QuerySet[Charge]:
    """The rated lines behind a printed one; their amounts sum to its own."""
    return charges_of(line.invoice.organization_id).filter(invoiced_as__line=line)


def earnings_of(organization_id: UUID) -> QuerySet[Earning]:
    return (
        Earning.objects.filter(organization_id=organization_id)
        .select_related("charge", "offering__host", "offering__grade__family")
        .order_by("-period_start", "-id")
    )


def earnings_by_period(
    organization_id: UUID, *, since: datetime, until: datetime
) -> list[tuple[datetime, int, int]]:
    """(period start, gross, fee) in micros of every period with earnings in `[since, until)`, oldest first."""
    rows = (
        Earning.objects.filter(
            organization_id=organization_id, period_start__gte=since, period_start__lt=until
        )
        .values("period_start")
        .annotate(gross=Sum("gross_micros"), fee=Sum("fee_micros"))
        .order_by("period_start")
    )
    return [(row["period_start"], int(row["gross"]), int(row["fee"])) for row in rows]


def statements_of(organization_id: UUID) -> QuerySet[Statement]:
    return Statement.objects.filter(organization_id=organization_id).select_related("payout").order_by("-id")


def find_statement(organization_id: UUID, statement_id: UUID) -> Statement:
    """With its lines. Raises NotFound, also for another organization's."""
    statement = statements_of(organization_id).filter(pk=statement_id).prefetch_related("lines").first()
    if statement is None:
        raise NotFound("There is no such statement.")
    return statement
