"""Charts are functions of integers: the same figures give the same, well-formed, inert markup."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from marketplace.portal.charts import (
    HEIGHT,
    WIDTH,
    Chart,
    Column,
    Point,
    Segment,
    column_chart,
    depth_chart,
    line_chart,
    nice_step,
    share_bar,
)

AMOUNTS = st.integers(0, 10**15)
NASTY = '<script>alert("x")</script> & more'


def shapes(markup: str) -> ET.Element:
    """Parses as XML, carries no style and no script, and stays in its box."""
    root = ET.fromstring(markup)  # noqa: S314  (our own markup)
    assert "style=" not in markup
    assert "<script" not in markup
    for path in root.iter("path"):
        numbers = [int(number) for number in re.findall(r"-?\d+", path.attrib["d"])]
        assert all(0 <= number <= max(WIDTH, HEIGHT) for number in numbers), path.attrib["d"]
    for rect in root.iter("rect"):
        assert int(rect.attrib["width"]) > 0
        assert int(rect.attrib["height"]) > 0
    return root


@given(st.lists(st.none() | AMOUNTS, max_size=40))
def test_any_history_of_rates_is_drawable(rates: list[int | None]) -> None:
    points = [Point(1_700_000_000 + 300 * n, rate) for n, rate in enumerate(rates)]
    chart = line_chart(points, title=NASTY, y_label=str, x_labels=("then", "now"))
    shapes(chart.svg)
    assert bool(chart.y_labels) == any(rate is not None for rate in rates)


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS), max_size=60))
def test_any_columns_are_drawable(parts: list[tuple[int, int]]) -> None:
    chart = column_chart([Column(NASTY, pair) for pair in parts], title="earnings", y_label=str)
    root = shapes(chart.svg)
    visible = sum(amount > 0 for pair in parts for amount in pair)
    assert len(list(root.iter("rect"))) == visible, "what is there can be seen"


@given(
    st.lists(st.tuples(AMOUNTS, st.integers(1, 10**9)), max_size=20),
    st.lists(st.tuples(AMOUNTS, st.integers(1, 10**9)), max_size=20),
)
def test_any_curves_are_drawable(demand: list[tuple[int, int]], supply: list[tuple[int, int]]) -> None:
    shapes(depth_chart(demand, supply, title="depth", x_label=str, y_label=str).svg)


@given(st.lists(AMOUNTS, max_size=5), st.integers(1, 10**15))
def test_a_bar_is_never_fuller_than_full(sizes: list[int], whole: int) -> None:
    root = shapes(share_bar([Segment("used", size, NASTY) for size in sizes], whole=whole, title="bar"))
    ground, *parts = root.iter("rect")
    assert sum(int(part.attrib["width"]) for part in parts) <= int(ground.attrib["width"])


@given(st.integers(1, 10**15))
def test_steps_are_round_and_few(span: int) -> None:
    step = nice_step(span)
    assert str(step).rstrip("0") in ("1", "2", "5")
    assert span <= 4 * step


def test_ticks_run_from_top_to_bottom_on_round_steps() -> None:
    chart: Chart = column_chart([Column("a", (7,)), Column("b", (3,))], title="t", y_label=str)
    assert chart.y_labels == ("8", "6", "4", "2", "0")


def test_a_gap_is_not_a_price_of_zero() -> None:
    points = [Point(0, 500), Point(1, None), Point(2, 500), Point(3, 500)]
    svg = line_chart(points, title="t", y_label=str).svg
    assert svg.count('class="line"') == 2
    assert svg.count('class="carried"') == 1
