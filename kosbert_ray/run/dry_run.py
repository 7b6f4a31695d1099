"""The dry run: a summary of what a run would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.listing import Corpus
from kosbert_ray.run.finalize import Leftover
from kosbert_ray.shards.ledger import Committed
from kosbert_ray.units import data_size, plural


@dataclass(frozen=True)
class Preview:
    """A summary of what a run would do.

    Attributes:
        output: the output directory.
        files: number of input files.
        committed: number of committed slices that stay.
        new: number and bytes of files without committed slices.
        changed: files committed in another version, each with how the change was noticed.
        partial: files of which some slices are committed.
        removed: shards that would be deleted, each with its input file.
        kept: number of shards that are kept although their files were removed.
        failed: one line for each file that cannot be embedded.
        left: share of the input's bytes that is not committed.
        tokens_per_second: tokens that one encoder encoded per second in the runs so far; None if there are none.
        retired: whether ``removed`` are kept for readers of published tables.
    """

    output: str
    files: int
    committed: int
    new: tuple[int, int]
    changed: dict[str, str]
    partial: tuple[str, ...]
    removed: dict[str, str]
    kept: int
    failed: tuple[str, ...] = ()
    left: float = 1.0
    tokens_per_second: float | None = None
    retired: bool = False

    def lines(self) -> list[str]:
        """The summary as text, with one line for each shard that would be deleted."""
        count, size = self.new
        verb = "retire" if self.retired else "delete"
        lines = [
            f"{self.output}: {plural(self.files, 'file')} in the input, "
            f"{plural(self.committed, 'slice', 'are')} committed already",
            f"to embed: {plural(count, 'new file')} ({data_size(size)}), {len(self.changed):,} changed, "
            f"{len(self.partial):,} partly committed",
            f"to {verb}: {plural(len(self.removed), 'shard')}; {plural(self.kept, 'shard')} of removed files would be kept",
        ]
        lines += [f"changed {name}: {reason}" for name, reason in sorted(self.changed.items())]
        lines += [f"failed: {reason}" for reason in self.failed]
        return [*lines, *(f"{verb} {shard} (of {file})" for shard, file in sorted(self.removed.items()))]

    @staticmethod
    def of(
        output: str,
        corpus: Corpus,
        fragments: list[Fragment],
        committed: Committed,
        left: Leftover,
        changes: Mapping[str, str],
        retired: bool = False,
    ) -> Preview:
        """Compares the plan with what is committed.

        Args:
            output: the output directory.
            corpus: the input.
            fragments: the plan.
            committed: the committed slices.
            left: committed slices that are not in the plan.
            changes: changed files, each with how the change was noticed.
            retired: whether shards are kept for readers of published tables.
        """
        seen = {receipt.file for receipt in [*left.delete, *left.keep]}
        done: dict[str, list[bool]] = {}
        for item in fragments:
            done.setdefault(item.file.name, []).append(committed.complete(item.id))
        begun = {item.file.name for item in fragments if committed.done(item.id)}
        sizes = {file.name: file.size for file in corpus.files}
        todo = [name for name, complete in done.items() if not all(complete)]
        new = [name for name in todo if name not in begun and name not in seen]
        receipts = committed.receipts(item.id for item in fragments)
        seconds = sum(receipt.encode_seconds for receipt in receipts)
        opened = [item for item in fragments if not committed.complete(item.id)]
        left_bytes = sum(item.input_bytes for item in opened)
        left_bytes -= sum(receipt.input_bytes for receipt in committed.receipts(item.id for item in opened))
        return Preview(
            output=output,
            files=len(corpus.files),
            committed=len(receipts),
            new=(len(new), sum(sizes[name] for name in new)),
            changed={name: changes.get(name, "it is split differently") for name in todo if name in seen},
            partial=tuple(name for name in todo if name in begun and name not in seen),
            removed={receipt.shard: receipt.file for receipt in left.delete if receipt.shard},
            kept=sum(bool(receipt.shard) for receipt in left.keep),
            failed=tuple(file.reason for file in corpus.failed),
            left=max(0.0, left_bytes / max(1, corpus.size)),
            tokens_per_second=sum(receipt.encoded_tokens for receipt in receipts) / seconds if seconds else None,
            retired=retired,
        )
