"""Look, then do: what cannot be undone is shown with its exact amounts before it is done. And the trail of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.selectors import names_of_actors, trail_of
from marketplace.billing.services.rehearsing import FiguresChanged
from marketplace.errors import DomainError
from marketplace.portal.forms import PortalForm

_OWN: Final = frozenset({"csrfmiddlewaretoken", "step", "shown"})
RECENT: Final = 20


@dataclass(frozen=True)
class Look:
    """What will be done: `rows` are (what, amount as shown), the last of `totals` stands out; `shown` comes back with
    the click, so that other figures are not done by it."""

    title: str
    lead: str
    button: str
    shown: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    totals: list[tuple[str, str]] = field(default_factory=list)
    warning: str = ""
    note: str = ""


def in_two_steps(
    request: HttpRequest,
    form: PortalForm,
    *,
    look: Callable[[], Look],
    do: Callable[[str], HttpResponse],
    back: str,
) -> HttpResponse | None:
    """The page to look at, or what `do` answers, given what had been shown. None where the form is to be shown (again).

    Both are asked with a valid form only; what a service refuses is said at the form's input.
    """
    if request.method != "POST" or not form.is_valid():
        return None
    try:
        if request.POST.get("step") != "do":
            return _looked_at(request, look(), back)
        try:
            return do(request.POST.get("shown", ""))
        except FiguresChanged as error:
            return _looked_at(request, look(), back, note=error.detail)
    except DomainError as error:
        form.refuse(error)
        return None


def _looked_at(request: HttpRequest, found: Look, back: str, *, note: str = "") -> HttpResponse:
    sent = [
        (name, value)
        for name, values in request.POST.lists()
        if name not in _OWN
        for value in map(str, values)
    ]
    context = {"look": found, "sent": sent, "back": back, "note": note}
    return render(request, "portal/billing_look.html", context, status=409 if note else 200)


@dataclass(frozen=True)
class Done:
    """An entry of the trail, with who it was in words."""

    entry: AuditEntry
    who: str


def done(entries: Collection[AuditEntry]) -> list[Done]:
    names = names_of_actors(entries)
    return [
        Done(entry, names.get(entry.actor_id, "") if entry.actor_id else "the market") for entry in entries
    ]


def trail(kinds: Collection[str], object_ids: Collection[UUID] | None = None) -> list[Done]:
    """The last of it."""
    return done(list(trail_of(kinds, object_ids=object_ids)[:RECENT]))
