"""REST: where an organization's programs are told, what they were told, and how it went."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.urls import path
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import StrictChoiceField, StrictSerializer, TextField
from marketplace.api.views import ApiView
from marketplace.egress import MAX_URL_CHARACTERS
from marketplace.webhooks import selectors, services
from marketplace.webhooks.catalogue import EVENT_TYPES
from marketplace.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookEvent


class EndpointIn(StrictSerializer):
    url = TextField(max_length=MAX_URL_CHARACTERS, help_text="https, on the public internet")
    description = TextField(max_length=100, required=False, default="", allow_blank=True)
    event_types = serializers.ListField(
        child=TextField(max_length=64),
        max_length=len(EVENT_TYPES),
        allow_empty=False,
        allow_null=True,
        required=False,
        default=None,
        help_text="which events to send; null for all",
    )


class EndpointChange(StrictSerializer):
    url = TextField(max_length=MAX_URL_CHARACTERS, required=False)
    description = TextField(max_length=100, required=False, allow_blank=True)
    event_types = serializers.ListField(
        child=TextField(max_length=64),
        max_length=len(EVENT_TYPES),
        allow_empty=False,
        allow_null=True,
        required=False,
    )
    status = StrictChoiceField(WebhookEndpoint.Status.choices, required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError("name at least one field to change")
        return attrs


class EndpointOut(serializers.ModelSerializer[WebhookEndpoint]):
    """`event_types` empty: all of them.

    `disabled_reason`: asked, gone (it answered 410) or failing (nothing succeeded for three days)."""

    class Meta:
        model = WebhookEndpoint
        fields: tuple[str, ...] = (
            "id",
            "url",
            "description",
            "event_types",
            "status",
            "disabled_reason",
            "failing_since",
            "rotated_until",
            "created_at",
        )


class EndpointWithSecret(EndpointOut):
    """With the secrets that sign now, newest first: two for a day after a rotation."""

    signing_secrets = serializers.SerializerMethodField()

    class Meta(EndpointOut.Meta):
        fields = (*EndpointOut.Meta.fields, "signing_secrets")

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_signing_secrets(self, endpoint: WebhookEndpoint) -> list[str]:
        return services.secrets_of(endpoint, now=clock.now())


class EventOut(serializers.ModelSerializer[WebhookEvent]):
    """`payload` is what was sent."""

    payload = serializers.SerializerMethodField()

    class Meta:
        model = WebhookEvent
        fields = ("id", "type", "occurred_at", "payload")

    @extend_schema_field(serializers.JSONField())
    def get_payload(self, event: WebhookEvent) -> Any:
        return selectors.payload_of(event)


class AttemptOut(serializers.ModelSerializer[WebhookAttempt]):
    class Meta:
        model = WebhookAttempt
        fields = ("number", "attempted_at", "duration_ms", "response_status", "problem")


class DeliveryOut(serializers.ModelSerializer[WebhookDelivery]):
    type = serializers.CharField(source="event.type")
    tries = AttemptOut(many=True)

    class Meta:
        model = WebhookDelivery
        fields = (
            "id",
            "event_id",
            "type",
            "status",
            "attempts",
            "next_attempt_at",
            "give_up_at",
            "ended_at",
            "tries",
        )


class ReplayOut(serializers.Serializer[Any]):
    deliveries = serializers.IntegerField(help_text="to how many endpoints it is sent again")


class EndpointsView(ApiView):
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.READ, "POST": Scope.MANAGE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="webhook_endpoints_list", responses=EndpointOut(many=True))
    def get(self, request: Request) -> Response:
        """Endpoints, newest first."""
        return self.page(selectors.endpoints_of(self.organization_id), EndpointOut)

    @extend_schema(
        operation_id="webhook_endpoints_create", request=EndpointIn, responses={201: EndpointWithSecret}
    )
    def post(self, request: Request) -> Response:
        """Add an endpoint. Deliveries follow the Standard Webhooks specification; verify them with
        `signing_secrets` and any of its libraries."""
        endpoint = services.create_endpoint(
            organization_id=self.organization_id,
            now=clock.now(),
            actor=self.actor,
            **self.parse(EndpointIn),
        )
        return Response(EndpointWithSecret(endpoint).data, status=201)


class EndpointView(ApiView):
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.MANAGE, "PATCH": Scope.MANAGE, "DELETE": Scope.MANAGE}

    @extend_schema(operation_id="webhook_endpoints_retrieve", responses=EndpointWithSecret)
    def get(self, request: Request, endpoint_id: UUID) -> Response:
        """One endpoint with its signing secrets."""
        return Response(EndpointWithSecret(selectors.endpoint_of(self.organization_id, endpoint_id)).data)

    @extend_schema(operation_id="webhook_endpoints_change", request=EndpointChange, responses=EndpointOut)
    def patch(self, request: Request, endpoint_id: UUID) -> Response:
        """Change it, or disable it and make it active again."""
        endpoint = services.change_endpoint(
            organization_id=self.organization_id,
            endpoint_id=endpoint_id,
            changes=self.parse(EndpointChange),
            now=clock.now(),
            actor=self.actor,
        )
        return Response(EndpointOut(endpoint).data)

    @extend_schema(operation_id="webhook_endpoints_remove", responses={204: None})
    def delete(self, request: Request, endpoint_id: UUID) -> Response:
        """Remove it with its log."""
        services.remove_endpoint(
            organization_id=self.organization_id,
            endpoint_id=endpoint_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(status=204)


class EndpointSecretView(ApiView):
    scopes: ClassVar[dict[str, str]] = {"POST": Scope.MANAGE}

    @extend_schema(
        operation_id="webhook_endpoints_rotate_secret", request=None, responses={200: EndpointWithSecret}
    )
    def post(self, request: Request, endpoint_id: UUID) -> Response:
        """A new secret; the former one signs beside it for 24 hours."""
        endpoint = services.rotate_secret(
            organization_id=self.organization_id,
            endpoint_id=endpoint_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(EndpointWithSecret(endpoint).data)


class EndpointTestView(ApiView):
    scopes: ClassVar[dict[str, str]] = {"POST": Scope.MANAGE}

    @extend_schema(operation_id="webhook_endpoints_test", request=None, responses={202: DeliveryOut})
    def post(self, request: Request, endpoint_id: UUID) -> Response:
        """Send an `endpoint.test` event to it now."""
        delivery = services.send_test(
            organization_id=self.organization_id, endpoint_id=endpoint_id, now=clock.now()
        )
        return Response(DeliveryOut(delivery).data, status=202)


class EndpointDeliveriesView(ApiView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="webhook_deliveries_list", responses=DeliveryOut(many=True))
    def get(self, request: Request, endpoint_id: UUID) -> Response:
        """What was sent to an endpoint, with every try, newest first."""
        endpoint = selectors.endpoint_of(self.organization_id, endpoint_id)
        return self.page(selectors.deliveries_to(endpoint), DeliveryOut)


class EventsView(ApiView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="webhook_events_list", responses=EventOut(many=True))
    def get(self, request: Request) -> Response:
        """Events of the last 30 days that an endpoint listened for, newest first."""
        return self.page(selectors.events_of(self.organization_id), EventOut)


class EventReplayView(ApiView):
    scopes: ClassVar[dict[str, str]] = {"POST": Scope.MANAGE}

    @extend_schema(operation_id="webhook_events_replay", request=None, responses={202: ReplayOut})
    def post(self, request: Request, webhook_event_id: UUID) -> Response:
        """Send an event again, under the same `webhook-id`, to every endpoint that listens now."""
        count = services.replay_event(
            organization_id=self.organization_id, event_id=webhook_event_id, now=clock.now()
        )
        return Response({"deliveries": count}, status=202)


urlpatterns: list[Any] = [
    path("webhook-endpoints", EndpointsView.as_view(), name="api-webhook-endpoints"),
    path("webhook-endpoints/<uuid:endpoint_id>", EndpointView.as_view(), name="api-webhook-endpoint"),
    path(
        "webhook-endpoints/<uuid:endpoint_id>/rotate-secret",
        EndpointSecretView.as_view(),
        name="api-webhook-endpoint-secret",
    ),
    path(
        "webhook-endpoints/<uuid:endpoint_id>/test",
        EndpointTestView.as_view(),
        name="api-webhook-endpoint-test",
    ),
    path(
        "webhook-endpoints/<uuid:endpoint_id>/deliveries",
        EndpointDeliveriesView.as_view(),
        name="api-webhook-deliveries",
    ),
    path("webhook-events", EventsView.as_view(), name="api-webhook-events"),
    path(
        "webhook-events/<uuid:webhook_event_id>/replay",
        EventReplayView.as_view(),
        name="api-webhook-event-replay",
    ),
]
