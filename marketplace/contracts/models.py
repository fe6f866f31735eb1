"""What buyers bought, who must supply it, what one period entitles to, and the holds on it."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.ids import uuid7
from marketplace.ledger.models import Hold as LedgerHold
from pricing.models import Grade, Rate
from providers.models import Offering


class ContractKind(models.TextChoices):
    ON_DEMAND = "on_demand"
    COMMITTED = "committed"
    SPOT = "spot"


class OveragePolicy(models.TextChoices):
    STOP = "stop"
    LIST = "list"
    SPOT = "spot"


class Payment(models.TextChoices):
    PREPAID = "prepaid"
    ARREARS = "arrears"


class Quote(models.Model):
    """A price for a committed contract, good until `expires_at`. It fixes the price, not the capacity."""

    class Status(models.TextChoices):
        OPEN = "open"
        ACCEPTED = "accepted"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.OPEN)
    firm_lots = models.BigIntegerField()
    volume_lots = models.BigIntegerField()
    months = models.PositiveSmallIntegerField()
    starts_at = models.DateTimeField()
    take_share_ppm = models.BigIntegerField()
    rollover_share_ppm = models.BigIntegerField(default=0)
    rollover_cap_lots = models.BigIntegerField(default=0)
    notice_days = models.PositiveSmallIntegerField(default=0)
    termination_fee_ppm = models.BigIntegerField(default=0)
    # The contract that this quote would take the place of, from `starts_at` on.
    amends = models.ForeignKey("contracts.Contract", on_delete=models.PROTECT, null=True, related_name="+")
    overage_policy = models.CharField(max_length=8, choices=OveragePolicy.choices)
    payment = models.CharField(max_length=8, choices=Payment.choices)
    # The most that overage may cost; null: whatever its rate is.
    max_rate_micros_per_mtok = models.BigIntegerField(null=True)
    rate_micros_per_mtok = models.BigIntegerField()
    # [{"offering_id", "firm_lots", "rate_micros_per_mtok"}], cheapest first, summing to firm_lots.
    shares = models.JSONField()
    expires_at = models.DateTimeField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(firm_lots__gt=0) & Q(volume_lots__gt=0) & Q(months__gt=0) & Q(months__lte=12),
                name="contracts_quote_figures_positive",
            ),
            models.CheckConstraint(
                condition=Q(take_share_ppm__gte=0) & Q(take_share_ppm__lte=1_000_000),
                name="contracts_quote_take_in_range",
            ),
            models.CheckConstraint(
                condition=Q(rollover_share_ppm__gte=0)
                & Q(rollover_share_ppm__lte=1_000_000)
                & Q(rollover_cap_lots__gte=0)
                & (Q(rollover_share_ppm=0) | Q(payment="prepaid")),
                name="contracts_quote_rollover_in_range",
            ),
            models.CheckConstraint(
                condition=Q(termination_fee_ppm__gte=0) & Q(termination_fee_ppm__lte=1_000_000),
                name="contracts_quote_fee_in_range",
            ),
            models.CheckConstraint(
                condition=Q(max_rate_micros_per_mtok__isnull=True)
                | (Q(max_rate_micros_per_mtok__gt=0) & ~Q(overage_policy="stop")),
                name="contracts_quote_max_rate_of_overage",
            ),
        ]


class Contract(models.Model):
    """What a buyer bought; the market is the counterparty of both sides. on_demand is implicit per buyer, grade
    and payment.
    """

    class Status(models.TextChoices):
        ACTIVE = "active"
        SUSPENDED = "suspended"
        ENDED = "ended"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    kind = models.CharField(max_length=10, choices=ContractKind.choices)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.ACTIVE)
    currency = models.CharField(max_length=3)
    payment = models.CharField(max_length=8, choices=Payment.choices, default=Payment.PREPAID)
    overage_policy = models.CharField(max_length=8, choices=OveragePolicy.choices, default=OveragePolicy.STOP)
    # Spot: the bid's highest rate. Committed: the most that overage may cost; null: whatever its rate is.
    max_rate_micros_per_mtok = models.BigIntegerField(null=True)
    # Committed terms; null on the other kinds.
    quote = models.OneToOneField(Quote, on_delete=models.PROTECT, null=True, related_name="contract")
    rate = models.ForeignKey(Rate, on_delete=models.PROTECT, null=True, related_name="+")
    firm_lots = models.BigIntegerField(null=True)
    volume_lots = models.BigIntegerField(null=True)
    take_share_ppm = models.BigIntegerField(null=True)
    rollover_share_ppm = models.BigIntegerField(null=True)
    rollover_cap_lots = models.BigIntegerField(null=True)
    # What ending it early asks for: so many days' notice, this share of the take that is left.
    notice_days = models.PositiveSmallIntegerField(null=True)
    termination_fee_ppm = models.BigIntegerField(null=True)
    # The contract whose place this one took.
    amends = models.OneToOneField(
        "contracts.Contract", on_delete=models.PROTECT, null=True, related_name="amended_by"
    )
    # The contract that this one follows: where that one ends it begins.
    renews = models.OneToOneField(
        "contracts.Contract", on_delete=models.PROTECT, null=True, related_name="renewed_by"
    )
    # Suspended only: since when, and when its capacity went back on sale.
    suspended_at = models.DateTimeField(null=True)
    freed_at = models.DateTimeField(null=True)
    # Ended by its buyer's test clock ahead of its delivery periods: from then on its hosts owe nothing and are on sale.
    delivers_until = models.DateTimeField(null=True)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(delivers_until__isnull=True)
                | Q(kind="committed", status="ended", delivers_until__lte=F("ends_at")),
                name="contracts_contract_delivers_until_its_end",
            ),
            models.CheckConstraint(
                condition=Q(renews__isnull=True) | Q(kind="committed", amends__isnull=True),
                name="contracts_contract_renews_or_amends",
            ),
            models.UniqueConstraint(
                fields=["organization", "grade", "payment"],
                condition=Q(kind="on_demand"),
                name="contracts_contract_one_on_demand",
            ),
            models.CheckConstraint(
                condition=Q(ends_at__isnull=True) | Q(ends_at__gt=F("starts_at")),
                name="contracts_contract_ends_after_start",
            ),
            models.CheckConstraint(
                condition=~Q(kind="committed")
                | (
                    Q(rate__isnull=False)
                    & Q(firm_lots__gt=0)
                    & Q(volume_lots__gt=0)
                    & Q(take_share_ppm__isnull=False)
                    & Q(ends_at__isnull=False)
                ),
                name="contracts_contract_committed_has_terms",
            ),
            models.CheckConstraint(
                condition=Q(suspended_at__isnull=True, freed_at__isnull=True)
                | Q(suspended_at__isnull=False, kind="committed", status__in=["suspended", "ended"]),
                name="contracts_contract_freed_while_suspended",
            ),
        ]
        indexes = [models.Index(fields=["organization", "grade", "kind"], name="contracts_contract_by_org")]


class Allocation(models.Model):
    """Which offering must supply which share of a contract, at which rate it is paid, and what it has served."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    # The unique index begins with it.
    contract = models.ForeignKey(
        Contract, on_delete=models.PROTECT, related_name="allocations", db_index=False
    )
    offering = models.ForeignKey(Offering, on_delete=models.PROTECT, related_name="+")
    firm_lots = models.BigIntegerField()
    rate_micros_per_mtok = models.BigIntegerField()
    # Committed: the share of the host that was taken in every hour of the term.
    share_ppm = models.BigIntegerField(null=True)
    # Null for committed (the whole term); the delivery period for spot.
    period_start = models.DateTimeField(null=True)
    served_numerator = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["contract", "offering", "period_start"],
                nulls_distinct=False,
                name="contracts_allocation_unique",
            ),
            models.CheckConstraint(
                condition=Q(firm_lots__gt=0) & Q(served_numerator__gte=0),
                name="contracts_allocation_positive",
            ),
        ]


class Curtailment(models.Model):
    """Lots of an allocation that its host cannot supply any more in a delivery period, from `curtailed_at` to its end.

    Append-only. What runs is served and billed; `kept_numerator` is all that may be served of a spot allocation in the
    period, null where a firm allocation is only slowed down.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    allocation = models.ForeignKey(Allocation, on_delete=models.PROTECT, related_name="curtailments")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    lots = models.BigIntegerField()
    kept_numerator = models.BigIntegerField(null=True)
    curtailed_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(lots__gt=0) & (Q(kept_numerator__isnull=True) | Q(kept_numerator__gte=0)),
                name="contracts_curtailment_positive",
            ),
            models.CheckConstraint(
                condition=Q(period_end__gt=F("period_start")) & Q(period_end__gt=F("curtailed_at")),
                name="contracts_curtailment_forwards",
            ),
        ]
        indexes = [models.Index(fields=["period_start"], name="contracts_curtailment_period")]


class Entitlement(models.Model):
    """What one period of a contract entitles to, and the token bucket that paces it.

    For committed the period is a contract month (volume V and what rolled over into it), for spot a delivery period (A
    lots at the clearing rate). `held + used + released + failed <= entitled` holds under any concurrency.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    # The unique index begins with it, and nobody asks for what was awarded at a rate.
    contract = models.ForeignKey(
        Contract, on_delete=models.PROTECT, related_name="entitlements", db_index=False
    )
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    rate = models.ForeignKey(Rate, on_delete=models.PROTECT, related_name="+", db_index=False)
    entitled_numerator = models.BigIntegerField()
    held_numerator = models.BigIntegerField(default=0)
    used_numerator = models.BigIntegerField(default=0)
    released_numerator = models.BigIntegerField(default=0)
    failed_numerator = models.BigIntegerField(default=0)
    # Committed: the part of `entitled` that the month before left over; burned first, gone with the month.
    rollover_numerator = models.BigIntegerField(default=0, db_default=0)
    # Spot: the award's own hold. Committed: null.
    ledger_hold = models.ForeignKey(LedgerHold, on_delete=models.PROTECT, null=True, related_name="+")
    # Committed, prepaid: when the month was charged; no delivery before.
    paid_at = models.DateTimeField(null=True)
    settled_at = models.DateTimeField(null=True)
    bucket_rate_numerator_per_s = models.BigIntegerField()
    bucket_depth_numerator = models.BigIntegerField()
    bucket_level_numerator = models.BigIntegerField()
    bucket_level_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["contract", "period_start"], name="contracts_entitlement_unique"),
            models.CheckConstraint(
                condition=Q(held_numerator__gte=0)
                & Q(used_numerator__gte=0)
                & Q(released_numerator__gte=0)
                & Q(failed_numerator__gte=0)
                & Q(
                    entitled_numerator__gte=F("held_numerator")
                    + F("used_numerator")
                    + F("released_numerator")
                    + F("failed_numerator")
                ),
                name="contracts_entitlement_never_overdrawn",
            ),
            models.CheckConstraint(
                condition=Q(period_end__gt=F("period_start")), name="contracts_entitlement_forwards"
            ),
            models.CheckConstraint(
                condition=Q(rollover_numerator__gte=0) & Q(rollover_numerator__lte=F("entitled_numerator")),
                name="contracts_entitlement_rollover_within",
            ),
        ]
        indexes = [models.Index(fields=["period_start", "period_end"], name="contracts_entitlement_period")]

    @property
    def volume_numerator(self) -> int:
        """V: the month's own volume, without what rolled over into it."""
        return self.entitled_numerator - self.rollover_numerator


class OnDemandBucket(models.Model):
    """The token bucket of an offering's unsold share: the rate is the unsold share at the period's start."""

    offering = models.OneToOneField(Offering, on_delete=models.PROTECT, primary_key=True, related_name="+")
    period_start = models.DateTimeField()
    rate_numerator_per_s = models.BigIntegerField()
    depth_numerator = models.BigIntegerField()
    level_numerator = models.BigIntegerField()
    level_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(rate_numerator_per_s__gte=0) & Q(depth_numerator__gte=0),
                name="contracts_ondemandbucket_not_negative",
            ),
        ]


class Accrual(models.Model):
    """The one pending amount of a contract and settlement period.

    Its ledger hold covers what open delivery holds may cost and what captured ones did cost; the settlement run
    posts the once-rounded charge against it and voids the rest.
    """

    id = models.UUIDField(primary_key=True, db_default=models.Func(function="uuidv7"), editable=False)
    contract = models.ForeignKey(Contract, on_delete=models.PROTECT, related_name="accruals")
    settlement_start = models.DateTimeField()
    ledger_hold = models.OneToOneField(LedgerHold, on_delete=models.PROTECT, related_name="+")
    held_micros = models.BigIntegerField(default=0)
    captured_micros = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["contract", "settlement_start"], name="contracts_accrual_unique"),
            models.CheckConstraint(
                condition=Q(held_micros__gte=0) & Q(captured_micros__gte=0),
                name="contracts_accrual_not_negative",
            ),
        ]


class Hold(models.Model):
    """A request's hold on a contract: opened before dispatch, extended as the stream goes, captured at its end.

    Never captured above the hold. `amount_numerator` is volume; `amount_micros` the money it may cost, gross of
    tax (0 where the money was paid or is held by the award). A dispatched hold never just expires.
    """

    class Status(models.TextChoices):
        OPEN = "open"
        CAPTURED = "captured"
        VOIDED = "voided"

    id = models.UUIDField(primary_key=True, editable=False)
    # The buyer's request; each attempt of it at another host is a hold of its own, and at most one is captured.
    request_id = models.UUIDField()
    attempt = models.PositiveSmallIntegerField(default=0)
    # 0, or 1 of what an attempt took beyond the volume of part 0's contract: a hold of its own on the same delivery.
    part = models.PositiveSmallIntegerField(default=0, db_default=0)
    contract = models.ForeignKey(Contract, on_delete=models.PROTECT, related_name="+", db_index=False)
    api_key_id = models.UUIDField(null=True)
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+", db_index=False)
    offering = models.ForeignKey(Offering, on_delete=models.PROTECT, related_name="+", db_index=False)
    entitlement = models.ForeignKey(
        Entitlement, on_delete=models.PROTECT, null=True, related_name="+", db_index=False
    )
    accrual = models.ForeignKey(
        Accrual, on_delete=models.PROTECT, null=True, related_name="+", db_index=False
    )
    rate = models.ForeignKey(Rate, on_delete=models.PROTECT, related_name="+", db_index=False)
    holder = models.CharField(max_length=64)
    period_start = models.DateTimeField()
    amount_numerator = models.BigIntegerField()
    captured_numerator = models.BigIntegerField(default=0)
    amount_micros = models.BigIntegerField()
    captured_micros = models.BigIntegerField(default=0)
    # Where it is counted against spend caps; null where it was under none.
    spend_counter_ids = ArrayField(models.UUIDField(), null=True)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.OPEN)
    opened_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_numerator__gte=0)
                & Q(captured_numerator__gte=0)
                & Q(captured_numerator__lte=F("amount_numerator"))
                & Q(captured_micros__gte=0)
                & Q(captured_micros__lte=F("amount_micros")),
                name="contracts_hold_captured_within_amount",
            ),
            models.CheckConstraint(
                # What goes on beyond a contract is not taken of its volume.
                condition=Q(part=0) | Q(part=1, entitlement__isnull=True),
                name="contracts_hold_part_known",
            ),
        ]
        indexes = [
            models.Index(fields=["expires_at"], condition=Q(status="open"), name="contracts_hold_by_expiry"),
            models.Index(fields=["contract"], condition=Q(status="open"), name="contracts_hold_by_contract"),
            models.Index(fields=["offering"], condition=Q(status="open"), name="contracts_hold_by_offering"),
            models.Index(fields=["request_id"], name="contracts_hold_by_request"),
        ]


class PeriodRate(models.Model):
    """What the spot market said of a grade in a delivery period, known before delivery. Written by orders.

    `overage_rate` is the rate of overage and replacement in the period (DESIGN 6).
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    period_start = models.DateTimeField()
    clearing_rate_micros_per_mtok = models.BigIntegerField(null=True)
    overage_rate = models.ForeignKey(Rate, on_delete=models.PROTECT, related_name="+")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["grade", "period_start"], name="contracts_periodrate_unique"),
        ]


# Below what they refer to.
from marketplace.contracts.history_models import ContractEvent as ContractEvent  # noqa: E402
from marketplace.contracts.nomination_models import Nomination as Nomination  # noqa: E402
from marketplace.contracts.nomination_models import NominationShare as NominationShare  # noqa: E402
from marketplace.contracts.renewal_models import Renewal as Renewal  # noqa: E402
from marketplace.contracts.spend_models import PurchaseSpend as PurchaseSpend  # noqa: E402
from marketplace.contracts.spend_models import SpendCap as SpendCap  # noqa: E402
from marketplace.contracts.spend_models import SpendCounter as SpendCounter  # noqa: E402
