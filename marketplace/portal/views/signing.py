"""Signing in and out, and choosing the organization to act for."""

from __future__ import annotations

from uuid import UUID

from django.contrib.auth import authenticate, login, logout
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from marketplace.accounts.throttling import may_sign_in, note_wrong_sign_in
from marketplace.portal.access import PortalRequest, choose_organization, public, seat_of
from marketplace.portal.forms import SignInForm


@sensitive_post_parameters("password")
@require_http_methods(["GET", "HEAD", "POST"])
@public
def sign_in(request: PortalRequest) -> HttpResponse:
    wanted = request.POST.get("next") or request.GET.get("next") or ""
    if request.method != "POST":
        if request.seat is not None:
            return redirect(request.seat.home)
        return render(request, "portal/sign_in.html", {"form": SignInForm(), "next": wanted})
    form = SignInForm(request.POST)
    if form.is_valid():
        email, ip = form.cleaned_data["email"].strip(), request.META.get("REMOTE_ADDR", "")
        if not may_sign_in(email=email, ip=ip):
            form.add_error(None, "Too many wrong attempts. Wait five minutes, then try again.")
            return render(request, "portal/sign_in.html", {"form": form, "next": wanted}, status=429)
        user = authenticate(request, username=email, password=form.cleaned_data["password"])
        if user is not None:
            login(request, user)
            seat = seat_of(request)
            own = url_has_allowed_host_and_scheme(
                wanted, allowed_hosts={request.get_host()}, require_https=request.is_secure()
            )
            if own:
                return redirect(wanted)
            return redirect(seat.home if seat else "market")
        note_wrong_sign_in(email=email, ip=ip)
        form.add_error(None, "E-mail address and password do not belong together.")
    return render(request, "portal/sign_in.html", {"form": form, "next": wanted}, status=422)


@require_POST
@public
def sign_out(request: PortalRequest) -> HttpResponse:
    logout(request)
    return redirect("market")


@require_POST
@public
def switch(request: PortalRequest) -> HttpResponse:
    try:
        organization_id = UUID(request.POST.get("organization", ""))
    except ValueError:
        raise Http404 from None
    return redirect(choose_organization(request, organization_id).home)
