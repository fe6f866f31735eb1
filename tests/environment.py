"""The environment of the tests, set before Django's settings are read (pytest loads this with `-p`).

Whatever database, broker or market the shell points at is ignored: tests start their own.
"""

import base64
import os

ENVIRONMENT = {
    "DJANGO_SETTINGS_MODULE": "marketplace.settings",
    "SECRET_KEY": "a key for tests only, " * 3,
    "MARKET_SIGNING_KEY": base64.b64encode(bytes(range(32))).decode(),
    # Replaced by the session's own servers when the first test asks for them; port 1 answers nobody.
    "DATABASE_URL": "postgres://tokenyard_app:unset@127.0.0.1:1/unset",
    "DATABASE_OWNER_URL": "postgres://tokenyard_owner:unset@127.0.0.1:1/unset",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "TEST_CLOCK": "1",
    "ALLOW_PRIVATE_HOSTS": "1",
    "PAYMENT_PROCESSOR": "sandbox",
    "LOG_LEVEL": "WARNING",
    # Tests of other rules sell firm and pay out at once; those of bonds and payouts set what they are about.
    "PROVIDER_BOND_PPM": "0",
    "PAYOUT_HOLDING_S": "0",
    "PAYOUT_RETENTION_PPM": "0",
    "PAYOUT_MINIMUM_MICROS": "0",
    # Whoever asks every address waits for the stream's end.
    "MARKET_STREAM_S": "1",
}
_FROM_THE_SHELL = (
    "DEBUG", "ALLOWED_HOSTS", "PORTAL_URL", "GATEWAY_URL", "MARKET_CURRENCY", "DELIVERY_PERIOD_S",
    "SETTLEMENT_PERIOD_S", "SETTLEMENT_GRACE_S", "MAX_REQUEST_S", "MARKET_FEE_PPM", "SPOT_MINIMUM_TAKE_PPM",
    "OPERATING_MARGIN_PPM", "STATIC_ROOT", "TOKENYARD_DATA", "BEHIND_TLS_PROXY", "SECURE_SSL_REDIRECT",
    "USAGE_INBOX_MAX_BATCHES", "USAGE_INBOX_MAX_BYTES", "MARKET_STREAMS_MAX", "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRETS", "PAYOUT_RETENTION_DAYS", "STRIPE_API_BASE", "STRIPE_CALLS_PER_S", "STRIPE_TIMEOUT_S",
    "SMTP_HOST", "SMTP_PORT", "SMTP_USER", "SMTP_PASSWORD", "SMTP_SECURITY", "MAIL_FROM",
)  # fmt: skip

for _name in _FROM_THE_SHELL:
    os.environ.pop(_name, None)
os.environ.update(ENVIRONMENT)
