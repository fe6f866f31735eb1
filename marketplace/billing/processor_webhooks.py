"""Where the payment processor tells us that something happened: verified by its raw bytes, kept, answered at once."""

from __future__ import annotations

import json
from typing import Final

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from prometheus_client import Counter

from marketplace import clock
from marketplace.billing.processors.stripe_objects import notice_of
from marketplace.billing.services.processor_events import receive_notice

# Older messages are refused: somebody may have recorded them.
TOLERANCE_S: Final = 300
LONGEST_BYTES: Final = 1024 * 1024
REFUSED = Counter(
    "tokenyard_processor_events_refused_total", "Messages to the processor's endpoint with no good signature"
)


@csrf_exempt
@require_POST
def stripe_events(request: HttpRequest) -> HttpResponse:
    """204 for what is kept, or was before; 400 for what Stripe did not sign, or not just now."""
    raw = request.body
    if len(raw) > LONGEST_BYTES or not _is_signed(raw, request.headers.get("Stripe-Signature", "")):
        REFUSED.inc()
        return HttpResponse("the signature is not good\n", status=400, content_type="text/plain")
    try:
        notice = notice_of(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError):
        REFUSED.inc()
        return HttpResponse("this is no event\n", status=400, content_type="text/plain")
    # Nobody is woken: a broker that is away would keep Stripe waiting. Beat hints at what has come every two seconds.
    receive_notice(processor="stripe", notice=notice, now=clock.now())
    return HttpResponse(status=204)


def _is_signed(raw: bytes, header: str) -> bool:
    # Imported here: the SDK is large, and a market on the sandbox needs none of it.
    import stripe

    for secret in settings.STRIPE_WEBHOOK_SECRETS:
        try:
            stripe.WebhookSignature.verify_header(raw.decode(), header, secret, TOLERANCE_S)
        except (stripe.SignatureVerificationError, ValueError, IndexError):
            continue
        return True
    return False
