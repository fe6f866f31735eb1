"""Tariffs as other billing systems' own tests have them: the numbers are theirs, the functions ours."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import Any

from pricing.months import Period, calendar_month, prorated
from pricing.percentages import ShareFee, free_of, share_fee, share_volume
from pricing.reserved import Change, reserved_at_end, reserved_charge, reserved_on_average
from pricing.tariffs import (
    DAY_S,
    Rounding,
    Tier,
    billed_numerator,
    charge,
    graduated,
    interval_charge,
    interval_lines,
    package,
    per_unit,
    settle,
    true_up,
    volume,
)
from tests.peers.cases import CENT, cents, expected, micros, mtok, ppm, runs, tiers_of


@runs("grad-02", "grad-05", "grad-07", "vol-02", "vol-04")
def test_each_point_of_a_peers_curve(case: dict[str, Any]) -> None:
    make = graduated if case["kind"] == "graduated" else volume
    tariff = make(tiers_of(case))
    for point in case["expected"]["points"]:
        assert charge(tariff, mtok(point["units"])) == micros(point["amount"]), point


@runs("grad-03")
def test_graduated_lines_by_tier(case: dict[str, Any]) -> None:
    tariff = graduated(tiers_of(case))
    lines = interval_lines(tariff, before=None, after=mtok(case["input"]["period_units"]))
    assert [(line.tier + 1, line.amount_micros) for line in lines] == [
        (line["tier"], micros(line["amount"])) for line in case["expected"]["lines"]
    ]
    assert [line.numerator for line in lines[2:]] == [mtok(5), mtok(7)]
    assert settle(tariff, mtok(22)).total_micros == micros(case["expected"]["total"])


@runs("max-01")
def test_maximum_is_used_up_in_the_order_of_the_tiers(case: dict[str, Any]) -> None:
    given_, expected = case["input"], case["expected"]
    tariff = graduated(tiers_of(case), maximum_micros=micros(given_["maximum"]))
    before = mtok(given_["units_already_billed"])
    assert charge(tariff, before) == micros(given_["already_billed"])
    after = before + mtok(given_["units_this_line"])
    lines = interval_lines(tariff, before=before, after=after)
    assert [(line.amount_micros, line.discount_micros) for line in lines] == [
        (micros(line["amount"]), micros(line["discount"])) for line in expected["lines"]
    ]
    assert interval_charge(tariff, before=before, after=after) == micros(expected["total"])


@runs("unit-01")
def test_maximum_of_a_price_per_unit(case: dict[str, Any]) -> None:
    given_, expected = case["input"], case["expected"]
    tariff = per_unit(micros(given_["unit"]), maximum_micros=micros(given_["maximum"]))
    before, after = mtok(7), mtok(7) + mtok(given_["units_this_line"])
    assert charge(tariff, before) == micros(given_["already_billed"])
    (line,) = interval_lines(tariff, before=before, after=after)
    assert (line.amount_micros, line.discount_micros) == (
        micros(expected["gross"]),
        micros(expected["discount"]),
    )
    assert interval_charge(tariff, before=before, after=after) == micros(expected["total"])


@runs("inv-06")
def test_paid_as_it_comes_by_differences(case: dict[str, Any]) -> None:
    tariff = graduated(tiers_of(case))
    before, fees, used = None, [], 0
    for units in case["input"]["events"]:
        used += mtok(units)
        fees.append(interval_charge(tariff, before=before, after=used))
        before = used
    assert fees == [cents * 10_000 for cents in case["expected"]["fee_cents"]]
    assert sum(fees) == charge(tariff, used)


@runs("kb-01")
def test_tiers_written_as_sizes_are_summed_up_first(case: dict[str, Any]) -> None:
    sizes = [int(row["max"]) for row in case["input"]["tiers"]]
    rates = [micros(row["unit"]) for row in case["input"]["tiers"]]
    bounds: list[int | None] = [mtok(sizes[0]), mtok(sizes[0] + sizes[1]), None]
    tiers = [Tier(bound, rate) for bound, rate in zip(bounds, rates, strict=True)]
    used = mtok(case["input"]["units"])
    assert [charge(graduated(tiers), used), charge(volume(tiers), used)] == [
        micros(amount) for amount in case["expected"]["amounts"]
    ]


@runs("pkg-02", "pkg-03")
def test_packages(case: dict[str, Any]) -> None:
    given_ = case["input"]
    tariff = package(mtok(given_["size"]), micros(given_["price"]), rounding=Rounding(given_["round"]))
    amounts = [charge(tariff, mtok(units)) for units in given_["units"]]
    assert amounts == [micros(amount) for amount in case["expected"]["amounts"]]


@runs("unitconv-01")
def test_units_of_a_thousand(case: dict[str, Any]) -> None:
    names = {"ceiling": Rounding.UP, "floor": Rounding.DOWN, "half_up": Rounding.HALF_UP}
    found = []
    for row in case["input"]["rows"]:
        # 1 raw unit is a Mtok; a thousand of them are billed at the price of one.
        rate = micros(row["unit_price"]) // 1_000
        tariff = graduated([Tier(None, rate)], unit=mtok(1_000), rounding=names[row["round"]])
        found.append(str(billed_numerator(tariff, mtok(row["raw"])) // mtok(1_000)))
        if len(found) == 1:
            assert charge(tariff, mtok(row["raw"])) == micros(case["expected"]["first_amount"])
    assert found == case["expected"]["billed_units"]


@runs("unitconv-02")
def test_tiers_of_billed_units(case: dict[str, Any]) -> None:
    divide = int(case["input"]["divide"])
    tiers = [
        Tier(
            None if row["up_to"] is None else mtok(divide * int(row["up_to"])),
            int(Fraction(micros(row["unit"]), divide)),
        )
        for row in case["input"]["tiers"]
    ]
    tariff = graduated(tiers, unit=mtok(divide), rounding=Rounding.UP)
    raw = mtok(case["input"]["raw"])
    assert billed_numerator(tariff, raw) == int(case["expected"]["billed_units"]) * mtok(divide)
    assert charge(tariff, raw) == micros(case["expected"]["amount"])


@runs("vol-05")
def test_volume_with_minimum_and_maximum(case: dict[str, Any]) -> None:
    tiers = tiers_of(case)
    low, high = case["input"]["a"], case["input"]["b"]
    found = settle(volume(tiers, minimum_micros=micros(low["minimum"])), mtok(low["units"]))
    expected = case["expected"]["a"]
    assert found == (
        micros(expected["usage"]),
        0,
        micros(expected["minimum_true_up"]),
        micros(expected["total"]),
    )
    found = settle(volume(tiers, maximum_micros=micros(high["maximum"])), mtok(high["units"]))
    expected = case["expected"]["b"]
    assert found == (micros(expected["usage"]), micros(expected["discount"]), 0, micros(expected["total"]))


@runs("vol-06")
def test_flat_fee_of_the_tier_reached(case: dict[str, Any]) -> None:
    reached = case["input"]["tier_reached"]
    tariff = volume([Tier(None, micros(reached["unit"]), micros(reached["flat"]))])
    amount = charge(tariff, mtok(case["input"]["units"]))
    assert amount == micros(case["expected"]["amount"])


@runs("commit-03")
def test_minimum_of_a_part_of_a_period(case: dict[str, Any]) -> None:
    cent = 10_000
    found = [
        # Rounded to cents here, as the case is; in micros the rule is the same.
        true_up(
            charged_micros=row["used_cents"],
            minimum_micros=case["input"]["minimum_cents"],
            active_s=row["active_days"] * DAY_S,
            period_s=row["of"] * DAY_S,
        )
        for row in case["input"]["rows"]
    ]
    assert found == case["expected"]["true_up_cents"]
    in_micros = true_up(
        charged_micros=200 * cent, minimum_micros=1_000 * cent, active_s=15 * DAY_S, period_s=31 * DAY_S
    )
    assert in_micros == 2_838_710


@runs("commit-05")
def test_minimum_counts_what_was_billed_in_the_period(case: dict[str, Any]) -> None:
    given_ = case["input"]
    added = true_up(
        charged_micros=micros(given_["already_billed_in_period"]), minimum_micros=micros(given_["minimum"])
    )
    assert added == micros(case["expected"]["true_up"])
    # Charges within the period know no minimum.
    tariff = per_unit(micros(1), minimum_micros=micros(1_000))
    assert interval_charge(tariff, before=mtok(100), after=mtok(100)) == 0


@runs("bucket-01")
def test_windows_add_up(case: dict[str, Any]) -> None:
    """What is sold for a window is its entitlement; nobody's peak is measured."""
    entitled = sum(mtok(units) for units in case["input"]["window_maxima"])
    assert charge(per_unit(micros(case["input"]["unit"])), entitled) == micros(case["expected"]["amount"])


# ---- shares of an amount


@runs("pct-01")
def test_the_allowance_ends_with_the_limit_that_is_met_first(case: dict[str, Any]) -> None:
    given_, expected = case["input"], case["expected"]
    totals = [micros(total) for total in (0, *given_["running_totals_of_first_events"], given_["total"])]
    amounts = [after - before for before, after in pairwise(totals)]
    assert len(amounts) == given_["txn_count"]
    fees, free = [], []
    for variant in given_["variants"]:
        limit = variant["free_amount"]
        fee = ShareFee(
            ppm(given_["rate_pct"]),
            fixed_micros=micros(given_["fixed_per_txn"]),
            free_count=variant["free_events"],
            free_micros=None if limit is None else micros(limit),
        )
        fees.append(share_fee(fee, amounts))
        free.append(free_of(fee, amounts).whole)
    assert fees == [micros(amount) for amount in expected["amounts"]]
    assert free == expected["free_events_used"]


def share_tiers(case: dict[str, Any]) -> list[Tier]:
    return [
        Tier(
            None if row["up_to"] is None else share_volume(micros(row["up_to"])),
            ppm(row["rate_pct"]),
            micros(row["flat"]),
        )
        for row in case["input"]["tiers"]
    ]


@runs("pct-03")
def test_tiers_of_shares(case: dict[str, Any]) -> None:
    tariff = graduated(share_tiers(case))
    for point in case["expected"]["points"]:
        assert charge(tariff, share_volume(micros(point["units"]))) == micros(point["amount"]), point


@runs("inv-07")
def test_tiers_of_shares_paid_as_they_come(case: dict[str, Any]) -> None:
    tariff = graduated(share_tiers(case))
    before, fees, so_far = None, [], 0
    for amount in case["input"]["events"]:
        so_far += micros(amount)
        fees.append(cents(interval_charge(tariff, before=before, after=share_volume(so_far))))
        before = share_volume(so_far)
    assert fees == case["expected"]["fee_cents"]


# ---- for a part of a period


def month_of_days(days: int) -> Period:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return Period(start, start + timedelta(days=days))


def change(period: Period, units: str | int, share: Fraction) -> Change:
    """Units that are there for a share of the period, to its end."""
    left = period.microseconds * share
    assert left.denominator == 1
    return Change(period.end - timedelta(microseconds=int(left)), mtok(units))


@runs("vol-03")
def test_the_volume_reached_chooses_the_tier_and_the_part_of_it_is_priced(case: dict[str, Any]) -> None:
    given_, period = case["input"], month_of_days(30)
    reserved = [change(period, given_["full_units"], Fraction(given_["prorated_units"]) / 300)]
    assert reserved_on_average(reserved, period=period) == mtok(given_["prorated_units"])
    amount = reserved_charge(volume(tiers_of(case)), reserved, period=period)
    assert amount == micros(case["expected"]["amount"])


@runs("prorate-04")
def test_tiers_hold_what_is_reserved_and_prices_only_the_time(case: dict[str, Any]) -> None:
    period, found = month_of_days(30), []
    for row in case["input"]["rows"]:
        changes = []
        for full, part in zip(row["full"], row["prorated"], strict=True):
            # The case writes 16 of 30 days of 5 as 2.66667.
            days = round(Fraction(part) / Fraction(full) * 30)
            assert abs(Fraction(days, 30) * int(full) - Fraction(part)) < Fraction(1, 10**5)
            changes.append(change(period, full, Fraction(days, 30)))
        found.append(cents(reserved_charge(graduated(tiers_of(case)), changes, period=period)))
    assert found == [int(Fraction(amount) * 100) for amount in case["expected"]["amounts"]]


@runs("wsum-01")
def test_what_is_reserved_is_carried_and_weighted_by_time(case: dict[str, Any]) -> None:
    given_, expected = case["input"], case["expected"]
    tariff, carried = per_unit(micros(given_["unit_price"])), 0
    for name, month in (("march", 3), ("april", 4)):
        period = calendar_month(datetime(2023, month, 1, tzinfo=UTC))
        changes = [Change(datetime.fromisoformat(row["at"]), mtok(row["delta"])) for row in given_[name]]
        units = reserved_on_average(changes, period=period, carried=carried) / mtok(1)
        decimals = len(expected[f"{name}_units"].partition(".")[2])
        # Both answers are cut off, not rounded.
        assert int(units * 10**decimals) == int(Fraction(expected[f"{name}_units"]) * 10**decimals)
        amount = reserved_charge(tariff, changes, period=period, carried=carried)
        assert cents(amount) == expected[f"{name}_cents"]
        carried = reserved_at_end(changes, carried=carried)
    assert carried == mtok(300)


@runs("prorate-01")
def test_a_change_of_plan_is_one_difference(case: dict[str, Any]) -> None:
    month = calendar_month(datetime(2026, 3, 1, tzinfo=UTC))
    rest = Period(month.end - timedelta(days=17), month.end)
    net = []
    for row in case["input"]["rows"]:
        before, after = (
            prod(int(number) for number in re.findall(r"\d+", row[side])) for side in ("from", "to")
        )
        net.append(prorated((after - before) * 10**6, rest, whole=month))
    ours = expected(case)
    assert net == ours["micros"]
    assert [cents(amount) for amount in net] == [int(Fraction(amount) * 100) for amount in ours["net"]]


@runs("inv-04")
def test_what_was_billed_already_is_in_the_difference(case: dict[str, Any]) -> None:
    """A month's fee until the day of the end, and usage that an earlier bill has charged."""
    given_ = case["input"]
    month = calendar_month(datetime(2026, 12, 1, tzinfo=UTC))
    fee = prorated(
        given_["plan_cents_month"] * CENT, Period(month.start, month.start + timedelta(days=18)), whole=month
    )
    used = mtok(given_["usage_cents"])
    tariff = per_unit(CENT)
    assert cents(fee + charge(tariff, used)) == case["expected"]["fees_cents"]
    billed = mtok(given_["already_billed_cents"])
    assert cents(interval_charge(tariff, before=None, after=billed)) == case["expected"]["credit_cents"]
    later = interval_charge(tariff, before=billed, after=used)
    assert cents(fee + later) == case["expected"]["total_cents"]
