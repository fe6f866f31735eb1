"""Reads across rows: what is due for settlement, what was metered, what a charge is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import reduce
from operator import xor
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import OuterRef, QuerySet, Subquery, Sum

from marketplace.billing.models import (
    Charge,
    Earning,
    Invoice,
    InvoiceLine,
    Statement,
    TopUp,
)
from marketplace.billing.payout_status import standing_reasons
from marketplace.billing.replacements import LAST_OUTCOME, REPLACED_OTHERWISE
from marketplace.contracts.models import Hold
from marketplace.errors import NotFound
from metering.models import DisputedUsage, MeterKind, UsageEvent, UsageRollup
from metering.selectors import agents_pending_before, pending_before

# How long money waits for the meters of a period to be compared, at most.
RECONCILED_WITHIN: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Due:
    """A contract with something to square up in the settlement period that begins then."""

    contract_id: UUID
    settlement_start: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Metered:
    """What of one rate and delivery period is to be billed: exact numerators by offering.

    That is what the gateway carried less what is in dispute (metering's `DisputedUsage`); of the latter `waiting` is
    what nobody has ruled on, by offering. `estimated` is the part that no meter has reported.
    """

    rate_id: UUID
    grade_id: UUID
    period_start: datetime
    numerators: Mapping[UUID, int]
    estimated: int = 0
    waiting: Mapping[UUID, int] = field(default_factory=dict)
    digest: int = 0


def to_bill_sql(which: str) -> str:
    """What the gateway carried from `since` on before `until`, by what billing can tell apart, less what is in dispute.

    Of the contracts that the condition `which` on `contract_id` admits.
    """
    # A count that was corrected since the dispute began is not lowered twice; usage that came since is billed. The
    # digest changes with any of it.
    return f"""
SELECT contract_id, rate_id, grade_id, period_start, offering_id, numerator, estimated, waiting,
       CASE WHEN numerator = 0 AND estimated = 0 AND waiting = 0 THEN 0
            ELSE hashtextextended(concat_ws('|', rate_id, grade_id, extract(epoch FROM period_start), offering_id,
                                            numerator, estimated, waiting), 0) END AS digest
FROM (
    SELECT contract_id, rate_id, grade_id, period_start, offering_id,
           greatest(numerator - off, 0) AS numerator, least(estimated, greatest(numerator - off, 0)) AS estimated,
           least(waiting, off) AS waiting
    FROM (
        SELECT contract_id, rate_id, grade_id, period_start, offering_id, numerator, estimated,
               coalesce(waiting, 0) AS waiting,
               greatest(coalesce(withheld, 0) - greatest(coalesce(disputed_of, 0) - numerator, 0), 0) AS off
    FROM (
        SELECT contract_id, rate_id, grade_id, period_start, offering_id, sum(numerator)::bigint AS numerator,
               sum(estimated_numerator)::bigint AS estimated
        FROM metering_usagerollup
        WHERE meter = 'gateway' AND period_start >= %(since)s AND period_start < %(until)s
          AND {which}
        GROUP BY 1, 2, 3, 4, 5
    ) AS carried
    LEFT JOIN (
        SELECT contract_id, rate_id, period_start, offering_id, sum(withheld_numerator)::bigint AS withheld,
               max(gateway_numerator) AS disputed_of,
               (sum(withheld_numerator) FILTER (WHERE discrepancy.status = 'open'))::bigint AS waiting
        FROM metering_disputedusage usage JOIN metering_discrepancy discrepancy ON discrepancy.id = usage.discrepancy_id
        WHERE period_start >= %(since)s AND period_start < %(until)s
          AND {which}
        GROUP BY 1, 2, 3, 4
    ) AS disputed USING (contract_id, rate_id, period_start, offering_id)
    ) AS counted
) AS netted
"""  # noqa: S608


_TO_BILL_OF: Final = to_bill_sql("contract_id = ANY (%(contracts)s)")
_TO_BILL: Final = to_bill_sql("true")
# Nine reasons to settle: usage that no run has seen as it is, an outage recorded after the last run, a failure that is
# replaced by more or less than was counted, an outage, a failed attempt or a curtailment of who owes firm volume, an
# accrual whose hold is open, an award not settled yet, a committed month that is not squared up. The last three do not
# depend on `since`.
_UNSETTLED = f"""
WITH usage AS (
    SELECT contract_id, date_bin(%(period)s, period_start, 'epoch'::timestamptz) AS settlement_start,
           bit_xor(digest) AS digest
    FROM ({_TO_BILL}) AS to_bill
    GROUP BY 1, 2
), latest AS (
    SELECT DISTINCT ON (contract_id, settlement_start) contract_id, settlement_start, usage_digest, created_at
    FROM billing_settlement
    WHERE settlement_start >= %(since)s AND settlement_start < %(until)s
    ORDER BY contract_id, settlement_start, run DESC
), last_outcome AS ({LAST_OUTCOME}), unsettled AS (
    -- Usage that was voided to the last event has no roll-up left, and is settled again all the same.
    SELECT contract_id, settlement_start
    FROM usage FULL JOIN latest USING (contract_id, settlement_start)
    WHERE latest.usage_digest IS DISTINCT FROM coalesce(usage.digest, 0)
    UNION
    SELECT latest.contract_id, latest.settlement_start
    FROM latest
    JOIN contracts_allocation allocation ON allocation.contract_id = latest.contract_id
     AND allocation.period_start >= latest.settlement_start
     AND allocation.period_start < latest.settlement_start + %(period)s
    JOIN providers_offering offering ON offering.id = allocation.offering_id
    JOIN providers_outage outage ON outage.host_id = offering.host_id
     AND outage.offering_id IS NULL AND outage.created_at > latest.created_at
     AND outage.started_at < latest.settlement_start + %(period)s
     AND coalesce(outage.ended_at, 'infinity') > latest.settlement_start
    UNION
    {REPLACED_OTHERWISE}
    UNION
    SELECT allocation.contract_id, hours.start
    FROM contracts_allocation allocation
    JOIN contracts_contract contract ON contract.id = allocation.contract_id AND contract.kind = 'committed'
     AND contract.starts_at < %(until)s AND contract.ends_at > %(since)s
    JOIN providers_offering offering ON offering.id = allocation.offering_id
    JOIN providers_outage outage ON outage.host_id = offering.host_id AND outage.offering_id IS NULL
     AND outage.kind <> 'planned' AND outage.started_at < least(%(until)s, contract.ends_at)
     AND coalesce(outage.ended_at, 'infinity') > greatest(%(since)s, contract.starts_at)
    CROSS JOIN LATERAL generate_series(
        date_bin(%(period)s, greatest(outage.started_at, %(since)s, contract.starts_at), 'epoch'::timestamptz),
        least(outage.ended_at, %(until)s, contract.ends_at) - interval '1 microsecond', %(period)s
    ) AS hours (start)
    LEFT JOIN latest ON latest.contract_id = allocation.contract_id AND latest.settlement_start = hours.start
    WHERE hours.start >= %(since)s AND (latest.contract_id IS NULL OR latest.created_at < outage.created_at)
    UNION
    SELECT allocation.contract_id, date_bin(%(period)s, attempt.occurred_at, 'epoch'::timestamptz)
    FROM contracts_allocation allocation
    JOIN contracts_contract contract ON contract.id = allocation.contract_id AND contract.kind = 'committed'
    JOIN providers_failedattempt attempt ON attempt.offering_id = allocation.offering_id
     AND attempt.occurred_at >= greatest(%(since)s, contract.starts_at)
     AND attempt.occurred_at < least(%(until)s, contract.ends_at)
    LEFT JOIN latest ON latest.contract_id = allocation.contract_id
     AND latest.settlement_start = date_bin(%(period)s, attempt.occurred_at, 'epoch'::timestamptz)
    WHERE latest.contract_id IS NULL
      AND date_bin(%(period)s, attempt.occurred_at, 'epoch'::timestamptz) >= %(since)s
    UNION
    SELECT allocation.contract_id, date_bin(%(period)s, curtailment.period_start, 'epoch'::timestamptz)
    FROM contracts_curtailment curtailment
    JOIN contracts_allocation allocation ON allocation.id = curtailment.allocation_id
    JOIN contracts_contract contract ON contract.id = allocation.contract_id AND contract.kind = 'committed'
    LEFT JOIN latest ON latest.contract_id = allocation.contract_id
     AND latest.settlement_start = date_bin(%(period)s, curtailment.period_start, 'epoch'::timestamptz)
    WHERE curtailment.period_start >= %(since)s AND curtailment.period_start < %(until)s
      AND date_bin(%(period)s, curtailment.period_start, 'epoch'::timestamptz) >= %(since)s
      AND (latest.contract_id IS NULL OR latest.created_at < curtailment.curtailed_at)
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
    WHERE contract.kind = 'committed' AND (contract.payment = 'arrears' OR entitlement.paid_at IS NOT NULL)
      AND entitlement.settled_at IS NULL AND entitlement.period_end - interval '1 microsecond' < %(until)s
)
SELECT contract.id, unsettled.settlement_start,
       unsettled.settlement_start + %(period)s + make_interval(secs => grade.max_request_s) + %(grace)s AS due_at
FROM unsettled
JOIN contracts_contract contract ON contract.id = unsettled.contract_id
JOIN pricing_grade grade ON grade.id = contract.grade_id
WHERE unsettled.settlement_start < %(until)s
ORDER BY unsettled.settlement_start, contract.id
"""  # noqa: S608


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


def waiting_reasons(items: Sequence[Due], *, now: datetime) -> dict[Due, str]:
    """Of contracts due in one settlement period, those that cannot be settled yet, with the reason.

    A statement or two for each moment at which they are due (their grades' longest requests), however many they are.
    """
    reasons = {item: "not_due" for item in items if now < item.due_at}
    by_due_at: dict[datetime, list[Due]] = defaultdict(list)
    for item in items:
        if item not in reasons:
            by_due_at[item.due_at].append(item)
    for due_at, due in by_due_at.items():
        # A request's event is written at its capture, so what belongs to the period was received before it was due.
        if pending_before(due_at):
            reasons |= dict.fromkeys(due, "usage_pending")
        # What a host has handed in may lower what is billed; one that is silent, or a worker that is, stops no money.
        elif now < due_at + RECONCILED_WITHIN:
            waiting = agents_pending_before([item.contract_id for item in due], due_at)
            reasons |= {item: "agents_usage_pending" for item in due if item.contract_id in waiting}
    left = [item for item in items if item not in reasons]
    if left:
        start = left[0].settlement_start
        open_holds = Hold.objects.filter(
            contract_id__in=[item.contract_id for item in left],
            status=Hold.Status.OPEN,
            period_start__gte=start,
            period_start__lt=start + timedelta(seconds=settings.SETTLEMENT_PERIOD_S),
        )
        held = set(open_holds.values_list("contract_id", flat=True))
        reasons |= {item: "holds_open" for item in left if item.contract_id in held}
    return reasons


def unreconciled(contract_ids: Sequence[UUID], settlement_start: datetime) -> set[UUID]:
    """Of these contracts, those that a host has supplied in the period whose meters nobody has compared for it."""
    if not contract_ids:
        return set()
    parameters: dict[str, Any] = {
        "contracts": list(contract_ids),
        "start": settlement_start,
        "end": settlement_start + timedelta(seconds=settings.SETTLEMENT_PERIOD_S),
    }
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT DISTINCT r.contract_id
                 FROM metering_usagerollup r JOIN providers_offering o ON o.id = r.offering_id
                WHERE r.contract_id = ANY (%(contracts)s) AND r.meter = 'gateway' AND r.period_start >= %(start)s
                  AND r.period_start < %(end)s
                  AND NOT EXISTS (SELECT FROM metering_reconciliation c
                                   WHERE c.host_id = o.host_id AND c.settlement_start = %(start)s)""",
            parameters,
        )
        return {row[0] for row in cursor.fetchall()}


def metered_usage(contract_id: UUID, start: datetime, end: datetime) -> list[Metered]:
    """What is to be billed of a contract in `[start, end)`, by rate and delivery period, in that order."""
    return metered_usages([contract_id], start, end)[contract_id]


def metered_usages(contract_ids: Sequence[UUID], start: datetime, end: datetime) -> dict[UUID, list[Metered]]:
    """`metered_usage` of each of them, in one statement."""
    with connection.cursor() as cursor:
        cursor.execute(_TO_BILL_OF, {"contracts": list(contract_ids), "since": start, "until": end})
        rows = cursor.fetchall()
    grouped: dict[UUID, dict[tuple[datetime, UUID, UUID], list[tuple[Any, ...]]]] = {
        contract_id: defaultdict(list) for contract_id in contract_ids
    }
    for contract_id, rate_id, grade_id, period_start, *rest in rows:
        grouped[contract_id][period_start, rate_id, grade_id].append(tuple(rest))
    return {
        contract_id: [
            Metered(
                rate_id,
                grade_id,
                period_start,
                numerators={offering: numerator for offering, numerator, _, _, _ in parts},
                estimated=sum(estimated for _, _, estimated, _, _ in parts),
                waiting={offering: waiting for offering, _, _, waiting, _ in parts if waiting},
                digest=reduce(xor, (digest for *_, digest in parts)),
            )
            for (period_start, rate_id, grade_id), parts in sorted(of_contract.items())
        ]
        for contract_id, of_contract in grouped.items()
    }


def digest_of(metered: Iterable[Metered]) -> int:
    """What `Settlement.usage_digest` keeps."""
    return reduce(xor, (item.digest for item in metered), 0)


def with_estimates(charges: QuerySet[Charge]) -> QuerySet[Charge]:
    """Each with `estimated_left`: what of its contract, rate and period is still an estimate after all adjustments."""
    same = Charge.objects.filter(
        contract=OuterRef("contract"), rate=OuterRef("rate"), period_start=OuterRef("period_start")
    )
    left = same.order_by().values("contract").annotate(left=Sum("estimated_numerator")).values("left")
    return charges.annotate(estimated_left=Subquery(left))


def estimates_left(lines: Iterable[InvoiceLine]) -> dict[UUID, int]:
    """By the id of an invoice's line: what of it is still an estimate; lines without any are left out."""
    estimated = [line.id for line in lines if line.estimated_numerator > 0]
    if not estimated:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT line_id, sum(same.estimated_numerator)::bigint
                 FROM (SELECT DISTINCT link.line_id, charge.contract_id, charge.rate_id, charge.period_start
                         FROM billing_invoicelinecharge link JOIN billing_charge charge ON charge.id = link.charge_id
                        WHERE link.line_id = ANY (%s) AND charge.estimated_numerator > 0) AS about
                 JOIN billing_charge same USING (contract_id, rate_id, period_start)
                GROUP BY 1""",
            [estimated],
        )
        return dict(cursor.fetchall())


def withheld_of_charge(charge: Charge) -> int:
    """What of the roll-ups behind a charge is not billed, now or for good, because meters disagree."""
    rows = DisputedUsage.objects.filter(
        contract_id=charge.contract_id,
        rate_id=charge.rate_id,
        period_start__gte=charge.period_start,
        period_start__lt=charge.period_end,
    )
    return int(rows.aggregate(sum=Sum("withheld_numerator"))["sum"] or 0)


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
    """Why a provider's balance stays in payable, the first of the reasons; None when it can be paid out."""
    reasons = standing_reasons(organization_id)
    return reasons[0].text if reasons else None


def top_ups_of(organization_id: UUID) -> QuerySet[TopUp]:
    return TopUp.objects.filter(organization_id=organization_id).order_by("-id")


def charges_of(organization_id: UUID) -> QuerySet[Charge]:
    """Newest period first."""
    return (
        with_estimates(Charge.objects.filter(organization_id=organization_id))
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
        .exclude(status__in=[Invoice.Status.DRAFT, Invoice.Status.GRACE])
        .order_by("-id")
    )


def find_invoice(organization_id: UUID, invoice_id: UUID) -> Invoice:
    """With its lines (`estimated_left` on each). Raises NotFound, also for another organization's."""
    invoice = invoices_of(organization_id).filter(pk=invoice_id).prefetch_related("lines__contract").first()
    if invoice is None:
        raise NotFound("There is no such invoice.")
    left = estimates_left(invoice.lines.all())
    for line in invoice.lines.all():
        line.estimated_left = left.get(line.id, 0)  # type: ignore[attr-defined]
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
    """As a provider; what a buyer got for released volume stands among his charges."""
    return (
        Earning.objects.filter(organization_id=organization_id, ask__isnull=True)
        .select_related("charge", "offering__host", "offering__grade__family")
        .order_by("-period_start", "-id")
    )


def earnings_by_period(
    organization_id: UUID, *, since: datetime, until: datetime
) -> list[tuple[datetime, int, int]]:
    """(period start, gross, fee) in micros of every period with earnings in `[since, until)`, oldest first."""
    rows = (
        Earning.objects.filter(
            organization_id=organization_id,
            ask__isnull=True,
            period_start__gte=since,
            period_start__lt=until,
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
