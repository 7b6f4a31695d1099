"""The output as one run sees it: who owns it, what is committed, and which input files are unchanged since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.corpus.identity import FileHashes
from kosbert_ray.corpus.listing import Corpus
from kosbert_ray.errors import FingerprintMismatch, StorageError
from kosbert_ray.model.prepare import PreparedModel
from kosbert_ray.run.notices import Notices
from kosbert_ray.shards.field_ids import ENTRY, field_ids
from kosbert_ray.shards.fingerprint import Fingerprint
from kosbert_ray.shards.ledger import Committed, Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.shards.shard import read_schema
from kosbert_ray.shards.totals import Totals
from kosbert_ray.shards.vector_types import Ranges
from kosbert_ray.units import plural

if TYPE_CHECKING:
    from kosbert_ray.run.executors.base import Pending


class Raced(Exception):
    """Another run claimed a new output first. Its settings apply, so this run plans again."""


class OutputState:
    """The output directory during one run.

    Attributes:
        ledger: its files.
        stored: the content of job.json; empty for a new output.
        digest: the digest that names the job in shards; set by :meth:`claim` or :meth:`join`.
        committed: committed slices, once :meth:`look` has read them.
        changes: for input files that changed since they were embedded, how that was noticed.
    """

    def __init__(self, ledger: Ledger, stored: Mapping[str, Any], notices: Notices) -> None:
        self.ledger, self.stored, self._notices = ledger, stored, notices
        self.digest = ""
        self.committed = Committed()
        self.changes: dict[str, str] = {}
        self.hashes: FileHashes

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The fingerprint in job.json; empty for a new output."""
        found: Mapping[str, Any] = self.stored.get("fingerprint", {})
        return found

    @property
    def ranges(self) -> Ranges:
        """int8's ranges in job.json."""
        return tuple(tuple(values) for values in self.fingerprint.get("ranges", ()))

    @property
    def has_field_ids(self) -> bool:
        """True if the columns of its shards have field ids."""
        return ENTRY in self.stored

    def has_old_shards(self) -> bool:
        """True if there is a shard whose columns have no field ids, as in outputs of version 0.1.0 that lost job.json."""
        schemas = (read_schema(self.ledger.storage, name) for name in self.ledger.each_shard())
        first = next((schema for schema in schemas if schema is not None), None)
        return first is not None and not field_ids(first)

    def claim(
        self, fingerprint: Fingerprint, model: PreparedModel, config: Mapping[str, Any], more: Mapping[str, Any]
    ) -> None:
        """Claims the output for this job, or joins the job that it belongs to.

        Args:
            fingerprint: the job's.
            model: the job's model.
            config: the job's options, for job.json.
            more: further content of job.json.

        Raises:
            FingerprintMismatch: it belongs to another job.
            Raced: another run claimed it since this run looked.
        """
        try:
            self.digest = self.ledger.claim(fingerprint, config, more, model.same_weights(self.fingerprint))
        except FingerprintMismatch as error:
            if not self.stored and not self.ledger.is_abandoned(self.ledger.job()):
                raise Raced from error
            raise
        if not self.stored:
            self.stored = self.ledger.job()
            if self.stored.get("run") != self.ledger.run:
                raise Raced

    def join(self, fingerprint: Fingerprint, model: PreparedModel) -> bool:
        """Does the same without writing; returns False where a claim would replace an abandoned one."""
        digest = self.ledger.join(fingerprint, model.same_weights(self.fingerprint))
        self.digest = digest or ""
        return digest is not None

    def look(self, corpus: Corpus) -> Corpus:
        """Reads what is committed; returns the corpus with the versions under which its files were embedded."""
        self.committed = self.ledger.committed(self.digest)
        for receipt in self.ledger.lost_rejected(self.committed):
            self._notices.info(f"{receipt.shard}: its file of rejected rows is missing or truncated; recomputing the slice")
            self.committed.drop(receipt)
        self._notices.info(*self.ledger.notices)
        self.hashes = FileHashes(self.ledger.storage, self.ledger.run)
        return self.settle(corpus)

    def settle(self, corpus: Corpus) -> Corpus:
        """Gives files that were only touched, copied or restored the version under which they were embedded."""
        settled = self.hashes.settle(corpus, self.committed.versions())
        self.changes = settled.changed
        if settled.same:
            self._notices.info(
                f"{plural(len(settled.same), 'file', 'have')} a new modification time but the same content: unchanged"
            )
        return settled.corpus

    def pending(self, fragments: Iterable[Fragment]) -> Pending:
        """Fragments with open slices, each with the indices of its committed ones."""
        committed = self.committed
        return [(item, committed.done(item.id)) for item in fragments if not committed.complete(item.id)]

    def is_done(self, fragments: Iterable[Fragment]) -> bool:
        """True if every slice of these fragments is committed."""
        return all(self.committed.complete(fragment.id) for fragment in fragments)

    def totals(self, fragments: Iterable[Fragment]) -> Totals:
        """Sums over the committed slices of these fragments."""
        return Totals.of(self.committed.receipts(fragment.id for fragment in fragments))

    def is_whole(self, expected: Iterable[Receipt]) -> bool:
        """True if the manifest of a complete output can be read and names exactly the shards of these slices, and no others
        are kept without a reason.
        """
        try:
            manifest = self.ledger.manifest() or []
        except StorageError:
            return False
        self._notices.info(*self.ledger.notices)
        named, there = ({item.shard for item in receipts} - {""} for receipts in (manifest, expected))
        publications = self.ledger.publications
        return named == there and not self.ledger.broken and (bool(publications.tables) or not publications.records)
