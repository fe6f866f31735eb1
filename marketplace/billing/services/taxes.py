"""Which taxes a buyer's document bears, and the rules that say so."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q, Sum

from marketplace.accounts.models import Organization, TaxIdentity
from marketplace.accounts.selectors import operator_organization
from marketplace.accounts.services import Actor, identity_of, record_audit
from marketplace.billing.amounts import TaxTerm
from marketplace.billing.lines import Line
from marketplace.billing.models import Earning, TaxRule
from marketplace.errors import Conflict, InvalidInput, NotFound, constraint_of
from marketplace.ids import derived_id
from marketplace.orders.models import Ask
from pricing.units import NUMERATOR_PER_MTOK, PPM, div_ceil
from providers.models import Offering

_SERIES_OF: Final = UUID("0197a3c0-0000-7000-8000-000000000001")
_CODE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
OWN_RATE: Final = "own"
_JURISDICTION: Final = re.compile(r"[A-Z]{2}(-[A-Z0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class AppliedTax:
    """A tax as it applies to one buyer: `reversed` means that he accounts for it and nothing is collected."""

    key: str
    title: str
    rule: TaxRule | None = None
    rate_ppm: int = 0
    levy_micros_per_mtok: int = 0
    reversed: bool = False

    @property
    def term(self) -> TaxTerm:
        if self.reversed:
            return TaxTerm(self.key)
        return TaxTerm(self.key, ppm=self.rate_ppm, micros_per_mtok=self.levy_micros_per_mtok)

    def is_foreign(self, region: str) -> bool:
        """Whether volume from hosts of this region crossed the border of the levy's jurisdiction."""
        if self.rule is None or not self.levy_micros_per_mtok:
            return False
        return region.lower() not in {self.rule.jurisdiction.lower(), *map(str.lower, self.rule.home_regions)}


@dataclass(frozen=True, slots=True)
class Taxation:
    """One buyer's taxes at any moment, by what he was then. Where his country has no rules it is the rate the operator
    gave him.

    `rules` are those of the places of all his identities, `identities` as `identities_of` gives them.
    """

    buyer: Organization
    issuer: Organization
    rules: Sequence[TaxRule]
    identities: Sequence[TaxIdentity]

    def identity_at(self, moment: datetime) -> TaxIdentity:
        """The latest that names a country; before the first of these, the first: to fill it in is no change."""
        named = [identity for identity in self.identities if identity.country]
        if not named:
            return self.identities[-1]
        first = named[0].valid_from
        return [identity for identity in named if identity.valid_from <= max(moment, first)][-1]

    def at(self, moment: datetime) -> tuple[AppliedTax, ...]:
        identity = self.identity_at(moment)
        of_place = [rule for rule in self.rules if rule.jurisdiction in places_of(identity)]
        if not of_place:
            own = AppliedTax(OWN_RATE, "Tax", rate_ppm=self.buyer.own_tax_ppm)
            return (own,) if self.buyer.own_tax_ppm else ()
        kinds = {TaxRule.Buyers.ALL, buyer_kind(identity)}
        is_reversed = is_reverse_charge(identity, self.issuer)
        in_force = [
            rule
            for rule in of_place
            if rule.buyers in kinds
            and rule.valid_from <= moment
            and (rule.valid_until is None or moment < rule.valid_until)
        ]
        # A region's rule stands in the place of its country's of the same code; those of other codes stack.
        own_codes = {rule.code for rule in in_force if rule.jurisdiction == identity.region}
        return tuple(
            _applied(rule, is_reversed=rule.reverse_charge and is_reversed)
            for rule in in_force
            if rule.jurisdiction == identity.region or rule.code not in own_codes
        )

    def holding_ppm(self, moment: datetime) -> int:
        """By how much holds are grossed up: what all rates take together. A levy is set aside with its charge."""
        return min(PPM, sum(tax.rate_ppm for tax in self.at(moment) if not tax.reversed))


def places_of(identity: TaxIdentity) -> set[str]:
    """The jurisdictions whose rules are his: his country's, and his region's where he has named one."""
    return {identity.country, identity.region} - {""}


def _applied(rule: TaxRule, *, is_reversed: bool) -> AppliedTax:
    # A document may have both of one rule: a buyer may become a business in the middle of a month.
    return AppliedTax(
        f"{rule.id}:reversed" if is_reversed else str(rule.id),
        rule.title,
        rule,
        rate_ppm=rule.rate_ppm,
        levy_micros_per_mtok=rule.levy_micros_per_mtok,
        reversed=is_reversed,
    )


def buyer_kind(buyer: TaxIdentity) -> TaxRule.Buyers:
    """A business is who has a tax number that the operator has verified."""
    return TaxRule.Buyers.BUSINESS if buyer.is_verified else TaxRule.Buyers.CONSUMER


def is_reverse_charge(buyer: TaxIdentity, issuer: Organization) -> bool:
    """A business in another country of the union that the issuer is in."""
    union = set(settings.TAX_UNION_COUNTRIES)
    return (
        buyer_kind(buyer) == TaxRule.Buyers.BUSINESS
        and buyer.country != issuer.country
        and {buyer.country, issuer.country} <= union
    )


def taxation_of(buyer: Organization, issuer: Organization, *, as_now: bool = False) -> Taxation:
    """`as_now` takes the buyer for what he is now, whatever he was: the operator corrects a document by it."""
    identities = {buyer.id: [now_of(buyer)]} if as_now else identities_of([buyer])
    places = set().union(*map(places_of, identities[buyer.id]))
    rules = TaxRule.objects.filter(jurisdiction__in=places).order_by("id") if places else ()
    return Taxation(buyer, issuer, list(rules), identities[buyer.id])


def identities_of(buyers: Sequence[Organization]) -> dict[UUID, list[TaxIdentity]]:
    """What each of them was, in order of time, at least one each."""
    found: dict[UUID, list[TaxIdentity]] = {buyer.id: [] for buyer in buyers}
    rows = TaxIdentity.objects.filter(organization_id__in=list(found)).order_by("valid_from", "id")
    for identity in rows:
        found[identity.organization_id].append(identity)
    return {buyer.id: found[buyer.id] or [now_of(buyer)] for buyer in buyers}


def now_of(buyer: Organization) -> TaxIdentity:
    identity = identity_of(buyer)
    identity.valid_from = buyer.created_at
    return identity


def foreign_volume(applied: Mapping[UUID, Sequence[AppliedTax]]) -> dict[UUID, dict[str, int]]:
    """What of each charge's volume came from abroad, by charge and by the key of each levy that applies to it."""
    levied = {charge: [tax for tax in taxes if tax.levy_micros_per_mtok] for charge, taxes in applied.items()}
    ids = [charge for charge, levies in levied.items() if levies]
    volumes: dict[UUID, dict[str, int]] = defaultdict(dict)
    if not ids:
        return volumes
    rows = (
        Earning.objects.filter(charge_id__in=ids)
        .values_list("charge_id", "offering__host__region")
        .annotate(volume=Sum("numerator"))
    )
    for charge, region, volume in rows:
        for levy in levied[charge]:
            if levy.is_foreign(region):
                volumes[charge][levy.key] = volumes[charge].get(levy.key, 0) + volume
    return volumes


@dataclass(frozen=True, slots=True)
class Levies:
    """What levies are worked out from: the taxations of buyers who live where there are some, hosts' regions."""

    taxations: Mapping[UUID, Taxation]
    # By the key of a share: an offering, or the ask of a release.
    regions: Mapping[UUID, str]

    def shares(self, lines: Mapping[UUID, Line], buyer_id: UUID) -> dict[UUID, int]:
        """What is set aside of levies with each newly charged line, up; by the key given."""
        taxation = self.taxations.get(buyer_id)
        shares: dict[UUID, int] = {}
        if taxation is None:
            return shares
        for key, line in lines.items():
            for levy in taxation.at(line.period_start):
                if levy.reversed or levy.rule is None:
                    continue
                volume = sum(
                    share.numerator
                    for key_of_share, share in line.shares.items()
                    if levy.is_foreign(self.regions[key_of_share])
                )
                if volume > 0:
                    aside = div_ceil(volume * levy.levy_micros_per_mtok, NUMERATOR_PER_MTOK)
                    shares[key] = shares.get(key, 0) + aside
        return shares


def levies_of(buyers: Sequence[Organization], sellers: Iterable[UUID]) -> Levies:
    """The levies that lines of these buyers may bear on shares with these keys: offerings, or asks of released lots."""
    identities = identities_of(buyers)
    own = {
        buyer: set().union(*(places_of(each) for each in of_buyer)) for buyer, of_buyer in identities.items()
    }
    places = set().union(*own.values())
    rules: list[TaxRule] = []
    if places:
        found = TaxRule.objects.filter(jurisdiction__in=places, kind=TaxRule.Kind.LEVY)
        rules = list(found.order_by("id"))
    if not rules:
        return Levies({}, {})
    issuer = operator_organization()
    taxations = {
        buyer.id: Taxation(buyer, issuer, of_places, identities[buyer.id])
        for buyer in buyers
        if (of_places := [rule for rule in rules if rule.jurisdiction in own[buyer.id]])
    }
    wanted = set(sellers)
    regions = dict(Offering.objects.filter(id__in=wanted).values_list("id", "host__region"))
    resold = Ask.objects.filter(id__in=wanted - regions.keys())
    return Levies(taxations, regions | dict(resold.values_list("id", "offering__host__region")))


def refresh_holding_rates(*, now: datetime) -> int:
    """Bring the rate by which buyers' holds are grossed up to what the rules say now; how many changed.

    For buyers whose country has no rules it is the rate the operator gave them. Rules begin and end by the clock, so
    beat asks for it; what a hold lacks in between comes from the free balance or is due with the invoice.
    """
    rules: dict[str, list[TaxRule]] = defaultdict(list)
    for rule in TaxRule.objects.order_by("id"):
        rules[rule.jurisdiction].append(rule)
    issuer, changed = operator_organization(), 0
    affected = Q(country__in=list(rules)) | Q(region__in=list(rules)) | ~Q(tax_ppm=F("own_tax_ppm"))
    for buyer in Organization.objects.filter(affected).order_by("id"):
        identity = now_of(buyer)
        own = [rule for place in sorted(places_of(identity)) for rule in rules.get(place, ())]
        ppm = Taxation(buyer, issuer, own, [identity]).holding_ppm(now)
        if ppm != buyer.tax_ppm:
            changed += Organization.objects.filter(pk=buyer.id, tax_ppm=buyer.tax_ppm).update(tax_ppm=ppm)
    return changed


@transaction.atomic
def add_tax_rule(
    *,
    jurisdiction: str,
    code: str,
    title: str,
    kind: str,
    rate_ppm: int = 0,
    levy_micros_per_mtok: int = 0,
    home_regions: Sequence[str] = (),
    buyers: str = TaxRule.Buyers.ALL,
    reverse_charge: bool = False,
    valid_from: datetime,
    valid_until: datetime | None = None,
    now: datetime,
    actor: Actor,
) -> TaxRule:
    """The operator makes a rule. A new rate of a `code` begins where the old rule ends.

    Raises InvalidInput naming the field, Conflict (valid_from) where one of the same code holds at that time.
    """
    if not _JURISDICTION.fullmatch(jurisdiction):
        detail = "must be two capital letters (ISO 3166-1), or a part of a country such as US-NY (ISO 3166-2)"
        raise InvalidInput(detail, field="jurisdiction")
    if not _CODE.fullmatch(code):
        raise InvalidInput("must be small letters, digits, - and _", field="code")
    if kind not in TaxRule.Kind.values:
        raise InvalidInput(f"must be one of {', '.join(TaxRule.Kind.values)}", field="kind")
    if buyers not in TaxRule.Buyers.values:
        raise InvalidInput(f"must be one of {', '.join(TaxRule.Buyers.values)}", field="buyers")
    if kind == TaxRule.Kind.PERCENT and (levy_micros_per_mtok or home_regions):
        raise InvalidInput("only a levy has a rate per Mtok and home regions", field="levy_micros_per_mtok")
    if kind == TaxRule.Kind.LEVY and rate_ppm:
        raise InvalidInput("only a percent rule has one", field="rate_ppm")
    if kind == TaxRule.Kind.LEVY and levy_micros_per_mtok < 1:
        raise InvalidInput("must be at least 1", field="levy_micros_per_mtok")
    if not 0 <= rate_ppm <= PPM:
        raise InvalidInput("must be between 0 and 1000000", field="rate_ppm")
    if valid_until is not None and valid_until <= valid_from:
        raise InvalidInput("must lie after valid_from", field="valid_until")
    try:
        with transaction.atomic():
            rule = TaxRule.objects.create(
                series_id=derived_id(_SERIES_OF, f"{jurisdiction}:{code}"),
                jurisdiction=jurisdiction,
                code=code,
                title=title,
                kind=kind,
                rate_ppm=rate_ppm,
                levy_micros_per_mtok=levy_micros_per_mtok,
                home_regions=list(home_regions),
                buyers=buyers,
                reverse_charge=reverse_charge,
                valid_from=valid_from,
                valid_until=valid_until,
                created_at=now,
            )
    except IntegrityError as error:
        if constraint_of(error) != "billing_taxrule_one_at_a_time":
            raise
        raise Conflict("a rule of this code holds at that time; end it first", field="valid_from") from error
    _audit(rule, "tax_rule.added", {"code": code, "jurisdiction": jurisdiction}, now=now, actor=actor)
    refresh_holding_rates(now=now)
    return rule


@transaction.atomic
def end_tax_rule(*, rule_id: UUID, valid_until: datetime, now: datetime, actor: Actor) -> TaxRule:
    """The rule holds until then, and not after. Raises NotFound, InvalidInput (valid_until) for a moment in the past:
    what has been charged under the rule stays."""
    rule = TaxRule.objects.select_for_update().filter(pk=rule_id).first()
    if rule is None:
        raise NotFound("There is no such rule.")
    if valid_until < max(now, rule.valid_from):
        raise InvalidInput("must lie in the future, and after valid_from", field="valid_until")
    rule.valid_until = valid_until
    try:
        with transaction.atomic():
            rule.save(update_fields=["valid_until"])
    except IntegrityError as error:
        if constraint_of(error) != "billing_taxrule_one_at_a_time":
            raise
        raise Conflict("a later rule of this code begins before", field="valid_until") from error
    _audit(rule, "tax_rule.ended", {"valid_until": valid_until.isoformat()}, now=now, actor=actor)
    refresh_holding_rates(now=now)
    return rule


def tax_rules(*, at: datetime | None = None) -> Any:
    """All rules, newest first; with `at` only those that hold then."""
    rows = TaxRule.objects.order_by("-id")
    if at is not None:
        rows = rows.filter(Q(valid_until__isnull=True) | Q(valid_until__gt=at), valid_from__lte=at)
    return rows


def _audit(rule: TaxRule, action: str, detail: dict[str, Any], *, now: datetime, actor: Actor) -> None:
    record_audit(
        organization_id=operator_organization().id,
        actor=actor,
        action=action,
        object_kind="tax_rule",
        object_id=rule.id,
        detail=detail,
        now=now,
    )
