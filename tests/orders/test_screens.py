"""Market power and manipulation as pure arithmetic: exact, and blind to the order of what comes in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.orders.screens import (
    PPM,
    Withdrawal,
    concentration,
    residual_supply,
    round_trips,
    self_crossing_lots,
    withdrawals,
)

LOTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 10**12), max_size=8)


def test_a_seller_without_whom_demand_cannot_be_met_is_pivotal() -> None:
    found = residual_supply(100, {"a": 60, "b": 50, "c": 40, "none": 0})
    assert [(one.group, one.residual_supply_ppm, one.is_pivotal) for one in found] == [
        ("a", 900_000, True),
        ("b", PPM, False),
        ("c", 1_100_000, False),
    ]
    # Three sellers and all of them: jointly nobody else is left.
    assert all(one.is_jointly_pivotal for one in found)
    many = residual_supply(100, {str(number): 40 for number in range(8)})
    assert not any(one.is_pivotal or one.is_jointly_pivotal for one in many)
    assert residual_supply(0, {"a": 1}) == []
    assert residual_supply(10, {}) == []


def test_concentration_of_known_markets() -> None:
    one = concentration({"a": 7})
    assert one is not None
    assert (one.hhi_ppm, one.largest, one.largest_share_ppm) == (PPM, "a", PPM)
    four = concentration(dict.fromkeys("abcd", 10**15))
    assert four is not None
    assert (four.groups, four.hhi_ppm, four.largest, four.largest_share_ppm) == (4, 250_000, "a", 250_000)
    assert concentration({"a": 0}) is None


@settings(max_examples=100, deadline=None)
@given(LOTS)
def test_concentration_lies_between_equal_shares_and_monopoly(lots: dict[str, int]) -> None:
    found = concentration(lots)
    if found is not None:
        # Rounded down, by less than one.
        assert PPM // found.groups <= found.hhi_ppm + 1
        assert found.hhi_ppm <= found.largest_share_ppm + 1 <= PPM + 1


@settings(max_examples=100, deadline=None)
@given(LOTS, st.integers(1, 10**12))
def test_a_larger_seller_leaves_less(supply: dict[str, int], demand: int) -> None:
    found = residual_supply(demand, supply)
    ratios = [one.residual_supply_ppm for one in found]
    assert ratios == sorted(ratios)
    assert all(one.is_jointly_pivotal for one in found if one.is_pivotal)


def test_what_one_group_would_trade_with_itself() -> None:
    assert self_crossing_lots([(300, 10), (200, 10)], [(250, 15), (100, 3)]) == 10
    assert self_crossing_lots([(300, 10)], [(301, 10)]) == 0
    assert self_crossing_lots([(300, 10)], [(300, 4), (200, 4)]) == 8
    assert self_crossing_lots([], [(1, 1)]) == 0


def test_trading_back_and_forth_shows_and_a_real_trade_does_not() -> None:
    # Between themselves only: all of it went there and back.
    [pair] = round_trips({("a", "b"): 10, ("b", "a"): 10})
    assert (pair.first, pair.second, pair.round_trip_ppm, pair.is_suspicious) == ("a", "b", PPM, True)
    # The same ten lots among a thousand of others.
    [mild] = round_trips({("a", "b"): 10, ("b", "a"): 10, ("a", "c"): 980})
    assert (mild.round_trip_ppm, mild.is_suspicious) == (20_000, False)
    [lopsided] = round_trips({("a", "b"): 90, ("b", "a"): 10})
    assert (lopsided.round_trip_ppm, lopsided.is_suspicious) == (200_000, False)
    assert round_trips({("a", "b"): 10, ("a", "a"): 5}) == []


def test_late_withdrawals_without_trade_are_flagged() -> None:
    cancelled = [
        Withdrawal("spoofer", 1_000, is_late=True),
        Withdrawal("trader", 100, is_late=True),
        Withdrawal("early", 10**6, is_late=False),
        *[Withdrawal("often", 1, is_late=True)] * 3,
    ]
    found = {
        one.group: one for one in withdrawals(cancelled, {"trader": 500, "often": 10**6, "spoofer": 100})
    }
    assert {group: one.is_suspicious for group, one in found.items()} == {
        "spoofer": True,
        "trader": False,
        "early": False,
        "often": True,
    }
    assert (found["spoofer"].cancel_to_trade_ppm, found["early"].cancel_to_trade_ppm) == (10 * PPM, None)
    assert (found["trader"].cancel_to_trade_ppm, found["often"].late_cancelled_lots) == (200_000, 3)
