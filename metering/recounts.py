"""The gateway's recount of delivered text against what was reported: a statistical witness. It never settles.

Per offering (a grade on a host), over its last 200 recounted requests: o200k tokens for a million native tokens of
output and reasoning, weighted by tokens, so that a request of three tokens does not outweigh one of three thousand. A
provider that adds to every count lowers it. Beyond 2% of the baseline, and beyond what chance explains,
it is a discrepancy of the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isqrt
from statistics import median_low
from typing import Any, Final
from uuid import UUID

from django.db import connection

from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from marketplace.periods import settlement_period
from metering.disputing import open_discrepancy
from metering.models import Discrepancy, RecountBaseline
from pricing.models import GradeBucket
from pricing.units import PPM, Bucket, div_half_even

REQUESTS: Final = 200
TOLERANCE_PPM: Final = 20_000
# Short answers of scattered text wander by more than 2%: that is chance, not a lie.
STANDARD_ERRORS: Final = 4
# So many hosts of a grade, each with its 200 requests, know better than a corpus what its text comes to.
PEERS: Final = 3
# How far back the last 200 requests are looked for.
LOOKED_BACK: Final = timedelta(days=7)
MAX_BASELINE_PPM: Final = 100 * PPM
MAX_REASON_CHARACTERS: Final = 500


@dataclass(frozen=True, slots=True)
class Recount:
    """The last recounted requests of an offering, at most `REQUESTS`."""

    offering_id: UUID
    grade_id: UUID
    requests: int
    native_tokens: int
    o200k_tokens: int
    first_at: datetime
    last_at: datetime
    # Sums over the requests: native^2, native x o200k, o200k^2.
    native_squared: int
    product: int
    o200k_squared: int

    @property
    def ratio_ppm(self) -> int:
        return div_half_even(self.o200k_tokens * PPM, self.native_tokens)

    @property
    def standard_error_ppm(self) -> int:
        """Of the ratio of two sums (the ratio estimator of survey sampling): how far chance alone takes it."""
        if self.requests < 2:
            return PPM
        # Sum of (o200k - ratio x native)^2, times native_tokens^2.
        residual = (
            self.o200k_squared * self.native_tokens**2
            - 2 * self.product * self.o200k_tokens * self.native_tokens
            + self.native_squared * self.o200k_tokens**2
        )
        return isqrt(
            max(0, residual) * self.requests * PPM**2 // ((self.requests - 1) * self.native_tokens**4)
        )

    def leaves(self, baseline_ppm: int) -> bool:
        """Whether the ratio is off by more than 2%, and by more than chance explains."""
        off = abs(self.ratio_ppm - baseline_ppm)
        return off * PPM > TOLERANCE_PPM * baseline_ppm and off > STANDARD_ERRORS * self.standard_error_ppm


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the ratio should be, and who says so: `hosts` (their median), `operator` or `kappa`."""

    ratio_ppm: int
    source: str


def baseline_of_peers(ratios_ppm: Sequence[int]) -> int | None:
    """The median of all hosts with enough requests, the judged one among them; None with fewer than three.

    Its own ratio belongs to it: the median of two others would be half way to the one of them that lies.
    """
    return median_low(ratios_ppm) if len(ratios_ppm) >= PEERS else None


def check_recounts(*, hosts: Mapping[UUID, UUID], now: datetime) -> list[Discrepancy]:
    """Compare the last 200 recounted requests of every offering with its grade's baseline; `hosts` is by offering.

    One discrepancy of a host at a time, with each offering that left; after it was closed, 200 newer requests are
    needed for another.
    """
    recounts = [one for one in last_recounts(list(hosts), now=now) if one.requests >= REQUESTS]
    by_grade: dict[UUID, list[Recount]] = {}
    for one in recounts:
        by_grade.setdefault(one.grade_id, []).append(one)
    left: dict[UUID, list[tuple[Recount, Baseline]]] = {}
    for grade_id, peers in by_grade.items():
        baseline = baseline_of(grade_id, [one.ratio_ppm for one in peers])
        for one in peers:
            if baseline is not None and one.leaves(baseline.ratio_ppm):
                left.setdefault(hosts[one.offering_id], []).append((one, baseline))
    found = [_flag(host_id, offerings, now) for host_id, offerings in sorted(left.items())]
    return [discrepancy for discrepancy in found if discrepancy is not None]


def baseline_of(grade_id: UUID, ratios_ppm: Sequence[int]) -> Baseline | None:
    """The median of at least three hosts, else what the operator set, else the grade's kappa. None without any."""
    peers = baseline_of_peers(ratios_ppm)
    if peers is not None:
        return Baseline(peers, "hosts")
    own = RecountBaseline.objects.filter(grade_id=grade_id).order_by("-pk").first()
    if own is not None:
        return Baseline(own.baseline_ppm, "operator")
    kappa = GradeBucket.objects.filter(grade_id=grade_id, bucket=Bucket.OUTPUT).first()
    return Baseline(kappa.kappa_ppm, "kappa") if kappa is not None and kappa.kappa_ppm else None


def set_recount_baseline(*, grade_id: UUID, baseline_ppm: int, reason: str, now: datetime) -> RecountBaseline:
    """What the operator expects of a grade version until three hosts show it. Raises InvalidInput naming the field."""
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
        "standard_error_ppm": one.standard_error_ppm,
        "baseline_ppm": baseline.ratio_ppm,
        "baseline_of": baseline.source,
        "since": one.first_at.isoformat(),
        "until": one.last_at.isoformat(),
    }


# Roll-ups say in which periods of which contracts there are recounts; of these, newest first, the events.
_LAST: Final = """
SELECT o.offering_id, e.grade_id, count(*), sum(e.native)::bigint, sum(e.recount)::bigint, min(e.occurred_at),
       max(e.occurred_at), sum(e.native::numeric * e.native), sum(e.native::numeric * e.recount),
       sum(e.recount::numeric * e.recount)
  FROM unnest(%(offerings)s::uuid[]) AS o (offering_id)
 CROSS JOIN LATERAL (
    SELECT e.grade_id, e.occurred_at, e.recount_o200k_tokens AS recount,
           coalesce(e.output_tokens, 0) + coalesce(e.reasoning_tokens, 0) AS native
      FROM (SELECT DISTINCT r.contract_id, r.period_start
              FROM metering_usagerollup r
             WHERE r.offering_id = o.offering_id AND r.meter = 'gateway' AND r.bucket = 'output'
               AND r.recounted_tokens > 0 AND r.period_start >= %(since)s AND r.period_start <= %(now)s
             ORDER BY r.period_start DESC LIMIT %(requests)s) AS k
      JOIN metering_usageevent e USING (contract_id, period_start)
      JOIN metering_metersource s ON s.id = e.source_id AND s.kind = 'gateway'
     WHERE e.offering_id = o.offering_id AND e.recount_o200k_tokens IS NOT NULL
       AND coalesce(e.output_tokens, 0) + coalesce(e.reasoning_tokens, 0) > 0
       AND NOT EXISTS (SELECT FROM metering_usagecorrection c
                        WHERE c.target_id = e.id AND c.target_source_id = e.source_id)
     ORDER BY e.occurred_at DESC, e.id DESC LIMIT %(requests)s
 ) AS e
 GROUP BY 1, 2
"""


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
            },
        )
        return [Recount(*row[:7], *map(int, row[7:])) for row in cursor.fetchall()]
