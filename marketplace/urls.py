"""Every address of the market: health, the REST API of each room, the portal."""

from django.urls import URLPattern, URLResolver, include, path
from drf_spectacular.views import SpectacularAPIView

from marketplace import health
from marketplace.billing.processor_webhooks import stripe_events

# Each room that speaks REST has an `api` module with `urlpatterns`; the arrows forbid one room to collect the others.
API_ROOMS = (
    "marketplace.webhooks",
    "marketplace.ledger",
    "pricing",
    "metering",
    "providers",
    "marketplace.contracts",
    "marketplace.orders",
    "marketplace.billing",
    # Last: it also answers for what nobody serves.
    "marketplace.api",
)


_api: list[URLPattern | URLResolver] = [path("schema", SpectacularAPIView.as_view(), name="api-schema")]
# Before the rooms: `market/index` is no grade.
_api += [path("", include(f"marketplace.orders.{name}")) for name in ("market_api", "monitoring_api")]
_api += [
    path("", include(f"marketplace.{name}"))
    for name in ("billing.grants_api", "billing.credit_api", "contracts.spend_api")
]
_api += [path("", include(f"{room}.api")) for room in API_ROOMS]

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", health.alive, name="healthz"),
    path("readyz", health.ready, name="readyz"),
    path("metrics", health.metrics, name="metrics"),
    path("webhooks/stripe", stripe_events, name="stripe-events"),
    path("api/v1/", include(_api)),
    path("", include("marketplace.portal.urls")),
]
