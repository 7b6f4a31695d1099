"""What is written: Parquet shards of vectors, and the ledger of what has been committed.

Read it in this order: ``fingerprint`` (which job an output belongs to) → ``shard`` (one slice's file: schema, bytes,
commit) → ``receipt`` (what is remembered of it) → ``ledger`` (all of them: job.json, receipts, _SUCCESS, resuming).
"""
