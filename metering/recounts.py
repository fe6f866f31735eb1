"""The gateway's recount of delivered text against what was reported: a statistical witness. It never settles.

Per offering (a grade on a host), over its last 200 recounted requests: o200k tokens for a million native tokens of
output and reasoning, weighted by tokens, so that a request of three tokens does not outweigh one of three thousand. A
provider that adds to every count lowers it. Beyond 2% of the baseline, and beyond what chance explains, it is a
discrepancy of the host. Chance is measured on requests clipped to the plausible, so that a few grossly inflated ones do
not hide behind the scatter that they make themselves; among long requests a few such are enough by their number.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from math import isqrt
from statistics import median_high
from typing import Any, Final
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Sum

from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from marketplace.periods import delivery_period, settlement_period
from metering.disputing import open_discrepancy
from metering.models import Discrepancy, MeterKind, RecountBaseline, UsageRollup
from metering.packing import ESTIMATED_BITS, FLAG_BITS
from metering.usage import Flag
from pricing.models import GradeBucket
from pricing.units import PPM, Bucket, div_half_even

logger = logging.getLogger(__name__)

REQUESTS: Final = 200
TOLERANCE_PPM: Final = 20_000
# Short answers of scattered text wander by more than 2%: that is chance, not a lie.
STANDARD_ERRORS: Final = 4
# Plausible is what a text implies times or by this, and some tokens that are no text (an end, a tag).
PLAUSIBLE_PPM: Final = 1_500_000
NO_TEXT_TOKENS: Final = 16
# From so many native tokens on a request is long: what is implausible of it is no matter of a few tokens.
LONG_TOKENS: Final = 100
# So many implausible long requests in 200 may be chance, beside what is usual (a script that re-tokenises badly).
ODD_REQUESTS: Final = 2
# So many providers of a grade, each with 200 requests of a host, know better than a corpus what its text comes to.
PEERS: Final = 3
# How far back the last 200 requests are looked for.
LOOKED_BACK: Final = timedelta(days=7)
MAX_BASELINE_PPM: Final = 100 * PPM
MAX_REASON_CHARACTERS: Final = 500


@dataclass(frozen=True)
class Recount:
    """The last recounted requests of an offering, at most `REQUESTS`: of each its native and its o200k tokens."""

    offering_id: UUID
    grade_id: UUID
    first_at: datetime
    last_at: datetime
    pairs: Sequence[tuple[int, int]]

    @property
    def requests(self) -> int:
        return len(self.pairs)

    @cached_property
    def native_tokens(self) -> int:
        return sum(native for native, _ in self.pairs)

    @cached_property
    def o200k_tokens(self) -> int:
        return sum(o200k for _, o200k in self.pairs)

    @property
    def ratio_ppm(self) -> int:
        return div_half_even(self.o200k_tokens * PPM, self.native_tokens)

    def standard_error_ppm(self, baseline_ppm: int) -> int:
        """Of the ratio of two sums (the ratio estimator of survey sampling): how far chance alone takes it.

        Native counts are clipped to the plausible first: what no chance makes is not taken for its measure.
        """
        if self.requests < 2:
            return PPM
        pairs = []
        for native, o200k in self.pairs:
            most = _most(o200k, baseline_ppm)
            least = o200k * PPM * PPM // (baseline_ppm * PLAUSIBLE_PPM) - NO_TEXT_TOKENS
            pairs.append((max(min(native, most), least, 1), o200k))
        natives, o200ks = sum(native for native, _ in pairs), sum(o200k for _, o200k in pairs)
        # Sum of (o200k - ratio x native)^2, times natives^2.
        residual = sum((o200k * natives - o200ks * native) ** 2 for native, o200k in pairs)
        return isqrt(residual * self.requests * PPM**2 // ((self.requests - 1) * natives**4))

    def odd_requests(self, baseline_ppm: int) -> int:
        """How many long requests have more native tokens than is plausible for their text."""
        return sum(
            native >= LONG_TOKENS and native > _most(o200k, baseline_ppm) for native, o200k in self.pairs
        )

    def leaves(self, baseline_ppm: int, usual_odd_ppm: int = 0) -> bool:
        """Whether the ratio is off by more than 2% and by more than chance explains, or too many requests are odd.

        Of those `usual_odd_ppm` in a million are usual for the grade.
        """
        off = abs(self.ratio_ppm - baseline_ppm)
        if off * PPM > TOLERANCE_PPM * baseline_ppm and off > STANDARD_ERRORS * self.standard_error_ppm(
            baseline_ppm
        ):
            return True
        odd = self.odd_requests(baseline_ppm) * PPM - self.requests * usual_odd_ppm
        # Beyond what is usual also what chance adds to it: its standard deviation is its root.
        chance = STANDARD_ERRORS * isqrt(self.requests * usual_odd_ppm * PPM)
        return odd > ODD_REQUESTS * PPM + chance


def _most(o200k_tokens: int, baseline_ppm: int) -> int:
    """The most native tokens that are plausible for a text."""
    return o200k_tokens * PLAUSIBLE_PPM // baseline_ppm + NO_TEXT_TOKENS


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the ratio should be, and who says so: `operator`, `hosts` (the median of their providers) or `kappa`."""

    ratio_ppm: int
    source: str


def of_providers(figures: Iterable[tuple[UUID, int]]) -> int | None:
    """The median over providers of each one's own median; None with fewer than three of them.

    One vote each, however many hosts he has. The judged one's own belongs to it: the median of two others would be half
    way to the one of them that lies. Of two middle ones the higher: who adds to his counts is the lower.
    """
    own: dict[UUID, list[int]] = {}
    for provider_id, figure in figures:
        own.setdefault(provider_id, []).append(figure)
    return median_high(map(median_high, own.values())) if len(own) >= PEERS else None


def check_recounts(
    *, hosts: Mapping[UUID, UUID], now: datetime, providers: Mapping[UUID, UUID] | None = None
) -> list[Discrepancy]:
    """Compare the last 200 recounted requests of every offering with its grade's baseline; `hosts` is by offering.

    `providers` says whose a host is; one that is not in it stands for itself. One discrepancy of a host at a time, with
    each offering that left; after it was closed, 200 newer requests are needed for another.
    """
    recounts = [one for one in last_recounts(list(hosts), now=now) if one.requests >= REQUESTS]
    by_grade: dict[UUID, list[Recount]] = {}
    for one in recounts:
        by_grade.setdefault(one.grade_id, []).append(one)
    owners = {
        one.offering_id: (providers or {}).get(hosts[one.offering_id], hosts[one.offering_id])
        for one in recounts
    }
    left: dict[UUID, list[tuple[Recount, Baseline]]] = {}
    for grade_id, peers in by_grade.items():
        baseline = baseline_of(grade_id, [(owners[one.offering_id], one.ratio_ppm) for one in peers])
        if baseline is None:
            continue
        odd = [
            (owners[one.offering_id], one.odd_requests(baseline.ratio_ppm) * PPM // one.requests)
            for one in peers
        ]
        usual_odd_ppm = of_providers(odd) or 0
        for one in peers:
            if one.leaves(baseline.ratio_ppm, usual_odd_ppm):
                left.setdefault(hosts[one.offering_id], []).append((one, baseline))
    found = []
    for host_id, offerings in sorted(left.items()):
        try:
            with transaction.atomic():
                found.append(_flag(host_id, offerings, now))
        except Exception:
            # Whatever it is about this host, the others are looked at.
            logger.exception("recount of a host not noted", extra={"host_id": str(host_id)})
    return [discrepancy for discrepancy in found if discrepancy is not None]


def baseline_of(grade_id: UUID, ratios_ppm: Iterable[tuple[UUID, int]]) -> Baseline | None:
    """What the operator set, else the median of at least three providers, else the grade's kappa. None without any."""
    own = RecountBaseline.objects.filter(grade_id=grade_id).order_by("-pk").first()
    if own is not None:
        return Baseline(own.baseline_ppm, "operator")
    peers = of_providers(ratios_ppm)
    if peers is not None:
        return Baseline(peers, "hosts")
    kappa = GradeBucket.objects.filter(grade_id=grade_id, bucket=Bucket.OUTPUT).first()
    return Baseline(kappa.kappa_ppm, "kappa") if kappa is not None and kappa.kappa_ppm else None


def set_recount_baseline(*, grade_id: UUID, baseline_ppm: int, reason: str, now: datetime) -> RecountBaseline:
    """What the operator expects of a grade version, whatever hosts show. Raises InvalidInput naming the field."""
    if not 1 <= baseline_ppm <= MAX_BASELINE_PPM:
        raise InvalidInput(f"must lie between 1 and {MAX_BASELINE_PPM}", field="baseline_ppm")
    if not 1 <= len(reason.strip()) <= MAX_REASON_CHARACTERS:
        raise InvalidInput(f"must have 1 to {MAX_REASON_CHARACTERS} characters", field="reason")
    return RecountBaseline.objects.create(
        id=uuid7(now), grade_id=grade_id, baseline_ppm=baseline_ppm, reason=reason.strip(), created_at=now
    )


def _flag(host_id: UUID, offerings: Iterable[tuple[Recount, Baseline]], now: datetime) -> Discrepancy | None:
    offerings = list(offerings)
    known = Discrepancy.objects.filter(host_id=host_id, kind=Discrepancy.Kind.RECOUNT)
    open_one = known.filter(status=Discrepancy.Status.OPEN).order_by("pk").first()
    last_closed = known.exclude(status=Discrepancy.Status.OPEN).order_by("-closed_at").first()
    if open_one is not None:
        start = open_one.settlement_start
    else:
        newest = max(one.last_at for one, _ in offerings)
        start = settlement_period(newest).start
        closed_at = last_closed.closed_at if last_closed is not None else None
        if closed_at is not None:
            offerings = [(one, baseline) for one, baseline in offerings if one.first_at > closed_at]
        if not offerings:
            return None
    found = open_discrepancy(
        host_id=host_id,
        settlement_start=start,
        kind=Discrepancy.Kind.RECOUNT,
        evidence={
            "tolerance_ppm": TOLERANCE_PPM,
            "offerings": [_evidence(one, baseline) for one, baseline in offerings],
        },
        withheld={},
        now=now,
    )
    return found if found.status == Discrepancy.Status.OPEN else None


def _evidence(one: Recount, baseline: Baseline) -> dict[str, Any]:
    return {
        "offering_id": str(one.offering_id),
        "requests": one.requests,
        "native_tokens": one.native_tokens,
        "o200k_tokens": one.o200k_tokens,
        "ratio_ppm": one.ratio_ppm,
        "standard_error_ppm": one.standard_error_ppm(baseline.ratio_ppm),
        "recounted_share_ppm": _recounted_share_ppm(one),
        "odd_requests": one.odd_requests(baseline.ratio_ppm),
        "baseline_ppm": baseline.ratio_ppm,
        "baseline_of": baseline.source,
        "since": one.first_at.isoformat(),
        "until": one.last_at.isoformat(),
    }


def _recounted_share_ppm(one: Recount) -> int:
    """Of all output in the time of these requests what a recount stands for: the rest shows no text to count."""
    sums = UsageRollup.objects.filter(
        offering_id=one.offering_id,
        meter=MeterKind.GATEWAY,
        bucket__in=[Bucket.OUTPUT, Bucket.REASONING],
        period_start__gte=delivery_period(one.first_at).start,
        period_start__lte=one.last_at,
    ).aggregate(recounted=Sum("recounted_tokens"), native=Sum("native_tokens"))
    return int(sums["recounted"] * PPM // sums["native"]) if sums["native"] else 0


# Roll-ups say in which periods of which contracts there are recounts; of these, newest first, the events.
# A recount does not stand for reasoning whose text was hidden.
_NATIVE: Final = (
    "coalesce(e.output_tokens, 0)"
    f" + CASE WHEN e.flags & {FLAG_BITS[Flag.HIDDEN_REASONING]} <> 0 THEN 0"
    " ELSE coalesce(e.reasoning_tokens, 0) END"
)
_LAST: Final = f"""
SELECT o.offering_id, e.grade_id, min(e.occurred_at), max(e.occurred_at), array_agg(e.native), array_agg(e.recount)
  FROM unnest(%(offerings)s::uuid[]) AS o (offering_id)
 CROSS JOIN LATERAL (
    SELECT e.grade_id, e.occurred_at, e.recount_o200k_tokens AS recount,
           {_NATIVE} AS native
      FROM (SELECT DISTINCT r.contract_id, r.period_start
              FROM metering_usagerollup r
             WHERE r.offering_id = o.offering_id AND r.meter = 'gateway' AND r.bucket = 'output'
               AND r.recounted_tokens > 0 AND r.period_start >= %(since)s AND r.period_start <= %(now)s
             ORDER BY r.period_start DESC LIMIT %(requests)s) AS k
      JOIN metering_usageevent e USING (contract_id, period_start)
      JOIN metering_metersource s ON s.id = e.source_id AND s.kind = 'gateway'
     WHERE e.offering_id = o.offering_id AND e.recount_o200k_tokens IS NOT NULL AND e.flags & %(estimated)s = 0
       AND {_NATIVE} > 0
       AND NOT EXISTS (SELECT FROM metering_usagecorrection c
                        WHERE c.target_id = e.id AND c.target_source_id = e.source_id)
     ORDER BY e.occurred_at DESC, e.id DESC LIMIT %(requests)s
 ) AS e
 GROUP BY 1, 2
"""  # noqa: S608


def last_recounts(offering_ids: Sequence[UUID], *, now: datetime) -> list[Recount]:
    """Of each offering the newest requests of the last week that have a recount, at most 200 of them."""
    with connection.cursor() as cursor:
        cursor.execute(
            _LAST,
            {
                "offerings": list(offering_ids),
                "since": now - LOOKED_BACK,
                "now": now,
                "requests": REQUESTS,
                "estimated": ESTIMATED_BITS,
            },
        )
        return [
            Recount(offering_id, grade_id, first_at, last_at, list(zip(natives, recounts, strict=True)))
            for offering_id, grade_id, first_at, last_at, natives, recounts in cursor.fetchall()
        ]
