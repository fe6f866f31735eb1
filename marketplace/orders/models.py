"""Bids, asks, the auction of each delivery period and its trades."""

from __future__ import annotations

from datetime import timedelta

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.contracts.models import Contract
from marketplace.ids import uuid7
from marketplace.ledger.models import Hold as LedgerHold
from marketplace.orders.releases import Release as Release
from pricing.models import Grade, GradeFamily, Rate
from providers.models import Offering


class Bid(models.Model):
    """A buyer's order in a grade: up to 10 monotone steps, standing or for one delivery period.

    The row shows the order as it is now; what it was stands in its revisions. `contract` is the spot contract of the
    bid's life. `ledger_hold` covers the worst case of the next round: max over steps of rate x cumulative lots,
    grossed up by tax.
    """

    class Status(models.TextChoices):
        OPEN = "open"
        CANCELLED = "cancelled"
        EXPIRED = "expired"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    contract = models.OneToOneField(Contract, on_delete=models.PROTECT, related_name="+")
    client_id = models.CharField(max_length=64)
    # Of the terms it was placed with: a repetition of the placing is known by them, also after a revision.
    terms_sha256 = models.BinaryField(max_length=32)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.OPEN)
    revision = models.PositiveIntegerField(default=1)
    standing = models.BooleanField()
    # The delivery period a single bid is for; null when standing.
    period_start = models.DateTimeField(null=True)
    # A standing bid enters no book whose gate is at this moment or later; null is without end.
    valid_until = models.DateTimeField(null=True)
    min_fill_lots = models.BigIntegerField(default=0)
    all_or_none = models.BooleanField(default=False)
    max_total_micros_per_day = models.BigIntegerField(null=True)
    ledger_hold = models.ForeignKey(LedgerHold, on_delete=models.PROTECT, null=True, related_name="+")
    # Why the bid is not in the open book (no funds for a top-up of its hold), if it is not.
    skip_reason = models.CharField(max_length=200, blank=True)
    # Its place among equal bids: when it last asked for more at any rate.
    priority_at = models.DateTimeField()
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["organization", "client_id"], name="orders_bid_client_id_unique"),
            models.CheckConstraint(
                condition=Q(standing=True, period_start__isnull=True)
                | Q(standing=False, period_start__isnull=False),
                name="orders_bid_standing_or_for_a_period",
            ),
            models.CheckConstraint(
                condition=Q(standing=True) | Q(valid_until__isnull=True),
                name="orders_bid_valid_until_only_standing",
            ),
            models.CheckConstraint(condition=Q(revision__gte=1), name="orders_bid_revision_from_one"),
        ]
        indexes = [
            models.Index(fields=["grade"], condition=Q(status="open"), name="orders_bid_open_by_grade"),
            models.Index(
                fields=["valid_until"],
                condition=Q(status="open", valid_until__isnull=False),
                name="orders_bid_open_by_end",
            ),
        ]


class BidStep(models.Model):
    """`lots` more at `rate_micros_per_mtok`; rates do not rise along the steps."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    bid = models.ForeignKey(Bid, on_delete=models.CASCADE, related_name="steps")
    number = models.PositiveSmallIntegerField()
    rate_micros_per_mtok = models.BigIntegerField()
    lots = models.BigIntegerField()

    class Meta:
        ordering = ["number"]
        constraints = [
            models.UniqueConstraint(fields=["bid", "number"], name="orders_bidstep_number_unique"),
            models.CheckConstraint(
                condition=Q(number__gte=0)
                & Q(number__lt=10)
                & Q(rate_micros_per_mtok__gte=0)
                & Q(lots__gt=0),
                name="orders_bidstep_in_range",
            ),
        ]


class BidSubstitute(models.Model):
    """Another grade that a bid takes: its steps are worth rate + adjustment there.

    `contract` is the spot contract of what the bid got in that grade, from its first award on. A substitute that a
    revision takes back keeps its row, with that contract.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    bid = models.ForeignKey(Bid, on_delete=models.PROTECT, related_name="substitutes")
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    adjustment_micros_per_mtok = models.BigIntegerField()
    contract = models.OneToOneField(Contract, on_delete=models.PROTECT, null=True, related_name="+")
    withdrawn_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["bid", "grade"], name="orders_bidsubstitute_once_a_grade"),
        ]


class BidRevision(models.Model):
    """What a bid asked for from one change of it to the next, with the receipt that the market signed. Append-only.

    `receipt` is the document as signed (its canonical form is `terms.canonical`), `signature` 64 bytes of Ed25519.
    """

    class Event(models.TextChoices):
        PLACED = "placed"
        REVISED = "revised"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    bid = models.ForeignKey(Bid, on_delete=models.PROTECT, related_name="revisions")
    number = models.PositiveIntegerField()
    event = models.CharField(max_length=10, choices=Event.choices)
    terms = models.JSONField()
    terms_sha256 = models.BinaryField(max_length=32)
    held_micros = models.BigIntegerField()
    receipt = models.JSONField()
    signature = models.BinaryField(max_length=64)
    actor_kind = models.CharField(max_length=16)
    actor_id = models.UUIDField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["bid", "number"], name="orders_bidrevision_number_unique"),
            models.CheckConstraint(
                condition=Q(number__gte=1) & Q(held_micros__gte=0), name="orders_bidrevision_in_range"
            ),
        ]


class Auction(models.Model):
    """The sealed call auction of one grade and delivery period. `status` moves by compare-and-set only."""

    class Status(models.TextChoices):
        OPEN = "open"
        NO_CANCEL = "no_cancel"
        CLOSED = "closed"
        CLEARED = "cleared"
        PUBLISHED = "published"
        DELIVERED = "delivered"
        SETTLED = "settled"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    opens_at = models.DateTimeField()
    no_cancel_at = models.DateTimeField()
    gate_at = models.DateTimeField()
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.OPEN)
    rule_version = models.CharField(max_length=32, blank=True)
    # The sealed book as cleared, canonical form, and the digests of book and result (SHA-256, hex).
    book = models.JSONField(null=True)
    book_digest = models.CharField(max_length=64, blank=True)
    result_digest = models.CharField(max_length=64, blank=True)
    quantity_lots = models.BigIntegerField(null=True)
    clearing_rate_micros_per_mtok = models.BigIntegerField(null=True)
    rate_low_micros_per_mtok = models.BigIntegerField(null=True)
    rate_high_micros_per_mtok = models.BigIntegerField(null=True)
    # Exact integer in micros x lots / 1000; text because it may pass 64 bits.
    welfare = models.CharField(max_length=40, blank=True)
    rate = models.ForeignKey(Rate, on_delete=models.PROTECT, null=True, related_name="+")
    published_at = models.DateTimeField(null=True)
    # Why nothing was traded, where the market was halted (`MarketControl.Because`); also in the book.
    halted = models.CharField(max_length=20, blank=True, default="")
    # The ids of the auctions whose books bids join, this one among them: from the gate on those that bids name, once
    # cleared those that were cleared together. Empty where it stands alone.
    joined = models.JSONField(default=list)
    # Of the bids of a joined book that took no part: [{"bid_id", "reason"}].
    left_out = models.JSONField(default=list)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["grade", "period_start"], name="orders_auction_unique"),
            models.CheckConstraint(
                condition=Q(period_end__gt=F("period_start")) & Q(gate_at__lte=F("period_start")),
                name="orders_auction_gate_before_period",
            ),
        ]
        indexes = [
            models.Index(
                fields=["gate_at"],
                condition=~Q(status__in=["delivered", "settled"]),
                name="orders_auction_unfinished",
            ),
            models.Index(fields=["published_at"], name="orders_auction_by_publication"),
        ]


class Ask(models.Model):
    """What a host asks in one auction: its unsold share at the provider's floor, taken into `sold_ppm` at the gate.

    With a `release` it is a committed buyer who asks, at his floor, for lots of which the host's share is sold already:
    they take no share of their own.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    auction = models.ForeignKey(Auction, on_delete=models.PROTECT, related_name="asks")
    offering = models.ForeignKey(Offering, on_delete=models.PROTECT, related_name="+")
    release = models.ForeignKey(Release, on_delete=models.PROTECT, null=True, related_name="asks")
    rate_micros_per_mtok = models.BigIntegerField()
    lots = models.BigIntegerField()
    share_ppm = models.BigIntegerField()
    awarded_lots = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["auction", "offering", "release"], nulls_distinct=False, name="orders_ask_unique"
            ),
            models.CheckConstraint(
                condition=Q(release__isnull=True, share_ppm__gt=0) | Q(release__isnull=False, share_ppm=0),
                name="orders_ask_takes_a_share_once",
            ),
            models.CheckConstraint(
                condition=Q(lots__gt=0) & Q(awarded_lots__gte=0) & Q(awarded_lots__lte=F("lots")),
                name="orders_ask_awarded_within_lots",
            ),
            # What a trade refers to.
            models.UniqueConstraint(fields=["auction", "id"], name="orders_ask_of_auction"),
        ]


class Trade(models.Model):
    """Lots of one bid supplied by one ask at the auction's clearing rate.

    One foreign key holds auction and ask together, so that the ask is one of this auction
    (`orders_trade_ask_of_its_auction`, in SQL).
    """

    id = models.UUIDField(primary_key=True, editable=False)
    auction = models.ForeignKey(
        Auction, on_delete=models.PROTECT, related_name="trades", db_constraint=False, db_index=False
    )
    bid = models.ForeignKey(Bid, on_delete=models.PROTECT, related_name="trades")
    ask = models.ForeignKey(
        Ask, on_delete=models.PROTECT, related_name="trades", db_constraint=False, db_index=False
    )
    lots = models.BigIntegerField()
    rate_micros_per_mtok = models.BigIntegerField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["auction", "bid", "ask"], name="orders_trade_unique"),
            models.CheckConstraint(condition=Q(lots__gt=0), name="orders_trade_lots_positive"),
        ]


class PriceIndex(models.Model):
    """The published price index of a grade family over one window; append-only, recomputable from stored trades.

    `inputs_digest` is the SHA-256 (hex) of everything the value is computed from. `previous` is the value before
    it, which is carried when the window is too thin. Counts are of the arm's-length trades it rests on.
    """

    class Span(models.TextChoices):
        HOUR = "hour"
        DAY = "day"

    class Basis(models.TextChoices):
        SPOT = "spot"
        COMMITTED = "committed"
        CARRIED = "carried"
        NONE = "none"

    id = models.UUIDField(primary_key=True, editable=False)
    family = models.ForeignKey(GradeFamily, on_delete=models.PROTECT, related_name="+")
    span = models.CharField(max_length=4, choices=Span.choices)
    window_start = models.DateTimeField()
    window_end = models.DateTimeField()
    method_version = models.CharField(max_length=32)
    rate_micros_per_mtok = models.BigIntegerField(null=True)
    basis = models.CharField(max_length=9, choices=Basis.choices)
    trades = models.BigIntegerField()
    auctions = models.BigIntegerField()
    groups = models.BigIntegerField()
    lots = models.BigIntegerField()
    previous = models.ForeignKey("self", on_delete=models.PROTECT, null=True, related_name="+")
    inputs_digest = models.CharField(max_length=64)
    published_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["family", "span", "method_version", "window_start"],
                name="orders_priceindex_one_per_window",
            ),
            models.CheckConstraint(
                condition=Q(window_end__gt=F("window_start")) & Q(published_at__gte=F("window_end")),
                name="orders_priceindex_after_its_window",
            ),
            models.CheckConstraint(
                condition=Q(basis="none", rate_micros_per_mtok__isnull=True)
                | (Q(basis__in=["spot", "committed", "carried"]) & Q(rate_micros_per_mtok__gte=0)),
                name="orders_priceindex_rate_or_none",
            ),
            models.CheckConstraint(
                condition=~Q(basis="carried") | Q(previous__isnull=False),
                name="orders_priceindex_carried_from_previous",
            ),
            models.CheckConstraint(
                condition=Q(trades__gte=0) & Q(auctions__gte=0) & Q(groups__gte=0) & Q(lots__gte=0),
                name="orders_priceindex_not_negative",
            ),
        ]


class MarketControl(models.Model):
    """What a grade's market may do now. No row, or `normal`: it trades under its cap.

    `status` moves by compare-and-set only, and every move leaves a MarketControlChange.
    """

    class Status(models.TextChoices):
        NORMAL = "normal"
        CAPPED = "capped"
        HALTED = "halted"

    class Because(models.TextChoices):
        """Why a market is halted, as it is published and sealed into its books."""

        OPERATOR = "operator"
        ENGINES_DISAGREE = "engines_disagree"
        BOOK_CHANGED = "book_changed"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.NORMAL)
    status_since = models.DateTimeField()
    halted_because = models.CharField(max_length=20, choices=Because.choices, blank=True)
    # The breaker's cap, fixed when it trips.
    administered_cap_micros_per_mtok = models.BigIntegerField(null=True)
    # The operator's figure for halted periods; the median of 30 days where there is none.
    administered_rate_micros_per_mtok = models.BigIntegerField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["grade"], name="orders_marketcontrol_one_per_grade"),
            models.CheckConstraint(
                condition=Q(status__in=["normal", "capped", "halted"]),
                name="orders_marketcontrol_status_known",
            ),
            models.CheckConstraint(
                # A comparison with null is not false, and passes: what must be there is asked for.
                condition=Q(
                    status="capped",
                    administered_cap_micros_per_mtok__isnull=False,
                    administered_cap_micros_per_mtok__gt=0,
                )
                | (~Q(status="capped") & Q(administered_cap_micros_per_mtok__isnull=True)),
                name="orders_marketcontrol_cap_while_capped",
            ),
            models.CheckConstraint(
                condition=(Q(status="halted") & ~Q(halted_because=""))
                | (~Q(status="halted") & Q(halted_because="")),
                name="orders_marketcontrol_halted_says_why",
            ),
            models.CheckConstraint(
                condition=Q(administered_rate_micros_per_mtok__isnull=True)
                | Q(administered_rate_micros_per_mtok__gt=0),
                name="orders_marketcontrol_rate_positive",
            ),
        ]


class MarketControlChange(models.Model):
    """One move of a MarketControl: from, to, why, by whom, on what figures. Append-only."""

    class Action(models.TextChoices):
        TRIPPED = "tripped"
        RELEASED = "released"
        HALTED = "halted"
        RESUMED = "resumed"
        RATE_SET = "rate_set"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    control = models.ForeignKey(MarketControl, on_delete=models.PROTECT, related_name="changes")
    action = models.CharField(max_length=10, choices=Action.choices)
    from_status = models.CharField(max_length=10, choices=MarketControl.Status.choices)
    to_status = models.CharField(max_length=10, choices=MarketControl.Status.choices)
    reason = models.CharField(max_length=500)
    # `rule`, or the kind of an audit entry's actor.
    actor_kind = models.CharField(max_length=16)
    actor_id = models.UUIDField(null=True)
    evidence = models.JSONField(default=dict)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(action="tripped", from_status="normal", to_status="capped")
                | Q(action="released", from_status="capped", to_status="normal")
                | Q(action="halted", from_status__in=["normal", "capped"], to_status="halted")
                | Q(action="resumed", from_status="halted", to_status="normal")
                | Q(action="rate_set", from_status=F("to_status")),
                name="orders_controlchange_move_allowed",
            ),
            models.CheckConstraint(condition=~Q(reason=""), name="orders_controlchange_reasoned"),
            models.CheckConstraint(
                condition=~Q(actor_kind="") & (~Q(actor_kind="rule") | Q(actor_id__isnull=True)),
                name="orders_controlchange_rule_is_nobody",
            ),
        ]
        indexes = [models.Index(fields=["control", "-id"], name="orders_controlchange_by_time")]


class CapReview(models.Model):
    """A cap of a grade from `effective_from` on. Without one in force it is 10 x the reference rate."""

    class Status(models.TextChoices):
        SCHEDULED = "scheduled"
        DECLINED = "declined"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.SCHEDULED)
    cap_micros_per_mtok = models.BigIntegerField()
    cap_before_micros_per_mtok = models.BigIntegerField()
    effective_from = models.DateTimeField()
    reason = models.CharField(max_length=500)
    # `rule`, or the kind of an audit entry's actor.
    actor_kind = models.CharField(max_length=16)
    actor_id = models.UUIDField(null=True)
    evidence = models.JSONField(default=dict)
    created_at = models.DateTimeField()
    declined_at = models.DateTimeField(null=True)
    decline_reason = models.CharField(max_length=500, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["grade", "effective_from"],
                condition=Q(status="scheduled"),
                name="orders_capreview_one_per_moment",
            ),
            models.CheckConstraint(
                condition=Q(cap_micros_per_mtok__gt=0) & Q(cap_before_micros_per_mtok__gt=0),
                name="orders_capreview_positive",
            ),
            models.CheckConstraint(
                condition=Q(effective_from__gte=F("created_at") + timedelta(days=28)),
                name="orders_capreview_after_notice",
            ),
            models.CheckConstraint(condition=~Q(reason=""), name="orders_capreview_reasoned"),
            models.CheckConstraint(
                condition=Q(status="scheduled", declined_at__isnull=True, decline_reason="")
                | (
                    Q(status="declined", declined_at__isnull=False, declined_at__lt=F("effective_from"))
                    & ~Q(decline_reason="")
                ),
                name="orders_capreview_declined_in_time",
            ),
        ]
