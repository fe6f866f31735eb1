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
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.accounts.services import record_audit
from marketplace.api.pagination import CursorPagination, page_of, window_of
from marketplace.api.views import ApiView, PublicView
from marketplace.errors import DomainError, InvalidInput
from metering import selectors
from metering.corrections_api import CorrectionsView
from metering.intake import (
    BATCH_HEADER,
    CLOUDEVENT,
    CLOUDEVENTS,
    MAX_BATCH_BYTES,
    NDJSON,
    BatchTooLarge,
    BodyUnreadable,
    Signer,
    read_request,
)
from metering.models import MeterSource, UsageBatch
from metering.outcomes import RESULTS, event_outcomes
from metering.services import keep_batch, remember_nonce, revive_batch
from providers.wire import SignatureRefused, signing_key_id, verify_signed_request

_MAX_LENGTH_DIGITS: Final = 12


class MeterSignatureRefused(DomainError):
    """The request is not signed by a registered meter, or was seen before."""

    code = "signature_refused"
    http_status = 401
    title = "The request's signature is not valid"


class LengthRequired(DomainError):
    """The server cannot tell where the body ends."""

    code = "length_required"
    http_status = 411
    title = "Length required"


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
    """What became of every event: those that are neither under `exceptions` nor in `duplicates` were accepted."""

    exceptions = BatchExceptionOut(many=True)
    duplicates = serializers.ListField(
        child=serializers.ListField(child=serializers.IntegerField(), min_length=2, max_length=2),
        help_text="runs of duplicates, as [first index, last index]",
    )

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
            "duplicates",
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
            covered_headers=[BATCH_HEADER.lower()] if BATCH_HEADER in request.headers else (),
        )
    except (SignatureRefused, ValueError) as error:
        raise MeterSignatureRefused(str(error)) from None
    if not remember_nonce(key_id=source.host_id, nonce=nonce, now=wall_now):
        raise MeterSignatureRefused("signature: this request was seen before.")
    return source


_CLOUDEVENT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "CloudEvents 1.0; `data` is the event.",
    "required": ["specversion", "id", "source", "type", "data"],
    "properties": {
        "specversion": {"type": "string", "enum": ["1.0"]},
        "id": {"type": "string", "format": "uuid", "description": "the event's id, as in data"},
        "source": {
            "type": "string",
            "minLength": 1,
            "description": "informative: the meter is the one that signed",
        },
        "type": {"type": "string", "enum": ["tokenyard.usage.v1"]},
        "time": {"type": "string", "format": "date-time", "description": "occurred_at, as in data"},
        "datacontenttype": {"type": "string", "enum": ["application/json"]},
        "data": {"type": "object"},
    },
}


def read_body(request: Request) -> bytes:
    """The body as it was sent, never more of it than a batch may have. Raises BatchTooLarge, LengthRequired."""
    meta = request.META
    if "HTTP_TRANSFER_ENCODING" in meta:
        # Django reads no body without a length; the server must know the end of it.
        if not meta.get("wsgi.input_terminated"):
            raise LengthRequired("Content-Length: is missing", field="Content-Length")
        try:
            body: bytes = meta["wsgi.input"].read(MAX_BATCH_BYTES + 1)
        except OSError:
            raise BodyUnreadable("body: is not chunked as it says", field="body") from None
        if len(body) > MAX_BATCH_BYTES:
            raise BatchTooLarge
        return body
    length = meta.get("CONTENT_LENGTH") or "0"
    # Judged before a byte is read.
    if not (length.isascii() and length.isdigit()) or len(length) > _MAX_LENGTH_DIGITS:
        raise BatchTooLarge
    if int(length) > MAX_BATCH_BYTES:
        raise BatchTooLarge
    return request._request.body


class BatchIntake(PublicView):
    """`post` for the view at `/usage`: signed by a host, so neither API key nor scope is asked for."""

    def check_permissions(self, request: Request) -> None:
        if request.method != "POST":
            super().check_permissions(request)

    @extend_schema(
        operation_id="usage_send",
        auth=[],
        parameters=[
            OpenApiParameter(
                BATCH_HEADER,
                OpenApiTypes.STR,
                OpenApiParameter.HEADER,
                description="with CloudEvents: `from=1, to=2, previous=:base64:, digest=:base64:`, signed",
            ),
            OpenApiParameter(
                "Content-Encoding",
                OpenApiTypes.STR,
                OpenApiParameter.HEADER,
                enum=["identity", "gzip", "zstd"],
            ),
        ],
        request={
            NDJSON: OpenApiTypes.STR,
            CLOUDEVENT: _CLOUDEVENT_SCHEMA,
            CLOUDEVENTS: {"type": "array", "minItems": 1, "items": _CLOUDEVENT_SCHEMA},
        },
        responses={202: AcceptedBatchOut},
    )
    def post(self, request: Request) -> Response:
        """Hand in a batch of usage events (NDJSON with a header line, or CloudEvents), signed by the host (RFC 9421).

        202 once it is durable; what became of its events is told by `GET /usage/batches/{batch_id}`. 429 with
        Retry-After while the market has more than it can take in.
        """
        body = read_body(request)
        with transaction.atomic():
            source = signing_source(request, body)
            batch = read_request(body, headers=request.headers, signer=Signer(source.pk, source.host_id))
            kept = keep_batch(source=source, batch=batch, now=clock.now())
        return Response(AcceptedBatchOut(kept).data, status=202)


class SignedOrOperatorView(ApiView):
    """For the host that sent the batch (signed), and for the operator (API key)."""

    scopes = {"GET": Scope.OPERATE}
    role = "operator"

    def check_permissions(self, request: Request) -> None:
        if not _is_signed(request):
            super().check_permissions(request)

    @staticmethod
    def asking_host(request: Request) -> UUID | None:
        """Whose batches may be read; None: anybody's."""
        return signing_source(request, b"").host_id if _is_signed(request) else None


def _is_signed(request: Request) -> bool:
    return request.method == "GET" and "Signature-Input" in request.headers


class UsageBatchView(SignedOrOperatorView):
    @extend_schema(operation_id="usage_batch_read", responses=BatchOut)
    def get(self, request: Request, batch_id: UUID) -> Response:
        """One batch and what became of its events."""
        batch = selectors.find_batch(batch_id, host_id=self.asking_host(request))
        return Response(BatchOut(batch).data)


class EventOutcomeOut(serializers.Serializer[Any]):
    index = serializers.IntegerField(help_text="place of the event in the batch, from 0")
    id = serializers.UUIDField(allow_null=True)
    result = serializers.ChoiceField(RESULTS)
    field = serializers.CharField(help_text="what is wrong, if anything is")
    reason = serializers.CharField()


class UsageBatchEventsView(SignedOrOperatorView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="usage_batch_events_list", responses=EventOutcomeOut(many=True))
    def get(self, request: Request, batch_id: UUID) -> Response:
        """What became of each event of a batch: one row per event, in the batch's order."""
        batch = selectors.find_batch(batch_id, host_id=self.asking_host(request), with_body=True)
        window = window_of(request)
        # A cursor here is the place of the last row shown, in the form that all cursors have.
        first = 0 if window.before is None else window.before.int + 1
        outcomes = event_outcomes(batch, first=first, limit=window.size + 1)
        shown, cursor = page_of(outcomes, window, lambda outcome: UUID(int=outcome.index))
        return Response({"items": EventOutcomeOut(shown, many=True).data, "next": cursor})


class UsageBatchesView(ApiView):
    """For the operator: what ended where nobody looks by himself."""

    scopes = {"GET": Scope.OPERATE}
    role = "operator"
    pagination_class = CursorPagination

    @extend_schema(
        operation_id="usage_batches_list",
        parameters=[
            OpenApiParameter(
                "status", OpenApiTypes.STR, enum=UsageBatch.Status.values, description="default: dead"
            )
        ],
        responses=BatchOut(many=True),
    )
    def get(self, request: Request) -> Response:
        """Batches of all meters by status, newest first."""
        status = request.query_params.get("status", UsageBatch.Status.DEAD)
        if status not in UsageBatch.Status.values:
            wanted = ", ".join(UsageBatch.Status.values)
            raise InvalidInput(f"status: must be one of {wanted}", field="status")
        return self.page(selectors.batches_with_status(status), BatchOut)


class UsageBatchReviveView(ApiView):
    scopes = {"POST": Scope.OPERATE}
    role = "operator"

    @extend_schema(operation_id="usage_batch_revive", request=None, responses=BatchOut)
    def post(self, request: Request, batch_id: UUID) -> Response:
        """Try a dead batch anew, once what killed it was removed."""
        now = clock.now()
        with transaction.atomic():
            revive_batch(batch_id=batch_id, now=now)
            record_audit(
                organization_id=self.organization_id,
                actor=self.actor,
                action="usage_batch.revived",
                object_kind="usage_batch",
                object_id=batch_id,
                now=now,
            )
        return Response(BatchOut(selectors.find_batch(batch_id)).data)


urlpatterns = [
    path("usage/batches", UsageBatchesView.as_view()),
    path("usage/batches/<uuid:batch_id>", UsageBatchView.as_view(), name="api-usage-batch"),
    path("usage/batches/<uuid:batch_id>/events", UsageBatchEventsView.as_view()),
    path("usage/batches/<uuid:batch_id>/revive", UsageBatchReviveView.as_view()),
    path("usage/corrections", CorrectionsView.as_view()),
]
