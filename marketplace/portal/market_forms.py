"""What people type about the market's past and a host's future: another order in a cleared book; an outage to come."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django import forms

from marketplace.orders.book import BookBid
from marketplace.orders.services.what_if import OwnChange
from marketplace.portal.forms import BidForm, PortalForm
from pricing.units import decimal_string
from providers.planned_outages import NOTICE

_HOUR = timedelta(hours=1)
# What a bid is asked for that an order in a book no longer has.
_OF_A_BID = ("operation", "grade", "period_start", "daily_budget", "valid_until")


class WhatIfForm(BidForm):
    """An order as the book might have had it: one of one's own changed, or without `bid_id` one more."""

    bid_id = forms.UUIDField(required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in _OF_A_BID:
            del self.fields[name]

    @property
    def change(self) -> OwnChange:
        data = self.cleaned_data
        return OwnChange(
            bid_id=data["bid_id"],
            steps=tuple(self.steps),
            min_fill_lots=data["min_fill_lots"] or 0,
            all_or_none=data["all_or_none"],
            substitutes=tuple(self.substitutes),
        )


def as_sealed(order: BookBid, grades: Mapping[UUID, str]) -> dict[str, Any]:
    """The order as its form shows it; `grades` are the slugs of those it may take."""
    typed: dict[str, Any] = {
        "bid_id": order.id,
        "min_fill_lots": order.min_fill_lots or "",
        "all_or_none": order.all_or_none,
    }
    for number, (rate, lots) in enumerate(order.steps):
        typed[f"rate_{number}"] = decimal_string(rate, 6)
        typed[f"lots_{number}"] = lots
    named = [(grades[grade_id], more) for grade_id, more in order.substitutes if grade_id in grades]
    for number, (grade, more) in enumerate(named):
        typed[f"substitute_{number}"] = grade
        typed[f"adjustment_{number}"] = ("-" if more < 0 else "") + decimal_string(abs(more), 6)
    return typed


class HourField(forms.DateTimeField):
    """A moment in UTC, offered in whole hours; whether it is one is the service's question."""

    def __init__(self, **options: Any) -> None:
        widget = forms.DateTimeInput(attrs={"type": "datetime-local", "step": "3600"})
        super().__init__(widget=widget, **options)

    def clean(self, value: Any) -> datetime:
        at: datetime = super().clean(value)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at


class OutageForm(PortalForm):
    starts_at = HourField(label="From (UTC)", help_text="A whole hour, at least an hour ahead.")
    ends_at = HourField(label="Until (UTC)", help_text="A whole hour, at most 14 days later.")


def outage_form(now: datetime, data: Any = None) -> OutageForm:
    """For the first hour that can be announced, unless something else was typed."""
    first = (now + NOTICE).astimezone(UTC).replace(minute=0, second=0, microsecond=0) + _HOUR
    shown = {"starts_at": _typed(first), "ends_at": _typed(first + _HOUR)}
    return OutageForm(data, initial=shown)


def _typed(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M")
