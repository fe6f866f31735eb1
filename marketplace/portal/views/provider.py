"""The provider's home: hosts, what they can make and what of it is sold, offers and their prices, earnings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.billing.outcomes import outcomes_of
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.selectors import (
    earnings_by_period,
    earnings_of,
    find_statement,
    payout_blocked_reason,
    statements_of,
)
from marketplace.billing.service_periods import service_periods_of, with_figures
from marketplace.billing.services.provider_accounts import payout_account_of
from marketplace.errors import DomainError
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.periods import Period, delivery_period, period_at
from marketplace.portal import figures
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.charts import Chart, Column, Segment, column_chart, share_bar
from marketplace.portal.forms import HostForm, PricesForm
from marketplace.portal.market_forms import OutageForm, outage_form
from marketplace.portal.paging import page_of
from marketplace.portal.tariff_forms import TariffForm, tariff_form
from marketplace.portal.views.market import rate_chart
from pricing.selectors import levels_of, prices_per_bucket
from pricing.units import PPM, decimal_string
from providers.list_rates import (
    coming_day,
    list_rate_schedule,
    list_rates_at,
    tariff_in_force,
    tariffs_of,
    with_list_rate,
)
from providers.models import Bench, Host, Offering
from providers.selectors import (
    PeriodCapacity,
    find_host,
    find_offering,
    hosts_of,
    latest_benches,
    offerings_of,
    period_capacities,
    planned_outages_of,
    reconciliation_ppm_of,
)
from providers.services import (
    create_host,
    issue_enrolment_code,
    list_offering,
    pause_offering,
    resume_offering,
    withdraw_offering,
)

MOST_HOSTS = 50
RECENT = 10
_HOUR = timedelta(hours=1)
_MOVES = {"pause": pause_offering, "resume": resume_offering, "withdraw": withdraw_offering}


@dataclass(frozen=True)
class HostCard:
    """A host as claimed by its agent, as measured by its bench, and as sold in the current delivery period."""

    host: Host
    bench: Bench | None
    capacity: PeriodCapacity
    bar: str
    offerings: list[Offering]

    @property
    def input_per_s(self) -> str:
        assert self.bench is not None
        return decimal_string(self.bench.input_tokens * 10_000 // self.bench.duration_ms, 1)

    @property
    def output_per_s(self) -> str:
        assert self.bench is not None
        return decimal_string(self.bench.output_tokens * 10_000 // self.bench.duration_ms, 1)

    @property
    def claims(self) -> list[tuple[str, str]]:
        return _claims(self.host)


@require_safe
@page(OrganizationRole.PROVIDER)
def home(request: SeatedRequest) -> HttpResponse:
    now, organization_id = clock.now(), request.seat.organization.id
    period = delivery_period(now)
    context = {
        "cards": _cards(organization_id, list(hosts_of(organization_id)[:MOST_HOSTS]), period),
        "payable": _payable(organization_id),
        "chart": _earnings_chart(organization_id, now),
        "earnings": list(earnings_of(organization_id)[:RECENT]),
        "statements": list(statements_of(organization_id)[:RECENT]),
        "payout_blocked": payout_blocked_reason(organization_id),
        "reconciliation_ppm": reconciliation_ppm_of(organization_id, now=now),
        "period": period,
        "now": now,
    }
    return render(request, "portal/provider.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.PROVIDER)
def new_host(request: SeatedRequest) -> HttpResponse:
    form = HostForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        now, organization_id = clock.now(), request.seat.organization.id
        try:
            made = create_host(
                organization_id=organization_id, **form.cleaned_data, now=now, actor=actor_of(request)
            )
        except DomainError as error:
            form.refuse(error)
        else:
            return _with_code(request, made, now)
    return render(request, "portal/host_new.html", {"form": form}, status=422 if form.is_bound else 200)


@require_safe
@page(OrganizationRole.PROVIDER)
def host(request: SeatedRequest, host_id: UUID) -> HttpResponse:
    return host_page(request, host_id, outage_form(clock.now()))


def host_page(request: SeatedRequest, host_id: UUID, form: OutageForm) -> HttpResponse:
    """One host; `form` announces an outage of it, and says what was wrong with one that was refused."""
    now, organization_id = clock.now(), request.seat.organization.id
    found = find_host(organization_id, host_id)
    period = delivery_period(now)
    [card] = _cards(organization_id, [found], period)
    context = {
        "card": card,
        "period": period,
        "now": now,
        "portal_url": settings.PORTAL_URL,
        "form": form,
        "outages": page_of(planned_outages_of(found), request, by="started_at"),
    }
    return render(request, "portal/host.html", context, status=422 if form.is_bound else 200)


@require_POST
@page(OrganizationRole.PROVIDER)
def enrolment_code(request: SeatedRequest, host_id: UUID) -> HttpResponse:
    found = find_host(request.seat.organization.id, host_id)
    try:
        return _with_code(request, found, clock.now())
    except DomainError as error:
        messages.error(request, error.detail)
        return redirect("provider-host", host_id=host_id)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.PROVIDER)
def prices(request: SeatedRequest, offering_id: UUID) -> HttpResponse:
    """The three prices of an offer; posting changes them."""
    offering = find_offering(request.seat.organization.id, offering_id)
    if offering.status == Offering.Status.WITHDRAWN and request.method == "POST":
        # Listing the grade again would make another offer; that is not what this form is for.
        raise Http404
    form = prices_form(offering, request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        try:
            list_offering(
                host_id=offering.host_id,
                grade_slug=offering.grade.family.slug,
                spot_floor_micros_per_mtok=data["spot_floor"],
                firm_rate_micros_per_mtok=data["firm_rate"],
                list_rate_micros_per_mtok=data["list_rate"],
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "The new prices hold from now on; what is sold keeps its own.")
            return redirect("provider-home")
    return offering_page(request, offering, form, tariff_form(clock.now()))


def offering_page(
    request: SeatedRequest, offering: Offering, form: PricesForm, tariff: TariffForm
) -> HttpResponse:
    """One offer: its prices, its tariff. Either form says what was wrong with what was refused."""
    now = clock.now()
    [listed] = list_rates_at([offering], now).values()
    own = Offering.objects.filter(pk=offering.pk)
    [spans] = list_rate_schedule(own, *coming_day(now)).values()
    measured = service_periods_of(request.seat.organization.id).filter(offering_id=offering.id)
    refused = form.is_bound or tariff.is_bound
    context = {
        "offering": offering,
        "form": form,
        "tariff_form": tariff,
        "tariffs": page_of(tariffs_of(offering.id), request, by="valid_from"),
        "tariff_in_force": tariff_in_force(offering.id, now),
        "spans": spans,
        "rates_chart": rate_chart(spans, "List rate over the coming day"),
        "listed": listed,
        "prices": prices_per_bucket(offering.grade, listed.micros_per_mtok),
        "currency": offering.grade.currency,
        "levels": levels_of(offering.grade),
        "services": with_figures(measured[:RECENT]),
        "now": now,
    }
    return render(request, "portal/offering.html", context, status=422 if refused else 200)


def prices_form(offering: Offering, data: Any = None) -> PricesForm:
    """Filled with what is asked now; the list rate is the plain one, that holds without a tariff."""
    current = {
        "spot_floor": decimal_string(offering.spot_floor_micros_per_mtok, 6),
        "firm_rate": decimal_string(offering.firm_rate.micros_per_mtok, 6),
        "list_rate": decimal_string(offering.list_rate.micros_per_mtok, 6),
    }
    return PricesForm(data, initial=current)


@require_POST
@page(OrganizationRole.PROVIDER)
def offering_status(request: SeatedRequest, offering_id: UUID) -> HttpResponse:
    move = _MOVES.get(request.POST.get("move", ""))
    if move is None:
        raise Http404
    try:
        moved = move(
            organization_id=request.seat.organization.id,
            offering_id=offering_id,
            now=clock.now(),
            actor=actor_of(request),
        )
        messages.success(request, f"The offer is {moved.status}.")
    except DomainError as error:
        if error.http_status == 404:
            raise
        messages.error(request, error.detail)
    return redirect("provider-home")


@require_safe
@page(OrganizationRole.PROVIDER)
def earnings(request: SeatedRequest) -> HttpResponse:
    now, organization_id = clock.now(), request.seat.organization.id
    context = {
        "earnings": page_of(earnings_of(organization_id), request, by="period_start"),
        "chart": _earnings_chart(organization_id, now),
        "account": payout_account_of(organization_id),
        "needs_account": payment_processor().needs_card,
        "payout_blocked": payout_blocked_reason(organization_id),
        "outcomes": outcomes_of(organization_id).filter(provider_organization_id=organization_id)[:RECENT],
        "now": now,
    }
    return render(request, "portal/earnings.html", context)


@require_safe
@page(OrganizationRole.PROVIDER)
def statement(request: SeatedRequest, statement_id: UUID) -> HttpResponse:
    organization_id = request.seat.organization.id
    context = {
        "statement": find_statement(organization_id, statement_id),
        "payout_blocked": payout_blocked_reason(organization_id),
    }
    return render(request, "portal/statement.html", context)


def _cards(organization_id: UUID, hosts: list[Host], period: Period) -> list[HostCard]:
    ids = [host.id for host in hosts]
    benches = latest_benches(ids)
    capacities = period_capacities(ids, period.start)
    offerings: dict[UUID, list[Offering]] = {host_id: [] for host_id in ids}
    own = with_list_rate(offerings_of(organization_id), period.start)
    listed = own.filter(host_id__in=ids).exclude(status=Offering.Status.WITHDRAWN)
    for offering in listed:
        offerings[offering.host_id].append(offering)
    return [
        HostCard(host, benches.get(host.id), capacity, capacity_bar(capacity), offerings[host.id])
        for host in hosts
        for capacity in [capacities[host.id]]
    ]


def capacity_bar(capacity: PeriodCapacity) -> str:
    """Sold, unsold and the operating margin of a host's share."""
    sold, unsold = capacity.sold_ppm, capacity.unsold_ppm
    margin = PPM - capacity.sellable_ppm
    title = f"{figures.percent(sold)} sold, {figures.percent(unsold)} unsold, {figures.percent(margin)} not for sale"
    return share_bar(
        [
            Segment("sold", sold, f"{figures.percent(sold)} sold"),
            Segment("unsold", unsold, f"{figures.percent(unsold)} unsold"),
        ],
        whole=PPM,
        title=title,
    )


def _claims(host: Host) -> list[tuple[str, str]]:
    """What the agent reported of hardware and engine, flattened to words; unknown shapes are shown as they are."""
    claims: list[tuple[str, str]] = []
    for document in (host.hardware, host.engine):
        for name, value in document.items():
            if value in (None, "", [], {}):
                continue
            claims.append((str(name).replace("_", " "), _claim(value)))
    return claims


def _claim(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(_claim(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(
            f"{name} {_claim(item)}" for name, item in value.items() if item not in (None, "", [], {})
        )
    if type(value) is int and abs(value) >= 10_000:
        return figures.grouped(str(value))
    return str(value)


def _payable(organization_id: UUID) -> object:
    return balance(
        organization_id=organization_id, kind=AccountKind.PAYABLE, currency=settings.MARKET_CURRENCY
    )


def _earnings_chart(organization_id: UUID, now: datetime) -> Chart:
    last = period_at(now, 3_600).start
    starts = [last - _HOUR * back for back in reversed(range(24))]
    net: dict[datetime, int] = dict.fromkeys(starts, 0)
    fees: dict[datetime, int] = dict.fromkeys(starts, 0)
    for start, gross, fee in earnings_by_period(organization_id, since=starts[0], until=now):
        hour = period_at(start, 3_600).start
        net[hour] += gross - fee
        fees[hour] += fee
    currency = settings.MARKET_CURRENCY
    columns = [
        Column(
            f"{figures.day_time(start)}: {figures.money(net[start], currency)} net, "
            f"{figures.money(fees[start], currency)} fee",
            (net[start], fees[start]),
        )
        for start in starts
    ]
    labels = (figures.clock_time(starts[0]), figures.clock_time(starts[12]), "now")
    return column_chart(
        columns, title="Earnings per hour over the last 24 hours", y_label=figures.axis_money, x_labels=labels
    )


def _with_code(request: SeatedRequest, found: Host, now: datetime) -> HttpResponse:
    """Not a redirect: the code is shown in this answer and nowhere else, ever."""
    code = issue_enrolment_code(
        organization_id=request.seat.organization.id, host_id=found.id, now=now, actor=actor_of(request)
    )
    context = {"host": found, "code": code, "portal_url": settings.PORTAL_URL}
    return render(request, "portal/host_code.html", context)
