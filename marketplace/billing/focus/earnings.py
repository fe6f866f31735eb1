"""A provider's earnings in the form of FOCUS: the mirror of what buyers pay. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from marketplace.billing.focus.rows import (
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
from pricing.units import split_by_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Earned:
    """A provider's part of a charge. Nothing in it tells who bought."""

    id: UUID
    kind: str
    offering_id: UUID
    host_name: str
    period_start: datetime
    period_end: datetime
    numerator: int
    gross_micros: int
    fee_micros: int
    is_correction: bool
    before: int = 0


def earning_rows(earning: Earned, used: Sequence[Used], good: Good, document: Document) -> list[FocusRow]:
    """The provider's mirror: what he earned as negative cost by bucket, the market's fee as positive cost.

    BilledCost sums to fee - gross, which is the negated net of the statement.
    """
    weights = [item.numerator for item in used]
    whole = sum(weights)
    rows: list[FocusRow] = []
    if earning.kind in METERED and whole:
        grosses = split_by_weight(earning.gross_micros, weights)
        numerators = split_by_weight(earning.numerator, weights)
        for item, gross, numerator in zip(used, grosses, numerators, strict=True):
            native = share(item.native_tokens, earning.before, earning.numerator, whole)
            row = _earning_row(earning, good, document, -gross) | of_bucket(good, item.bucket)
            row |= {
                "ConsumedQuantity": number(native, 0),
                "ConsumedUnit": TOKENS,
                "PricingQuantity": number(native, 6),
                "PricingUnit": MTOK,
                "x_StandardTokens": number(numerator, 6),
            }
            rows.append(row)
    else:
        row = _earning_row(earning, good, document, -earning.gross_micros)
        row |= {
            "ConsumedQuantity": number(0, 0),
            "ConsumedUnit": STANDARD_TOKENS,
            "PricingQuantity": number(earning.numerator, 12),
            "PricingUnit": STANDARD_MTOK,
            "SkuId": f"{good.slug}/{earning.kind}",
            "SkuMeter": TITLES[earning.kind],
            "x_StandardTokens": number(earning.numerator, 6),
        }
        rows.append(row)
    if earning.fee_micros:
        fee = _earning_row(earning, good, document, earning.fee_micros)
        rows.append(
            fee
            | {
                "ChargeCategory": "Purchase",
                "ChargeDescription": "Market fee",
                "PricingQuantity": number(1, 0),
                "PricingUnit": "Fees",
                "SkuId": "market_fee",
                "SkuMeter": "Market fee",
                "x_ChargeKind": "fee",
            }
        )
    return rows


def _earning_row(earning: Earned, good: Good, document: Document, cost_micros: int) -> FocusRow:
    row = base_row(document, earning.period_start, earning.period_end) | of_good(good)
    return (
        row
        | unpriced(cost_micros)
        | {
            "ChargeCategory": "Usage",
            "ChargeClass": "Correction" if earning.is_correction else None,
            "ChargeDescription": f"{TITLES[earning.kind]} supplied, {good.title}, {earning.host_name}",
            "ChargeFrequency": "Usage-Based",
            "PricingCategory": "Standard",
            "ResourceId": str(earning.offering_id),
            "ResourceName": earning.host_name,
            "ResourceType": "Offering",
            "x_ChargeId": str(earning.id),
            "x_ChargeKind": earning.kind,
            "x_IsAdjustment": earning.kind == ChargeKind.ADJUSTMENT,
        }
    )
