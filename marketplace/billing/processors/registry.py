"""Which payment processor this market uses: the setting PAYMENT_PROCESSOR."""

from __future__ import annotations

import functools

from django.conf import settings

from marketplace.billing.processors.base import PaymentProcessor
from marketplace.billing.processors.sandbox import SandboxProcessor


def payment_processor() -> PaymentProcessor:
    """The processor in use for what begins now."""
    return processor_named(settings.PAYMENT_PROCESSOR)


def processor_named(name: str) -> PaymentProcessor:
    """The processor that an operation was begun with; a market may have changed it since."""
    if name == "sandbox":
        return SandboxProcessor()
    assert name == "stripe", name
    return _stripe(settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE, settings.STRIPE_TIMEOUT_S)


@functools.lru_cache(maxsize=4)
def _stripe(secret_key: str, api_base: str, timeout_s: float) -> PaymentProcessor:
    # Imported where it is used: the SDK is large, and a market on the sandbox needs none of it.
    from marketplace.billing.processors.stripe import StripeProcessor

    return StripeProcessor(secret_key=secret_key, api_base=api_base, timeout_s=timeout_s)
