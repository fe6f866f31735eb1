"""The list tariffs of offerings: announced, dated versions of what their tokens cost on demand."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from marketplace.ids import uuid7
from pricing.models import Rate

DAY_S = 86_400


class ListTariff(models.Model):
    """A version of an offering's list price: in force from `valid_from` until the next one that stands.

    Before an offering's first version its plain `list_rate` holds. Immutable but for a withdrawal before it begins.
    """

    class Kind(models.TextChoices):
        PER_UNIT = "per_unit"
        TIME_OF_USE = "time_of_use"
        GRADUATED = "graduated"
        VOLUME = "volume"
        PACKAGE = "package"

    # Kinds whose price is of what a buyer uses in a calendar month.
    OF_A_MONTH: ClassVar = (Kind.GRADUATED, Kind.VOLUME, Kind.PACKAGE)

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    offering = models.ForeignKey("providers.Offering", on_delete=models.PROTECT, related_name="list_tariffs")
    kind = models.CharField(max_length=12, choices=Kind.choices)
    valid_from = models.DateTimeField()
    withdrawn_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["offering", "valid_from"],
                condition=Q(withdrawn_at__isnull=True),
                name="providers_listtariff_one_at_a_time",
            ),
            models.CheckConstraint(
                condition=Q(created_at__lt=F("valid_from")), name="providers_listtariff_never_retroactive"
            ),
            models.CheckConstraint(
                condition=Q(withdrawn_at__isnull=True)
                | (Q(withdrawn_at__gte=F("created_at")) & Q(withdrawn_at__lt=F("valid_from"))),
                name="providers_listtariff_withdrawn_ahead",
            ),
            models.CheckConstraint(
                condition=Q(kind__in=["per_unit", "time_of_use", "graduated", "volume", "package"]),
                name="providers_listtariff_kind_known",
            ),
        ]


class ListTariffSlot(models.Model):
    """The rate from `start_s` to `end_s`, seconds of the UTC day, half-open. A version's slots make the whole day.

    What is priced by a month's volume is one slot, whose rate has the tariff (`pricing.models.RateTariff`).
    No two of a version overlap: exclusion constraint `providers_listtariffslot_apart`, in the migration.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tariff = models.ForeignKey(ListTariff, on_delete=models.PROTECT, related_name="slots")
    start_s = models.IntegerField()
    end_s = models.IntegerField()
    rate = models.ForeignKey(Rate, on_delete=models.PROTECT, related_name="+")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["tariff", "start_s"], name="providers_listtariffslot_unique"),
            models.CheckConstraint(
                condition=Q(start_s__gte=0) & Q(end_s__gt=F("start_s")) & Q(end_s__lte=DAY_S),
                name="providers_listtariffslot_in_a_day",
            ),
        ]
