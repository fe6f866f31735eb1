"""The operator's rules of tax and discounts: what holds, what is added, and until when."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.selectors import unverified_tax_numbers
from marketplace.accounts.services import verify_tax_number
from marketplace.billing.models import Discount, TaxRule
from marketplace.billing.operator_selectors import all_discounts, buyers
from marketplace.billing.services.discounts import end_discount, give_discount
from marketplace.billing.services.rehearsing import carry_out, rehearse
from marketplace.billing.services.taxes import add_tax_rule, end_tax_rule, tax_rules
from marketplace.errors import DomainError, NotFound
from marketplace.portal import figures
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.billing_forms import DiscountForm, EndRuleForm, TaxRuleForm, choose
from marketplace.portal.forms import PortalForm
from marketplace.portal.paging import page_of
from marketplace.portal.steps import Look, in_two_steps, trail

_MOST_BUYERS = 1_000
_MOST_NUMBERS = 50


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.OPERATOR, manage=True)
def taxes(request: SeatedRequest) -> HttpResponse:
    now = clock.now()
    form = TaxRuleForm(
        request.POST if request.method == "POST" else None, initial={"valid_from": now.replace(microsecond=0)}
    )

    def add() -> TaxRule:
        return add_tax_rule(**form.terms(), now=now, actor=actor_of(request))

    def do(shown: str) -> HttpResponse:
        rule = carry_out(add, _terms_of, shown=shown)
        messages.success(
            request, f"{rule.title} ({rule.jurisdiction}) holds from {_when(rule.valid_from)} on."
        )
        return redirect("operator-billing-taxes")

    answer = in_two_steps(
        request,
        form,
        look=lambda: rehearse(add, lambda rule: _look_at_rule(rule, now)),
        do=do,
        back=reverse("operator-billing-taxes"),
    )
    if answer is not None:
        return answer
    listed = page_of(tax_rules(), request)
    context = {
        "form": form,
        "rules": [(rule, _standing(rule, now)) for rule in listed.rows],
        "listed": listed,
        "currency": settings.MARKET_CURRENCY,
        "union": ", ".join(settings.TAX_UNION_COUNTRIES),
        "unverified": unverified_tax_numbers()[:_MOST_NUMBERS],
        "trail": trail(("tax_rule",)),
    }
    return render(request, "portal/billing_taxes.html", context, status=422 if form.is_bound else 200)


@require_POST
@page(OrganizationRole.OPERATOR, manage=True)
def verify_number(request: SeatedRequest, organization_id: UUID) -> HttpResponse:
    """Of the number that the page showed: another one given meanwhile is not verified with it."""
    try:
        verified = verify_tax_number(
            organization_id=organization_id,
            tax_number=request.POST.get("tax_number", ""),
            now=clock.now(),
            actor=actor_of(request),
        )
        messages.success(request, f"{verified.name} is taxed as a business under {verified.tax_number}.")
    except DomainError as error:
        messages.error(request, f"{error.detail}.")
    return redirect("operator-billing-taxes")


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.OPERATOR, manage=True)
def tax(request: SeatedRequest, rule_id: UUID) -> HttpResponse:
    now = clock.now()
    rule = tax_rules().filter(pk=rule_id).first()
    if rule is None:
        raise NotFound("There is no such rule.")
    form = EndRuleForm(request.POST if request.method == "POST" else None)

    def end() -> TaxRule:
        return end_tax_rule(
            rule_id=rule_id, valid_until=form.cleaned_data["valid_until"], now=now, actor=actor_of(request)
        )

    def look() -> Look:
        return rehearse(end, lambda ended: _look_at_end(rule, ended))

    def do(shown: str) -> HttpResponse:
        ended = carry_out(end, _terms_of, shown=shown)
        messages.success(request, f"It holds until {_when(ended.valid_until)}.")
        return redirect("operator-billing-taxes")

    back = reverse("operator-billing-tax", args=[rule_id])
    answer = in_two_steps(request, form, look=look, do=do, back=back)
    if answer is not None:
        return answer
    context = {
        "rule": rule,
        "standing": _standing(rule, now),
        "form": form,
        "trail": trail(("tax_rule",), [rule.id]),
    }
    return render(request, "portal/billing_tax.html", context, status=422 if form.is_bound else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.OPERATOR, manage=True)
def discounts(request: SeatedRequest) -> HttpResponse:
    now = clock.now()
    form = DiscountForm(
        request.POST if request.method == "POST" else None, initial={"valid_from": now.replace(microsecond=0)}
    )
    choose(form, {"organization": [(str(one.id), one.name) for one in buyers()[:_MOST_BUYERS]]})

    def give() -> Discount:
        return give_discount(**form.terms(), now=now, actor=actor_of(request))

    def do(shown: str) -> HttpResponse:
        given = carry_out(give, _terms_of_discount, shown=shown)
        messages.success(request, f"{given.title} is given to {given.organization.name}.")
        return redirect("operator-billing-discounts")

    answer = in_two_steps(
        request,
        form,
        look=lambda: rehearse(give, _look_at_discount),
        do=do,
        back=reverse("operator-billing-discounts"),
    )
    if answer is not None:
        return answer
    listed = page_of(all_discounts(), request)
    context = {
        "form": form,
        "discounts": [(one, _standing(one, now)) for one in listed.rows],
        "listed": listed,
        "currency": settings.MARKET_CURRENCY,
        "trail": trail(("discount",)),
    }
    return render(request, "portal/billing_discounts.html", context, status=422 if form.is_bound else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.OPERATOR, manage=True)
def discount(request: SeatedRequest, discount_id: UUID) -> HttpResponse:
    """One discount; posting ends it, once."""
    now = clock.now()
    found = all_discounts().filter(pk=discount_id).first()
    if found is None:
        raise NotFound("There is no such discount.")
    form = PortalForm(request.POST if request.method == "POST" else None)
    standing = _standing(found, now)
    if form.is_valid():
        end_discount(discount_id=discount_id, now=now, actor=actor_of(request))
        messages.success(request, f"{found.title} reduces no further month.")
        return redirect("operator-billing-discounts")
    context = {"discount": found, "standing": standing, "trail": trail(("discount",), [found.id])}
    return render(request, "portal/billing_discount.html", context)


def _standing(one: TaxRule | Discount, now: datetime) -> str:
    if one.valid_until is not None and one.valid_until <= now:
        return "ended"
    return "to come" if one.valid_from > now else "in force"


def _when(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%d %b %Y %H:%M}" if at is not None else "no end"


def _terms_of(rule: TaxRule) -> str:
    """What was looked at of a rule, also what stacks with it."""
    stacked = ",".join(f"{one.code}={one.rate_ppm}" for one in _beside(rule))
    return f"{rule.valid_from.isoformat()}:{rule.valid_until and rule.valid_until.isoformat()}:{stacked}"


def _beside(rule: TaxRule) -> list[TaxRule]:
    """The rules of its country and region that hold when it begins and share a kind of buyer with it; it is among them.

    A region's stand in the place of the country's of their code.
    """
    places = {rule.jurisdiction, rule.jurisdiction[:2]}
    found = tax_rules(at=rule.valid_from).filter(jurisdiction__in=places).order_by("jurisdiction", "code")
    by_code = {one.code: one for one in found}
    return [one for one in by_code.values() if set(_kinds(one)) & set(_kinds(rule))]


def _kinds(rule: TaxRule) -> tuple[str, ...]:
    everybody = (TaxRule.Buyers.BUSINESS, TaxRule.Buyers.CONSUMER)
    return everybody if rule.buyers == TaxRule.Buyers.ALL else (rule.buyers,)


def _together(rule: TaxRule, beside: list[TaxRule]) -> list[tuple[str, str]]:
    """The rates that one buyer pays together, said by kind of buyer where they differ."""
    sums = {kind: sum(one.rate_ppm for one in beside if kind in _kinds(one)) for kind in _kinds(rule)}
    same = len(set(sums.values())) == 1
    found = []
    for kind, ppm in list(sums.items())[: 1 if same else None]:
        who = "" if same else f", {kind}"
        found.append((f"Together, of the net amount{who}", figures.percent(ppm)))
        # A hundred units are a hundred times as many micros as parts per million.
        found.append(
            (f"On 100.00 net, without levies{who}", figures.money(100 * ppm, settings.MARKET_CURRENCY))
        )
    return found


def _figure(rule: TaxRule) -> str:
    if rule.kind == TaxRule.Kind.LEVY:
        return f"{figures.rate(rule.levy_micros_per_mtok)} {settings.MARKET_CURRENCY} per Mtok"
    return figures.percent(rule.rate_ppm)


def _look_at_rule(rule: TaxRule, now: datetime) -> Look:
    beside = _beside(rule)
    reversed_ = " Where a business of another country of the union pays it itself, nothing is collected."
    return Look(
        title=f"{rule.title}, {rule.jurisdiction}",
        lead=f"{_figure(rule)}, {rule.get_buyers_display().lower()} buyers, from {_when(rule.valid_from)} to "
        f"{_when(rule.valid_until)}.{reversed_ if rule.reverse_charge else ''}",
        rows=[(f"{one.title} ({one.code})", _figure(one)) for one in beside],
        totals=_together(rule, beside),
        warning="Of a rule only its end can be changed. Charges of periods that begin from its start on bear it"
        + (", also those that have passed and are on no invoice yet." if rule.valid_from < now else "."),
        button="Add the rule",
        shown=_terms_of(rule),
    )


def _look_at_end(rule: TaxRule, ended: TaxRule) -> Look:
    return Look(
        title=f"End {rule.title}, {rule.jurisdiction}",
        lead=f"{_figure(rule)}. What has been charged under it stays.",
        rows=[("Held until", _when(rule.valid_until)), ("Will hold until", _when(ended.valid_until))],
        warning="Periods that begin later do not bear it, unless another rule of its code is added.",
        button="End the rule",
        shown=_terms_of(ended),
    )


def _terms_of_discount(one: Discount) -> str:
    parts = (one.organization_id, one.rate_ppm, one.amount_micros, one.line_kind, one.max_invoices)
    return ":".join(map(str, parts))


def _look_at_discount(one: Discount) -> Look:
    worth = (
        figures.percent(one.rate_ppm)
        if one.rate_ppm is not None
        else figures.money(one.amount_micros or 0, settings.MARKET_CURRENCY)
    )
    lines = one.line_kind.replace("_", " ") if one.line_kind else "all"
    return Look(
        title=f"{one.title} for {one.organization.name}",
        lead="Off each invoice of a month that its time touches, before tax, and never more than its lines come to.",
        rows=[
            ("Of lines", lines),
            ("Invoices at most", str(one.max_invoices or "no limit")),
            ("From", _when(one.valid_from)),
            ("Until", _when(one.valid_until)),
        ],
        totals=[("Off each invoice", worth)],
        warning="Invoices that were issued with it keep it. It can be ended at any time.",
        button="Give the discount",
        shown=_terms_of_discount(one),
    )
