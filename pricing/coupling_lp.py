"""The linear program of a coupled auction on HiGHS: a second engine for welfare, in floating point.

Nothing that is published comes from here. Options as measured on such programs: HiGHS's presolve takes
most of the time and helps nothing, the interior point method is faster than the simplex from about ten
thousand orders on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np

from pricing.coupling_book import CoupledAsk, CoupledBid, CoupledTerms
from pricing.coupling_prices import market_of
from pricing.coupling_rows import prepare, split_component

_INTERIOR_POINT_FROM_ORDERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class LinearProgram:
    """Minimise `costs @ x`, `0 <= x <= uppers`, `row_lows <= A @ x <= row_highs`, A by columns (all at most 2 each).

    Columns: each bid row in each of its grades, then asks. Rows: grades (balance), then bid rows (lots).
    """

    costs: Any
    uppers: Any
    row_lows: Any
    row_highs: Any
    starts: Any
    rows: Any
    entries: Any


def linear_programs(
    bids: Sequence[CoupledBid], asks: Sequence[CoupledAsk], *, terms: CoupledTerms | None = None
) -> list[LinearProgram]:
    """One for each set of joined grades; orders' minima are no part of it, and self-trades of lone grades stay."""
    programs = []
    for component in prepare(bids, asks, terms or CoupledTerms()).components:
        for part in split_component(component)[0]:
            market = market_of(part)
            options = market.grade_of < market.grades
            bid_rows, _ = np.nonzero(options)
            bid_count, ask_count = len(bid_rows), len(market.ask_lots)
            rows = np.empty(2 * bid_count + ask_count, np.int32)
            rows[: 2 * bid_count : 2] = market.grade_of[options]
            rows[1 : 2 * bid_count : 2] = bid_rows + market.grades
            rows[2 * bid_count :] = market.ask_grades
            entries = np.ones(len(rows))
            entries[2 * bid_count :] = -1.0
            starts = np.concatenate(
                [np.arange(bid_count) * 2, 2 * bid_count + np.arange(ask_count + 1)]
            ).astype(np.int32)
            lots = market.bid_lots.astype(np.float64)
            programs.append(
                LinearProgram(
                    costs=np.concatenate([-market.values[options], market.ask_prices]).astype(np.float64),
                    uppers=np.concatenate([lots[bid_rows], market.ask_lots.astype(np.float64)]),
                    row_lows=np.concatenate([np.zeros(market.grades), np.full(len(lots), -np.inf)]),
                    row_highs=np.concatenate([np.zeros(market.grades), lots]),
                    starts=starts,
                    rows=rows,
                    entries=entries,
                )
            )
    return programs


def solve(program: LinearProgram, *, tuned: bool = True) -> float:
    """The greatest welfare, to floating point. Raises RuntimeError when HiGHS finds no optimum."""
    highspy: Any = import_module("highspy")  # Only now: it is heavy, and a server has no need of it.
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    if tuned:
        solver.setOptionValue("presolve", "off")
        large = len(program.costs) >= 2 * _INTERIOR_POINT_FROM_ORDERS
        solver.setOptionValue("solver", "ipm" if large else "simplex")
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.costs), len(program.row_lows)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = program.costs, np.zeros(len(program.costs)), program.uppers
    lp.row_lower_, lp.row_upper_ = program.row_lows, program.row_highs
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = program.starts, program.rows
    lp.a_matrix_.value_ = program.entries
    solver.passModel(lp)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise RuntimeError(f"HiGHS found no optimum: {solver.getModelStatus()}")
    return -float(solver.getInfo().objective_function_value)
