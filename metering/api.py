"""REST for meters: signed batches in, what became of them out.

`POST /usage` shares its address with the buyers' `GET /usage` of contracts, which lies above: that view takes
`BatchIntake` in.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db import transaction
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.api.views import ApiView, PublicView
from marketplace.errors import DomainError
from metering import selectors
from metering.models import MeterSource, UsageBatch
from metering.services import accept_batch, remember_nonce
from providers.wire import SignatureRefused, signing_key_id, verify_signed_request

MAX_BATCH_BYTES: Final = 8 * 1024 * 1024


class MeterSignatureRefused(DomainError):
    """The request is not signed by a registered meter, or was seen before."""

    code = "signature_refused"
    http_status = 401
    title = "The request's signature is not valid"


class BatchTooLarge(DomainError):
    """More than a batch may have; nothing was kept."""

    code = "body_too_large"
    http_status = 413
    title = "Content too large"


class AcceptedBatchOut(serializers.Serializer[Any]):
    batch_id = serializers.UUIDField(source="id")
    status = serializers.CharField()


class BatchExceptionOut(serializers.Serializer[Any]):
    index = serializers.IntegerField(help_text="place of the event in the batch, from 0")
    id = serializers.UUIDField(allow_null=True)
    result = serializers.ChoiceField(["quarantined", "conflict"])
    field = serializers.CharField()
    reason = serializers.CharField()


class BatchOut(serializers.ModelSerializer[UsageBatch]):
    """What became of every event: those not listed under `exceptions` were accepted or duplicates."""

    exceptions = BatchExceptionOut(many=True)

    class Meta:
        model = UsageBatch
        fields = (
            "id",
            "source_id",
            "status",
            "sequence_from",
            "sequence_to",
            "chain",
            "attempts",
            "accepted_events",
            "duplicate_events",
            "exceptions",
            "error",
            "received_at",
            "stored_at",
        )


def signing_source(request: Request, body: bytes) -> MeterSource:
    """The active meter whose key signed this request, once (RFC 9421; `keyid` is the host's or the source's id).

    Raises MeterSignatureRefused for an unknown meter, a wrong or stale signature, and a request seen before.
    """
    # A signature is about the machines' clocks: agents sign by theirs, wherever the market's was moved to.
    wall_now = clock.wall_now()
    try:
        key_id = UUID(signing_key_id(request.headers))
    except SignatureRefused as error:
        raise MeterSignatureRefused(str(error)) from None
    except ValueError:
        raise MeterSignatureRefused("signature: keyid must be the id of a host or a meter.") from None
    source = selectors.find_signing_source(key_id)
    if source is None or source.public_key is None or source.host_id is None:
        raise MeterSignatureRefused("signature: no meter with this key is registered.")
    try:
        nonce = verify_signed_request(
            method=str(request.method),
            url=request.build_absolute_uri(),
            headers=request.headers,
            body=body,
            public_key=Ed25519PublicKey.from_public_bytes(bytes(source.public_key)),
            now=wall_now,
        )
    except (SignatureRefused, ValueError) as error:
        raise MeterSignatureRefused(str(error)) from None
    if not remember_nonce(key_id=source.host_id, nonce=nonce, now=wall_now):
        raise MeterSignatureRefused("signature: this request was seen before.")
    return source


class BatchIntake(PublicView):
    """`post` for the view at `/usage`: signed by a host, so neither API key nor scope is asked for."""

    def check_permissions(self, request: Request) -> None:
        if request.method != "POST":
            super().check_permissions(request)

    @extend_schema(
        operation_id="usage_send",
        auth=[],
        request={"application/x-ndjson": OpenApiTypes.STR},
        responses={202: AcceptedBatchOut},
    )
    def post(self, request: Request) -> Response:
        """Hand in a batch of usage events (NDJSON, a header line first), signed by the host (RFC 9421).

        202 once it is durable; what became of its events is told by `GET /usage/batches/{batch_id}`.
        """
        length = request.META.get("CONTENT_LENGTH") or "0"
        # Judged before a byte is read.
        if not (length.isascii() and length.isdigit()) or len(length) > 12 or int(length) > MAX_BATCH_BYTES:
            raise BatchTooLarge(f"A batch has at most {MAX_BATCH_BYTES} bytes.", field="body")
        body = request._request.body
        with transaction.atomic():
            source = signing_source(request, body)
            batch = accept_batch(source=source, body=body, now=clock.now())
        return Response(AcceptedBatchOut(batch).data, status=202)


class UsageBatchView(ApiView):
    """For the host that sent the batch (signed), and for the operator (API key)."""

    scopes = {"GET": Scope.OPERATE}
    role = "operator"

    def check_permissions(self, request: Request) -> None:
        if not self._is_signed(request):
            super().check_permissions(request)

    @extend_schema(operation_id="usage_batch_read", responses=BatchOut)
    def get(self, request: Request, batch_id: UUID) -> Response:
        """One batch and what became of its events."""
        host_id = signing_source(request, b"").host_id if self._is_signed(request) else None
        return Response(BatchOut(selectors.find_batch(batch_id, host_id=host_id)).data)

    @staticmethod
    def _is_signed(request: Request) -> bool:
        return request.method == "GET" and "Signature-Input" in request.headers


urlpatterns = [
    path("usage/batches/<uuid:batch_id>", UsageBatchView.as_view(), name="api-usage-batch"),
]
