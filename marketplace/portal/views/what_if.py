"""What a published auction would have come to with another order of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.errors import DomainError
from marketplace.orders.bid_rounds import own_orders, published_auction, tradable_auctions
from marketplace.orders.book import BookBid
from marketplace.orders.services.what_if import Outcome, WhatIf, what_if
from marketplace.portal.access import SeatedRequest, page
from marketplace.portal.market_forms import WhatIfForm, as_sealed


@dataclass(frozen=True)
class FillChange:
    """What one own order got, before and after; `order` is None for the one that was added."""

    order: BookBid | None
    is_changed: bool
    before: int
    after: int


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def ask(request: SeatedRequest, auction_id: UUID) -> HttpResponse:
    """`?bid=` chooses one's own order; without it another one is added. Posting asks, and changes nothing."""
    organization_id = request.seat.organization.id
    auction = published_auction(auction_id)
    orders = {order.id: order for order in own_orders(auction, organization_id)}
    wanted = request.GET.get("bid", "")
    chosen = next((order for order in orders.values() if str(order.id) == wanted), None)
    tradable = [*([auction] if auction.joined else []), *tradable_auctions(auction)]
    slugs = {each.grade_id: each.grade.family.slug for each in tradable}
    form = WhatIfForm(
        request.POST if request.method == "POST" else None,
        initial=as_sealed(chosen, slugs) if chosen else {},
    )
    form.offer_grades([(each.grade.family.slug, each.grade.family.title) for each in tradable])
    answer = None
    if request.method == "POST" and form.is_valid():
        try:
            answer = what_if(
                organization_id=organization_id, auction_id=auction_id, change=form.change, now=clock.now()
            )
        except DomainError as error:
            form.refuse(error)
    context = {
        "auction": auction,
        "orders": list(orders.values()),
        "chosen": chosen,
        "is_elsewhere": bool(wanted) and chosen is None,
        "form": form,
        "answer": answer,
        "outcomes": (answer.before, answer.after) if answer else (),
        "fills": fill_changes(answer, orders, form.cleaned_data["bid_id"]) if answer else [],
        "currency": auction.grade.currency,
    }
    status = 422 if form.is_bound and answer is None else 200
    return render(request, "portal/what_if.html", context, status=status)


def fill_changes(answer: WhatIf, orders: dict[UUID, BookBid], changed_id: UUID | None) -> list[FillChange]:
    """The order asked about first, then the others by their ids."""
    before, after = _lots(answer.before), _lots(answer.after)
    others = sorted((before.keys() | after.keys()) - {changed_id}, key=str)
    return [
        FillChange(
            orders.get(bid_id) if bid_id else None,
            bid_id == changed_id,
            before.get(bid_id, 0),
            after.get(bid_id, 0),
        )
        for bid_id in (changed_id, *others)
    ]


def _lots(outcome: Outcome) -> dict[UUID | None, int]:
    return {fill.bid_id: fill.lots for fill in outcome.fills}
