"""Signatures of deliveries, after the Standard Webhooks specification (v1: HMAC-SHA256 over id, time and body)."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from standardwebhooks import Webhook

PREFIX: Final = "whsec_"


def signing_secret(endpoint_id: UUID, *, version: int, master: bytes) -> str:
    """`whsec_` and 32 bytes in base64, a pure function of the market's key, the endpoint and the version.

    So it need not be stored, and a copy of the database holds none.
    """
    derived = hmac.digest(master, b"webhook %b %d" % (endpoint_id.bytes, version), "sha256")
    return PREFIX + base64.b64encode(derived).decode()


def signed_headers(*, event_id: UUID, body: bytes, secrets: Sequence[str], at: datetime) -> dict[str, str]:
    """`webhook-id` (the same at every try), `webhook-timestamp` and one signature for each secret, newest first."""
    text = body.decode()
    return {
        "webhook-id": str(event_id),
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(
            Webhook(secret).sign(msg_id=str(event_id), timestamp=at, data=text) for secret in secrets
        ),
    }
