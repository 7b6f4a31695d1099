"""Sums over receipts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from operator import attrgetter

from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.units import plural

MANY_TRUNCATED = 0.01  # of the rows: worth a warning


@dataclass
class Totals:
    """Sums over receipts."""

    slices: int = 0
    rows: int = 0
    rejected: int = 0
    distinct: int = 0
    tokens: int = 0
    encoded_tokens: int = 0
    split: int = 0
    truncated: int = 0
    dropped_tokens: int = 0
    input_rows: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    unknown_tokens: int = 0
    reused: int = 0

    @staticmethod
    def of(receipts: Iterable[Receipt]) -> Totals:
        """Sums over ``receipts``."""
        receipts = list(receipts)
        names = [field.name for field in fields(Totals)][1:]
        sums = map(sum, zip(*map(attrgetter(*names), receipts), strict=True))
        totals = Totals(sum(bool(receipt.shard) for receipt in receipts), *sums)
        totals.input_rows += sum(_uncounted_rows(receipt) for receipt in receipts if not receipt.input_rows)
        return totals

    def add(self, receipt: Receipt) -> None:
        """Adds one receipt."""
        self.slices += bool(receipt.shard)
        for name in list(vars(self))[1:]:
            setattr(self, name, getattr(self, name) + getattr(receipt, name))
        if not receipt.input_rows:
            self.input_rows += _uncounted_rows(receipt)

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def tokens_left(self, input_bytes: int) -> float:
        """Estimates the remaining tokens of a corpus of ``input_bytes`` from the tokens per byte so far."""
        return max(0, input_bytes - self.input_bytes) * self.tokens / max(1, self.input_bytes)

    def truncation(self) -> str:
        """Describes what was cut off, and what to do, where it concerns many rows; otherwise empty."""
        if self.truncated <= MANY_TRUNCATED * self.rows:
            return ""
        lost = self.dropped_tokens / max(1, self.tokens + self.dropped_tokens)
        return (
            f"{self.truncated / self.rows:.1%} of the rows are longer than the model's maximum; {lost:.1%} of all "
            "tokens were cut off. Set long_text=chunk or long_text=mean to embed whole texts"
        )

    def long_texts(self) -> str:
        """Describes texts that were longer than the model's limit; empty if there were none."""
        parts = [f"{self.split:,} long texts split into chunks"] if self.split else []
        if self.truncated:
            share = self.truncated / max(1, self.rows)
            parts.append(
                f"{plural(self.truncated, 'row')} truncated by {plural(self.dropped_tokens, 'token')} "
                f"({share:.1%} of the rows)"
            )
        return ", ".join(parts)


def _uncounted_rows(receipt: Receipt) -> int:
    """Input rows of a receipt that does not count them, as in early versions: each made one row."""
    return receipt.rows + receipt.rejected
