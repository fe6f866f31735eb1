"""Trying a committed contract on what one really used."""

from __future__ import annotations

from uuid import UUID

from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_http_methods

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.billing.simulations import Comparison, Simulation, simulate_contract
from marketplace.contracts.selectors import contract_of
from marketplace.errors import DomainError
from marketplace.portal import figures
from marketplace.portal.access import SeatedRequest, page
from marketplace.portal.charts import Chart, Column, column_chart
from marketplace.portal.simulation_forms import SimulationForm, as_bought
from marketplace.portal.views.buying import grade_choices
from pricing.units import div_half_even


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def simulator(request: SeatedRequest) -> HttpResponse:
    """`?contract=` fills in the terms of one's own contract. Posting asks, and changes nothing."""
    now, organization_id = clock.now(), request.seat.organization.id
    form = SimulationForm(request.POST if request.method == "POST" else None, initial=_asked(request))
    form.fields["grade"].choices = grade_choices(now)  # type: ignore[attr-defined]
    answer = None
    if request.method == "POST" and form.is_valid():
        try:
            answer = simulate_contract(organization_id=organization_id, now=now, **form.terms)
        except DomainError as error:
            form.refuse(error)
    context: dict[str, object] = {"form": form, "answer": answer}
    if answer is not None:
        context |= {
            "currency": answer.grade.currency,
            "verdict": verdict(answer),
            "chart": _chart(answer),
            "quote_url": _quote_url(form, answer),
            "rows": [*answer.by_month, answer.total] if len(answer.by_month) > 1 else answer.by_month,
        }
    return render(
        request, "portal/simulator.html", context, status=422 if form.is_bound and answer is None else 200
    )


def verdict(answer: Simulation) -> list[str]:
    """What the figures come to, in sentences: the cost, and what it leaves out."""
    total, currency = answer.total, answer.grade.currency
    used, refused = total.sums["used"], total.sums["refused_in_all"]
    paid = figures.money(total.paid_micros, currency)
    cost = figures.money(total.amount_micros, currency)
    less, more = _share(total.saving_micros, total, currency), _share(-total.saving_micros, total, currency)
    if refused:
        # What is refused costs nothing: a saving would not be the whole of it.
        part = figures.percent(div_half_even(refused * 10_000, used) * 100)
        if total.saving_micros:
            change = f"{less} less" if total.saving_micros > 0 else f"{more} more"
            said = [f"It would have charged {change}, and refused {part} of your usage."]
        else:
            said = [f"It would have charged just what you paid, and refused {part} of your usage."]
        lots = f"{figures.lots_of(refused)} of your {figures.lots_of(used)} lots would not have been served"
        said.append(f"{cost} instead of {paid}; {lots}.")
    elif total.saving_micros > 0:
        said = [f"You would have saved {less}: {cost} instead of {paid}."]
    elif total.saving_micros < 0:
        said = [f"You would have paid {more} more: {cost} instead of {paid}."]
    else:
        said = [f"It would have cost just what you paid: {paid}."]
    if total.per_mtok_micros is not None and total.paid_per_mtok_micros is not None:
        said.append(
            f"All in, a Mtok would have cost {figures.rate(total.per_mtok_micros)} {currency} instead of "
            f"{figures.rate(total.paid_per_mtok_micros)}."
        )
    if not used:
        said.append("You used nothing of the grade in this time.")
    return said


def _share(amount_micros: int, total: Comparison, currency: str) -> str:
    amount = figures.money(amount_micros, currency)
    if total.paid_micros <= 0:
        return amount
    hundredths = div_half_even(amount_micros * 10_000, total.paid_micros)
    return f"{amount} ({figures.percent(hundredths * 100)})"


def _chart(answer: Simulation) -> Chart:
    """Each month two columns, what was paid and what it would have cost, and a gap."""
    currency = answer.grade.currency
    columns: list[Column] = []
    for month in answer.by_month:
        since = figures.day_time(month.period_start)
        paid, cost = month.paid_micros, month.amount_micros
        columns += [
            Column("", (0, 0)),
            Column(f"From {since}: paid {figures.money(paid, currency)}", (0, paid)),
            Column(f"From {since}: would have cost {figures.money(cost, currency)}", (cost, 0)),
            Column("", (0, 0)),
        ]
    labels = [figures.day_time(month.period_start) for month in answer.by_month]
    ends = [labels[0], *labels[len(labels) // 2 : len(labels) // 2 + 1], labels[-1]]
    return column_chart(
        columns,
        title="Paid, and what the contract would have cost, by month",
        y_label=figures.axis_money,
        x_labels=labels if len(labels) <= 3 else ends,
    )


def _quote_url(form: SimulationForm, answer: Simulation) -> str:
    """The page that asks for a real quote, with what was tried filled in."""
    names = ("grade", "firm_lots", "volume_lots", "payment", "overage_policy")
    asked = {name: form.cleaned_data[name] for name in names} | {"months": len(answer.by_month)}
    return f"{reverse('buyer-buy')}?{urlencode(asked)}"


def _asked(request: SeatedRequest) -> dict[str, str]:
    """A link may name a grade, or one's own contract. Raises Http404 for one that is nobody's or another's."""
    named = request.GET.get("contract")
    if named is None:
        return {"grade": request.GET["grade"]} if "grade" in request.GET else {}
    try:
        contract_id = UUID(named)
    except ValueError:
        raise Http404 from None
    return as_bought(contract_of(organization_id=request.seat.organization.id, contract_id=contract_id))
