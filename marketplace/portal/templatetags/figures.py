"""Template names for `marketplace.portal.figures`, and the pieces every page is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django import template
from django.conf import settings
from django.forms import BoundField
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from marketplace.billing.models import Earning
from marketplace.portal import figures
from marketplace.portal.charts import Chart
from pricing.units import decimal_string
from providers.list_rates import month_tariff_of
from providers.models import ListTariff

register = template.Library()

CLOCK_AGREES_MS: Final = 2_000

for _filter in (
    figures.rate,
    figures.standard_tokens,
    figures.lots,
    figures.lots_of,
    figures.percent,
    figures.day_time,
    figures.of_day,
    figures.clock_time,
    figures.grouped,
):
    register.filter(_filter.__name__, _filter)


@register.filter
def money(amount_micros: int, currency: str = "") -> str:
    return figures.money(amount_micros, currency or settings.MARKET_CURRENCY)


@register.filter
def month_tariff_lines(version: ListTariff | None) -> list[str]:
    """What a version's tiers or packages say, a line for each; nothing of one that prices every token by its moment."""
    tariff = month_tariff_of(version) if version else None
    return figures.month_tariff(tariff, settings.MARKET_CURRENCY) if tariff else []


@register.filter
def per_second(numerator_per_s: int) -> str:
    return figures.tokens_per_second(numerator_per_s)


@register.filter
def ratio(ppm: int) -> str:
    """Parts per million as a plain factor: `0.25`."""
    return decimal_string(ppm, 6, minimum_decimals=1)


@register.filter
def thousandths(amount: int) -> str:
    return figures.grouped(decimal_string(amount, 3))


@register.filter
def hhi(ppm: int) -> str:
    """A Herfindahl-Hirschman index on its usual scale of 10,000."""
    return figures.grouped(str(ppm // 100))


@register.filter
def negated(amount_micros: int) -> int:
    return -amount_micros


@register.filter
def net(earning: Earning) -> int:
    return earning.gross_micros - earning.fee_micros


@register.filter
def until(at: datetime, now: datetime) -> str:
    """How long it still is; the page's script counts on from here."""
    return figures.length(at - now) if at > now else "now"


@register.filter
def seconds(milliseconds: int) -> str:
    """A length of time as people say it; nothing is 0."""
    return figures.length(timedelta(milliseconds=milliseconds)) if milliseconds else "0"


@register.filter
def words(code: str) -> str:
    """`minimum_take` as people write it."""
    return str(code).replace("_", " ")


@register.filter
def lookup(mapping: dict[Any, Any], key: Any) -> Any:
    return mapping.get(key)


@register.filter
def age(since: datetime, now: datetime) -> str:
    return figures.age(since, now)


@register.filter
def skew(clock_skew_ms: int | None) -> str:
    """How far a host's clock is off; a second or two is the way of the message."""
    if clock_skew_ms is None:
        return "–"
    if abs(clock_skew_ms) < CLOCK_AGREES_MS:
        return "agrees with the market's"
    length = figures.length(timedelta(milliseconds=abs(clock_skew_ms)))
    return f"{length} {'ahead of' if clock_skew_ms > 0 else 'behind'} the market's"


@register.simple_tag
def moment(at: datetime | None, form: str = "day") -> SafeString | str:
    """A time in UTC, machine-readable too."""
    if at is None:
        return "–"
    shown = figures.clock_time(at) if form == "clock" else figures.day_time(at)
    return format_html('<time datetime="{}">{}</time>', at.astimezone(UTC).isoformat(), shown)


@register.simple_tag
def moment_of_year(at: datetime | None) -> SafeString | str:
    """A time in UTC with its year, for what holds longer than one."""
    if at is None:
        return "–"
    utc = at.astimezone(UTC)
    shown = f"{utc:%d %b %Y}" if (utc.hour, utc.minute, utc.second) == (0, 0, 0) else f"{utc:%d %b %Y %H:%M}"
    return format_html('<time datetime="{}">{}</time>', utc.isoformat(), shown)


@register.filter
def said(action: str) -> str:
    """`credit_note.issued` as people say it."""
    return action.replace("_", " ").replace(".", ": ")


@register.filter
def said_detail(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An entry's detail in words: amounts as money, names without underscores."""
    shown = []
    for name, value in detail.items():
        if name.endswith("_micros") and isinstance(value, int):
            shown.append((words(name.removesuffix("_micros")), money(value)))
        elif value not in ("", None, [], {}):
            shown.append((words(name), str(value)))
    return shown


@register.inclusion_tag("portal/fragments/chart.html")
def chart(drawn: Chart) -> dict[str, Any]:
    # The module that drew it escapes every text it puts in.
    return {"svg": mark_safe(drawn.svg), "y_labels": drawn.y_labels, "x_labels": drawn.x_labels}  # noqa: S308


@register.filter
def drawing(svg: str) -> SafeString:
    """Marks what `charts.share_bar` drew as markup; it escapes every text it puts in."""
    return mark_safe(svg)  # noqa: S308


@register.inclusion_tag("portal/fragments/field.html")
def field(bound: BoundField, suffix: str = "") -> dict[str, Any]:
    """A label, its input, its help and its errors, tied together for screen readers."""
    described = [f"{bound.auto_id}_help"] if bound.help_text else []
    described += [f"{bound.auto_id}_error"] if bound.errors else []
    attributes: dict[str, str | bool] = {"aria-describedby": " ".join(described)} if described else {}
    if bound.errors:
        attributes["aria-invalid"] = "true"
    return {"field": bound, "input": bound.as_widget(attrs=attributes), "suffix": suffix}


@register.filter
def pretty(document: Any) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
