"""Rows of FOCUS 1.2, the FinOps Open Cost and Usage Specification: columns, and what all rows share. Pure.

What the columns mean here, and where we differ: docs/focus.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from marketplace.api.exporting import Cell, Exact
from marketplace.billing.models import ChargeKind
from pricing.units import INPUT_BUCKETS, Bucket, decimal_string

TOKENS: Final = "Tokens"
MTOK: Final = "1000000 Tokens"
STANDARD_TOKENS: Final = "Standard Tokens"
STANDARD_MTOK: Final = "1000000 Standard Tokens"
COLUMNS: Final = (
    "AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType",
    "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "CapacityReservationId",
    "CapacityReservationStatus", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency",
    "ChargePeriodEnd", "ChargePeriodStart", "CommitmentDiscountCategory", "CommitmentDiscountId",
    "CommitmentDiscountName", "CommitmentDiscountQuantity", "CommitmentDiscountStatus", "CommitmentDiscountType",
    "CommitmentDiscountUnit", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice",
    "EffectiveCost", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory",
    "PricingCurrency", "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "RegionId",
    "RegionName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName",
    "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName",
    "SubAccountType", "Tags", "x_ChargeId", "x_ChargeKind", "x_ContractKind", "x_EstimatedStandardTokens",
    "x_Grade", "x_GradeVersion", "x_IsAdjustment", "x_ModelId", "x_StandardTokens", "x_TokenBucket",
    "x_TokenCacheAction", "x_TokenDirection",
)  # fmt: skip
METER_NAMES: Final[Mapping[str, str]] = {
    Bucket.UNCACHED_INPUT: "Input Tokens",
    Bucket.CACHE_READ: "Cache Read Input Tokens",
    Bucket.CACHE_WRITE: "Cache Write Input Tokens",
    Bucket.OUTPUT: "Output Tokens",
    Bucket.REASONING: "Reasoning Output Tokens",
    Bucket.IMAGE_INPUT: "Image Input Tokens",
    Bucket.AUDIO_INPUT: "Audio Input Tokens",
    Bucket.AUDIO_OUTPUT: "Audio Output Tokens",
}
CACHE_ACTIONS: Final = {Bucket.CACHE_READ: "Read", Bucket.CACHE_WRITE: "Write"}
TITLES: Final[Mapping[str, str]] = {
    ChargeKind.COMMITTED_FEE: "Committed volume",
    ChargeKind.USAGE: "Usage",
    ChargeKind.OVERAGE: "Overage",
    ChargeKind.TRUE_UP: "True-up",
    ChargeKind.TERMINATION: "Early termination",
    ChargeKind.SPOT: "Spot usage",
    ChargeKind.MINIMUM_TAKE: "Minimum take",
    ChargeKind.REMEDY: "Remedy",
    ChargeKind.SERVICE_CREDIT: "Service credit",
    ChargeKind.RELEASE: "Resold volume",
    ChargeKind.ADJUSTMENT: "Adjustment of usage",
}
METERED: Final = (ChargeKind.USAGE, ChargeKind.OVERAGE, ChargeKind.SPOT, ChargeKind.ADJUSTMENT)
CREDITS: Final = (ChargeKind.REMEDY, ChargeKind.SERVICE_CREDIT, ChargeKind.RELEASE)

FocusRow = dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Good:
    """The grade version a charge is about. `standard_ppm` is by bucket."""

    grade_id: UUID
    slug: str
    version: int
    title: str
    model: str
    region: str
    list_micros_per_mtok: int
    standard_ppm: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Used:
    """What roll-ups say of one bucket (and, for buyers, project) of a charge's period and rate, as of now."""

    bucket: str
    project: str
    native_tokens: int
    numerator: int
    estimated_numerator: int


@dataclass(frozen=True, slots=True)
class Document:
    """Whose export it is, and where a row is billed. `invoice` is null until the document is issued."""

    account_id: UUID
    account_name: str
    account_type: str
    market_name: str
    currency: str
    period_start: datetime
    period_end: datetime
    invoice: str | None


def tax_row(document: Document, amount_micros: int) -> FocusRow:
    """An invoice's tax."""
    row = base_row(document, document.period_start, document.period_end)
    return (
        row
        | unpriced(amount_micros)
        | {
            "ChargeCategory": "Tax",
            "ChargeDescription": "Tax",
            "ChargeFrequency": "Recurring",
            "x_ChargeKind": "tax",
        }
    )


def rounding_row(document: Document, amount_micros: int) -> FocusRow:
    """What an invoice leaves out below whole minor units of the currency."""
    row = base_row(document, document.period_start, document.period_end)
    return (
        row
        | unpriced(-amount_micros)
        | {
            "ChargeCategory": "Adjustment",
            "ChargeDescription": "Rounding to whole minor units",
            "ChargeFrequency": "Recurring",
            "x_ChargeKind": "rounding",
        }
    )


def base_row(document: Document, start: datetime, end: datetime) -> FocusRow:
    row: FocusRow = dict.fromkeys(COLUMNS)
    return row | {
        "BillingAccountId": str(document.account_id),
        "BillingAccountName": document.account_name,
        "BillingAccountType": document.account_type,
        "BillingCurrency": document.currency,
        "BillingPeriodStart": document.period_start,
        "BillingPeriodEnd": document.period_end,
        "ChargePeriodStart": start,
        "ChargePeriodEnd": end,
        "InvoiceId": document.invoice,
        "InvoiceIssuerName": document.market_name,
        "PricingCurrency": document.currency,
        "ProviderName": document.market_name,
        "PublisherName": document.market_name,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Inference",
        "ServiceSubcategory": "Generative AI",
        "Tags": {},
        "x_IsAdjustment": False,
    }


def unpriced(amount_micros: int) -> FocusRow:
    """Costs of what has no unit price: all four are the same."""
    cost = number(amount_micros, 6)
    names = ("BilledCost", "EffectiveCost", "ContractedCost", "ListCost", "PricingCurrencyEffectiveCost")
    return dict.fromkeys(names, cost)


def of_good(good: Good) -> FocusRow:
    return {
        "RegionId": good.region,
        "RegionName": good.region,
        "x_Grade": good.slug,
        "x_GradeVersion": good.version,
        "x_ModelId": good.model,
    }


def of_bucket(good: Good, bucket: str) -> FocusRow:
    direction = "Input" if bucket in INPUT_BUCKETS else "Output"
    action = CACHE_ACTIONS.get(Bucket(bucket))
    return {
        "SkuId": f"{good.slug}/{bucket}",
        "SkuMeter": METER_NAMES[bucket],
        "x_TokenBucket": bucket,
        "x_TokenCacheAction": action,
        "x_TokenDirection": direction,
    }


def share(total: int, before: int, numerator: int, whole: int) -> int:
    """The part of a sum that belongs to `numerator` of `whole`, after `before` was given out: parts of consecutive
    charges add up to the total, and a charge that has the whole has all of it."""
    start, end = (max(0, min(whole, place)) for place in (before, before + numerator))
    return total * end // whole - total * start // whole


def number(value: int, exponent: int) -> Exact:
    return Exact(decimal_string(value, exponent))
