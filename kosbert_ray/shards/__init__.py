"""Parquet shards of vectors, and the ledger of committed slices.

Reading order: ``fingerprint`` (identifies the job of an output) → ``shard`` (the file of one slice: schema, bytes, commit)
→ ``receipt`` (facts about a committed slice) → ``ledger`` (what an output holds), which puts together ``job_file``,
``receipt_files``, ``committed`` and ``manifest``.
"""
