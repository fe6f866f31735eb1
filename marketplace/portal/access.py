"""Who is at the door: sign-in, current organization, role. Every page goes through `page`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Concatenate, ParamSpec, cast
from urllib.parse import urlencode
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.cache import add_never_cache_headers, patch_cache_control

from marketplace import clock
from marketplace.accounts.models import Membership, Organization, OrganizationClock, OrganizationRole, User
from marketplace.accounts.selectors import memberships_of
from marketplace.accounts.services import Actor
from marketplace.errors import NotFound

ORGANIZATION_KEY = "organization_id"
HOMES = {
    OrganizationRole.BUYER: "buyer-home",
    OrganizationRole.PROVIDER: "provider-home",
    OrganizationRole.OPERATOR: "operator-home",
}
P = ParamSpec("P")


@dataclass(frozen=True)
class Seat:
    """A signed-in person in the organization he acts for now, and the others he could act for."""

    user: User
    organization: Organization
    role: str
    memberships: list[Membership]

    @property
    def is_active(self) -> bool:
        return self.organization.status != Organization.Status.SUSPENDED

    @property
    def may_change(self) -> bool:
        """Owners and members trade; viewers read."""
        return self.is_active and self.role in (Membership.Role.OWNER, Membership.Role.MEMBER)

    @property
    def may_manage(self) -> bool:
        """Owners manage people and keys."""
        return self.is_active and self.role == Membership.Role.OWNER

    @property
    def is_buyer(self) -> bool:
        return self.organization.has_role(OrganizationRole.BUYER)

    @property
    def is_provider(self) -> bool:
        return self.organization.has_role(OrganizationRole.PROVIDER)

    @property
    def is_operator(self) -> bool:
        return self.organization.has_role(OrganizationRole.OPERATOR)

    @property
    def test_clock(self) -> OrganizationClock | None:
        """Read with the memberships: no query of its own."""
        found: OrganizationClock | None = getattr(self.organization, "test_clock", None)
        return found

    @property
    def own_now(self) -> datetime:
        """The billing time of an organization that has a test clock."""
        assert self.test_clock is not None
        return max(self.test_clock.now_at, clock.now())

    @property
    def home(self) -> str:
        return reverse(next(name for role, name in HOMES.items() if self.organization.has_role(role)))


class PortalRequest(HttpRequest):
    """A request whose sender has been looked up; `seat` is set on pages of a role, and None where nobody sits."""

    seat: Seat | None


class SeatedRequest(HttpRequest):
    """A request that passed the door of its page."""

    seat: Seat


PublicView = Callable[Concatenate[PortalRequest, P], HttpResponse]
# A download is a response that is no HttpResponse: it is made while it is sent.
SeatedView = Callable[Concatenate[SeatedRequest, P], HttpResponseBase]
DjangoView = Callable[Concatenate[HttpRequest, P], HttpResponseBase]


def actor_of(request: SeatedRequest) -> Actor:
    return Actor("user", request.seat.user.id, request.META.get("REMOTE_ADDR") or None)


def seat_of(request: HttpRequest) -> Seat | None:
    """The seat of this session: the chosen organization, or the person's first one. None when not signed in.

    Memberships are read on every request, so one that was removed ends at once.
    """
    user = request.user
    if not user.is_authenticated:
        return None
    assert isinstance(user, User)
    memberships = list(memberships_of(user.id))
    chosen = request.session.get(ORGANIZATION_KEY)
    for membership in memberships:
        if str(membership.organization_id) == chosen:
            return Seat(user, membership.organization, membership.role, memberships)
    if not memberships:
        return None
    return Seat(user, memberships[0].organization, memberships[0].role, memberships)


def choose_organization(request: HttpRequest, organization_id: UUID) -> Seat:
    """Act for another of one's organizations from now on. Raises Http404 for any other."""
    user = request.user
    if user.is_authenticated:
        assert isinstance(user, User)
        if memberships_of(user.id).filter(organization_id=organization_id).exists():
            request.session[ORGANIZATION_KEY] = str(organization_id)
            seat = seat_of(request)
            assert seat is not None
            return seat
    raise Http404


def public(view: PublicView[P]) -> DjangoView[P]:
    """A page for everybody; who is signed in sees his own navigation on it."""

    @wraps(view)
    def wrapper(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        return _answer(view, request, seat_of(request), *args, **kwargs)

    return wrapper


def page(
    role: OrganizationRole | None = None, *, manage: bool = False
) -> Callable[[SeatedView[P]], DjangoView[P]]:
    """A page of a role, or without one of every organization.

    Not signed in: to the sign-in. Organization without the role: 404, there is no such page.

    Anything but reading asks for a membership that may trade, or with `manage` for an owner's: 403 otherwise.
    """

    def decorate(view: SeatedView[P]) -> DjangoView[P]:
        @wraps(view)
        def wrapper(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            seat = seat_of(request)
            # Error pages show the navigation too.
            cast(PortalRequest, request).seat = seat
            if seat is None:
                if request.user.is_authenticated:
                    raise PermissionDenied(
                        "You are not a member of any organization yet; ask an owner to add you."
                    )
                return _to_sign_in(request)
            if role is not None and not seat.organization.has_role(role):
                raise Http404
            if request.method not in ("GET", "HEAD"):
                _check_may_change(seat, manage=manage)
            return _answer(view, request, seat, *args, **kwargs)

        return wrapper

    return decorate


def _answer(
    view: Callable[..., HttpResponseBase],
    request: HttpRequest,
    seat: Seat | None,
    *args: object,
    **kwargs: object,
) -> HttpResponseBase:
    asked = cast(PortalRequest, request)
    asked.seat = seat
    try:
        response = view(asked, *args, **kwargs)
    except NotFound as error:
        raise Http404(error.detail) from error
    if seat is not None:
        add_never_cache_headers(response)
        patch_cache_control(response, private=True)
    return response


def _check_may_change(seat: Seat, *, manage: bool) -> None:
    if not seat.is_active:
        raise PermissionDenied(f"{seat.organization.name} is suspended: it can be read, not changed.")
    if manage and not seat.may_manage:
        raise PermissionDenied("Only an owner of the organization may do this.")
    if not seat.may_change:
        raise PermissionDenied("Your membership may read, not change. Ask an owner to make you a member.")


def _to_sign_in(request: HttpRequest) -> HttpResponse:
    # What a form would have sent is not repeated after the sign-in: go back to where it was shown.
    wanted = request.get_full_path() if request.method in ("GET", "HEAD") else "/"
    address = f"{reverse('sign-in')}?{urlencode({'next': wanted})}"
    if getattr(request, "htmx", False):
        # A redirect would put the sign-in inside a fragment of the page; this makes the browser go there.
        return HttpResponse(status=204, headers={"HX-Redirect": address})
    return redirect(address)
