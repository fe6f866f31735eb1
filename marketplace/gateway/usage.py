"""What one attempt used: the engine's counts as the gateway carried them, never more than the hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from marketplace.contracts.holds import Opened
from marketplace.gateway.recounting import Recount
from marketplace.gateway.store import GradeVersion
from metering.usage import Finish, Flag, UsageEvent, encode_event, unproved_usage
from pricing.normalising import SOURCES, Unprovable, adapt, collect_usage
from pricing.rating import (
    TEXT_INPUT_BUCKETS,
    TEXT_OUTPUT_BUCKETS,
    cap_counts,
    exact_cost,
    exact_price,
    standard_numerator,
)
from pricing.units import INPUT_BUCKETS, OUTPUT_BUCKETS, PPM, Bucket, div_half_even

_FINISHES: Final = {
    "stop": Finish.STOP,
    "length": Finish.LENGTH,
    "tool_calls": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
    "content_filter": Finish.CONTENT_FILTER,
}


def usage_source(engine: str | None) -> str:
    """The adapter of a host's OpenAI-compatible answers (Ollama's own adapter is for its native interface)."""
    return engine if engine in SOURCES and engine != "ollama" else "openai_chat"


def _rate_of(opened: Opened) -> int:
    assert opened.rate_micros_per_mtok is not None
    return opened.rate_micros_per_mtok


def finish_of(reason: str | None) -> Finish:
    return Finish.NONE if reason is None else _FINISHES.get(reason, Finish.STOP)


class UsageMeter:
    """Fed with every decoded chunk of one attempt. Amounts are numerators (millionths of a standard token)."""

    def __init__(
        self, *, grade: GradeVersion, engine: str | None, input_bound_tokens: int, output_bound_tokens: int
    ) -> None:
        self._grade = grade
        self._source = usage_source(engine)
        self._raw: Mapping[str, object] | None = None
        self._running: dict[Bucket, int] | None = None
        self._unproved: str | None = None
        self.flags: set[Flag] = set()
        self.recount = Recount()
        self.generated_chunks = 0
        self.finish: str | None = None
        ppm = grade.standard_ppm
        self._input_bound = input_bound_tokens * max(ppm.get(bucket, 0) for bucket in TEXT_INPUT_BUCKETS)
        self.output_ppm: Final = max(ppm.get(bucket, 0) for bucket in TEXT_OUTPUT_BUCKETS)
        # Of the dearest token: so much of a hold may be left when no other whole one fits.
        self.token_numerator: Final = max(ppm.values(), default=0)
        self._bounds: Final = ((INPUT_BUCKETS, input_bound_tokens), (OUTPUT_BUCKETS, output_bound_tokens))
        # What the request can come to, whatever its host says.
        self.most_numerator: Final = self._input_bound + output_bound_tokens * self.output_ppm

    def feed(self, chunk: Mapping[str, Any]) -> None:
        """Takes usage from any chunk, with choices or without; the last one wins."""
        found = collect_usage(self._source, self._raw, chunk)
        if found is not self._raw:
            self._raw = found
            self._running = self._unproved = None

    @property
    def reported(self) -> bool:
        return self._raw is not None

    def counts(self) -> dict[Bucket, int]:
        """Disjoint buckets as reported last; nothing, flagged, when the figures contradict each other."""
        if self._running is None:
            self._running = self._adapt()
        return self._running

    def _adapt(self) -> dict[Bucket, int]:
        if self._raw is None:
            return {}
        try:
            return adapt(self._source, self._raw).reported()
        except Unprovable as error:
            self.flags.add(Flag.UNPROVABLE)
            self._unproved = unproved_usage(error, self._raw)
            return {}

    def estimate(self, input_tokens: int) -> None:
        """No usage came: what the gateway counted stands for it.

        Output is the recount of the delivered text by the grade's kappa: a host cuts its text into chunks as it likes.
        """
        delivered, output = self.recount.tokens(), 0
        if delivered is not None:
            output = max(1, div_half_even(delivered * PPM, self._grade.output_kappa_ppm or PPM))
        self._running = {Bucket.UNCACHED_INPUT: input_tokens, Bucket.OUTPUT: output}
        self.flags.add(Flag.ESTIMATED)

    def numerator(self) -> int:
        """The standard numerator of `counts`. A bucket without weight in the grade is worth nothing and is flagged."""
        counts = self.counts()
        priced = {bucket: count for bucket, count in counts.items() if bucket in self._grade.standard_ppm}
        if any(count for bucket, count in counts.items() if bucket not in priced):
            self.flags.add(Flag.UNPROVABLE)
            self._running = priced
        return standard_numerator(priced, self._grade.standard_ppm)

    def bound(self) -> int:
        """At least what has been used so far: as reported on the way, else input bound and chunks."""
        if self._raw is not None:
            return self.numerator()
        return self._input_bound + self.generated_chunks * self.output_ppm

    def cut_to_bounds(self) -> None:
        """Cut each side to what the request can come to: no more input than its bytes, no more output than its limit.

        A host's word is not enough to bill more, however much the buyer's balance would cover.
        """
        counts = dict(self.counts())
        for side, most in self._bounds:
            excess = sum(counts.get(bucket, 0) for bucket in side) - most
            for bucket in side:
                if excess <= 0:
                    break
                cut = min(excess, counts.get(bucket, 0))
                if cut:
                    counts[bucket] -= cut
                    excess -= cut
                    self.flags.add(Flag.CAPPED)
        self._running = counts

    def cap(self, amount_numerator: int) -> None:
        """Cut the counts to the hold: the excess is flagged and never billed."""
        counts = self.counts()
        capped = cap_counts(counts, self._grade.standard_ppm, amount_numerator)
        if capped != counts:
            self._running = capped
            self.flags.add(Flag.CAPPED)

    def split(self, amount_numerator: int) -> tuple[dict[Bucket, int], dict[Bucket, int]]:
        """The counts in two parts, token by token as they came: what a first hold of so much covers, and the rest."""
        counts = self.counts()
        first = cap_counts(counts, self._grade.standard_ppm, amount_numerator)
        return first, {bucket: count - first[bucket] for bucket, count in counts.items()}

    def cap_parts(self, amount_numerator: int, over_numerator: int) -> None:
        """As `cap`, of two holds."""
        first, rest = self.split(amount_numerator)
        capped = cap_counts(rest, self._grade.standard_ppm, over_numerator)
        if capped != rest:
            self._running = {bucket: count + capped[bucket] for bucket, count in first.items()}
            self.flags.add(Flag.CAPPED)

    def numerator_of(self, counts: Mapping[Bucket, int]) -> int:
        return standard_numerator(counts, self._grade.standard_ppm)

    def usage_object(
        self, *, generation_id: UUID, parts: Sequence[tuple[Opened, Mapping[Bucket, int]]]
    ) -> dict[str, Any]:
        """OpenAI's usage object with ours in `tokenyard`; the cost is exact and marginal, never rounded.

        Of an attempt in two parts, `tokenyard` has the sums, with the contract of part 0, and each part in `parts`.
        """
        counts = self.counts()
        prompt = sum(counts.get(bucket, 0) for bucket in INPUT_BUCKETS)
        completion = sum(counts.get(bucket, 0) for bucket in OUTPUT_BUCKETS)
        whole = self._bill(parts[0][0], counts)
        if len(parts) > 1:
            whole["cost"] = exact_cost((self.numerator_of(part), _rate_of(opened)) for opened, part in parts)
            whole["parts"] = [self._bill(*part) for part in parts]
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": counts.get(Bucket.CACHE_READ, 0)},
            "completion_tokens_details": {"reasoning_tokens": counts.get(Bucket.REASONING, 0)},
            "tokenyard": {"generation_id": generation_id, **whole},
        }

    def _bill(self, opened: Opened, counts: Mapping[Bucket, int]) -> dict[str, Any]:
        """`settles_by_month`: tiers or packages decide; rate and cost are then the highest that a token can come to."""
        numerator, rate = self.numerator_of(counts), _rate_of(opened)
        return {
            "contract_id": opened.contract_id,
            "contract_kind": opened.kind,
            "grade_id": opened.grade_id,
            "rate_id": opened.rate_id,
            "rate_micros_per_mtok": rate,
            "currency": self._grade.currency,
            "buckets": {bucket.value: count for bucket, count in counts.items()},
            "standard_numerator": str(numerator),
            "cost": exact_price(numerator, rate),
            **({} if opened.unit_numerator is None else {"settles_by_month": True}),
        }

    def _witness(self) -> int | None:
        """The recount, if it can be held against the counts.

        Where the engine reasoned and kept that for itself, it stands for the rest of the output, which is flagged;
        and for nothing where most of the output is hidden.
        """
        counts = self.counts()
        reasoning = counts.get(Bucket.REASONING, 0)
        if reasoning and not self.recount.has_reasoning:
            self.flags.add(Flag.HIDDEN_REASONING)
            if reasoning > counts.get(Bucket.OUTPUT, 0):
                return None
        return self.recount.tokens()

    def event(
        self,
        *,
        hold_id: UUID,
        request_id: UUID,
        attempt: int,
        opened: Opened,
        api_key_id: UUID,
        occurred_at: datetime,
        finish: Finish,
        bytes_in: int,
        bytes_out: int,
        first_byte_ms: int | None,
        duration_ms: int,
        part: int = 0,
        counts: Mapping[Bucket, int] | None = None,
    ) -> bytes:
        """The gateway's usage event, one NDJSON line. Its id is the hold's: captured again, it is the same event.

        Of two parts, `counts` are the one's; the recount is of the whole text and stands for neither.
        """
        assert opened.contract_id is not None
        assert opened.offering_id is not None
        assert opened.grade_id is not None
        assert opened.rate_id is not None
        assert opened.period_start is not None
        recount = None if Flag.SPLIT in self.flags else self._witness()
        event = UsageEvent(
            id=hold_id,
            sequence=1,
            request_id=request_id,
            attempt=attempt,
            part=part,
            contract_id=opened.contract_id,
            offering_id=opened.offering_id,
            grade_id=opened.grade_id,
            rate_id=opened.rate_id,
            period_start=opened.period_start.astimezone(UTC),
            occurred_at=occurred_at,
            buckets=dict(self.counts() if counts is None else counts),
            finish=finish,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            duration_ms=duration_ms,
            api_key_id=api_key_id,
            flags=tuple(sorted(self.flags)),
            first_byte_ms=first_byte_ms,
            unproved=self._unproved,
            recount_o200k=recount,
        )
        return encode_event(event) + b"\n"
