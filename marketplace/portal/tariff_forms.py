"""What a provider types of a list tariff: when it begins, and its rate, rates by time, tiers or packages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from django import forms
from django.conf import settings

from marketplace.periods import delivery_period
from marketplace.portal.forms import DecimalField, PortalForm
from pricing.tariffs import Tier, Window
from pricing.units import NUMERATOR_PER_LOT
from providers.list_tariffs import notice
from providers.models import ListTariff

# By REST there may be more.
WINDOWS: Final = 4
TIERS: Final = 5
FIRST_WINDOWS: Final = 2
# Browsers ask for seconds only where delivery periods have some.
_STEP_S: Final = "1" if settings.DELIVERY_PERIOD_S % 60 else "60"


class MomentField(forms.DateTimeField):
    """A moment in UTC; whether a period begins with it is the service's question."""

    def __init__(self, **options: Any) -> None:
        widget = forms.DateTimeInput(attrs={"type": "datetime-local", "step": _STEP_S})
        super().__init__(widget=widget, **options)

    def clean(self, value: Any) -> datetime:
        at: datetime = super().clean(value)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at


class TariffForm(PortalForm):
    """A window or a tier is a filled row; a rate without windows is one per unit. Errors of rows stand at the first."""

    service_fields = {
        "rate_micros_per_mtok": "tariff_rate",
        "windows": "start_0",
        "tiers": "up_to_0",
        "package_lots": "package_size",
        "package_micros": "package_price",
    }
    valid_from = MomentField(
        label="Begins (UTC)", help_text="With a delivery period, a whole one ahead at least."
    )
    kind = forms.ChoiceField(
        label="Priced by",
        required=False,
        choices=[
            ("", "the moment: one rate, or by time of day"),
            (ListTariff.Kind.GRADUATED, "the month: each tier at its own rate"),
            (ListTariff.Kind.VOLUME, "the month: all of it at the rate of the tier reached"),
            (ListTariff.Kind.PACKAGE, "the month: in whole packages"),
        ],
    )
    tariff_rate = DecimalField(
        decimals=6, required=False, label="Rate per Mtok", help_text="Whenever no other rate is named below."
    )
    # Whole lots of 1,000 standard tokens.
    package_size = DecimalField(decimals=3, required=False, label="Size")
    package_price = DecimalField(decimals=6, required=False, label="Price of each begun package")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for number in range(WINDOWS):
            for name, label in (("start", "From"), ("end", "Until")):
                widget = forms.TimeInput(attrs={"type": "time", "step": _STEP_S})
                self.fields[f"{name}_{number}"] = forms.TimeField(required=False, widget=widget, label=label)
            self.fields[f"rate_{number}"] = DecimalField(decimals=6, required=False, label="Rate")
        for number in range(TIERS):
            self.fields[f"up_to_{number}"] = DecimalField(decimals=3, required=False, label="Up to")
            self.fields[f"tier_rate_{number}"] = DecimalField(decimals=6, required=False, label="Rate")

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or self.cleaned_data
        for number in range(WINDOWS):
            names = [f"{name}_{number}" for name in ("start", "end", "rate")]
            missing = [name for name in names if data.get(name) is None and name not in self.errors]
            if missing and len(missing) < len(names):
                self.add_error(missing[0], "A window has a start, an end and a rate.")
        for number in range(TIERS):
            rate = f"tier_rate_{number}"
            if data.get(f"up_to_{number}") is not None and data.get(rate) is None and rate not in self.errors:
                self.add_error(rate, "A tier has a rate.")
        return data

    @property
    def terms(self) -> dict[str, Any]:
        """What `announce_tariff` asks for."""
        data = self.cleaned_data
        windows = [
            Window(_second(data[f"start_{n}"]), _second(data[f"end_{n}"]), data[f"rate_{n}"])
            for n in range(WINDOWS)
            if data[f"rate_{n}"] is not None
        ]
        tiers = [
            Tier(_numerator(data[f"up_to_{n}"]), data[f"tier_rate_{n}"])
            for n in range(TIERS)
            if data[f"tier_rate_{n}"] is not None
        ]
        of_the_moment = ListTariff.Kind.TIME_OF_USE if windows else ListTariff.Kind.PER_UNIT
        return {
            "kind": data["kind"] or of_the_moment,
            "valid_from": data["valid_from"],
            "rate_micros_per_mtok": data["tariff_rate"],
            "windows": windows,
            "tiers": tiers,
            "package_lots": data["package_size"],
            "package_micros": data["package_price"],
        }

    @property
    def tier_rows(self) -> list[tuple[int, forms.BoundField, forms.BoundField]]:
        return [(n + 1, self[f"up_to_{n}"], self[f"tier_rate_{n}"]) for n in range(TIERS)]

    @property
    def tiers_in_use(self) -> bool:
        return any(field.value() or field.errors for _, *fields in self.tier_rows for field in fields)

    @property
    def package_in_use(self) -> bool:
        return any(self[name].value() or self[name].errors for name in ("package_size", "package_price"))

    @property
    def rows(self) -> list[tuple[int, forms.BoundField, forms.BoundField, forms.BoundField]]:
        return [(n + 1, self[f"start_{n}"], self[f"end_{n}"], self[f"rate_{n}"]) for n in range(WINDOWS)]

    @property
    def first_rows(self) -> list[tuple[int, forms.BoundField, forms.BoundField, forms.BoundField]]:
        return self.rows[:FIRST_WINDOWS]

    @property
    def more_rows(self) -> list[tuple[int, forms.BoundField, forms.BoundField, forms.BoundField]]:
        return self.rows[FIRST_WINDOWS:]

    @property
    def more_in_use(self) -> bool:
        return any(field.value() or field.errors for _, *fields in self.more_rows for field in fields)


def tariff_form(now: datetime, data: Any = None) -> TariffForm:
    """For the first period that can be announced, unless something else was typed."""
    first = delivery_period(now + notice()).end.astimezone(UTC)
    form = "%Y-%m-%dT%H:%M:%S" if first.second else "%Y-%m-%dT%H:%M"
    return TariffForm(data, initial={"valid_from": first.strftime(form)})


def _numerator(lots: int | None) -> int | None:
    return None if lots is None else lots * NUMERATOR_PER_LOT


def _second(at: Any) -> int:
    return int(at.hour * 3_600 + at.minute * 60 + at.second)
