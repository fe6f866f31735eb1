#!/usr/bin/env python3
"""Recomputes an invoice from its evidence file: `python verify_invoice.py evidence.ndjson`.

Needs Python 3.11 and nothing else: it shares no line of code with the market that wrote the file. It reads the file
once, keeps the sums of one settlement period at a time, prints what it came to and exits 0; on the first difference it
names the document, line, charge, roll-up or event and exits 1; 2 says that usage has come that is not charged yet, so
that not all could be compared. How each figure is recomputed: docs/evidence.md.

Money is micros of the currency unit, volume millionths of a standard token ("numerator"), rates micros per Mtok
(10^12 numerators). All integers.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, BinaryIO

FORM = 1
PPM = 10**6
MTOK = 10**12
LOT = 10**9
# Decimals of currencies (ISO 4217) that do not have two.
_BY_DECIMALS = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
EXPONENTS = {code: decimals for decimals, codes in _BY_DECIMALS.items() for code in codes.split()}
# What a cell's metered volume comes to; what it gives back for failures is summed by itself.
METERED = ("usage", "overage", "spot", "minimum_take", "adjustment")
Record = dict[str, Any]


class Difference(Exception):
    """The first thing that does not come out: what it is about, what the file states, and what it should be."""

    def __init__(self, what: str, stated: object, recomputed: object) -> None:
        super().__init__(f"{what}: stated {stated}, recomputed {recomputed}")
        self.what = what


def half_even(numerator: int, denominator: int) -> int:
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


def half_up(numerator: int, denominator: int) -> int:
    """Away from zero at one half."""
    sign = -1 if (numerator < 0) != (denominator < 0) else 1
    return sign * ((2 * abs(numerator) + abs(denominator)) // (2 * abs(denominator)))


def ceiling(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def spread(total: int, weights: dict[int, int]) -> dict[int, int]:
    """In proportion to the weights, largest remainder first, ties to the lower key; mirrored for credits."""
    whole = sum(weights.values())
    if whole == 0:
        return dict.fromkeys(weights, 0)
    if whole < 0:
        return spread(total, {key: -weight for key, weight in weights.items()})
    if total < 0:
        return {key: -part for key, part in spread(-total, weights).items()}
    parts = {key: total * weight // whole for key, weight in weights.items()}
    by_rest = sorted(weights, key=lambda key: (-(total * weights[key] % whole), key))
    for key in by_rest[: total - sum(parts.values())]:
        parts[key] += 1
    return parts


def equal(what: str, stated: object, recomputed: object) -> None:
    if stated != recomputed:
        raise Difference(what, stated, recomputed)


def number(record: Record, name: str) -> int:
    value = record.get(name)
    if type(value) is not int:
        raise Difference(f"{record.get('t')} {name}", value, "an integer")
    return value


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


class Cell:
    """One contract in one settlement period: what was metered, and every charge of it, on whichever invoice."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.name = f"contract {record['contract_id']} from {record['start']}"
        self.awards: dict[tuple[str, str], Record] = {}
        self.outcomes: dict[tuple[str, str, str], Record] = {}
        self.failed: dict[tuple[str, str], int] = defaultdict(int)
        self.remedies: dict[tuple[str, str], int] = defaultdict(int)
        self.months: list[Record] = []
        self.withheld: dict[tuple[str, str, str], Record] = {}
        self.sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * 5)
        # Volume and estimate by (rate, grade, delivery period, offering), from the roll-ups.
        self.carried: dict[tuple[str, str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        # By what a charge is about (rate, period): volume, estimate and amount.
        self.charged: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        self.given_back: dict[tuple[str, str], int] = defaultdict(int)


class Tariff:
    """A rate that is of a month's volume: graduated tiers, a price for the whole volume, or packages."""

    def __init__(self, record: Record) -> None:
        self.kind = record["kind"]
        self.tiers = [(tier["up_to_numerator"], number(tier, "micros_per_mtok")) for tier in record["tiers"]]
        if self.kind == "package":
            assert not self.tiers
            self.package = number(record, "package_numerator"), number(record, "package_micros")
            self.highest = ceiling(self.package[1] * MTOK, self.package[0])
            return
        assert self.kind in ("graduated", "volume")
        bounds = [up_to for up_to, _ in self.tiers]
        assert bounds.pop() is None
        assert all(lower < upper for lower, upper in pairwise([0, *bounds]))
        self.highest = max(rate for _, rate in self.tiers)

    def reached(self, volume: int) -> int:
        return next(place for place, (up_to, _) in enumerate(self.tiers) if up_to is None or volume <= up_to)

    def total(self, volume: int) -> int:
        """What a month of this volume comes to."""
        if self.kind == "package":
            return ceiling(volume, self.package[0]) * self.package[1]
        if self.kind == "volume":
            return half_even(volume * self.tiers[self.reached(volume)][1], MTOK)
        exact = lower = 0
        for up_to, rate in self.tiers:
            upper = volume if up_to is None else min(volume, up_to)
            exact += max(0, upper - lower) * rate
            lower = upper
        return half_even(exact, MTOK)

    def step(self, tier: int | None, since: int, volume: int) -> int:
        """What one charge comes to: from the total of `since` to that of `since + volume`, in this tier.

        Without volume it charges the month so far again, at the rate of the tier that is reached.
        """
        after = since + volume
        assert since >= 0
        assert after >= 0
        if not volume and tier is None:
            return 0
        if self.kind != "volume":
            if tier is not None:
                low = self.tiers[tier - 1][0] if tier else 0
                high = self.tiers[tier][0]
                assert low <= min(since, after)
                assert high is None or max(since, after) <= high
            return self.total(after) - self.total(since)
        assert tier is not None
        again = half_even(since * self.tiers[tier][1], MTOK)
        if not volume:
            return again - self.total(since)
        assert tier == self.reached(after)
        return self.total(after) - again


class Verifier:
    """Feed it the file's lines in order with `read`, then call `finish`. Raises Difference."""

    def __init__(self) -> None:
        self.head: Record = {}
        self.lines: dict[int, Record] = {}
        self.taxes: dict[int, Record] = {}
        self.discounts: list[Record] = []
        self.weights: dict[tuple[str, str], int] = {}
        self.rates: dict[str, int] = {}
        self.tariffs: dict[str, Tariff] = {}
        # Of each month of a tariff: where its charges begin and end, whether they stand on this invoice, and their sum.
        self.steps: dict[tuple[str, str], list[tuple[int, int, bool, int]]] = defaultdict(list)
        self.cell: Cell | None = None
        self.place: tuple[bool, str, str] = (False, "", "")
        self.charge: Record | None = None
        self.moved = 0
        self.resold = 0
        self.has_month = False
        self.of_lines: dict[int, list[Any]] = {}
        self.foreign: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self.posted: dict[tuple[str, str], int] = defaultdict(int)
        self.notes: list[Record] = []
        self.counts: dict[str, int] = defaultdict(int)
        self.unsettled: list[str] = []
        self.stated: list[str] = []
        self.digest = hashlib.sha256()
        self.records = 0
        self.ended = False

    # Reading

    def read(self, line: bytes) -> None:
        if self.ended:
            raise Difference("file", "records after the end", "none")
        try:
            record = json.loads(line, object_pairs_hook=_once)
            kind = record["t"]
        except (ValueError, KeyError, TypeError) as error:
            raise Difference(
                f"file, record {self.records + 1}", f"no record ({error})", "a record"
            ) from error
        if not self.head and kind != "head":
            raise Difference("file", kind, "head")
        if kind == "end":
            self._close_cell()
            equal("file: records", number(record, "records"), self.records)
            equal("file: sha256", record.get("sha256"), self.digest.hexdigest())
            self.ended = True
            return
        self.digest.update(line)
        self.records += 1
        self.counts[kind] += 1
        handler = getattr(self, f"_on_{kind}", None)
        if handler is None:
            raise Difference(f"file, record {self.records}", kind, "a kind of record that form 1 has")
        try:
            handler(record)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise Difference(f"{kind}, record {self.records}", repr(error), "a complete record") from error

    def finish(self) -> dict[str, int]:
        """What the document comes to. Call it after the last line."""
        if not self.ended:
            raise Difference("file", "no end", "an end record")
        try:
            self._check_months()
            self._check_lines()
            self._check_discounts_and_taxes()
            self._check_foot()
            self._check_content()
            self._check_notes()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise Difference("document", repr(error), "complete records") from error
        return {name: int(self.head[f"{name}_micros"]) for name in
                ("subtotal", "discount", "tax", "rounding", "total", "prepaid", "amount_due")}  # fmt: skip

    # The document

    def _on_head(self, record: Record) -> None:
        if self.head:
            raise Difference("file", "a second head", "one")
        equal("file: form", record.get("form"), FORM)
        self.head = record

    def _on_line(self, record: Record) -> None:
        place = number(record, "number")
        equal(f"line {place}: its place", place, len(self.lines) + 1)
        self.lines[place] = record
        self.of_lines[place] = [0, 0, 0, None, None, 0]

    def _on_tax(self, record: Record) -> None:
        equal("tax: its place", number(record, "number"), len(self.taxes) + 1)
        self.taxes[number(record, "number")] = record

    def _on_discount(self, record: Record) -> None:
        self.discounts.append(record)

    def _on_note(self, record: Record) -> None:
        self._close_cell()
        self.notes.append({**record, "lines": []})

    def _on_note_line(self, record: Record) -> None:
        self.notes[-1]["lines"].append(record)

    # Metered volume

    def _on_weight(self, record: Record) -> None:
        _new(self.weights, (record["grade_id"], record["bucket"]), number(record, "standard_ppm"))

    def _on_rate(self, record: Record) -> None:
        _new(self.rates, record["rate_id"], number(record, "micros_per_mtok"))

    def _on_tariff(self, record: Record) -> None:
        tariff = Tariff(record)
        name = f"tariff of rate {record['rate_id']}"
        equal(f"{name}: its highest rate", self.rates[record["rate_id"]], tariff.highest)
        _new(self.tariffs, record["rate_id"], tariff)

    def _on_cell(self, record: Record) -> None:
        self._close_cell()
        # In order, and what no settlement period made comes last: so no period is told twice.
        is_last = record["contract_kind"] == "none"
        place = (is_last, "" if is_last else record["start"], "" if is_last else record["contract_id"])
        if not self.place < place:
            raise Difference(f"cell of contract {record['contract_id']}", record["start"], "in order, once")
        self.place = place
        self.cell = Cell(record)

    def _in_cell(self) -> Cell:
        if self.cell is None:
            raise Difference(f"file, record {self.records}", "outside of a cell", "inside of one")
        return self.cell

    def _on_award(self, record: Record) -> None:
        cell = self._in_cell()
        entitled, released = number(record, "entitled_numerator"), number(record, "released_numerator")
        name = f"award of {cell.name}, {record['period_start']}"
        left = max(0, entitled - released - number(record, "failed_numerator"))
        equal(f"{name}: A - R - F", number(record, "deliverable_numerator"), left)
        floor = ceiling(number(record, "minimum_take_ppm") * left, PPM)
        equal(f"{name}: minimum", number(record, "minimum_numerator"), floor)
        _new(cell.awards, (record["rate_id"], record["period_start"]), record)

    def _on_outcome(self, record: Record) -> None:
        cell = self._in_cell()
        key = (record["rate_id"], record["period_start"])
        name = f"outcome of offering {record['offering_id']} in {cell.name}, {record['period_start']}"
        failed, replaced = number(record, "failed_numerator"), number(record, "replaced_numerator")
        parts = ("released", "delivered", "failed", "unused")
        whole = number(record, "entitled_numerator")
        equal(f"{name}: A = R + U + F + N", whole, sum(number(record, f"{part}_numerator") for part in parts))
        rate = self.rates[record["rate_id"]]
        is_replaced = number(record, "replacement_micros_per_mtok") > 0
        equal(f"{name}: whether it was replaced", replaced > 0, is_replaced)
        dearer = replaced * max(0, number(record, "replacement_micros_per_mtok") - rate)
        owed = half_even(1000 * dearer + rate * max(0, 100 * failed - whole), 1000 * MTOK)
        equal(f"{name}: remedy", number(record, "owed_micros"), owed)
        paid = number(record, "remedy_micros")
        if not 0 <= paid <= owed:
            raise Difference(f"{name}: remedy", paid, f"at most {owed}")
        if paid < owed:
            self.stated.append(f"{name}: {owed} micros were cut to {paid} by the provider's cap")
        _new(cell.outcomes, (*key, record["offering_id"]), record)
        cell.failed[key] += failed
        cell.remedies[key] += paid

    def _on_month(self, record: Record) -> None:
        cell = self._in_cell()
        if self.charge is None:
            if any(month["start"] == record["start"] for month in cell.months):
                raise Difference(f"month from {record['start']} of {cell.name}", "twice", "once")
            cell.months.append(record)
            return
        name = f"charge {self.charge['id']}"
        equal(f"{name}: months before this one", self.has_month, False)
        equal(
            f"{name}: volume of the month",
            number(self.charge, "numerator"),
            number(record, "entitled_numerator") + number(record, "cut_numerator"),
        )
        if record["cut_numerator"]:
            self.stated.append(f"{name}: its month was cut by {record['cut_numerator']} after it was paid")
        self.has_month = True

    def _on_month_end(self, record: Record) -> None:
        """What a true-up charges: R + max(0, floor(take x V) - U - R - F)."""
        charge = self.charge
        assert charge is not None
        assert charge["kind"] == "true_up"
        name = f"charge {charge['id']}"
        equal(f"{name}: ends of months before this one", self.has_month, False)
        whole, released = number(record, "volume_numerator"), number(record, "released_numerator")
        delivered, failed = number(record, "delivered_numerator"), number(record, "failed_numerator")
        unused = number(record, "unused_numerator")
        equal(f"{name}: V = R + U + F + N", whole, released + delivered + failed + unused)
        take = whole // LOT * number(record, "take_share_ppm") // PPM * LOT
        due = released + max(0, take - delivered - released - failed)
        equal(f"{name}: R + T", number(charge, "numerator"), due)
        self.stated.append(f"{name}: R, U and F of its month are taken as stated")
        self.has_month = True

    def _on_withheld(self, record: Record) -> None:
        key = (record["rate_id"], record["period_start"], record["offering_id"])
        _new(self._in_cell().withheld, key, record)

    def _on_event(self, record: Record) -> None:
        cell = self._in_cell()
        name = f"event {record['id']}"
        if not moment(cell.record["start"]) <= moment(record["period_start"]) < moment(cell.record["end"]):
            raise Difference(f"{name}: period", record["period_start"], f"within {cell.name}")
        whole = 0
        for bucket in record["tokens"]:
            count = number(record["tokens"], bucket)
            if count < 0:
                raise Difference(f"{name}: {bucket}", count, "not negative")
            volume = count * (self.weights[record["grade_id"], bucket] if count else 0)
            whole += volume
            key = (record["rate_id"], record["grade_id"], record["period_start"], record["offering_id"],
                   record["api_key_id"], bucket)  # fmt: skip
            sums = cell.sums[key]
            added = (1, count, volume, 1, volume) if record["estimated"] else (1, count, volume, 0, 0)
            for index, part in enumerate(added):
                sums[index] += part
        equal(f"{name}: volume", number(record, "numerator"), whole)

    def _on_rollup(self, record: Record) -> None:
        cell = self._in_cell()
        key = (record["rate_id"], record["grade_id"], record["period_start"], record["offering_id"],
               record["api_key_id"], record["bucket"])  # fmt: skip
        name = f"roll-up {record['bucket']} of offering {record['offering_id']} at {record['period_start']}"
        figures = ("events", "native_tokens", "numerator", "estimated_events", "estimated_numerator")
        summed = cell.sums.pop(key, [0] * 5)
        for figure, recomputed in zip(figures, summed, strict=True):
            equal(f"{name}: {figure} of the events", number(record, figure), recomputed)
        carried = cell.carried[key[:4]]
        carried[0] += record["numerator"]
        carried[1] += record["estimated_numerator"]

    # Money

    def _on_charge(self, record: Record) -> None:
        cell = self._in_cell()
        self._close_charge()
        self.charge = record
        name, kind = f"charge {record['id']}", record["kind"]
        amount, volume = number(record, "amount_micros"), number(record, "numerator")
        rate = number(record, "rate_micros_per_mtok")
        is_covered = rate == 0 and kind in ("usage", "adjustment") and bool(cell.months)
        if record["rate_id"] in self.tariffs and kind in ("usage", "overage", "adjustment"):
            self._on_step(record, name, rate)
        elif not is_covered:
            equal(f"{name}: rate", rate, self.rates[record["rate_id"]])
        if "since_numerator" in record:
            assert record["rate_id"] in self.tariffs
        elif kind in ("usage", "overage", "spot", "committed_fee", "true_up"):
            equal(f"{name}: {volume} x {rate}", amount, half_even(volume * rate, MTOK))
        key = (record["rate_id"], record["period_start"])
        is_loose = cell.record["contract_kind"] == "none"
        equal(f"{name}: whether no settlement run made it", record["run"] is None, is_loose)
        if not is_loose:
            equal(f"{name}: contract", record["contract_id"], cell.record["contract_id"])
        if is_loose:
            pass
        elif kind in METERED:
            sums = cell.charged[key]
            sums[0] += volume
            sums[1] += number(record, "estimated_numerator")
            sums[2] += amount
        elif kind == "remedy":
            cell.given_back[key] += amount
        else:
            self.stated.append(f"{name}: {kind} of {amount} micros is taken as stated")
        if record["line"] is not None:
            self._add_to_line(record)

    def _on_step(self, record: Record, name: str, rate: int) -> None:
        """A charge of a month's volume: recomputed from where it begins; later, that each begins where another ends."""
        tariff, tier = self.tariffs[record["rate_id"]], record["tier"]
        since, volume = number(record, "since_numerator"), number(record, "numerator")
        equal(f"{name}: rate", rate, tariff.highest if tier is None else tariff.tiers[tier][1])
        amount = number(record, "amount_micros")
        equal(f"{name}: {since} to {since + volume} of its month", amount, tariff.step(tier, since, volume))
        month = moment(record["month_start"])
        start = moment(record["period_start"])
        equal(f"{name}: month", [month.year, month.month], [start.year, start.month])
        step = (since, volume, record["line"] is not None, amount)
        self.steps[record["rate_id"], record["month_start"]].append(step)

    def _check_months(self) -> None:
        """No part of a month is charged twice, and together its charges are what all of it comes to."""
        for (rate, start), steps in self.steps.items():
            name = f"month from {start}, rate {rate}"
            mine = sorted(
                (since, since + volume) for since, volume, is_mine, _ in steps if is_mine and volume
            )
            if all(since < until for since, until in mine):
                for (_, until), (since, _) in pairwise(mine):
                    if since < until:
                        raise Difference(f"{name}: volume from {since}", "charged twice", "charged once")
            ends: dict[int, int] = defaultdict(int)
            for since, volume, _, _ in steps:
                ends[since] += 1
                ends[since + volume] -= 1
            whole = sum(volume for _, volume, _, _ in steps)
            ends[0] -= 1
            ends[whole] += 1
            if any(ends.values()):
                self.stated.append(f"{name}: other charges of it stand on other documents")
                continue
            total = self.tariffs[rate].total(whole)
            equal(f"{name}: all its charges", sum(amount for *_, amount in steps), total)

    def _add_to_line(self, record: Record) -> None:
        place = number(record, "line")
        line, so_far = self.lines[place], self.of_lines[place]
        name = f"charge {record['id']}: line {place}"
        equal(f"{name}, kind", line["kind"], "spot" if record["kind"] == "minimum_take" else record["kind"])
        equal(f"{name}, contract", line["contract_id"], record["contract_id"])
        so_far[0] += record["numerator"]
        so_far[1] += number(record, "estimated_numerator")
        so_far[2] += record["amount_micros"]
        start, end = record["period_start"], record["period_end"]
        so_far[3] = start if so_far[3] is None else min(so_far[3], start, key=moment)
        so_far[4] = end if so_far[4] is None else max(so_far[4], end, key=moment)
        so_far[5] += 1
        for place_of_tax, tax in self.taxes.items():
            if number(tax, "levy_micros_per_mtok") and not tax["reverse_charge"]:
                home = {tax["jurisdiction"].lower(), *(region.lower() for region in tax["home_regions"])}
                regions = record["regions"]
                abroad = sum(number(regions, region) for region in regions if region.lower() not in home)
                self.foreign[place_of_tax][place] += abroad

    def _on_resale(self, record: Record) -> None:
        self.resold += number(record, "gross_micros") - number(record, "fee_micros")

    def _on_transfer(self, record: Record) -> None:
        amount = number(record, "amount_micros")
        if record["charge_id"] is None:
            self._close_charge()
            self.posted[record["account"], record["code"]] += amount
            return
        assert self.charge is not None
        equal(f"transfer {record['id']}: charge", record["charge_id"], self.charge["id"])
        self.moved += amount

    def _close_charge(self) -> None:
        charge, moved, resold, has_month = self.charge, self.moved, self.resold, self.has_month
        self.charge, self.moved, self.resold, self.has_month = None, 0, 0, False
        if charge is None:
            return
        name, amount, kind = f"charge {charge['id']}", charge["amount_micros"], charge["kind"]
        if kind == "release":
            equal(f"{name}: what was resold, less fees", amount, -resold)
        elif kind in ("committed_fee", "true_up") and not has_month:
            raise Difference(f"{name}: its month", "none", "one")
        elif kind in ("termination", "adjustment") and self._in_cell().record["contract_kind"] == "none":
            self.stated.append(f"{name}: {kind} of {amount} micros is taken as stated")
        elif kind == "remedy" and self._in_cell().record["contract_kind"] == "none":
            self.stated.append(
                f"{name}: a remedy of {-amount} micros for resold volume or of a month is taken as stated"
            )
            if amount > 0:
                return  # What he got too much of and has spent, the market repays.
        equal(f"{name}: its transfers", moved, -amount)

    def _close_cell(self) -> None:
        self._close_charge()
        cell, self.cell = self.cell, None
        if cell is None or cell.record["contract_kind"] == "none":
            return
        for key in cell.sums:
            raise Difference(
                f"roll-up {key[5]} of offering {key[3]} at {key[2]}", "missing", "of stated events"
            )
        if not cell.record["settled"]:
            self.unsettled.append(cell.name)
            return
        for key, award in cell.awards.items():
            parts = sum(place[:2] == key for place in cell.outcomes)
            equal(f"award of {cell.name}, {key[1]}: its outcomes", number(award, "outcomes"), parts)
            failed = cell.failed.get(key, 0)
            equal(f"award of {cell.name}, {key[1]}: F", number(award, "failed_numerator"), failed)
        due, remedies = self._due(cell)
        for key in sorted(due.keys() | cell.charged.keys()):
            stated, recomputed = cell.charged.get(key, [0, 0, 0]), due.get(key, [0, 0, 0])
            for index, figure in enumerate(("volume", "estimated volume", "amount")):
                what = f"charges of {cell.name}, rate {key[0]}, {key[1]}: {figure}"
                equal(what, stated[index], recomputed[index])
        for key in sorted(remedies.keys() | cell.given_back.keys()):
            what = f"remedies of {cell.name}, rate {key[0]}, {key[1]}"
            equal(what, cell.given_back.get(key, 0), -remedies.get(key, 0))

    def _due(self, cell: Cell) -> tuple[dict[tuple[str, str], list[int]], dict[tuple[str, str], int]]:
        """What all charges of the cell come to together, by rate and start of the charge's period."""
        used: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        for (rate, _, period, offering), (volume, estimate) in cell.carried.items():
            off = 0
            dispute = cell.withheld.get((rate, period, offering))
            if dispute is not None:
                # A count that was corrected since the dispute began is not lowered twice.
                since = max(0, number(dispute, "disputed_of_numerator") - volume)
                off = max(0, number(dispute, "withheld_numerator") - since)
            billed = max(0, volume - off)
            used[rate, period][0] += billed
            used[rate, period][1] += min(estimate, billed)
        due: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        for key, award in cell.awards.items():
            volume, estimate = used.pop(key, [0, 0])
            taken = max(volume, award["minimum_numerator"])
            due[key] = [taken, estimate, half_even(taken * self.rates[key[0]], MTOK)]
        others: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        for (rate, period), (volume, estimate) in used.items():
            month = next((m for m in cell.months if m["rate_id"] == rate
                          and moment(m["start"]) <= moment(period) < moment(m["end"])), None)  # fmt: skip
            starts = [cell.record["start"]] if month is None else [cell.record["start"], month["start"]]
            sums = others[rate, max(starts, key=moment)]
            sums[0] += volume
            sums[1] += estimate
        covered = {month["rate_id"] for month in cell.months}
        for key, (volume, estimate) in others.items():
            if key[0] in self.tariffs:
                # What a period's part of a month comes to depends on what came before: each charge was recomputed.
                amount = cell.charged.get(key, [0, 0, 0])[2]
            else:
                amount = 0 if key[0] in covered else half_even(volume * self.rates[key[0]], MTOK)
            for index, part in enumerate((volume, estimate, amount)):
                due[key][index] += part
        return dict(due), dict(cell.remedies)

    # The foot

    def _check_lines(self) -> None:
        for place, line in self.lines.items():
            volume, estimate, amount, start, end, charges = self.of_lines[place]
            if self.head["charges_moved_to"] is not None:
                equal(f"line {place}: charges of a document that was replaced", charges, 0)
                continue
            name = f"line {place}"
            equal(f"{name}: volume", number(line, "numerator"), volume)
            equal(f"{name}: estimated volume", number(line, "estimated_numerator"), estimate)
            equal(f"{name}: amount", number(line, "amount_micros"), amount)
            equal(f"{name}: period", [line["period_start"], line["period_end"]], [start, end])
        equal("subtotal", number(self.head, "subtotal_micros"),
              sum(line["amount_micros"] for line in self.lines.values()))  # fmt: skip

    def _check_discounts_and_taxes(self) -> None:
        off = dict.fromkeys(self.lines, 0)
        for discount in sorted(self.discounts, key=lambda one: (one["line_kind"] is None, one["id"])):
            left = {place: line["amount_micros"] - off[place] for place, line in self.lines.items()}
            kind = discount["line_kind"]
            own = {place: amount for place, amount in left.items()
                   if amount > 0 and kind in (None, self.lines[place]["kind"])}  # fmt: skip
            base = sum(left.values()) if kind is None else sum(own.values())
            if discount["rate_ppm"] is not None:
                taken = half_up(max(0, base) * number(discount, "rate_ppm"), PPM)
            else:
                taken = number(discount, "amount_micros")
            taken = min(taken, max(0, base), max(0, sum(left.values())))
            equal(f"discount {discount['title']}", number(discount, "taken_micros"), taken)
            for place, part in spread(taken, own).items():
                off[place] += part
        equal("discounts", number(self.head, "discount_micros"), sum(off.values()))
        taxes = dict.fromkeys(self.lines, 0)
        for number_of_tax, tax in self.taxes.items():
            name = f"tax {number_of_tax} ({tax['title']})"
            if number(tax, "rate_ppm") and number(tax, "levy_micros_per_mtok"):
                raise Difference(name, "a rate and a levy", "one of them")
            bases, due = self._tax_base(number_of_tax, tax, off)
            is_levy = bool(tax["levy_micros_per_mtok"]) and not tax["reverse_charge"]
            whole = sum(bases.values())
            equal(f"{name}: base", number(tax, "base_micros"), 0 if is_levy else whole)
            equal(f"{name}: base volume", number(tax, "base_numerator"), whole if is_levy else 0)
            equal(name, number(tax, "tax_micros"), due)
            parts = spread(due, bases)
            if is_levy and self.head["charges_moved_to"] is not None:
                # Where the volume came from is told with the charges, which stand in the other file.
                parts = {
                    place: line["taxes"].get(str(number_of_tax), 0) for place, line in self.lines.items()
                }
                equal(f"{name}: its lines", sum(parts.values()), due)
            for place, line in self.lines.items():
                stated = line["taxes"].get(str(number_of_tax), 0)
                equal(f"line {place}: {name}", stated, parts.get(place, 0))
                taxes[place] += parts.get(place, 0)
        for place, line in self.lines.items():
            equal(f"line {place}: discount", number(line, "discount_micros"), off[place])
            equal(f"line {place}: tax", number(line, "tax_micros"), taxes[place])
        equal("tax", number(self.head, "tax_micros"), sum(taxes.values()))

    def _tax_base(self, place: int, tax: Record, off: dict[int, int]) -> tuple[dict[int, int], int]:
        mine = [
            at for at, line in self.lines.items()
            if (tax["valid_from"] is None or moment(tax["valid_from"]) <= moment(line["period_start"]))
            and (tax["valid_until"] is None or moment(line["period_start"]) < moment(tax["valid_until"]))
        ]  # fmt: skip
        if tax["reverse_charge"]:
            return {at: self.lines[at]["amount_micros"] - off[at] for at in mine}, 0
        if number(tax, "levy_micros_per_mtok"):
            bases = {at: self.foreign[place][at] for at in mine}
            if self.head["charges_moved_to"] is not None:
                bases = dict.fromkeys(mine[1:], 0) | {at: number(tax, "base_numerator") for at in mine[:1]}
            return bases, half_up(sum(bases.values()) * tax["levy_micros_per_mtok"], MTOK)
        bases = {at: self.lines[at]["amount_micros"] - off[at] for at in mine}
        return bases, half_up(sum(bases.values()) * number(tax, "rate_ppm"), PPM)

    def _check_foot(self) -> None:
        head = self.head
        net = {"prepaid": 0, "receivable": 0}
        for line in self.lines.values():
            net[line["account"]] += line["amount_micros"] - line["discount_micros"]
        tax = number(head, "tax_micros")
        if net["prepaid"] <= 0 or net["receivable"] <= 0:
            ahead = tax if net["prepaid"] >= net["receivable"] else 0
        else:
            ahead = spread(tax, {0: net["prepaid"], 1: net["receivable"]})[0]
        posted = -self.posted["prepaid", "tax"]
        uncovered = ahead - posted
        unposted = tax + self.posted["prepaid", "tax"] + self.posted["receivable", "tax"]
        equal("tax that was not covered", number(head, "tax_unposted_micros"), unposted)
        minor = 10 ** (6 - EXPONENTS.get(head["currency"], 2))
        raw_prepaid = net["prepaid"] + ahead - uncovered
        raw_due = net["receivable"] + tax - ahead + uncovered
        prepaid, due = raw_prepaid // minor * minor, raw_due // minor * minor
        equal("paid from the prepaid balance", number(head, "prepaid_micros"), prepaid)
        equal("amount due", number(head, "amount_due_micros"), due)
        equal("total", number(head, "total_micros"), prepaid + due)
        equal("rounding", number(head, "rounding_micros"), raw_prepaid - prepaid + raw_due - due)
        for code, figure in (("discount", "discount_micros"), ("rounding", "rounding_micros")):
            moved = sum(self.posted[account, code] for account in net)
            equal(f"transfers of the {code}", moved, head[figure])

    # What the documents say

    def _check_content(self) -> None:
        head, content = self.head, self.head["content"]
        equal("document: sha256 of its text", head["content_sha256"], _sha256(content))
        equal("document: number", content["number"], head["number"])
        equal("document: currency", content["currency"], head["currency"])
        rows = [
            [line["description"] + (" *" if line["estimated_numerator"] > 0 else ""),
             _days(line["period_start"], line["period_end"]), _volume(line["numerator"]),
             self._money(line["amount_micros"])]
            for line in self.lines.values()
        ]  # fmt: skip
        for place, (stated, recomputed) in enumerate(_pairs(content["rows"], rows), start=1):
            equal(f"document: line {place}", stated, recomputed)
        foot = [["Subtotal", self._money(head["subtotal_micros"]), ""]]
        foot += [[one["title"], self._money(-one["taken_micros"]), ""] for one in self.discounts]
        foot += [self._tax_row(tax) for tax in self.taxes.values()]
        if head["rounding_micros"]:
            foot.append(["Rounded in your favour", self._money(-head["rounding_micros"]), ""])
        foot.append(["Total", self._money(head["total_micros"]), "total"])
        foot.append(["Paid from the prepaid balance", self._money(-head["prepaid_micros"]), ""])
        foot.append(["Amount due", self._money(head["amount_due_micros"]), "due"])
        for place, (stated, recomputed) in enumerate(_pairs(content["foot"], foot), start=1):
            equal(f"document: foot, row {place}", stated, recomputed)

    def _tax_row(self, tax: Record) -> list[str]:
        where = f" ({tax['jurisdiction']})" if tax["jurisdiction"] else ""
        if tax["reverse_charge"]:
            what = "reverse charge"
        elif tax["levy_micros_per_mtok"]:
            levy = self._money(tax["levy_micros_per_mtok"])
            what = f"{levy} per Mtok on {_volume(tax['base_numerator'])} from abroad"
        else:
            what = f"{_decimal(tax['rate_ppm'], 4)}% of {self._money(tax['base_micros'])}"
        return [f"{tax['title']}{where}, {what}", self._money(tax["tax_micros"]), ""]

    def _check_notes(self) -> None:
        credited = dict.fromkeys(self.lines, 0)
        given: dict[tuple[int, str], int] = defaultdict(int)
        raw = paid = 0
        minor = 10 ** (6 - EXPONENTS.get(self.head["currency"], 2))
        for note in self.notes:
            name = f"credit note {note['number']}"
            net = tax = 0
            by_tax: dict[int, int] = defaultdict(int)
            for row in note["lines"]:
                place = number(row, "line")
                line = self.lines[place]
                whole = line["amount_micros"] - line["discount_micros"]
                credited[place] += number(row, "net_micros")
                if not (0 <= credited[place] <= whole or whole <= credited[place] <= 0):
                    raise Difference(f"{name}: line {place}", credited[place], f"within {whole}")
                parts = 0
                for key, amount in line["taxes"].items():
                    so_far = amount if credited[place] == whole else half_up(amount * credited[place], whole)
                    part = so_far - given[place, key]
                    equal(f"{name}: line {place}, tax {key}", row["taxes"].get(key, 0), part)
                    given[place, key] = so_far
                    by_tax[int(key)] += part
                    parts += part
                equal(f"{name}: line {place}, tax", number(row, "tax_micros"), parts)
                net, tax = net + row["net_micros"], tax + parts
            raw += net + tax
            is_whole = all(
                credited[place] == line["amount_micros"] - line["discount_micros"]
                and all(given[place, key] == amount for key, amount in line["taxes"].items())
                for place, line in self.lines.items()
            )
            total = (
                self.head["total_micros"]
                if is_whole
                else min(self.head["total_micros"], raw // minor * minor)
            )
            equal(f"{name}: net", number(note, "net_micros"), net)
            equal(f"{name}: tax", number(note, "tax_micros"), tax)
            equal(f"{name}: total", number(note, "total_micros"), total - paid)
            equal(f"{name}: rounding", number(note, "rounding_micros"), net + tax - (total - paid))
            paid = total
            self._check_note_content(name, note, by_tax)

    def _check_note_content(self, name: str, note: Record, by_tax: dict[int, int]) -> None:
        content = note["content"]
        equal(f"{name}: sha256 of its text", note["content_sha256"], _sha256(content))
        equal(f"{name}: number", content["number"], note["number"])
        rows = [
            [self.lines[row["line"]]["description"], f"Line {row['line']} of {self.head['number']}",
             self._money(row["tax_micros"]), self._money(row["net_micros"])]
            for row in note["lines"]
        ]  # fmt: skip
        for place, (stated, recomputed) in enumerate(_pairs(content["rows"], rows), start=1):
            equal(f"{name}: row {place}", stated, recomputed)
        titles: dict[str, int] = {}
        for place, amount in sorted(by_tax.items()):
            titles[self.taxes[place]["title"]] = amount
        foot = [["Subtotal", self._money(note["net_micros"]), ""]]
        foot += [[title, self._money(amount), ""] for title, amount in titles.items()]
        if note["rounding_micros"]:
            foot.append(["Rounding", self._money(-note["rounding_micros"]), ""])
        foot.append(["Total credited", self._money(note["total_micros"]), "total"])
        foot.append(["Off the amount due", self._money(number(note, "due_micros")), ""])
        foot.append(["To the prepaid balance", self._money(note["total_micros"] - note["due_micros"]), "due"])
        for place, (stated, recomputed) in enumerate(_pairs(content["foot"], foot), start=1):
            equal(f"{name}: foot, row {place}", stated, recomputed)

    def _money(self, micros: int) -> str:
        least = EXPONENTS.get(self.head["currency"], 2)
        whole, _, decimals = _decimal(abs(micros), 6).partition(".")
        decimals = decimals.ljust(least, "0")
        grouped = f"{int(whole):,}".replace(",", "\u202f")
        return ("\u2212" if micros < 0 else "") + grouped + (f".{decimals}" if decimals else "")


def _new(known: dict[Any, Any], key: Any, value: Any) -> None:
    if key in known:
        raise Difference(f"record of {key}", "twice", "once")
    known[key] = value


def _once(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a name stands twice")
    return record


def _sha256(content: Record) -> str:
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _pairs(stated: list[Any], recomputed: list[Any]) -> list[tuple[Any, Any]]:
    longest = max(len(stated), len(recomputed))
    padded = [[*rows, *[None] * (longest - len(rows))] for rows in (stated, recomputed)]
    return list(zip(*padded, strict=True))


def _decimal(value: int, places: int) -> str:
    whole, rest = divmod(abs(value), 10**places)
    decimals = f"{rest:0{places}d}".rstrip("0")
    return ("-" if value < 0 else "") + (f"{whole}.{decimals}" if decimals else str(whole))


def _volume(numerator: int) -> str:
    whole, point, decimals = _decimal(abs(numerator), 6).partition(".")
    return ("\u2212" if numerator < 0 else "") + f"{int(whole):,}".replace(",", "\u202f") + point + decimals


def _days(start: str, end: str) -> str:
    first, last = (f"{at.day} {at:%B %Y}" for at in (moment(start), moment(end) - timedelta(microseconds=1)))
    return first if first == last else f"{first} to {last}"


def verify(source: BinaryIO) -> tuple[Verifier, dict[str, int]]:
    """Reads the whole file. Raises Difference at the first one."""
    verifier = Verifier()
    for line in source:
        verifier.read(line)
    return verifier, verifier.finish()


def report_of(verifier: Verifier, sums: dict[str, int]) -> str:
    head, counts = verifier.head, verifier.counts
    counted = (("event", "usage events"), ("rollup", "roll-ups"), ("charge", "charges"), ("line", "lines"),
               ("transfer", "transfers"), ("note", "credit notes"))  # fmt: skip
    told = [f"invoice {head['number']}: recomputed to the micro"]
    told += [f"  {counts[kind]:>14,} {title}" for kind, title in counted]
    told += [
        f"  {micros:>14,} micros {head['currency']} {name.replace('_', ' ')}" for name, micros in sums.items()
    ]
    told += [f"  note: {note}" for note in verifier.stated]
    told += [f"  not charged yet: later usage of {name}" for name in verifier.unsettled]
    return "\n".join(told) + "\n"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: verify_invoice.py evidence.ndjson\n")
        return 64
    try:
        with open(arguments[0], "rb") as source:  # noqa: PTH123
            verifier, sums = verify(source)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 66
    except Difference as difference:
        sys.stderr.write(f"difference: {difference}\n")
        return 1
    sys.stdout.write(report_of(verifier, sums))
    return 2 if verifier.unsettled else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
