"""Alive, ready, measured: what load balancers and Prometheus ask."""

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Gauge, generate_latest

from marketplace import clock
from marketplace.isolating import items_left_to_people
from marketplace.orders.controls_selectors import grades_by_status, grades_halted_by_rule
from marketplace.orders.models import MarketControl
from metering.selectors import overdue_gaps, sources_with_gaps

_PROBE_TIMEOUT_S = 2
# Not on a standby either, whose transactions are read-only.
ACCEPTS_WRITES = "SELECT current_setting('transaction_read_only') = 'off'"
GAPS = Gauge("tokenyard_metering_gaps", "Meters of which numbered usage is missing")
OVERDUE_GAPS = Gauge("tokenyard_metering_overdue_gaps", "Those whose usage is missing for too long: an alarm")
FAILING = Gauge("tokenyard_failing_items", "What periodic jobs failed to do five times in a row: an alarm")
MARKETS = Gauge("tokenyard_market_grades", "Grades' spot markets, by what they do now", ["status"])
HALTED_BY_RULE = Gauge(
    "tokenyard_market_halted_by_rule", "Markets that a rule halted, as engines disagreed: an alarm"
)


@never_cache
@require_safe
def alive(request: HttpRequest) -> HttpResponse:
    """200 as long as this process answers; it asks nobody else, so a slow database restarts no web server."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def ready(request: HttpRequest) -> HttpResponse:
    """200 when the database accepts writes and the broker answers, else 503 that names the part (never its address)."""
    parts = {"database": _database_accepts_writes(), "broker": _broker_answers()}
    status = 200 if all(parts.values()) else 503
    body = {name: "ok" if answers else "unavailable" for name, answers in parts.items()}
    return JsonResponse(body, status=status)


@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Counters of this process in Prometheus' text format; aggregates only, no organization's figures."""
    try:
        GAPS.set(sources_with_gaps().count())
        OVERDUE_GAPS.set(overdue_gaps(clock.now()).count())
        FAILING.set(items_left_to_people().count())
        HALTED_BY_RULE.set(grades_halted_by_rule())
        for status, grades in grades_by_status().items():
            MARKETS.labels(status).set(grades)
    except DatabaseError:
        # Not what it was an hour ago, and not zero: unknown. The other figures are needed all the more now.
        GAPS.set(float("nan"))
        OVERDUE_GAPS.set(float("nan"))
        FAILING.set(float("nan"))
        HALTED_BY_RULE.set(float("nan"))
        for status in MarketControl.Status.values:
            MARKETS.labels(status).set(float("nan"))
    return HttpResponse(generate_latest(REGISTRY), content_type=CONTENT_TYPE_LATEST)


def _database_accepts_writes() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute(ACCEPTS_WRITES)
            (accepts,) = cursor.fetchone()
    except DatabaseError:
        return False
    return bool(accepts)


def _broker_answers() -> bool:
    try:
        with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=_PROBE_TIMEOUT_S) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
