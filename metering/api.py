"""REST for meters: signed batches in, what became of them out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db.models import Q
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.api.views import PublicView
from marketplace.errors import DomainError
from metering import selectors
from metering.models import MeterSource, UsageBatch
from metering.services import accept_batch, remember_nonce
from providers.wire import SignatureRefused, signing_key_id, verify_signed_request

MAX_BATCH_BYTES = 8 * 1024 * 1024


class MeterSignatureRefused(DomainError):
    """The request is not signed by a registered meter, or was seen before."""

    code = "signature_refused"
    http_status = 401
    title = "The signature was refused"


class BatchTooLarge(DomainError):
    """More than a batch may have; nothing was kept."""

    code = "batch_too_large"
    http_status = 413
    title = "The batch is too large"


class AcceptedBatchSerializer(serializers.Serializer[Any]):
    batch_id = serializers.UUIDField(source="id")
    status = serializers.CharField()


class BatchExceptionSerializer(serializers.Serializer[Any]):
    index = serializers.IntegerField()
    id = serializers.UUIDField(allow_null=True)
    result = serializers.ChoiceField(["quarantined", "conflict"])
    field = serializers.CharField()
    reason = serializers.CharField()


class BatchSerializer(serializers.ModelSerializer[UsageBatch]):
    """What became of every event: those not listed under `exceptions` were accepted or duplicates."""

    exceptions = BatchExceptionSerializer(many=True)

    class Meta:
        model = UsageBatch
        fields = (
            "id",
            "status",
            "sequence_from",
            "sequence_to",
            "attempts",
            "accepted_events",
            "duplicate_events",
            "exceptions",
            "error",
            "received_at",
            "stored_at",
        )


class _MeterView(PublicView):
    """Signed by the meter's host (RFC 9421, Ed25519); `keyid` is the host's or the source's id."""

    def meter(self, request: Request, body: bytes) -> MeterSource:
        now = clock.now()
        try:
            key_id = UUID(signing_key_id(request.headers))
        except (SignatureRefused, ValueError) as error:
            raise MeterSignatureRefused(f"signature: {error}") from None
        source = MeterSource.objects.filter(
            Q(pk=key_id) | Q(host_id=key_id), kind="agent", status=MeterSource.Status.ACTIVE
        ).first()
        if source is None or source.public_key is None:
            raise MeterSignatureRefused("signature: no registered meter has this key.")
        try:
            nonce = verify_signed_request(
                method=str(request.method),
                url=request.build_absolute_uri(),
                headers=request.headers,
                body=body,
                public_key=Ed25519PublicKey.from_public_bytes(bytes(source.public_key)),
                now=clock.wall_now(),
            )
        except (SignatureRefused, ValueError) as error:
            raise MeterSignatureRefused(str(error)) from None
        if not remember_nonce(key_id=source.pk, nonce=nonce, now=now):
            raise MeterSignatureRefused("signature: this request was seen before.")
        return source


class UsageBatchesView(_MeterView):
    @extend_schema(
        operation_id="usage_send",
        request={"application/x-ndjson": OpenApiTypes.STR},
        responses={202: AcceptedBatchSerializer},
    )
    def post(self, request: Request) -> Response:
        """Hand in a batch: 202 once it is durable. What became of its events is told by the batch."""
        length = request.META.get("CONTENT_LENGTH") or "0"
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BATCH_BYTES:
            raise BatchTooLarge(f"a batch has at most {MAX_BATCH_BYTES} bytes", field="body")
        body = request.body
        source = self.meter(request, body)
        batch = accept_batch(source=source, body=body, now=clock.now())
        return Response(AcceptedBatchSerializer(batch).data, status=202)


class UsageBatchView(_MeterView):
    @extend_schema(operation_id="usage_batch_read", responses=BatchSerializer)
    def get(self, request: Request, batch_id: UUID) -> Response:
        source = self.meter(request, b"")
        return Response(BatchSerializer(selectors.find_batch(source, batch_id)).data)


urlpatterns = [
    path("usage/batches", UsageBatchesView.as_view(), name="api-usage-batches"),
    path("usage/batches/<uuid:batch_id>", UsageBatchView.as_view(), name="api-usage-batch"),
]
