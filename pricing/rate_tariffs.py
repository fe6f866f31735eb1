"""Rates of tiers, volume prices and packages, read back as what they were published with (docs/tariffs.md)."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from django.db.models import QuerySet

from marketplace.errors import InvalidInput
from pricing.models import RateTariff
from pricing.tariffs import Tariff, Tier, graduated, package, volume


def invalid_tariff(error: ValueError) -> InvalidInput:
    """The field that a pure function's error names, as an error of the interfaces."""
    field, _, reason = str(error).partition(": ")
    return InvalidInput(f"{reason[:1].upper()}{reason[1:]}.", field=field)


def tariff_of(row: RateTariff) -> Tariff:
    """The tariff that a rate was published with."""
    if row.kind == RateTariff.Kind.PACKAGE:
        assert row.package_micros is not None, "pricing_ratetariff_of_a_kind"
        return package(row.unit_numerator, row.package_micros)
    tiers = [
        Tier(tier.up_to_numerator, tier.micros_per_mtok)
        for tier in sorted(row.tiers.all(), key=lambda tier: tier.place)
    ]
    return graduated(tiers) if row.kind == RateTariff.Kind.GRADUATED else volume(tiers)


def tariffs_by_rate(rate_ids: Iterable[UUID]) -> dict[UUID, Tariff]:
    """The tariffs of those of the rates that have one; the others cost the same for every token."""
    return _tariffs(RateTariff.objects.filter(pk__in=set(rate_ids)))


def tariffs_of_sources(source_ids: Iterable[UUID]) -> dict[UUID, Tariff]:
    """The tariffs of all rates that these offerings ever had, by rate."""
    return _tariffs(RateTariff.objects.filter(rate__source_id__in=set(source_ids)))


def _tariffs(rows: QuerySet[RateTariff]) -> dict[UUID, Tariff]:
    return {row.pk: tariff_of(row) for row in rows.prefetch_related("tiers")}
