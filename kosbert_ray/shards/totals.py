"""Sums over receipts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Protocol

from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE, Kind

MANY_TRUNCATED = 0.01  # of the rows: worth a warning
TRUNCATION = (
    "{rows:.1%} of the rows are longer than the model's maximum; {tokens:.1%} of all tokens were cut off. Set "
    "{remedy} to embed whole texts"
)
CHUNK_OR_MEAN, CHUNK = "long_text=chunk or long_text=mean", "long_text=chunk"
SPLIT = "{texts:,} long texts split into chunks"
TRUNCATED = "{rows} truncated by {tokens} ({share:.1%} of the rows)"


class Say(Protocol):
    """Fills in a text, maybe in another language."""

    def __call__(self, text: str, **values: Any) -> str:
        """Fills in the values of a text's fields."""
        ...

    def counted(self, n: int, noun: str) -> str:
        """A number of things."""
        ...


class _English:
    def __call__(self, text: str, **values: Any) -> str:
        return text.format(**values)

    def counted(self, n: int, noun: str) -> str:
        return plural(n, noun)


ENGLISH = _English()


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
    empty_sparse: int = 0

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

    def tokens_left(self, input_bytes: int, open_bytes: float = 0.0, open_tokens: float = 0.0) -> float:
        """Estimates the remaining tokens of a corpus of ``input_bytes`` from the tokens per byte so far.

        Args:
            input_bytes: of the corpus.
            open_bytes, open_tokens: what is encoded of slices that are not committed.
        """
        done, tokens = self.input_bytes + open_bytes, self.tokens + open_tokens
        return max(0, input_bytes - done) * tokens / max(1, done)

    def truncation(self, kinds: Sequence[Kind], say: Say = ENGLISH) -> str:
        """Describes what was cut off, and what to do, where it concerns many rows; otherwise empty.

        Args:
            kinds: of the output's vectors: a job accepts ``long_text=mean`` for dense vectors only.
            say: fills in the text.
        """
        if self.truncated <= MANY_TRUNCATED * self.rows:
            return ""
        lost = self.dropped_tokens / max(1, self.tokens + self.dropped_tokens)
        remedy = say(CHUNK_OR_MEAN if [*kinds] == [DENSE] else CHUNK)
        return say(TRUNCATION, rows=self.truncated / self.rows, tokens=lost, remedy=remedy)

    def empty_vectors(self) -> str:
        """Describes sparse vectors without values; empty if there are none."""
        return f"{plural(self.empty_sparse, 'row', 'have')} an empty sparse vector" if self.empty_sparse else ""

    def long_texts(self, say: Say = ENGLISH) -> str:
        """Describes texts that were longer than the model's limit; empty if there were none."""
        parts = [say(SPLIT, texts=self.split)] if self.split else []
        if self.truncated:
            rows, tokens = say.counted(self.truncated, "row"), say.counted(self.dropped_tokens, "token")
            parts.append(say(TRUNCATED, rows=rows, tokens=tokens, share=self.truncated / max(1, self.rows)))
        return ", ".join(parts)


def _uncounted_rows(receipt: Receipt) -> int:
    """Input rows of a receipt that does not count them, as in early versions: each made one row."""
    return receipt.rows + receipt.rejected
