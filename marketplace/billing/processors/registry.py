"""Which payment processor this market uses: the setting PAYMENT_PROCESSOR."""

from __future__ import annotations

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from marketplace.billing.processors.base import PaymentProcessor
from marketplace.billing.processors.sandbox import SandboxProcessor


def payment_processor() -> PaymentProcessor:
    """The processor in use. Raises ImproperlyConfigured where the setting names one that is not built in yet."""
    if settings.PAYMENT_PROCESSOR == "sandbox":
        return SandboxProcessor()
    raise ImproperlyConfigured(
        f"PAYMENT_PROCESSOR={settings.PAYMENT_PROCESSOR} is not available in this version; use sandbox"
    )
