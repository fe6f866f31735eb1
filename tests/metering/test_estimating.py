"""VEE: what looks wrong is noted, what was estimated is replaced, what was inflated shows in the recount."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import pytest

from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from metering.models import Discrepancy, MeterFinding, UsageBatch, UsageCorrection, UsageEvent, UsageRollup
from metering.reconciling import reconcile_host
from metering.recounts import REQUESTS, Recount, check_recounts, last_recounts
from metering.services import (
    accept_batch,
    ingest_batches,
    register_source,
    replace_estimates,
    set_dependable_limit,
    set_recount_baseline,
)
from metering.usage import Flag
from metering.usage import UsageEvent as WireEvent
from pricing.units import PPM, Bucket, div_half_even
from tests.metering.meters import Meters

HOUR = timedelta(hours=1)
KAPPA_PPM = 250_000


def findings() -> dict[str, dict[str, object]]:
    return {finding.kind: finding.evidence for finding in MeterFinding.objects.all()}


def reconcile(meters: Meters, *, clock_skew_ms: int | None = None) -> Discrepancy | None:
    return reconcile_host(
        host_id=meters.host_id,
        offering_ids=[meters.offering_id],
        settlement_start=meters.now,
        settlement_end=meters.now + HOUR,
        clock_skew_ms=clock_skew_ms,
        now=meters.now + HOUR + timedelta(minutes=2),
    )


def pair(meters: Meters, gateway: WireEvent, agent: WireEvent, *, received_after_s: float = 2) -> None:
    """Both meters' events of one request; the agent's arrives that long after the request began."""
    meters.report([gateway])
    accept_batch(
        source=meters.agent,
        body=meters.sent([agent]),
        now=gateway.occurred_at + timedelta(seconds=received_after_s),
    )
    ingest_batches(now=meters.now + timedelta(minutes=9))


# Validation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clock_s", "expected"),
    [(1, None), (9, None), (25, "ahead_ms"), (-9, None), (-25, "behind_ms"), (500, "ahead_ms")],
)
def test_an_agents_clock_shows_in_its_ids(meters: Meters, clock_s: int, expected: str | None) -> None:
    """An id is made after the market admitted the request, and before the market received it."""
    event = meters.event()
    made = event.occurred_at + timedelta(seconds=clock_s)
    pair(meters, event, meters.event(id=uuid7(made), request_id=event.request_id))
    assert UsageEvent.objects.count() == 2
    assert reconcile(meters) is None
    found = findings()
    assert list(found) == (["clock_skew"] if expected else [])
    if expected:
        skew = found["clock_skew"]
        # At least so much: 25 s ahead and received 2 s after its request began.
        assert skew[expected] == abs(clock_s) * 1_000 - (2_000 if clock_s > 0 else 0)
        assert skew["behind_ms" if expected == "ahead_ms" else "ahead_ms"] == 0


@pytest.mark.parametrize(
    ("said_ms", "flagged"), [(None, False), (-9_000, False), (600_000, True), (-600_000, True)]
)
def test_a_clock_that_its_host_knows_to_be_wrong_is_noted(
    meters: Meters, said_ms: int | None, flagged: bool
) -> None:
    event = meters.event()
    pair(meters, event, meters.event(request_id=event.request_id))
    reconcile(meters, clock_skew_ms=said_ms)
    assert findings() == (
        {"clock_skew": {"said_ms": said_ms, "ahead_ms": 0, "behind_ms": 0, "tolerance_ms": 10_000}}
        if flagged
        else {}
    )


@pytest.mark.parametrize(("tokens", "flagged"), [(378_000, False), (378_001, True)])
def test_more_than_a_host_can_make_is_noted(meters: Meters, tokens: int, flagged: bool) -> None:
    """100 output tokens a second were measured: 360,000 an hour, and 5% for good luck."""
    set_dependable_limit(source_id=meters.agent.pk, numerator_per_s=100 * PPM, now=meters.now)
    event = meters.event(buckets={Bucket.OUTPUT: tokens})
    pair(meters, event, meters.event(buckets={Bucket.OUTPUT: tokens}, request_id=event.request_id))
    reconcile(meters)
    assert list(findings()) == (["impossible_rate"] if flagged else [])


def test_a_finding_that_no_longer_holds_is_taken_away(meters: Meters) -> None:
    event = meters.event()
    meters.report([event])
    ingest_batches(now=meters.now)
    reconcile(meters)
    assert list(findings()) == ["agent_missing"]
    body = meters.sent([meters.event(request_id=event.request_id)])
    accept_batch(source=meters.agent, body=body, now=meters.now + timedelta(seconds=2))
    ingest_batches(now=meters.now)
    reconcile(meters)
    assert findings() == {}


# Estimation ----------------------------------------------------------------------------------------------------


def gateway_rollups(meters: Meters) -> dict[str, tuple[int, int, int]]:
    """Bucket to (native tokens, events, estimated events); what is nothing any more left out."""
    rows = UsageRollup.objects.filter(contract_id=meters.contract_id, meter="gateway", events__gt=0)
    return {row.bucket: (row.native_tokens, row.events, row.estimated_events) for row in rows}


@pytest.mark.parametrize("flag", [Flag.ESTIMATED, Flag.RECOVERED])
def test_an_estimate_is_replaced_by_the_lower_actual_count(meters: Meters, flag: Flag) -> None:
    event = meters.event(buckets={Bucket.UNCACHED_INPUT: 20, Bucket.OUTPUT: 40}, flags=(flag,))
    actual = {Bucket.UNCACHED_INPUT: 12, Bucket.CACHE_READ: 4, Bucket.OUTPUT: 39}
    pair(meters, event, meters.event(buckets=actual, request_id=event.request_id))
    assert gateway_rollups(meters) == {"uncached_input": (20, 1, 1), "output": (40, 1, 1)}
    assert replace_estimates(since=meters.now, now=meters.now + HOUR) == 1
    assert gateway_rollups(meters) == {
        "uncached_input": (12, 1, 0), "cache_read": (4, 1, 0), "output": (39, 1, 0),
    }  # fmt: skip
    correction = UsageCorrection.objects.get()
    assert (correction.target_id, correction.kind, correction.actor) == (event.id, "amend", "vee")
    # (20 + 4 x 40) and (12 + 0.1 x 4 + 4 x 39), times a quarter.
    assert "45000000" in correction.reason
    assert "42100000" in correction.reason
    assert replace_estimates(since=meters.now, now=meters.now + HOUR) == 0


def test_an_estimate_below_the_actual_count_stays_and_is_an_estimate_no_more(meters: Meters) -> None:
    event = meters.event(buckets={Bucket.OUTPUT: 40}, flags=(Flag.ESTIMATED,))
    pair(meters, event, meters.event(buckets={Bucket.OUTPUT: 45}, request_id=event.request_id))
    assert replace_estimates(since=meters.now, now=meters.now + HOUR) == 1
    assert gateway_rollups(meters) == {"output": (40, 1, 0)}


@pytest.mark.parametrize(
    "other",
    [
        {"flags": (Flag.ESTIMATED,)}, {"flags": (Flag.UNPROVABLE,)}, {"attempt": 1}, {"part": 1},
        {"request_id": UUID(int=5)},
    ],
    ids=["also an estimate", "not provable", "another attempt", "another part", "another request"],
)  # fmt: skip
def test_an_estimate_waits_for_an_actual_count_of_the_same_request(
    meters: Meters, other: dict[str, object]
) -> None:
    event = meters.event(buckets={Bucket.OUTPUT: 40}, flags=(Flag.ESTIMATED,))
    agent = {"buckets": {Bucket.OUTPUT: 30}, "request_id": event.request_id, **other}
    pair(meters, event, meters.event(**agent))
    assert replace_estimates(since=meters.now, now=meters.now + HOUR) == 0
    assert gateway_rollups(meters) == {"output": (40, 1, 1)}


def test_an_agents_event_without_any_count_is_no_actual_count(meters: Meters) -> None:
    first, second = (meters.event(buckets={Bucket.OUTPUT: 40}, flags=(Flag.ESTIMATED,)) for _ in range(2))
    meters.report([first, second])
    told = [
        meters.event(id=uuid7(meters.now), buckets=buckets, request_id=request_id)
        for buckets, request_id in (({}, first.request_id), ({Bucket.OUTPUT: 30}, second.request_id))
    ]
    accept_batch(source=meters.agent, body=meters.sent(told), now=meters.now + timedelta(seconds=2))
    ingest_batches(now=meters.now + timedelta(minutes=9))
    assert not UsageBatch.objects.exclude(exceptions=[]).exists()
    assert replace_estimates(since=meters.now, now=meters.now + HOUR) == 1
    assert gateway_rollups(meters) == {"output": (70, 2, 1)}


def test_of_a_request_that_was_reported_twice_the_higher_count_is_the_actual(meters: Meters) -> None:
    event = meters.event(buckets={Bucket.OUTPUT: 40}, flags=(Flag.ESTIMATED,))
    meters.report([event])
    told = [
        meters.event(id=uuid7(meters.now), buckets={Bucket.OUTPUT: count}, request_id=event.request_id)
        for count in (1, 39, 2)
    ]
    accept_batch(source=meters.agent, body=meters.sent(told), now=meters.now + timedelta(seconds=2))
    ingest_batches(now=meters.now + timedelta(minutes=9))
    assert replace_estimates(since=meters.now, now=meters.now + HOUR) == 1
    assert gateway_rollups(meters) == {"output": (39, 1, 0)}


# Recount -------------------------------------------------------------------------------------------------------


class Shop:
    """One host's offering of the grade, with traffic whose text the gateway has recounted."""

    def __init__(self, meters: Meters) -> None:
        self.meters = meters

    def serve(
        self,
        requests: int,
        *,
        ratio_ppm: int = KAPPA_PPM,
        gateway_adds_ppm: int = 0,
        agent_adds_ppm: int = 0,
        noise: Random | None = None,
        after: timedelta = timedelta(0),
    ) -> None:
        """Requests of 300 to 1,500 true tokens; the reported counts are what the host adds to, the text is not."""
        meters, sizes = self.meters, Random(requests)
        carried, metered = [], []
        for number in range(requests):
            true = sizes.randrange(300, 1_500)
            spread = noise.uniform(0.94, 1.06) if noise else 1
            at = meters.now + after + timedelta(milliseconds=100 * number)
            common = {"request_id": uuid7(at), "occurred_at": at}
            inflated = true + div_half_even(true * gateway_adds_ppm, PPM)
            event = meters.event(
                id=uuid7(at),
                buckets={Bucket.OUTPUT: inflated},
                recount_o200k=round(true * ratio_ppm / PPM * spread),
                **common,
            )
            carried.append(event)
            told = true + div_half_even(true * agent_adds_ppm, PPM)
            metered.append(meters.event(id=uuid7(at), buckets={Bucket.OUTPUT: told}, **common))
        meters.report(carried)
        body = meters.sent(metered)
        accept_batch(source=meters.agent, body=body, now=meters.now + after)
        while ingest_batches(now=meters.now + timedelta(minutes=9)):
            pass


def another_host(meters: Meters) -> Meters:
    key = uuid7().bytes + uuid7().bytes
    agent = register_source(kind="agent", host_id=uuid7(), public_key=key, now=meters.now)
    other = replace(meters, agent=agent, contract_id=uuid7(), offering_id=uuid7())
    other.add_point()
    return other


def flagged(*shops: Shop, now: datetime, providers: dict[UUID, UUID] | None = None) -> list[UUID]:
    hosts = {shop.meters.offering_id: shop.meters.host_id for shop in shops}
    return [
        found.host_id
        for found in check_recounts(hosts=hosts, now=now + timedelta(minutes=1), providers=providers)
    ]


def test_a_provider_who_adds_5_percent_to_every_count_is_flagged_within_200_requests(
    meters: Meters, now: datetime
) -> None:
    """His engine says so: the gateway carries it and the agent meters it, and both agree."""
    shop = Shop(meters)
    shop.serve(REQUESTS, gateway_adds_ppm=50_000, agent_adds_ppm=50_000, noise=Random(5))
    assert reconcile(meters) is None
    assert flagged(shop, now=now) == [meters.host_id]
    found = Discrepancy.objects.get()
    assert (found.kind, found.status, found.usage.count()) == ("recount", "open", 0)
    [evidence] = found.evidence["offerings"]
    assert (evidence["requests"], evidence["baseline_ppm"], evidence["baseline_of"]) == (
        200,
        KAPPA_PPM,
        "kappa",
    )
    assert 234_000 < evidence["ratio_ppm"] < 242_000  # A quarter, less a twenty-first.
    # Looking again does not open another one.
    assert flagged(shop, now=now) == [meters.host_id]
    assert Discrepancy.objects.count() == 1


def test_an_agent_that_alone_adds_5_percent_is_flagged_by_reconciliation(
    meters: Meters, now: datetime
) -> None:
    shop = Shop(meters)
    shop.serve(REQUESTS, agent_adds_ppm=50_000, noise=Random(6))
    found = reconcile(meters)
    assert found is not None
    assert found.evidence["disputed"] == ["output_tokens"]
    assert flagged(shop, now=now) == []


def test_fewer_than_200_requests_say_nothing(meters: Meters, now: datetime) -> None:
    shop = Shop(meters)
    shop.serve(REQUESTS - 1, gateway_adds_ppm=200_000, agent_adds_ppm=200_000)
    assert flagged(shop, now=now) == []


def test_three_hosts_know_better_than_kappa_and_outvote_one_that_lies(meters: Meters, now: datetime) -> None:
    shops = [Shop(meters), Shop(another_host(meters)), Shop(another_host(meters))]
    # The sampled text of this grade comes out 5% above its corpus; the third adds 5% to his counts.
    for shop, adds in zip(shops, (0, 0, 50_000), strict=True):
        shop.serve(REQUESTS, ratio_ppm=262_500, gateway_adds_ppm=adds, agent_adds_ppm=adds)
    assert flagged(shops[0], shops[1], now=now) == sorted([shops[0].meters.host_id, shops[1].meters.host_id])
    Discrepancy.objects.all().delete()
    assert flagged(*shops, now=now) == [shops[2].meters.host_id]
    assert Discrepancy.objects.get().evidence["offerings"][0]["baseline_of"] == "hosts"


def test_a_provider_has_one_vote_however_many_hosts(meters: Meters, now: datetime) -> None:
    """Three hosts of one provider add a fifth; those of two others are outnumbered, and not outvoted."""
    liars = [Shop(another_host(meters)) for _ in range(3)]
    honest = [Shop(meters), Shop(another_host(meters))]
    for shop in liars:
        shop.serve(REQUESTS, gateway_adds_ppm=200_000, agent_adds_ppm=200_000)
    for shop in honest:
        shop.serve(REQUESTS, ratio_ppm=262_500)
    liar = UUID(int=5)
    providers = dict.fromkeys((shop.meters.host_id for shop in liars), liar)
    assert flagged(*liars, *honest, now=now, providers=providers) == sorted(
        shop.meters.host_id for shop in liars
    )
    assert Discrepancy.objects.earliest("pk").evidence["offerings"][0]["baseline_ppm"] == pytest.approx(
        262_500, rel=0.001
    )


def test_three_hosts_of_one_provider_know_no_better_than_kappa(meters: Meters, now: datetime) -> None:
    liars = [Shop(meters), Shop(another_host(meters)), Shop(another_host(meters))]
    for shop in liars:
        shop.serve(REQUESTS, gateway_adds_ppm=200_000, agent_adds_ppm=200_000)
    providers = dict.fromkeys((shop.meters.host_id for shop in liars), UUID(int=5))
    assert len(flagged(*liars, now=now, providers=providers)) == 3


def test_what_the_operator_knows_no_hosts_outvote(meters: Meters, now: datetime) -> None:
    honest, liars = Shop(meters), [Shop(another_host(meters)) for _ in range(3)]
    honest.serve(REQUESTS)
    for shop in liars:
        shop.serve(REQUESTS, gateway_adds_ppm=200_000, agent_adds_ppm=200_000)
    assert flagged(honest, *liars, now=now) == [meters.host_id]
    Discrepancy.objects.all().delete()
    set_recount_baseline(grade_id=meters.grade_id, baseline_ppm=250_000, reason="Sampled.", now=now)
    assert flagged(honest, *liars, now=now) == sorted(shop.meters.host_id for shop in liars)
    assert Discrepancy.objects.earliest("pk").evidence["offerings"][0]["baseline_of"] == "operator"


def test_the_operator_may_know_better_than_kappa(meters: Meters, now: datetime) -> None:
    shop = Shop(meters)
    shop.serve(REQUESTS, ratio_ppm=262_500)
    set_recount_baseline(grade_id=meters.grade_id, baseline_ppm=250_000, reason="The corpus.", now=now)
    assert flagged(shop, now=now) == [meters.host_id]
    Discrepancy.objects.all().delete()
    at = now + timedelta(seconds=1)
    set_recount_baseline(grade_id=meters.grade_id, baseline_ppm=262_500, reason="Sampled text.", now=at)
    assert flagged(shop, now=now) == []


@pytest.mark.parametrize(
    ("figures", "field"),
    [({"baseline_ppm": 0}, "baseline_ppm"), ({"baseline_ppm": 2**62}, "baseline_ppm"), ({"reason": " "}, "reason")],
)  # fmt: skip
def test_a_baseline_that_makes_no_sense_is_refused(
    meters: Meters, now: datetime, figures: dict[str, object], field: str
) -> None:
    wanted: dict[str, object] = {"baseline_ppm": 1, "reason": "Because.", **figures}
    with pytest.raises(InvalidInput) as raised:
        set_recount_baseline(grade_id=meters.grade_id, now=now, **wanted)  # type: ignore[arg-type]
    assert raised.value.field == field


def test_after_a_closed_dispute_200_newer_requests_are_needed(meters: Meters, now: datetime) -> None:
    shop = Shop(meters)
    shop.serve(REQUESTS, gateway_adds_ppm=50_000, agent_adds_ppm=50_000)
    assert flagged(shop, now=now) == [meters.host_id]
    closed_at = now + timedelta(seconds=30)
    Discrepancy.objects.update(
        status="resolved", ruling="lower", reason="A warning.", closed_by="operator", closed_at=closed_at
    )
    assert flagged(shop, now=now) == []


def recount_of(pairs: list[tuple[int, int]], seed: int = 1) -> Recount:
    return Recount(
        offering_id=UUID(int=seed),
        grade_id=UUID(int=1),
        first_at=datetime(2026, 1, 1, tzinfo=UTC),
        last_at=datetime(2026, 1, 2, tzinfo=UTC),
        pairs=pairs,
    )


def recounts(
    seeds: Iterable[int], adds_ppm: int, *, most_tokens: int = 2_000, spread: float = 0.06, one_in: int = 1
) -> list[Recount]:
    """Of so many hosts' last 200 requests, each with a ratio spread evenly around one; one in `one_in` is added to."""
    found = []
    for seed in seeds:
        random = Random(seed)
        pairs = []
        for number in range(REQUESTS):
            true = random.randrange(20, most_tokens)
            inflated = true + (0 if number % one_in else div_half_even(true * adds_ppm, PPM))
            pairs.append((inflated, round(true * random.uniform(1 - spread, 1 + spread))))
        found.append(recount_of(pairs, seed))
    return found


def test_honest_noise_is_not_taken_for_lying_and_lying_not_for_noise() -> None:
    """50 honest hosts of 200 requests: none flagged, the farthest 0.8% off. 50 that add 5%: all."""
    honest, lying = recounts(range(50), 0), recounts(range(50, 100), 50_000)
    assert sum(one.leaves(PPM) for one in honest) == 0
    assert max(abs(one.ratio_ppm - PPM) for one in honest) < 8_000
    assert sum(one.leaves(PPM) for one in lying) == 50
    # An even spread of 6% has a standard deviation of 3.5%; over 200 requests of unequal sizes some 0.28% is left.
    assert all(2_200 < one.standard_error_ppm(PPM) < 3_400 for one in honest)


def test_text_that_scatters_widely_is_given_more_room() -> None:
    """Answers of some 40 tokens whose ratio spreads by half: 2% is chance there, and 20% is not."""
    honest = recounts(range(50), 0, most_tokens=60, spread=0.5)
    assert sum(abs(one.ratio_ppm - PPM) > 20_000 for one in honest) > 10
    assert sum(one.leaves(PPM) for one in honest) == 0
    assert sum(one.leaves(PPM) for one in recounts(range(50), 200_000, most_tokens=60, spread=0.5)) > 45


@pytest.mark.parametrize(
    ("one_in", "times"),
    [(20, 2), (20, 5), (20, 10), (15, 10), (12, 10), (12, 5), (40, 20), (40, 2), (60, 100)],
)
def test_a_few_grossly_inflated_requests_do_not_hide_in_their_own_scatter(one_in: int, times: int) -> None:
    lying = recounts(range(50), (times - 1) * PPM, one_in=one_in)
    assert sum(one.leaves(PPM) for one in lying) >= 48


def test_honest_hosts_are_hardly_ever_flagged() -> None:
    """A thousand of them, of which many see every length of answers and some serve text that scatters."""
    honest = recounts(range(400), 0) + recounts(range(300), 0, most_tokens=300, spread=0.2)
    honest += recounts(range(300), 0, most_tokens=60, spread=0.5)
    assert sum(one.leaves(PPM) for one in honest) == 0


def test_odd_requests_that_are_usual_of_a_grade_are_no_lie() -> None:
    """Text in a script that this tokenizer cuts finer than o200k: a few of a hundred, at every host of the grade."""
    plain = [(400, 400)] * 196
    odd = [(400, 200)] * 4
    assert recount_of(plain + odd).odd_requests(PPM) == 4
    assert recount_of(plain + odd).leaves(PPM)
    assert not recount_of(plain + odd).leaves(PPM, usual_odd_ppm=15_000)
    assert not recount_of(plain + odd[:2]).leaves(PPM)


def test_short_answers_have_tokens_that_are_no_text() -> None:
    """An end and a template's tags are a large part of an answer of two words, and of no long one."""
    assert recount_of([(14, 2)] * 50 + [(2_000, 2_000)] * 150).odd_requests(PPM) == 0
    assert not recount_of([(14, 2)] * 50 + [(2_000, 2_000)] * 150).leaves(PPM)


def test_estimates_and_hidden_reasoning_are_not_compared_with_the_text(meters: Meters, now: datetime) -> None:
    meters.report(
        [
            meters.event(
                buckets={Bucket.OUTPUT: 400, Bucket.REASONING: 900},
                recount_o200k=100,
                flags=flags,
                id=uuid7(meters.now),
            )
            for flags in ((), (Flag.HIDDEN_REASONING,), (Flag.ESTIMATED,), (Flag.RECOVERED,))
        ]
    )
    ingest_batches(now=now + timedelta(minutes=9))
    [found] = last_recounts([meters.offering_id], now=now + timedelta(minutes=1))
    assert sorted(found.pairs) == [(400, 100), (1_300, 100)]


def test_only_recounted_requests_of_the_offering_are_looked_at(meters: Meters, now: datetime) -> None:
    shop = Shop(meters)
    shop.serve(30)
    meters.report([meters.event(buckets={Bucket.OUTPUT: 9_999})])
    elsewhere = replace(meters, offering_id=uuid7())
    elsewhere.add_point()
    elsewhere.report([elsewhere.event(buckets={Bucket.OUTPUT: 9_999}, recount_o200k=5)])
    ingest_batches(now=now + timedelta(minutes=9))
    assert not UsageBatch.objects.exclude(exceptions=[]).exists()
    [found] = last_recounts([meters.offering_id], now=now + timedelta(minutes=1))
    assert found.requests == 30
    assert found.native_tokens < 30 * 1_500
