"""All settings, read from the environment once; nonsense stops the start with a message that names the setting."""

import base64
import binascii
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from pricing.units import CURRENCY_EXPONENTS

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()


def _required(name: str, hint: str) -> str:
    value = str(env.str(name, default=""))
    if not value:
        raise ImproperlyConfigured(f"{name} is not set: {hint}")
    return value


def _integer(name: str, default: int, *, least: int, most: int) -> int:
    text = str(env.str(name, default=str(default)))
    try:
        value = int(text)
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be a whole number, not {text!r}") from None
    if not least <= value <= most:
        raise ImproperlyConfigured(f"{name} must be between {least} and {most}, not {value}")
    return value


def _flag(name: str, default: bool = False) -> bool:
    text = str(env.str(name, default="1" if default else "0")).lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ImproperlyConfigured(f"{name} must be 1 or 0, not {text!r}")


def _http_url(name: str, default: str) -> str:
    value = str(env.str(name, default=default)).rstrip("/")
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImproperlyConfigured(f"{name} must be an http or https address, not {value!r}")
    return value


def _database(name: str, url: str) -> dict[str, Any]:
    if urlsplit(url).scheme not in ("postgres", "postgresql"):
        raise ImproperlyConfigured(f"{name} must begin with postgres:// : PostgreSQL is the only database")
    parsed: dict[str, Any] = environ.Env.db_url_config(url)
    # A pooler in transaction mode (PgBouncer) cannot keep server-side cursors; prepared statements are off by default.
    parsed |= {
        "ENGINE": "django.db.backends.postgresql",
        "CONN_MAX_AGE": _integer("DATABASE_CONN_MAX_AGE_S", 60, least=0, most=86_400),
        "CONN_HEALTH_CHECKS": True,
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "OPTIONS": {"application_name": "tokenyard", **parsed.get("OPTIONS", {})},
    }
    return parsed


_RUN_FIRST = "start the market with `make run` first, or set it yourself"

# Django.

DEBUG = _flag("DEBUG")
SECRET_KEY = _required("SECRET_KEY", _RUN_FIRST)
if len(SECRET_KEY) < 32:
    raise ImproperlyConfigured("SECRET_KEY must have at least 32 characters")
SECRET_KEY_FALLBACKS: list[str] = env.list("SECRET_KEY_FALLBACKS", default=[])

PORTAL_URL = _http_url("PORTAL_URL", "http://127.0.0.1:8000")
GATEWAY_URL = _http_url("GATEWAY_URL", "http://127.0.0.1:8001")
_PORTAL_IS_HTTPS = PORTAL_URL.startswith("https://")
ALLOWED_HOSTS: list[str] = env.list(
    "ALLOWED_HOSTS", default=sorted({str(urlsplit(PORTAL_URL).hostname), "127.0.0.1", "localhost"})
)
CSRF_TRUSTED_ORIGINS = [PORTAL_URL]

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django_htmx",
    "csp",
    "rest_framework",
    "drf_spectacular",
    "marketplace",
    "marketplace.accounts",
    "marketplace.api",
    "marketplace.webhooks",
    "marketplace.ledger",
    "pricing",
    "metering",
    "providers",
    "marketplace.contracts",
    "marketplace.orders",
    "marketplace.billing",
    "marketplace.portal",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
ROOT_URLCONF = "marketplace.urls"
WSGI_APPLICATION = "marketplace.wsgi.application"
ASGI_APPLICATION = "marketplace.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "csp.context_processors.nonce",
            ]
        },
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = "accounts.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
LOGIN_URL = "/signin"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/"
SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"

LANGUAGE_CODE = "en-gb"
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "/static/"
# Where `collectstatic` puts files; set in the image. Unset, there is nothing to look for.
STATIC_ROOT = env.str("STATIC_ROOT", default="") or None
_COLLECTED = STATIC_ROOT is not None and (Path(STATIC_ROOT) / "staticfiles.json").is_file()
# Hashed names need `collectstatic` (the image has run it); a checkout serves files from where they lie.
WHITENOISE_USE_FINDERS = not _COLLECTED
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"
        if _COLLECTED
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}

# Security.

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _PORTAL_IS_HTTPS and not DEBUG
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_SSL_REDIRECT = _flag("SECURE_SSL_REDIRECT")
SECURE_HSTS_SECONDS = _integer(
    "SECURE_HSTS_S", 31_536_000 if _PORTAL_IS_HTTPS else 0, least=0, most=63_072_000
)
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = False
if _flag("BEHIND_TLS_PROXY"):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = _integer(
    "MAX_BODY_BYTES", 16 * 1024 * 1024, least=65_536, most=1024 * 1024 * 1024
)
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "font-src": ["'self'"],
        "connect-src": ["'self'"],
        "form-action": ["'self'"],
        "base-uri": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
}

# Database, broker.

_DATABASE_URL = _required("DATABASE_URL", _RUN_FIRST)
DATABASES = {
    # The app role: every process and every test. It may not change ledger and usage rows, nor make tables.
    "default": _database("DATABASE_URL", _DATABASE_URL),
    # The owner: `manage.py migrate --database owner`, nothing else.
    "owner": _database("DATABASE_OWNER_URL", env.str("DATABASE_OWNER_URL", default=_DATABASE_URL)),
}
# A migration that waits for a table's lock makes all who come after it wait too: it gives up, and is started again.
DATABASES["owner"]["OPTIONS"].setdefault("options", "-c lock_timeout=5s")
REDIS_URL = str(env.str("REDIS_URL", default="redis://127.0.0.1:6379/0"))
if urlsplit(REDIS_URL).scheme not in ("redis", "rediss", "unix", "amqp", "amqps"):
    raise ImproperlyConfigured("REDIS_URL must begin with redis://, rediss:// or unix://")
CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL}}

# Celery: the broker may lose anything; durable rows are the queue of record.

CELERY_BROKER_URL = REDIS_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    # Longer than any task (see the time limit), so that nothing runs twice at once (the weekly check of the books is
    # longer, and claims its week); throttle 1, or a dead worker's
    # message comes back ten sweeps late.
    "visibility_timeout": 600,
    "unacked_restore_throttle": 1,
    "socket_keepalive": True,
}
CELERY_RESULT_BACKEND = None
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_TIME_LIMIT = 540
CELERY_TASK_SOFT_TIME_LIMIT = 480
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True
CELERY_DB_REUSE_MAX = 1_000
CELERY_TIMEZONE = "UTC"
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ROUTES = {
    "metering.tasks.*": {"queue": "ingest"},
    "marketplace.orders.tasks.*": {"queue": "market"},
    "marketplace.contracts.tasks.*": {"queue": "market"},
    # They wait for other people's machines, which must not hold up an auction.
    "marketplace.webhooks.tasks.*": {"queue": "default"},
    "providers.tasks.read_registers": {"queue": "default"},
    "providers.tasks.pull_missing_usage": {"queue": "default"},
    "providers.tasks.*": {"queue": "market"},
    "marketplace.billing.tasks.*": {"queue": "billing"},
    # Hours long, and nothing waits for it.
    "marketplace.ledger.tasks.check_ledger_weekly": {"queue": "default"},
    "marketplace.ledger.tasks.*": {"queue": "billing"},
}
# Hints only: each task looks for due rows and does nothing when there are none. A hint nobody took expires.
_HINTS_S: dict[str, int] = {
    "metering.tasks.ingest_pending": 2,
    "metering.tasks.sweep_batches": 10,
    "metering.tasks.make_partitions": 3_600,
    "marketplace.orders.tasks.advance_auctions": 2,
    "marketplace.orders.tasks.publish_index": 60,
    "marketplace.contracts.tasks.sweep_holds": 10,
    "marketplace.contracts.tasks.advance_contracts": 5,
    "marketplace.contracts.tasks.renew_contracts": 30,
    "marketplace.contracts.tasks.curtail_derated": 5,
    "marketplace.contracts.tasks.return_carry_over": 10,
    "marketplace.billing.tasks.settle_due_periods": 2,
    "marketplace.billing.tasks.issue_due_invoices": 60,
    "marketplace.billing.tasks.resume_processor_operations": 10,
    "marketplace.billing.tasks.apply_processor_events": 2,
    "marketplace.billing.tasks.reconcile_processor": 300,
    "marketplace.billing.tasks.top_up_low_balances": 2,
    "marketplace.billing.tasks.walk_test_clocks": 2,
    "marketplace.billing.tasks.keep_test_clocks": 10,
    "providers.tasks.open_capacity": 10,
    "providers.tasks.check_heartbeats": 10,
    "providers.tasks.reconcile_hosts": 15,
    "providers.tasks.read_registers": 5,
    "providers.tasks.pull_missing_usage": 30,
    "marketplace.ledger.tasks.expire_due": 60,
    "marketplace.ledger.tasks.check_ledger_nightly": 3_600,
    "marketplace.ledger.tasks.check_ledger_weekly": 3_600,
    "marketplace.webhooks.tasks.send_due_webhooks": 2,
    "marketplace.webhooks.tasks.send_notices": 5,
    "marketplace.contracts.tasks.tell_of_spend_caps": 60,
    "marketplace.webhooks.tasks.forget_old_webhooks": 3_600,
    "marketplace.ledger.tasks.seal_transfers_hourly": 3_600,
}
CELERY_BEAT_SCHEDULE = {
    task: {"task": task, "schedule": every_s, "options": {"expires": max(10, every_s)}}
    for task, every_s in _HINTS_S.items()
}

# REST ---------------------------------------------------------------------------------------------------------

REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_AUTHENTICATION_CLASSES": ["marketplace.api.authentication.ApiKeyAuthentication"],
    "DEFAULT_PAGINATION_CLASS": "marketplace.api.pagination.CursorPagination",
    "EXCEPTION_HANDLER": "marketplace.api.errors.exception_handler",
    "PAGE_SIZE": 50,
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,
    "COERCE_DECIMAL_TO_STRING": True,
}
SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Tokenyard",
    "DESCRIPTION": "Buy and sell inference capacity by the token.",
    "VERSION": "1",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "COMPONENT_SPLIT_REQUEST": True,
    # Where several components share a set of words; else its name would be a digest.
    "ENUM_NAME_OVERRIDES": {
        "AuctionStatusEnum": "marketplace.orders.models.Auction.Status",
        "BidStatusEnum": "marketplace.orders.models.Bid.Status",
        "CapReviewStatusEnum": "marketplace.orders.models.CapReview.Status",
        "ChargeKindEnum": "marketplace.billing.models.ChargeKind",
        "ContractKindEnum": "marketplace.contracts.models.ContractKind",
        "ContractStatusEnum": "marketplace.contracts.models.Contract.Status",
        "DeliveryHoldStatusEnum": "marketplace.contracts.models.Hold.Status",
        "DiscrepancyKindEnum": "metering.models.Discrepancy.Kind",
        "DiscrepancyStatusEnum": "metering.models.Discrepancy.Status",
        "HostStatusEnum": "providers.models.Host.Status",
        "ListTariffKindEnum": "providers.models.ListTariff.Kind",
        "InvoiceStatusEnum": "marketplace.billing.models.Invoice.Status",
        "WebhookDeliveryStatusEnum": "marketplace.webhooks.models.WebhookDelivery.Status",
        "WebhookEndpointStatusEnum": "marketplace.webhooks.models.WebhookEndpoint.Status",
        "MovementStatusEnum": "marketplace.billing.models.InvoicePayment.Status",
        "OperationStatusEnum": "marketplace.billing.models.ProcessorOperation.Status",
        "MarketStatusEnum": "marketplace.orders.models.MarketControl.Status",
        "PaymentEnum": "marketplace.contracts.models.Payment",
    },
}

# The market.

MARKET_CURRENCY = str(env.str("MARKET_CURRENCY", default="USD"))
if MARKET_CURRENCY not in CURRENCY_EXPONENTS:
    raise ImproperlyConfigured(f"MARKET_CURRENCY must be a known ISO 4217 code, not {MARKET_CURRENCY!r}")
MARKET_CURRENCY_EXPONENT = CURRENCY_EXPONENTS[MARKET_CURRENCY]

DELIVERY_PERIOD_S = _integer("DELIVERY_PERIOD_S", 300, least=10, most=3_600)
SETTLEMENT_PERIOD_S = _integer("SETTLEMENT_PERIOD_S", 3_600, least=10, most=86_400)
SETTLEMENT_GRACE_S = _integer("SETTLEMENT_GRACE_S", 60, least=0, most=3_600)
MAX_REQUEST_S = _integer("MAX_REQUEST_S", 900, least=1, most=3_600)
if 3_600 % DELIVERY_PERIOD_S:
    raise ImproperlyConfigured("DELIVERY_PERIOD_S must divide an hour: firm capacity is sold by the hour")
if SETTLEMENT_PERIOD_S % DELIVERY_PERIOD_S or 86_400 % SETTLEMENT_PERIOD_S:
    raise ImproperlyConfigured("SETTLEMENT_PERIOD_S must be whole delivery periods and divide a day")
MARKET_FEE_PPM = _integer("MARKET_FEE_PPM", 50_000, least=0, most=1_000_000)
SPOT_MINIMUM_TAKE_PPM = _integer("SPOT_MINIMUM_TAKE_PPM", 500_000, least=0, most=1_000_000)
# Terms of new committed contracts: ending one early.
# Not fewer than one: its capacity is the contract's for a day.
SUSPENDED_CONTRACT_ENDS_AFTER_DAYS = _integer("SUSPENDED_CONTRACT_ENDS_AFTER_DAYS", 14, least=1, most=365)
COMMITTED_NOTICE_DAYS = _integer("COMMITTED_NOTICE_DAYS", 30, least=0, most=365)
TERMINATION_FEE_PPM = _integer("TERMINATION_FEE_PPM", 250_000, least=0, most=1_000_000)
# Back-pressure: hosts keep their usage while this much waits to be ingested.
USAGE_INBOX_MAX_BATCHES = _integer("USAGE_INBOX_MAX_BATCHES", 100_000, least=1, most=10_000_000)
USAGE_INBOX_MAX_BYTES = _integer("USAGE_INBOX_MAX_BYTES", 1024**3, least=1, most=2**50)
OPERATING_MARGIN_PPM = _integer("OPERATING_MARGIN_PPM", 50_000, least=0, most=999_999)
# How long numbered usage of a host may be missing before that is an alarm.
METERING_GAP_ALARM_S = _integer("METERING_GAP_ALARM_S", 600, least=10, most=86_400)
# Each live stream of prices holds a thread of its web process: so many at once, each so long.
MARKET_STREAMS_MAX = _integer("MARKET_STREAMS_MAX", 2, least=0, most=1_000)
MARKET_STREAM_S = _integer("MARKET_STREAM_S", 25, least=1, most=3_600)
TEST_CLOCK = _flag("TEST_CLOCK")
# Providers' hosts on loopback and private networks: for one machine and for tests, never for an open market.
ALLOW_PRIVATE_HOSTS = _flag("ALLOW_PRIVATE_HOSTS")
# After a month is settled: how long late usage still enters its invoice, and how long after that it is due.
INVOICE_GRACE_S = _integer("INVOICE_GRACE_S", 0, least=0, most=28 * 86_400)
INVOICE_DUE_DAYS = _integer("INVOICE_DUE_DAYS", 14, least=0, most=365)
# Days after the due date: reminders, then no further purchases, then the invoice is given up.
DUNNING_REMINDER_DAYS: list[int] = env.list("DUNNING_REMINDER_DAYS", default=[3, 7, 14], cast=int)
DUNNING_SUSPEND_DAYS = _integer("DUNNING_SUSPEND_DAYS", 21, least=0, most=365)
DUNNING_UNCOLLECTIBLE_DAYS = _integer("DUNNING_UNCOLLECTIBLE_DAYS", 90, least=0, most=3_650)
if DUNNING_UNCOLLECTIBLE_DAYS <= DUNNING_SUSPEND_DAYS:
    raise ImproperlyConfigured("DUNNING_UNCOLLECTIBLE_DAYS must be more than DUNNING_SUSPEND_DAYS")
# Fonts beside those of the typesetter, for names in other scripts.
DOCUMENT_FONTS_DIR = str(env.str("DOCUMENT_FONTS_DIR", default=""))
if DOCUMENT_FONTS_DIR and not Path(DOCUMENT_FONTS_DIR).is_dir():
    raise ImproperlyConfigured(f"DOCUMENT_FONTS_DIR must be a folder, not {DOCUMENT_FONTS_DIR!r}")
# What a provider deposits to sell firm: this share of 30 days' value of what he has sold.
PROVIDER_BOND_PPM = _integer("PROVIDER_BOND_PPM", 100_000, least=0, most=1_000_000)
# Earnings are paid out this long after their statement, less a share of its gross that is kept for so many days more.
PAYOUT_HOLDING_S = _integer("PAYOUT_HOLDING_S", 7 * 86_400, least=0, most=90 * 86_400)
PAYOUT_RETENTION_PPM = _integer("PAYOUT_RETENTION_PPM", 50_000, least=0, most=1_000_000)
PAYOUT_RETENTION_DAYS = _integer("PAYOUT_RETENTION_DAYS", 30, least=0, most=365)
PAYOUT_MINIMUM_MICROS = _integer("PAYOUT_MINIMUM_MICROS", 1_000_000, least=0, most=10**12)
# Countries between which a business with a tax number accounts for the tax itself (rules with reverse charge).
TAX_UNION_COUNTRIES: list[str] = env.list("TAX_UNION_COUNTRIES", default=[])
if any(len(country) != 2 or not country.isupper() for country in TAX_UNION_COUNTRIES):
    raise ImproperlyConfigured(
        "TAX_UNION_COUNTRIES must be codes of two capital letters, with commas between"
    )
# Never by default where people come in: in the sandbox every payment succeeds, and no money has moved.
_PROCESSOR_IF_UNSAID = "sandbox" if DEBUG else ""
PAYMENT_PROCESSOR = str(env.str("PAYMENT_PROCESSOR", default=_PROCESSOR_IF_UNSAID)) or _PROCESSOR_IF_UNSAID
if not PAYMENT_PROCESSOR:
    raise ImproperlyConfigured("PAYMENT_PROCESSOR must be set: stripe, or sandbox, where nobody really pays")
if PAYMENT_PROCESSOR not in ("sandbox", "stripe"):
    raise ImproperlyConfigured(f"PAYMENT_PROCESSOR must be sandbox or stripe, not {PAYMENT_PROCESSOR!r}")
STRIPE_SECRET_KEY = str(env.str("STRIPE_SECRET_KEY", default=""))
# Two while one takes the other's place.
STRIPE_WEBHOOK_SECRETS: list[str] = env.list("STRIPE_WEBHOOK_SECRETS", default=[])
STRIPE_API_BASE = _http_url("STRIPE_API_BASE", "https://api.stripe.com")
STRIPE_CALLS_PER_S = _integer("STRIPE_CALLS_PER_S", 20, least=1, most=24)
STRIPE_TIMEOUT_S = _integer("STRIPE_TIMEOUT_S", 15, least=1, most=20)
if PAYMENT_PROCESSOR == "stripe" and not (STRIPE_SECRET_KEY and STRIPE_WEBHOOK_SECRETS):
    raise ImproperlyConfigured(
        "PAYMENT_PROCESSOR=stripe needs STRIPE_SECRET_KEY and STRIPE_WEBHOOK_SECRETS to be set"
    )

# Mail: without a server it is printed by the worker, for development.
SMTP_HOST = str(env.str("SMTP_HOST", default=""))
EMAIL_BACKEND = f"django.core.mail.backends.{'smtp' if SMTP_HOST else 'console'}.EmailBackend"
EMAIL_HOST = SMTP_HOST
EMAIL_PORT = _integer("SMTP_PORT", 587, least=1, most=65_535)
EMAIL_HOST_USER = str(env.str("SMTP_USER", default=""))
EMAIL_HOST_PASSWORD = str(env.str("SMTP_PASSWORD", default=""))
SMTP_SECURITY = str(env.str("SMTP_SECURITY", default="starttls"))
if SMTP_SECURITY not in ("starttls", "tls", "none"):
    raise ImproperlyConfigured(f"SMTP_SECURITY must be starttls, tls or none, not {SMTP_SECURITY!r}")
EMAIL_USE_TLS, EMAIL_USE_SSL = SMTP_SECURITY == "starttls", SMTP_SECURITY == "tls"
EMAIL_TIMEOUT = 15
MAIL_FROM = str(env.str("MAIL_FROM", default=""))
DEFAULT_FROM_EMAIL = MAIL_FROM or "Tokenyard <notices@localhost>"
if SMTP_HOST and not MAIL_FROM:
    raise ImproperlyConfigured("MAIL_FROM must be set where SMTP_HOST is: who the mails are from")


def _signing_key_seed() -> bytes:
    text = _required("MARKET_SIGNING_KEY", "32 random bytes in base64; delivery keys are signed with it")
    try:
        seed = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ImproperlyConfigured("MARKET_SIGNING_KEY must be base64") from None
    if len(seed) != 32:
        raise ImproperlyConfigured("MARKET_SIGNING_KEY must be 32 bytes in base64 (an Ed25519 seed)")
    return seed


MARKET_SIGNING_KEY = _signing_key_seed()

# Logs: one JSON object a line; no bodies, no headers, no keys.

LOG_LEVEL = str(env.str("LOG_LEVEL", default="INFO")).upper()
if LOG_LEVEL not in ("DEBUG", "INFO", "WARNING", "ERROR"):
    raise ImproperlyConfigured(f"LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR, not {LOG_LEVEL!r}")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
            "rename_fields": {"asctime": "at", "levelname": "level", "name": "logger"},
            "timestamp": False,
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        "django.server": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        # Its INFO and DEBUG lines may carry statements with values.
        "django.db.backends": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
        "celery.beat": {"level": "WARNING"},
        # Its INFO lines quote what was refused, its DEBUG lines what was sent.
        "stripe": {"level": "WARNING"},
    },
}
