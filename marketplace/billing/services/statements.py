"""Statements: the provider's self-billed mirror of invoices, one for each provider and UTC calendar month."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.models import Organization
from marketplace.accounts.organization_clocks import keeping
from marketplace.accounts.selectors import operator_organization
from marketplace.billing.line_room import fitting
from marketplace.billing.models import Earning, Statement, StatementLine, StatementLineEarning
from marketplace.billing.printing.content import content_of_statement, digest_of_content
from marketplace.billing.services.identity import id_at
from marketplace.billing.services.locks import lock_until_commit
from marketplace.billing.services.numbers import next_number, series_of
from marketplace.billing.services.parties import party
from marketplace.billing.services.statement_accounts import fill_account
from marketplace.errors import InvalidInput
from marketplace.ids import derived_id
from marketplace.periods import Period, calendar_month
from marketplace.webhooks.services import record_event
from providers.models import Provider

SERIES: Final = "TS"


def providers_to_state(*, month: Period, organization_id: UUID | None = None) -> list[UUID]:
    """Organizations with earnings up to the month's end that no statement has, and no statement of the month.

    Of those that keep real time, or whether this one is to have one.
    """
    stated = Statement.objects.filter(period_start=month.start).values("organization_id")
    rows = (
        keeping(Earning.objects.all(), organization_id)
        .filter(ask__isnull=True, stated_as__isnull=True, period_start__lt=month.end)
        .exclude(organization_id__in=stated)
        .order_by("organization_id")
        .values_list("organization_id", flat=True)
        .distinct()
    )
    return list(rows)


def issue_statements(*, month_start: datetime, now: datetime, early: bool = False) -> list[Statement]:
    """Issue the statements of a month to every provider who earned; again issues nothing new.

    Raises InvalidInput (field month_start) while the month runs, unless `early`.
    """
    month = calendar_month(month_start)
    if now < month.start:
        raise InvalidInput("the month has not begun", field="month_start")
    if now < month.end and not early:
        raise InvalidInput("the month is not over yet", field="month_start")
    issued = []
    for organization_id in providers_to_state(month=month):
        statement = issue_statement(organization_id=organization_id, month=month, now=now)
        if statement is not None:
            issued.append(statement)
    return issued


@transaction.atomic
def issue_statement(*, organization_id: UUID, month: Period, now: datetime) -> Statement | None:
    """One provider's statement, in one transaction with its number.

    None when there is nothing to state, when it comes to a debit (it waits for the next month), or when the month
    was stated before. Statements have no draft, so a second issuer waits at an advisory lock instead of a row.
    """
    statement_id = id_at(organization_id, month.start, "statement")
    lock_until_commit(statement_id)
    if Statement.objects.filter(organization_id=organization_id, period_start=month.start).exists():
        return None
    earnings = list(
        Earning.objects.filter(
            organization_id=organization_id,
            ask__isnull=True,
            stated_as__isnull=True,
            period_start__lt=month.end,
        )
        .select_related("offering__host", "offering__grade__family", "charge")
        .order_by("period_start", "id")
    )
    gross = sum(earning.gross_micros for earning in earnings)
    fee = sum(earning.fee_micros for earning in earnings)
    if not earnings or gross - fee < 0:
        return None
    issuer = operator_organization()
    provider = Organization.objects.get(pk=organization_id)
    statement = Statement(
        id=statement_id,
        organization_id=organization_id,
        issuer=issuer,
        period_start=month.start,
        period_end=month.end,
        number=next_number(issuer_id=issuer.id, series=series_of(SERIES, organization_id, now=now)),
        currency=settings.MARKET_CURRENCY,
        parties={"provider": party(provider), "issuer": party(issuer)},
        consented_at=_consent_of(organization_id),
        gross_micros=gross,
        fee_micros=fee,
        net_micros=gross - fee,
        created_at=now,
    )
    fill_account(statement, now=now)
    lines, links = _lines(statement, earnings)
    statement.content_sha256 = digest_of_content(content_of_statement(statement, lines))
    statement.save(force_insert=True)
    StatementLine.objects.bulk_create(lines)
    StatementLineEarning.objects.bulk_create(links, batch_size=5_000)
    record_event(
        organization_id=organization_id,
        event_type="statement.issued",
        fact_id=statement.id,
        data={
            "statement_id": str(statement.id),
            "number": statement.number,
            "net_micros": statement.net_micros,
            "currency": statement.currency,
        },
        now=now,
    )
    return statement


def _consent_of(organization_id: UUID) -> datetime | None:
    """When the provider agreed that the market writes his documents, frozen on each of them."""
    consents = Provider.objects.filter(organization_id=organization_id)
    return consents.values_list("self_billing_consent_at", flat=True).first()


def _lines(
    statement: Statement, earnings: list[Earning]
) -> tuple[list[StatementLine], list[StatementLineEarning]]:
    grouped: dict[tuple[str, UUID], list[Earning]] = defaultdict(list)
    for earning in earnings:
        grouped[earning.charge.kind, earning.offering_id].append(earning)
    lines: list[StatementLine] = []
    links: list[StatementLineEarning] = []
    parts = [
        (kind, part)
        for (kind, _), group in sorted(grouped.items())
        for part in fitting(group, sums=lambda one: (one.numerator, one.gross_micros, one.fee_micros))
    ]
    for number, (kind, group) in enumerate(parts, start=1):
        offering = group[0].offering
        line = StatementLine(
            id=derived_id(statement.id, f"line:{number}"),
            statement=statement,
            number=number,
            offering=offering,
            description=f"{kind.replace('_', ' ').capitalize()}, {offering.grade.family.title}, {offering.host.name}",
            numerator=sum(earning.numerator for earning in group),
            gross_micros=sum(earning.gross_micros for earning in group),
            fee_micros=sum(earning.fee_micros for earning in group),
        )
        lines.append(line)
        links += [
            StatementLineEarning(id=derived_id(earning.id, "stated"), line=line, earning=earning)
            for earning in group
        ]
    return lines, links
