"""Everything an organization was billed or earned in a range, read a few hundred charges at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import Q, QuerySet

from marketplace.accounts.models import Organization
from marketplace.accounts.selectors import operator_organization
from marketplace.billing.focus.charges import Billed, Month, charge_rows
from marketplace.billing.focus.earnings import Earned, earning_rows
from marketplace.billing.focus.rows import Document, FocusRow, Good, Used, rounding_row, tax_row
from marketplace.billing.models import Charge, ChargeKind, Earning, Invoice, Statement
from marketplace.billing.selectors import invoices_of, statements_of
from marketplace.periods import calendar_month
from pricing.models import GradeBucket, Rate

_CHUNK: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusRange:
    """What to export: charge periods that begin in `[since, until)`, or everything on one document."""

    since: datetime
    until: datetime
    document_id: UUID | None = None


def buyer_rows(organization: Organization, wanted: FocusRange) -> Iterator[FocusRow]:
    """A buyer's charges, taxes and roundings, in order of their periods. Memory stays flat."""
    papers = _Papers(organization, "Buyer", invoices_of(organization.id).order_by("period_start"))
    rows = Charge.objects.filter(organization_id=organization.id).select_related("contract", "rate")
    if wanted.document_id is not None:
        rows = rows.filter(invoiced_as__line__invoice_id=wanted.document_id)
    else:
        rows = rows.filter(period_start__gte=wanted.since, period_start__lt=wanted.until)
    goods: dict[UUID, Good] = {}
    for charges in _chunks(rows):
        ids = [charge.id for charge in charges]
        used = _used_by_charge(ids)
        places = _places_of(ids)
        invoiced = dict(Invoice.objects.filter(lines__charges__in=ids).values_list("lines__charges", "id"))
        _load_goods(goods, {charge.grade_id for charge in charges})
        for charge in charges:
            document = papers.of(charge.period_start, invoiced.get(charge.id))
            yield from charge_rows(
                _billed(charge, document, places[charge.id]),
                used.get(charge.id, []),
                goods[charge.grade_id],
                document,
            )
    for invoice in papers.issued.values():
        in_range = wanted.since <= invoice.period_start < wanted.until
        if in_range if wanted.document_id is None else invoice.id == wanted.document_id:
            document = papers.of(invoice.period_start, invoice.id)
            if invoice.tax_micros:
                yield tax_row(document, invoice.tax_micros)
            if invoice.rounding_micros:
                yield rounding_row(document, invoice.rounding_micros)


def provider_rows(organization: Organization, wanted: FocusRange) -> Iterator[FocusRow]:
    """A provider's earnings and the market's fees, in order of their periods. Memory stays flat."""
    papers = _Papers(organization, "Provider", statements_of(organization.id).order_by("period_start"))
    rows = Earning.objects.filter(organization_id=organization.id, ask__isnull=True)
    rows = rows.select_related("charge", "offering__host")
    if wanted.document_id is not None:
        rows = rows.filter(stated_as__line__statement_id=wanted.document_id)
    else:
        rows = rows.filter(period_start__gte=wanted.since, period_start__lt=wanted.until)
    goods: dict[UUID, Good] = {}
    for earnings in _chunks(rows):
        used = _used_by_earning([earning.id for earning in earnings])
        before = _earned_before([earning.id for earning in earnings])
        stated = dict(
            Statement.objects.filter(lines__earnings__earning__in=earnings).values_list(
                "lines__earnings__earning_id", "id"
            )
        )
        _load_goods(goods, {earning.charge.grade_id for earning in earnings})
        for earning in earnings:
            document = papers.of(earning.period_start, stated.get(earning.id))
            yield from earning_rows(
                _earned(earning, document, before[earning.id]),
                used.get(earning.id, []),
                goods[earning.charge.grade_id],
                document,
            )


class _Papers:
    """Which document bills what: the one it stands on, else the first month that has none yet."""

    def __init__(
        self, organization: Organization, kind: str, issued: QuerySet[Invoice] | QuerySet[Statement]
    ) -> None:
        self.organization = organization
        self.kind = kind
        self.market = operator_organization().name
        self.issued: dict[UUID, Any] = {document.id: document for document in issued}
        self.months = {document.period_start for document in self.issued.values()}

    def of(self, period_start: datetime, document_id: UUID | None) -> Document:
        issued = None if document_id is None else self.issued.get(document_id)
        month = calendar_month(period_start if issued is None else issued.period_start)
        while issued is None and month.start in self.months:
            month = calendar_month(month.end)
        return Document(
            self.organization.id,
            self.organization.name,
            self.kind,
            self.market,
            str(settings.MARKET_CURRENCY) if issued is None else issued.currency,
            month.start,
            month.end,
            None if issued is None else issued.number,
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a charge stands among those of the same usage and of the same prepaid month."""

    before: int
    month: Month | None


def _chunks(rows: Any) -> Iterator[list[Any]]:
    """By period and id: what is read next begins where the last chunk ended, without a transaction kept open."""
    rows = rows.order_by("period_start", "id")
    after: Any = None
    while True:
        following = rows
        if after is not None:
            following = rows.filter(
                Q(period_start__gt=after.period_start) | Q(period_start=after.period_start, id__gt=after.id),
                period_start__gte=after.period_start,
            )
        chunk = list(following[:_CHUNK])
        if not chunk:
            return
        yield chunk
        after = chunk[-1]


# Usage behind charges. Fees and minimum takes have none.
_USED_BY_CHARGE: Final = """
SELECT c.id, r.bucket, coalesce(k.project, '') AS project, sum(r.native_tokens)::bigint, sum(r.numerator)::bigint,
       sum(r.estimated_numerator)::bigint
  FROM billing_charge c
  JOIN metering_usagerollup r ON r.contract_id = c.contract_id AND r.rate_id = c.rate_id AND r.meter = 'gateway'
       AND r.period_start >= c.period_start AND r.period_start < c.period_end AND r.events > 0
  LEFT JOIN accounts_apikey k ON k.id = r.api_key_id
 WHERE c.id = ANY (%s::uuid[]) AND c.kind IN ('usage', 'overage', 'spot', 'adjustment')
 GROUP BY 1, 2, 3 ORDER BY 1, 3, 2
"""
_USED_BY_EARNING: Final = """
SELECT e.id, r.bucket, '', sum(r.native_tokens)::bigint, sum(r.numerator)::bigint,
       sum(r.estimated_numerator)::bigint
  FROM billing_earning e
  JOIN billing_charge c ON c.id = e.charge_id
  JOIN metering_usagerollup r ON r.contract_id = c.contract_id AND r.rate_id = c.rate_id AND r.meter = 'gateway'
       AND r.period_start >= c.period_start AND r.period_start < c.period_end AND r.events > 0
       AND r.offering_id = e.offering_id
 WHERE e.id = ANY (%s::uuid[]) AND c.kind IN ('usage', 'overage', 'spot', 'adjustment')
 GROUP BY 1, 2 ORDER BY 1, 2
"""
# Per charge: the numerator of earlier charges of the same usage; and of the prepaid month that covers it or that it
# pays, what is entitled, covered by earlier charges, delivered in all, and whether it is closed.
_PLACES: Final = """
SELECT c.id, same.before, m.entitled_numerator, month.before, month.delivered, m.settled_at IS NOT NULL
  FROM billing_charge c
  JOIN contracts_contract t ON t.id = c.contract_id
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(o.numerator), 0)::bigint AS before FROM billing_charge o
        WHERE o.contract_id = c.contract_id AND o.rate_id = c.rate_id AND o.period_start = c.period_start
          AND o.kind IN ('usage', 'overage', 'spot', 'adjustment') AND (o.created_at, o.id) < (c.created_at, c.id)
       ) AS same
  LEFT JOIN contracts_entitlement m ON t.kind = 'committed' AND t.payment = 'prepaid'
       AND m.contract_id = c.contract_id AND m.rate_id = c.rate_id
       AND c.period_start >= m.period_start AND c.period_start < m.period_end
       AND c.kind IN ('committed_fee', 'usage', 'adjustment')
  LEFT JOIN LATERAL (
       SELECT coalesce(sum(o.numerator) FILTER (WHERE (o.created_at, o.id) < (c.created_at, c.id)), 0)::bigint
              AS before, coalesce(sum(o.numerator), 0)::bigint AS delivered
         FROM billing_charge o
        WHERE o.contract_id = m.contract_id AND o.rate_id = m.rate_id AND o.kind IN ('usage', 'adjustment')
          AND o.period_start >= m.period_start AND o.period_start < m.period_end
       ) AS month ON true
 WHERE c.id = ANY (%s::uuid[])
"""
_EARNED_BEFORE: Final = """
SELECT e.id, coalesce(sum(o.numerator), 0)::bigint
  FROM billing_earning e
  JOIN billing_charge c ON c.id = e.charge_id
  LEFT JOIN billing_charge p ON p.contract_id = c.contract_id AND p.rate_id = c.rate_id
       AND p.period_start = c.period_start AND p.kind IN ('usage', 'overage', 'spot', 'adjustment')
       AND (p.created_at, p.id) < (c.created_at, c.id)
  LEFT JOIN billing_earning o ON o.charge_id = p.id AND o.offering_id = e.offering_id
       AND o.ask_id IS NOT DISTINCT FROM e.ask_id
 WHERE e.id = ANY (%s::uuid[]) GROUP BY 1
"""


def _read(statement: str, ids: Sequence[UUID]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, [list(ids)])
        return list(cursor.fetchall())


def _used_by_charge(ids: Sequence[UUID]) -> Mapping[UUID, list[Used]]:
    return _grouped(_read(_USED_BY_CHARGE, ids))


def _used_by_earning(ids: Sequence[UUID]) -> Mapping[UUID, list[Used]]:
    return _grouped(_read(_USED_BY_EARNING, ids))


def _grouped(rows: Sequence[tuple[Any, ...]]) -> Mapping[UUID, list[Used]]:
    grouped: dict[UUID, list[Used]] = defaultdict(list)
    for row in rows:
        grouped[row[0]].append(Used(*row[1:]))
    return grouped


def _places_of(ids: Sequence[UUID]) -> Mapping[UUID, _Place]:
    return {
        row[0]: _Place(row[1], None if row[2] is None else Month(*row[2:])) for row in _read(_PLACES, ids)
    }


def _earned_before(ids: Sequence[UUID]) -> Mapping[UUID, int]:
    return dict(_read(_EARNED_BEFORE, ids))


def _load_goods(goods: dict[UUID, Good], grade_ids: set[UUID]) -> None:
    missing = grade_ids - goods.keys()
    if not missing:
        return
    buckets = GradeBucket.objects.filter(grade_id__in=missing).select_related("grade__family")
    by_grade: dict[UUID, dict[str, int]] = defaultdict(dict)
    grades = {}
    for bucket in buckets:
        by_grade[bucket.grade_id][bucket.bucket] = bucket.standard_ppm
        grades[bucket.grade_id] = bucket.grade
    for grade in grades.values():
        goods[grade.id] = Good(
            grade.id,
            grade.family.slug,
            grade.version,
            grade.family.title,
            grade.family.model,
            grade.family.region,
            grade.reference_rate_micros_per_mtok,
            by_grade[grade.id],
        )


def _billed(charge: Charge, document: Document, place: _Place) -> Billed:
    rate: Rate = charge.rate
    return Billed(
        id=charge.id,
        kind=charge.kind,
        contract_id=charge.contract_id,
        contract_kind=charge.contract.kind,
        rate_id=charge.rate_id,
        rate_kind=rate.kind,
        # Usage that a fee covers is charged at nothing; its price is the rate the fee was computed with.
        rate_micros_per_mtok=rate.micros_per_mtok if charge.tier is None else charge.rate_micros_per_mtok,
        # A package has no price for a token, nor has what is charged again where a volume price falls.
        is_priced_per_unit=charge.tariff_month_id is None
        or (charge.tier is not None and charge.numerator != 0),
        is_contract_rate=charge.rate_id == charge.contract.rate_id,
        period_start=charge.period_start,
        period_end=charge.period_end,
        numerator=charge.numerator,
        amount_micros=charge.amount_micros,
        is_correction=_corrects(charge, document),
        before=place.before,
        month=place.month,
    )


def _earned(earning: Earning, document: Document, before: int) -> Earned:
    return Earned(
        id=earning.id,
        kind=earning.charge.kind,
        offering_id=earning.offering_id,
        host_name=earning.offering.host.name,
        period_start=earning.period_start,
        period_end=earning.charge.period_end,
        numerator=earning.numerator,
        gross_micros=earning.gross_micros,
        fee_micros=earning.fee_micros,
        is_correction=_corrects(earning.charge, document),
        before=before,
    )


def _corrects(charge: Charge, document: Document) -> bool:
    """Whether an adjustment reaches back into a month that was billed before, which is what FOCUS calls so."""
    return charge.kind == ChargeKind.ADJUSTMENT and charge.period_start < document.period_start
