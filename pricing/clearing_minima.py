"""Which orders with a minimum to accept, in a book of any size (rule `uniform-2`).

The rule is that of `pricing.clearing_blocks`: of the consistent choices the greatest welfare, then volume, then the
lexicographically smallest set of ids. The way there:

1. **Relaxation.** All minima taken as divisible, the book's crossing at its margin `m` bounds every choice. Whoever
   is in the money at `m` is accepted first.
2. **Rejection.** While someone would lose or cannot be filled, the order furthest out of the money goes (EUPHEMIA
   rejects paradoxically accepted blocks in this way).
3. **Insertion.** Orders left out that would gain at the price come back one by one, most surplus first, where the
   choice stays consistent and gains.
4. **Proof.** At `m` every decision has a known cost (Lagrangian bound): leaving out what gains, or taking what loses.
   A decision that costs more than what still separates the choice from its bound is settled. The few orders left
   over are searched exactly: once for the greatest value, once for the smallest set of ids that reaches it.

Taking an order in or out and crossing anew is cheap (`pricing.clearing_curves`). Each of 3 and 4 takes at most
`search_limit` such steps: a count, not a clock, so that a replay ends where the auction did.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import Final, NamedTuple

from pricing.clearing_blocks import Block, Levels, Outcome, evaluate
from pricing.clearing_curves import CurveCrossing, Curves, Entries

_NOTHING: Final = (0, 0)
_MANY_REJECTED: Final = 16
_ROUNDS_OF_FILLABLE: Final = 4
_PASSES: Final = 8  # Over all orders that are left out; more of them gain next to nothing.


class _Candidate(NamedTuple):
    """An order with a minimum, on the levels of the book."""

    is_bid: bool
    level: int  # of its limit, the worst price of its minimum
    minimum: int
    inside_value: int  # what its minimum is worth beyond its limit
    accepted: Entries  # its minimum at the limit, the other lots at their own prices
    relaxed: Entries  # all lots at their own prices
    cost_of_rejecting: int
    cost_of_accepting: int


class _Choice:
    """Accepted candidates with the curves they make, and whether all of them can be filled."""

    def __init__(
        self,
        candidates: Sequence[_Candidate],
        curves: Curves,
        accepted: Iterable[int],
        *,
        margin_first: bool = False,
    ) -> None:
        """`margin_first`: of those that do not fill one at the margin goes before those that lose."""
        self.candidates = candidates
        self.margin_first = margin_first
        self.rejected = 0
        self.curves = curves  # with the accepted in them
        self.accepted = set(accepted)
        # By side and level: (minimum, candidate), least first; and their lots.
        self.members: dict[bool, dict[int, list[tuple[int, int]]]] = {True: {}, False: {}}
        self.forced: dict[bool, dict[int, int]] = {True: {}, False: {}}
        for index in sorted(self.accepted):
            candidate = candidates[index]
            self.members[candidate.is_bid].setdefault(candidate.level, []).append((candidate.minimum, index))
            forced = self.forced[candidate.is_bid]
            forced[candidate.level] = forced.get(candidate.level, 0) + candidate.minimum
            curves.extra += candidate.inside_value
        for levels in self.members.values():
            for members in levels.values():
                members.sort()
        # The levels of accepted limits, worst first: of bids from below, of asks from above.
        self._worst = {True: list(self.members[True]), False: [-level for level in self.members[False]]}
        for heap in self._worst.values():
            heapify(heap)

    def add(self, index: int) -> None:
        candidate = self.candidates[index]
        self.accepted.add(index)
        members = self.members[candidate.is_bid].setdefault(candidate.level, [])
        if not members:
            heappush(self._worst[candidate.is_bid], candidate.level if candidate.is_bid else -candidate.level)
        insort(members, (candidate.minimum, index))
        forced = self.forced[candidate.is_bid]
        forced[candidate.level] = forced.get(candidate.level, 0) + candidate.minimum
        self.curves.add(candidate.accepted, is_bid=candidate.is_bid, sign=1)
        self.curves.extra += candidate.inside_value

    def remove(self, index: int) -> None:
        candidate = self.candidates[index]
        self.accepted.remove(index)
        members = self.members[candidate.is_bid][candidate.level]
        del members[bisect_left(members, (candidate.minimum, index))]
        self.forced[candidate.is_bid][candidate.level] -= candidate.minimum
        self.curves.add(candidate.accepted, is_bid=candidate.is_bid, sign=-1)
        self.curves.extra -= candidate.inside_value

    def worst_level(self, *, is_bid: bool) -> int | None:
        """The lowest level of an accepted bid's limit, the highest of an ask's."""
        heap = self._worst[is_bid]
        while heap and not self.members[is_bid][abs(heap[0])]:
            heappop(heap)
        return abs(heap[0]) if heap else None

    def value(self) -> tuple[int, int] | None:
        """Welfare and lots; None unless every accepted minimum fills without a loss."""
        crossing = self.curves.cross()
        if crossing is None:
            return None if self.accepted else _NOTHING
        return crossing.value if self._unfilled(crossing) is None else None

    def reject_until_consistent(self) -> tuple[tuple[int, int], int | None]:
        """Rejects one after another until all that are left fill: the value, and the level of the margin."""
        while True:
            crossing = self.curves.cross()
            if crossing is None:
                for index in list(self.accepted):
                    self.remove(index)
                crossing = self.curves.cross()
                return (_NOTHING, None) if crossing is None else (crossing.value, crossing.level)
            unfilled = self._unfilled(crossing)
            if unfilled is None:
                return crossing.value, crossing.level
            self.rejected += 1
            self.remove(unfilled)

    def _unfilled(self, crossing: CurveCrossing) -> int | None:
        """The candidate that should go, None when all fill."""
        if self.margin_first:
            found = self._beyond_margin(crossing)
            return self._furthest_out(crossing.level) if found is None else found
        found = self._furthest_out(crossing.level)
        return self._beyond_margin(crossing) if found is None else found

    def _furthest_out(self, margin: int) -> int | None:
        """The candidate that loses most per lot, and of those the largest."""
        prices = self.curves.prices
        bid, ask = self.worst_level(is_bid=True), self.worst_level(is_bid=False)
        bid_loss = 0 if bid is None else prices[margin] - prices[bid]
        ask_loss = 0 if ask is None else prices[ask] - prices[margin]
        if bid is not None and bid_loss > 0 and bid_loss >= ask_loss:
            return self.members[True][bid][-1][1]
        if ask is not None and ask_loss > 0:
            return self.members[False][ask][-1][1]
        return None

    def _beyond_margin(self, crossing: CurveCrossing) -> int | None:
        """Of the candidates at the margin, when they do not all fill, the least without which the others would."""
        for is_bid, taken in ((True, crossing.bids_taken), (False, crossing.asks_taken)):
            beyond = self.forced[is_bid].get(crossing.level, 0) - taken
            if beyond > 0:
                members = self.members[is_bid][crossing.level]
                return members[min(bisect_left(members, (beyond, -1)), len(members) - 1)][1]
        return None


def choose_minima(
    bids: Levels, asks: Levels, blocks: Sequence[Block], *, search_limit: int
) -> tuple[list[Block], Outcome, bool]:
    """The accepted blocks, their outcome, and whether the choice is proved to be the rule's.

    Where it is not, it is the best that was found: consistent, and at least as good as taking none.
    """
    ordered = sorted((block for block in blocks if block.lots >= block.minimum), key=lambda block: block.key)
    accepted, complete = _choose(bids, asks, ordered, search_limit)
    outcome, unfilled = evaluate(bids, asks, accepted)
    assert not unfilled
    return accepted, outcome, complete


def _choose(bids: Levels, asks: Levels, blocks: list[Block], search_limit: int) -> tuple[list[Block], bool]:
    prices = sorted({*bids, *asks, *(price for block in blocks for price, _ in block.rows)})
    level_of = {price: level for level, price in enumerate(prices, 1)}
    curves = Curves(
        [0, *prices],
        [0, *[bids.get(price, 0) for price in prices]],
        [0, *[asks.get(price, 0) for price in prices]],
    )
    nothing = curves.cross()
    blocks, relaxed = _fillable(curves, blocks, level_of)
    bound = relaxed.cross()
    if bound is None:
        return [], True
    candidates = [_candidate(block, level_of, prices[bound.level - 1]) for block in blocks]
    start = [
        index
        for index, some in enumerate(candidates)
        if (some.level >= bound.level if some.is_bid else some.level <= bound.level)
    ]
    curves.add_all([(candidates[index].is_bid, candidates[index].accepted) for index in start])
    choice = _Choice(candidates, curves.copy(), start)
    best = _improve(choice, bound.level, search_limit)
    if best < bound.value and choice.rejected > _MANY_REJECTED:
        # Once so many have gone, perhaps one that is too large should have gone before them.
        other = _Choice(candidates, curves, start, margin_first=True)
        value = _improve(other, bound.level, search_limit)
        if value > best:
            best, choice = value, other
    chosen = set(choice.accepted)
    if nothing is not None and nothing.value > best:
        best, chosen = nothing.value, set()
    search = _Search(choice, relaxed, bound.value, (best, chosen), search_limit)
    complete = search.find_greatest() and search.find_first()
    return [blocks[index] for index in sorted(search.chosen)], complete


def _fillable(curves: Curves, blocks: list[Block], level_of: dict[int, int]) -> tuple[list[Block], Curves]:
    """The blocks for whose minimum there is enough on the other side, at their limit; the curves with all of them.

    One that can never fill would spoil the bound. Those that need it to fill go in the next round.
    """
    relaxed = curves.copy()
    relaxed.add_all([(block.is_bid, _relaxed(block, level_of)) for block in blocks])
    for _ in range(_ROUNDS_OF_FILLABLE):
        asked, bid_below = list(accumulate(relaxed.asks_at)), list(accumulate(relaxed.bids_at))
        fillable: list[Block] = []
        others: list[Block] = []
        for block in blocks:
            level = level_of[block.limit]
            opposite = asked[level] if block.is_bid else relaxed.bid_lots - bid_below[level - 1]
            (fillable if block.minimum <= opposite else others).append(block)
        if not others:
            break
        relaxed.add_all([(block.is_bid, _relaxed(block, level_of)) for block in others], sign=-1)
        blocks = fillable
    return blocks, relaxed


def _relaxed(block: Block, level_of: dict[int, int]) -> Entries:
    return tuple([(level_of[price], lots) for price, lots in block.rows])


def _candidate(block: Block, level_of: dict[int, int], margin: int) -> _Candidate:
    limit, inside = block.parts()
    sign = 1 if block.is_bid else -1
    gain = minimum_gain = inside_value = 0
    accepted = [(level_of[limit], block.minimum)]
    for (price, lots), taken in zip(block.rows, inside, strict=True):
        surplus = (price - margin) * sign
        gain += max(0, surplus) * lots
        minimum_gain += surplus * taken + max(0, surplus) * (lots - taken)
        inside_value += (price - limit) * sign * taken
        if lots - taken:
            accepted.append((level_of[price], lots - taken))
    return _Candidate(
        block.is_bid,
        level_of[limit],
        block.minimum,
        inside_value,
        tuple(accepted),
        _relaxed(block, level_of),
        gain,
        gain - minimum_gain,
    )


def _improve(choice: _Choice, usual_level: int, limit: int) -> tuple[int, int]:
    """Rejects, then takes in again who would gain; the value it comes to. Without a trade the bound's margin is the
    price to gain at.
    """
    value, level = choice.reject_until_consistent()
    candidates, prices = choice.candidates, choice.curves.prices
    spent = 0
    for _ in range(_PASSES):
        improved, margin = False, usual_level if level is None else level
        outside = [
            (-abs(prices[some.level] - prices[margin]) * some.minimum, index)
            for index, some in enumerate(candidates)
            if index not in choice.accepted
            and (some.level >= margin if some.is_bid else some.level <= margin)
        ]
        for _, index in sorted(outside):
            some = candidates[index]
            # The margin moves with each order that comes in.
            if some.level < margin if some.is_bid else some.level > margin:
                continue
            spent += 1
            if spent > limit:
                return value
            choice.add(index)
            found = choice.value()
            if found is not None and found > value:
                value, improved = found, True
                crossing = choice.curves.cross()
                assert crossing is not None
                level = margin = crossing.level
            else:
                choice.remove(index)
        if not improved:
            break
    return value


class _Search:
    """Exact search among the orders that the bound leaves open; the others are fixed as they must be."""

    def __init__(
        self,
        choice: _Choice,
        relaxed: Curves,
        bound: tuple[int, int],
        best: tuple[tuple[int, int], set[int]],
        limit: int,
    ) -> None:
        """From the best so far, and the curves of all orders as divisible, which give the bound."""
        self.choice = choice
        self.relaxed = relaxed  # From here on: the accepted as they are, the undecided as divisible.
        self.bound = bound
        self.best, self.chosen = best
        self.limit = limit
        candidates = choice.candidates
        gap = bound[0] - self.best[0]
        self.undecided = [
            index
            for index, some in enumerate(candidates)
            if some.cost_of_rejecting <= gap and some.cost_of_accepting <= gap
        ]
        kept = [index for index, some in enumerate(candidates) if some.cost_of_rejecting > gap]
        self.last_kept = max(kept, default=-1)
        self.too_many = (
            len(self.undecided) > limit
        )  # Not even one way to the end would be left to the search.
        if self.too_many:
            return
        for index in choice.accepted.difference(kept):
            choice.remove(index)
        for index in set(kept).difference(choice.accepted):
            choice.add(index)
        if self.undecided:
            fixed = set(range(len(candidates))).difference(self.undecided)
            self.relaxed.add_all(
                [(candidates[index].is_bid, candidates[index].relaxed) for index in fixed.difference(kept)],
                sign=-1,
            )
            for index in kept:
                self._take(candidates[index], sign=1)

    def find_greatest(self) -> bool:
        """Finds the greatest welfare and volume; False when the limit came first. Costly decisions come first."""
        candidates = self.choice.candidates

        def weight(index: int) -> tuple[int, int]:
            some = candidates[index]
            return -max(some.cost_of_rejecting, some.cost_of_accepting), index

        if self.too_many:
            return False
        self._look()
        if self.best == self.bound:
            return True
        return self._descend(sorted(self.undecided, key=weight), evaluate_from=0, beyond_best=True)

    def find_first(self) -> bool:
        """Finds the smallest set of ids of the greatest value; False when the limit came first.

        Sets come in lexicographic order. With an id after it in the set, an id makes the set smaller; without one, a
        set comes before those that go on from it.
        """
        split = bisect_left(self.undecided, self.last_kept)
        return self._descend(self.undecided, evaluate_from=split, beyond_best=False)

    def _take(self, some: _Candidate, *, sign: int) -> None:
        """An undecided order is accepted (sign 1) or undecided again, in the relaxed curves."""
        self.relaxed.extra += sign * some.inside_value
        if some.accepted != some.relaxed:
            self.relaxed.add(some.relaxed, is_bid=some.is_bid, sign=-sign)
            self.relaxed.add(some.accepted, is_bid=some.is_bid, sign=sign)

    def _is_best(self) -> bool:
        if self.choice.value() != self.best:
            return False
        self.chosen = set(self.choice.accepted)
        return True

    def _look(self) -> None:
        value = self.choice.value()
        if value is not None and value > self.best:
            self.best, self.chosen = value, set(self.choice.accepted)

    def _hopeless(self, cost: int, *, beyond_best: bool) -> bool:
        if self.bound[0] - cost < self.best[0] or not self._can_fill():
            return True
        crossing = self.relaxed.cross()
        value = _NOTHING if crossing is None else crossing.value
        return value <= self.best if beyond_best else value < self.best

    def _can_fill(self) -> bool:
        """False when no decision about the others lets all accepted minima fill without a loss.

        No price may be above the lowest accepted limit of a bid. There supply is greatest, and what must be supplied
        least: the bids above it, and the minima at it. For asks alike.
        """
        accepted, relaxed = self.choice.curves, self.relaxed
        bid, ask = self.choice.worst_level(is_bid=True), self.choice.worst_level(is_bid=False)
        if bid is not None:
            must = accepted.bid_lots - accepted.up_to(bid)[0] + self.choice.forced[True][bid]
            if must > relaxed.up_to(bid)[1]:
                return False
        if ask is not None:
            must = accepted.up_to(ask - 1)[1] + self.choice.forced[False][ask]
            if must > relaxed.bid_lots - relaxed.up_to(ask - 1)[0]:
                return False
        return bid is None or ask is None or ask <= bid

    def _descend(self, order: list[int], *, evaluate_from: int, beyond_best: bool) -> bool:
        """Depth first. `beyond_best` looks for better sets; else the first that equals the best ends it."""
        candidates = self.choice.candidates
        spent = 0
        # (place in the order, what the decisions cost, decision to make on the way in, or to undo)
        stack: list[tuple[int, int, bool | None, bool]] = [(0, 0, None, False)]
        while stack:
            place, cost, decision, undo = stack.pop()
            if decision is not None:
                self._decide(order[place - 1], accept=decision, undo=undo)
                if undo:
                    continue
                stack.append((place, cost, decision, True))
            spent += 1
            if spent > self.limit:
                return False
            if self._hopeless(cost, beyond_best=beyond_best):
                continue
            if beyond_best:
                if decision:
                    self._look()
            elif ((place > evaluate_from and decision) or place == evaluate_from) and self._is_best():
                return True
            if place == len(order):
                continue
            some = candidates[order[place]]
            reject = (place + 1, cost + some.cost_of_rejecting, False, False)
            accept = (place + 1, cost + some.cost_of_accepting, True, False)
            reject_first = beyond_best and some.cost_of_rejecting < some.cost_of_accepting
            stack.extend((accept, reject) if reject_first else (reject, accept))
        return beyond_best

    def _decide(self, index: int, *, accept: bool, undo: bool) -> None:
        some = self.choice.candidates[index]
        sign = -1 if undo else 1
        if not accept:
            self.relaxed.add(some.relaxed, is_bid=some.is_bid, sign=-sign)
            return
        if undo:
            self.choice.remove(index)
        else:
            self.choice.add(index)
        self._take(some, sign=sign)
