"""REST: the evidence of an invoice, and the program that recomputes it."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request

from marketplace.accounts.models import OrganizationRole
from marketplace.api.exporting import MEDIA_TYPES, ExportNegotiation
from marketplace.api.views import ApiView, PublicView
from marketplace.billing.evidence import VERIFIER, evidence_of
from marketplace.billing.selectors import find_invoice

_PROGRAM: Final[Any] = {(200, "text/x-python"): OpenApiTypes.BINARY}
_EVIDENCE: Final[Any] = {(200, MEDIA_TYPES["ndjson"]): OpenApiTypes.STR}


class InvoiceEvidenceView(ApiView):
    role = OrganizationRole.BUYER
    content_negotiation_class = ExportNegotiation

    @extend_schema(operation_id="invoices_evidence", responses=_EVIDENCE)
    def get(self, request: Request, invoice_id: UUID) -> StreamingHttpResponse:
        """All that is needed to recompute the invoice offline, streamed; its last line seals it."""
        return evidence_answer(self.organization_id, invoice_id)


class EvidenceVerifierView(PublicView):
    @extend_schema(operation_id="evidence_verifier", responses=_PROGRAM)
    def get(self, request: Request) -> HttpResponse:
        """The program that recomputes an evidence file: one file, Python 3.11, nothing else."""
        return verifier_answer()


def evidence_answer(organization_id: UUID, invoice_id: UUID) -> StreamingHttpResponse:
    """Raises NotFound, also for another organization's."""
    invoice = find_invoice(organization_id, invoice_id)
    answer = StreamingHttpResponse(evidence_of(invoice), content_type=MEDIA_TYPES["ndjson"])
    answer["Content-Disposition"] = f'attachment; filename="{invoice.number}-evidence.ndjson"'
    return answer


def verifier_answer() -> HttpResponse:
    answer = HttpResponse(VERIFIER.read_bytes(), content_type="text/x-python; charset=utf-8")
    answer["Content-Disposition"] = 'attachment; filename="verify_invoice.py"'
    return answer


urlpatterns = [
    path("invoices/<uuid:invoice_id>/evidence", InvoiceEvidenceView.as_view()),
    path("evidence-verifier", EvidenceVerifierView.as_view()),
]
