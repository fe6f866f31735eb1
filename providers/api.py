"""REST of providers (API keys) and of their agents (requests signed with the host's key)."""

from __future__ import annotations

import base64
import binascii
from datetime import timedelta
from typing import Any, ClassVar, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings
from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.accounts.services import Actor
from marketplace.api.pagination import CursorPagination
from marketplace.api.views import ApiView, PublicView
from marketplace.errors import DomainError, InvalidInput
from providers import outages_api, selectors, services, tariffs_api
from providers.list_rates import with_list_rate
from providers.models import Host
from providers.serializers import (
    BenchAcceptedOut,
    BenchIn,
    EnrolIn,
    EnrolmentCodeOut,
    EnrolOut,
    HeartbeatIn,
    HeartbeatOut,
    HostDetailOut,
    HostIn,
    HostOut,
    HostStatusIn,
    NothingIn,
    OfferingIn,
    OfferingOut,
    OfferingStatusIn,
    PricesIn,
    ProviderOut,
)

MAX_AGENT_BODY_BYTES: Final = 65_536
HEARTBEAT_S: Final = 5


class BodyTooLarge(DomainError):
    """More than an agent has to say; nothing was changed."""

    code = "body_too_large"
    http_status = 413
    title = "Content too large"


# Providers -----------------------------------------------------------------------------------------------------


class _ProviderView(ApiView):
    role = "provider"
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.READ, "POST": Scope.PROVIDE, "PATCH": Scope.PROVIDE}


class HostsView(_ProviderView):
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.READ, "POST": Scope.PROVIDE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="hosts_list", responses=HostOut(many=True))
    def get(self, request: Request) -> Response:
        return self.page(selectors.hosts_of(self.organization_id), HostOut)

    @extend_schema(operation_id="hosts_create", request=HostIn, responses={201: HostOut})
    def post(self, request: Request) -> Response:
        host = services.create_host(
            organization_id=self.organization_id, now=clock.now(), actor=self.actor, **self.parse(HostIn)
        )
        return Response(HostOut(host).data, status=201)


class HostView(_ProviderView):
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.READ, "PATCH": Scope.PROVIDE}

    @extend_schema(operation_id="hosts_read", responses=HostDetailOut)
    def get(self, request: Request, host_id: UUID) -> Response:
        return Response(HostDetailOut(selectors.find_host(self.organization_id, host_id)).data)

    @extend_schema(operation_id="hosts_change", request=HostStatusIn, responses=HostDetailOut)
    def patch(self, request: Request, host_id: UUID) -> Response:
        """Pause the host, or resume it."""
        move = services.pause_host if self.parse(HostStatusIn)["status"] == "paused" else services.resume_host
        host = move(organization_id=self.organization_id, host_id=host_id, now=clock.now(), actor=self.actor)
        return Response(HostDetailOut(host).data)


class EnrolmentCodesView(_ProviderView):
    scopes: ClassVar[dict[str, str]] = {"POST": Scope.PROVIDE}

    @extend_schema(operation_id="enrolment_codes_issue", request=NothingIn, responses={201: EnrolmentCodeOut})
    def post(self, request: Request, host_id: UUID) -> Response:
        """A code for the host's agent; codes issued before are void."""
        self.parse(NothingIn)
        now = clock.now()
        code = services.issue_enrolment_code(
            organization_id=self.organization_id, host_id=host_id, now=now, actor=self.actor
        )
        answer = {"host_id": host_id, "code": code, "expires_at": now + services.ENROLMENT_CODE_VALID}
        return Response(EnrolmentCodeOut(answer).data, status=201)


class OfferingsView(_ProviderView):
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.READ, "POST": Scope.PROVIDE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="offerings_list", responses=OfferingOut(many=True))
    def get(self, request: Request) -> Response:
        offerings = with_list_rate(selectors.offerings_of(self.organization_id), clock.now())
        return self.page(offerings, OfferingOut)

    @extend_schema(operation_id="offerings_list_or_change", request=OfferingIn, responses=OfferingOut)
    def post(self, request: Request) -> Response:
        """Offer a grade on a host, or change the prices of the offering there is; the same again changes nothing."""
        data = self.parse(OfferingIn)
        host = selectors.find_host(self.organization_id, data.pop("host_id"))
        offering = services.list_offering(
            host_id=host.pk, grade_slug=data.pop("grade"), now=clock.now(), actor=self.actor, **data
        )
        return Response(_shown(self.organization_id, offering.pk))


class OfferingView(_ProviderView):
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.READ, "PATCH": Scope.PROVIDE}

    @extend_schema(operation_id="offerings_read", responses=OfferingOut)
    def get(self, request: Request, offering_id: UUID) -> Response:
        return Response(_shown(self.organization_id, offering_id))

    @extend_schema(operation_id="offerings_change", request=OfferingStatusIn, responses=OfferingOut)
    def patch(self, request: Request, offering_id: UUID) -> Response:
        """Pause, resume or (for good) withdraw."""
        moves = {
            "listed": services.resume_offering,
            "paused": services.pause_offering,
            "withdrawn": services.withdraw_offering,
        }
        offering = moves[self.parse(OfferingStatusIn)["status"]](
            organization_id=self.organization_id, offering_id=offering_id, now=clock.now(), actor=self.actor
        )
        return Response(_shown(self.organization_id, offering.pk))


def _shown(organization_id: UUID, offering_id: UUID) -> dict[str, Any]:
    """Raises NotFound, also for an offering of another organization."""
    selectors.find_offering(organization_id, offering_id)
    offerings = with_list_rate(selectors.offerings_of(organization_id), clock.now())
    return dict(OfferingOut(offerings.get(pk=offering_id)).data)


class ProvidersView(PublicView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="providers_list", responses=ProviderOut(many=True))
    def get(self, request: Request) -> Response:
        """Who sells here, and how much of each provider's usage reconciled within tolerance over 30 days."""
        pagination = CursorPagination()
        shown = pagination.paginate_queryset(selectors.published_providers(), request, self) or []
        profiles = selectors.profiles_of(shown, now=clock.now())
        return pagination.get_paginated_response(ProviderOut(profiles, many=True).data)


# Agents --------------------------------------------------------------------------------------------------------


class _AgentView(PublicView):
    """Signed by the host's key (RFC 9421, Ed25519); `keyid` is the host's id."""

    def host(self, request: Request) -> Host:
        body = self.bounded_body(request)
        return services.authenticate_host(
            method=str(request.method),
            url=request.build_absolute_uri(),
            headers=request.headers,
            body=body,
            # A signature is as old as the machine says, wherever the market's clock was moved to.
            now=clock.wall_now(),
        )

    def bounded_body(self, request: Request) -> bytes:
        """Read before it is parsed: what was signed is the bytes."""
        length = request.META.get("CONTENT_LENGTH") or "0"
        if not length.isascii() or not length.isdigit() or int(length[:20]) > MAX_AGENT_BODY_BYTES:
            raise BodyTooLarge(f"an agent's request has at most {MAX_AGENT_BODY_BYTES} bytes")
        return bytes(request.body)


class AgentEnrolView(_AgentView):
    @extend_schema(operation_id="agent_enrol", request=EnrolIn, responses={201: EnrolOut})
    def post(self, request: Request) -> Response:
        """Claim the host of the code. Signed with the private half of `public_key`."""
        body = self.bounded_body(request)
        data = self.parse(EnrolIn)
        data["public_key"] = _public_key(data["public_key"])
        services.verify_enrolment_signature(
            method=str(request.method),
            url=request.build_absolute_uri(),
            headers=request.headers,
            body=body,
            public_key=data["public_key"],
            now=clock.wall_now(),
        )
        host = services.enrol_host(now=clock.now(), **data)
        answer = {
            "host_id": host.pk,
            "source_id": host.source_id,
            "market_public_key": market_public_key(),
            "heartbeat_s": HEARTBEAT_S,
        }
        return Response(EnrolOut(answer).data, status=201)


class AgentHeartbeatView(_AgentView):
    @extend_schema(operation_id="agent_heartbeat", request=HeartbeatIn, responses=HeartbeatOut)
    def post(self, request: Request) -> Response:
        """Every few seconds: alive, ready or not, and the engine's counters."""
        host = self.host(request)
        data = self.parse(HeartbeatIn)
        # How far off the machine's clock is, whatever time the market plays: agents know nothing of that.
        skew = (data["at"] - clock.wall_now()) // timedelta(milliseconds=1) if "at" in data else None
        services.record_heartbeat(
            host_id=host.pk,
            boot_id=data["boot_id"],
            ready=data["ready"],
            in_flight=data["in_flight"],
            registers=data.get("registers", {}),
            energy_millijoules=data.get("energy_millijoules"),
            clock_skew_ms=skew,
            available_ppm=data.get("available_ppm"),
            now=clock.now(),
        )
        return Response(HeartbeatOut({"status": host.status, "heartbeat_s": HEARTBEAT_S}).data)


class AgentBenchView(_AgentView):
    @extend_schema(operation_id="agent_bench", request=BenchIn, responses={201: BenchAcceptedOut})
    def post(self, request: Request) -> Response:
        """What a bench counted; dependable capacity is computed from it when an offering is listed."""
        host = self.host(request)
        bench = services.record_bench(host_id=host.pk, figures=self.parse(BenchIn), now=clock.now())
        return Response(BenchAcceptedOut({"bench_id": bench.pk}).data, status=201)


class AgentOfferingsView(_AgentView):
    @extend_schema(operation_id="agent_offerings", request=PricesIn, responses=OfferingOut)
    def post(self, request: Request) -> Response:
        """List a grade on the agent's own host, or change its prices; the same again changes nothing."""
        host = self.host(request)
        data = self.parse(PricesIn)
        offering = services.list_offering(
            host_id=host.pk,
            grade_slug=data.pop("grade"),
            now=clock.now(),
            actor=Actor("host", host.pk, request.META.get("REMOTE_ADDR") or None),
            **data,
        )
        return Response(_shown(host.provider.organization_id, offering.pk))


def market_public_key() -> str:
    """What agents verify delivery keys with: raw Ed25519, base64."""
    private = Ed25519PrivateKey.from_private_bytes(settings.MARKET_SIGNING_KEY)
    return base64.b64encode(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def _public_key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise InvalidInput("It must be 32 bytes in base64, an Ed25519 public key.", field="public_key")
    return key


urlpatterns = [
    *outages_api.urlpatterns,
    *tariffs_api.urlpatterns,
    path("providers", ProvidersView.as_view(), name="api-providers"),
    path("hosts", HostsView.as_view(), name="api-hosts"),
    path("hosts/<uuid:host_id>", HostView.as_view(), name="api-host"),
    path("hosts/<uuid:host_id>/enrolment-codes", EnrolmentCodesView.as_view(), name="api-enrolment-codes"),
    path("offerings", OfferingsView.as_view(), name="api-offerings"),
    path("offerings/<uuid:offering_id>", OfferingView.as_view(), name="api-offering"),
    path("agent/enrol", AgentEnrolView.as_view(), name="api-agent-enrol"),
    path("agent/heartbeat", AgentHeartbeatView.as_view(), name="api-agent-heartbeat"),
    path("agent/bench", AgentBenchView.as_view(), name="api-agent-bench"),
    path("agent/offerings", AgentOfferingsView.as_view(), name="api-agent-offerings"),
]
