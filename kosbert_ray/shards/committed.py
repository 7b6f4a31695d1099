"""An index of the slices that an output holds for one job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kosbert_ray.shards.receipt import Receipt


@dataclass
class Committed:
    """Receipts of committed slices, by fragment id and slice index."""

    by_fragment: dict[str, dict[int, Receipt]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, receipt: Receipt) -> None:
        """Adds one slice."""
        self.by_fragment[receipt.fragment][receipt.slice_index] = receipt

    def drop(self, receipt: Receipt) -> None:
        """Removes a slice, so that it is recomputed."""
        self.by_fragment.get(receipt.fragment, {}).pop(receipt.slice_index, None)

    def all(self) -> Iterator[Receipt]:
        """Iterates over all receipts."""
        for slices in self.by_fragment.values():
            yield from slices.values()

    def receipts(self, fragments: Iterable[str]) -> list[Receipt]:
        """Returns the receipts of these fragments, in the order given and by slice index."""
        return [receipt for fragment in fragments for _, receipt in sorted(self.by_fragment.get(fragment, {}).items())]

    def done(self, fragment: str) -> frozenset[int]:
        """Returns the indices of the fragment's committed slices."""
        return frozenset(self.by_fragment.get(fragment, ()))

    def complete(self, fragment: str) -> bool:
        """True if every slice of the fragment is committed, from 0 to the one marked as the last."""
        slices = self.by_fragment.get(fragment, {})
        if len(slices) == 1:  # as of most small files
            return 0 in slices and slices[0].last
        last = [index for index, receipt in slices.items() if receipt.last]
        return bool(last) and all(index in slices for index in range(last[0]))

    def cuts(self) -> dict[tuple[str, str], set[str]]:
        """Returns the cuts of the committed slices by input file, a pair of name and version."""
        cuts: dict[tuple[str, str], set[str]] = defaultdict(set)
        for receipt in self.all():
            cuts[receipt.file, receipt.version].add(receipt.cut)
        return cuts

    def versions(self) -> dict[str, set[str]]:
        """Returns the embedded versions of each input file, by file name."""
        versions: dict[str, set[str]] = defaultdict(set)
        for receipt in self.all():
            versions[receipt.file].add(receipt.version)
        return versions
