"""Charges as rows of FOCUS: one per charge, token bucket and project. Pure.

The parts of a charge sum to it exactly (largest remainder); costs are exact decimals made from micros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from marketplace.api.exporting import Cell
from marketplace.billing.focus.rows import (
    CREDITS,
    METER_NAMES,
    METERED,
    MTOK,
    STANDARD_MTOK,
    STANDARD_TOKENS,
    TITLES,
    TOKENS,
    Document,
    FocusRow,
    Good,
    Used,
    base_row,
    number,
    of_bucket,
    of_good,
    share,
    unpriced,
)
from marketplace.billing.models import ChargeKind
from marketplace.contracts.models import ContractKind
from pricing.models import Rate
from pricing.rating import price_of
from pricing.units import INPUT_BUCKETS, Bucket, split_by_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed:
    """A charge and what its rows need to know beyond it. `before` is the numerator of earlier charges of the same
    usage: an adjustment continues where they ended."""

    id: UUID
    kind: str
    contract_id: UUID
    contract_kind: str
    rate_id: UUID
    rate_kind: str
    rate_micros_per_mtok: int
    is_contract_rate: bool
    period_start: datetime
    period_end: datetime
    numerator: int
    amount_micros: int
    is_correction: bool
    is_priced_per_unit: bool = True
    before: int = 0
    month: Month | None = None


@dataclass(frozen=True, slots=True)
class Month:
    """The prepaid month that covers a charge, or that a fee pays. `before` and `delivered` are numerators of usage in
    it: what earlier charges covered, and all there is. `closed`: nothing more will be delivered."""

    entitled: int
    before: int
    delivered: int
    closed: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A bucket's part of a charge: micros billed and effective, numerator; and the numerator of the whole usage."""

    billed: int
    effective: int
    numerator: int
    whole: int


def charge_rows(charge: Billed, used: Sequence[Used], good: Good, document: Document) -> list[FocusRow]:
    """The buyer's rows of one charge: their BilledCost sums to its amount."""
    if charge.kind == ChargeKind.COMMITTED_FEE:
        return _fee_rows(charge, good, document)
    effective = _effective_micros(charge)
    is_charged_again = not charge.is_priced_per_unit and not charge.numerator
    if charge.kind not in METERED or is_charged_again or not sum(item.numerator for item in used):
        return [_plain_row(charge, good, document, effective)]
    weights = [item.numerator for item in used]
    parts = zip(
        used,
        split_by_weight(charge.amount_micros, weights),
        split_by_weight(effective, weights),
        split_by_weight(charge.numerator, weights),
        strict=True,
    )
    return [
        _bucket_row(charge, item, good, document, Part(billed, amortised, numerator, sum(weights)))
        for item, billed, amortised, numerator in parts
    ]


def _of_charge(charge: Billed, good: Good, document: Document) -> FocusRow:
    row = base_row(document, charge.period_start, charge.period_end) | of_good(good)
    row |= {
        "ChargeCategory": _category(charge),
        "ChargeClass": "Correction" if charge.is_correction else None,
        "ChargeDescription": f"{TITLES[charge.kind]}, {good.title}",
        "ChargeFrequency": "Usage-Based",
        "PricingCategory": _pricing_category(charge),
        "ResourceId": str(charge.contract_id),
        "ResourceName": f"{good.title}, {charge.contract_kind.replace('_', ' ')}",
        "ResourceType": "Contract",
        "x_ChargeId": str(charge.id),
        "x_ChargeKind": charge.kind,
        "x_ContractKind": charge.contract_kind,
        "x_IsAdjustment": charge.kind == ChargeKind.ADJUSTMENT,
    }
    if charge.contract_kind == ContractKind.SPOT and charge.rate_kind == Rate.Kind.CLEARING:
        # An award keeps capacity ready for its buyer: what he does not take of it is a reservation unused.
        row["CapacityReservationId"] = str(charge.contract_id)
        row["CapacityReservationStatus"] = "Unused" if charge.kind == ChargeKind.MINIMUM_TAKE else "Used"
    if charge.contract_kind == ContractKind.COMMITTED and charge.is_contract_rate:
        row |= {
            "CommitmentDiscountCategory": "Usage",
            "CommitmentDiscountId": str(charge.contract_id),
            "CommitmentDiscountName": f"{good.title}, committed",
            "CommitmentDiscountStatus": "Unused" if charge.kind == ChargeKind.TRUE_UP else "Used",
            "CommitmentDiscountType": "Committed contract",
            "CommitmentDiscountUnit": STANDARD_MTOK,
        }
    return row


def _category(charge: Billed) -> str:
    if charge.kind in CREDITS:
        return "Credit"
    # What a month so far is charged again, at the volume price that it has come to.
    return "Usage" if charge.is_priced_per_unit or charge.numerator else "Adjustment"


def _bucket_row(charge: Billed, item: Used, good: Good, document: Document, part: Part) -> FocusRow:
    native = share(item.native_tokens, charge.before, charge.numerator, part.whole)
    estimated = share(item.estimated_numerator, charge.before, charge.numerator, part.whole)
    ppm = good.standard_ppm.get(item.bucket, 0)
    row = _of_charge(charge, good, document) | of_bucket(good, item.bucket)
    row |= _priced(native * ppm, 18, charge.rate_micros_per_mtok, _list_rate(charge, good))
    # What a million native tokens of this bucket cost: the rate for as many standard tokens as they count for.
    contracted = number(charge.rate_micros_per_mtok * ppm, 12)
    listed = number(_list_rate(charge, good) * ppm, 12)
    details: dict[str, Cell] = {
        "ModelId": good.model,
        "TokenDirection": row["x_TokenDirection"],
        "TokenType": _token_type(item.bucket),
        "x_Grade": good.slug,
        "x_GradeVersion": good.version,
        "x_StandardPpm": ppm,
    }
    if row["x_TokenCacheAction"] is not None:
        details["TokenCacheAction"] = row["x_TokenCacheAction"]
    row |= {
        "BilledCost": number(part.billed, 6),
        "ChargeDescription": f"{TITLES[charge.kind]}, {good.title}, {METER_NAMES[item.bucket].lower()}",
        "ConsumedQuantity": number(native, 0),
        "ConsumedUnit": TOKENS,
        "ContractedUnitPrice": contracted,
        "EffectiveCost": number(part.effective, 6),
        "ListUnitPrice": listed,
        "PricingCurrencyContractedUnitPrice": contracted,
        "PricingCurrencyEffectiveCost": number(part.effective, 6),
        "PricingCurrencyListUnitPrice": listed,
        "PricingQuantity": number(native, 6),
        "PricingUnit": MTOK,
        "SkuPriceDetails": details,
        "SkuPriceId": f"{charge.rate_id}/{item.bucket}",
        "SubAccountId": item.project or None,
        "SubAccountName": item.project or None,
        "SubAccountType": "Project" if item.project else None,
        "Tags": {"project": item.project} if item.project else {},
        "x_EstimatedStandardTokens": number(estimated, 6),
        "x_StandardTokens": number(part.numerator, 6),
    }
    if row["CommitmentDiscountId"] is not None:
        row["CommitmentDiscountQuantity"] = number(part.numerator, 12)
    if not charge.is_priced_per_unit:
        row |= _without_rates(part.billed)
    return row


def _plain_row(charge: Billed, good: Good, document: Document, effective: int) -> FocusRow:
    """A charge that no bucket stands behind, in standard tokens."""
    row = _of_charge(charge, good, document) | _standard(charge, good, charge.numerator)
    row |= {
        "BilledCost": number(charge.amount_micros, 6),
        "EffectiveCost": number(effective, 6),
        "PricingCurrencyEffectiveCost": number(effective, 6),
    }
    if charge.kind in CREDITS or not charge.is_priced_per_unit:
        nothing = ("ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit")
        row |= _without_rates(charge.amount_micros) | dict.fromkeys(nothing)
    if row["CommitmentDiscountId"] is not None:
        row["CommitmentDiscountQuantity"] = number(charge.numerator, 12)
        if row["CommitmentDiscountStatus"] == "Unused":
            row |= {"ConsumedQuantity": None, "ConsumedUnit": None}
    return row


def _without_rates(amount_micros: int) -> FocusRow:
    return unpriced(amount_micros) | dict.fromkeys(
        (
            "ContractedUnitPrice", "ListUnitPrice", "PricingCurrencyContractedUnitPrice",
            "PricingCurrencyListUnitPrice",
        )
    )  # fmt: skip


def _fee_rows(charge: Billed, good: Good, document: Document) -> list[FocusRow]:
    """The purchase of a month's volume, whose cost its usage bears; once the month is over, what nobody used."""
    assert charge.month is not None, "a fee pays a month"
    row = _of_charge(charge, good, document) | _standard(charge, good, charge.numerator)
    nothing = number(0, 0)
    purchase = row | {
        "BilledCost": number(charge.amount_micros, 6),
        "ChargeCategory": "Purchase",
        "ChargeFrequency": "Recurring",
        "CommitmentDiscountQuantity": number(charge.numerator, 12),
        "CommitmentDiscountStatus": None,
        "ConsumedQuantity": None,
        "ConsumedUnit": None,
        "EffectiveCost": nothing,
        "PricingCategory": "Standard",
        "PricingCurrencyEffectiveCost": nothing,
    }
    unused = charge.month.entitled - min(charge.month.entitled, charge.month.delivered)
    rest = charge.amount_micros - _covered(charge, charge.month, charge.month.delivered)
    if not charge.month.closed or not (unused or rest):
        return [purchase]
    return [
        purchase,
        row
        | _standard(charge, good, unused)
        | {
            "BilledCost": nothing,
            "ChargeDescription": f"Committed volume not used, {good.title}",
            "ChargeFrequency": "Recurring",
            "CommitmentDiscountQuantity": number(unused, 12),
            "CommitmentDiscountStatus": "Unused",
            "ConsumedQuantity": None,
            "ConsumedUnit": None,
            "EffectiveCost": number(rest, 6),
            "PricingCurrencyEffectiveCost": number(rest, 6),
        },
    ]


def _standard(charge: Billed, good: Good, numerator: int) -> FocusRow:
    """Quantity, prices and costs of `numerator`, per million standard tokens."""
    contracted = number(charge.rate_micros_per_mtok, 6)
    listed = number(_list_rate(charge, good), 6)
    taken = charge.kind in METERED
    return _priced(numerator, 18, charge.rate_micros_per_mtok, _list_rate(charge, good)) | {
        "ConsumedQuantity": number(numerator if taken else 0, 6),
        "ConsumedUnit": STANDARD_TOKENS,
        "ContractedUnitPrice": contracted,
        "ListUnitPrice": listed,
        "PricingCurrencyContractedUnitPrice": contracted,
        "PricingCurrencyListUnitPrice": listed,
        "PricingQuantity": number(numerator, 12),
        "PricingUnit": STANDARD_MTOK,
        "SkuId": f"{good.slug}/{charge.kind}",
        "SkuMeter": TITLES[charge.kind],
        "SkuPriceId": f"{charge.rate_id}/{charge.kind}",
        "x_StandardTokens": number(numerator, 6),
    }


def _priced(quantity: int, exponent: int, contracted: int, listed: int) -> FocusRow:
    return {
        "ContractedCost": number(quantity * contracted, exponent),
        "ListCost": number(quantity * listed, exponent),
    }


def _pricing_category(charge: Billed) -> str:
    if charge.contract_kind == ContractKind.COMMITTED and charge.is_contract_rate:
        return "Committed"
    return "Standard" if charge.rate_kind in (Rate.Kind.LIST, Rate.Kind.FIRM_LIST) else "Dynamic"


def _list_rate(charge: Billed, good: Good) -> int:
    """Without a contract one pays the list rate; where another rate was paid, the grade's published reference."""
    return charge.rate_micros_per_mtok if charge.rate_kind == Rate.Kind.LIST else good.list_micros_per_mtok


def _effective_micros(charge: Billed) -> int:
    """What a charge costs once a prepaid month is spread over the usage it covers: cumulative, so that the parts of a
    month never exceed its fee, however it was sliced."""
    if charge.month is None:
        return charge.amount_micros
    after = charge.month.before + charge.numerator
    return _covered(charge, charge.month, after) - _covered(charge, charge.month, charge.month.before)


def _covered(charge: Billed, month: Month, numerator: int) -> int:
    return price_of(max(0, min(month.entitled, numerator)), charge.rate_micros_per_mtok)


def _token_type(bucket: str) -> str:
    types = {Bucket.CACHE_READ: "CacheRead", Bucket.CACHE_WRITE: "CacheWrite"}
    return types.get(Bucket(bucket), "Input" if bucket in INPUT_BUCKETS else "Output")
