"""``kosbert-ray embed``: the job itself."""

from __future__ import annotations

import argparse

from kosbert_ray.cli.common import Commands, add_config, job_config, say

EXIT_REJECTED = 3
NAMES = {
    "input": "input.path",
    "output": "output.path",
    "model": "model.name",
    "text": "input.text",
    "keep": "input.keep",
    "prune": "output.removed_inputs",
}


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "embed",
        help="turn text shards into Parquet shards of vectors",
        description="Embeds every row of INPUT into OUTPUT. Run it again after a crash: it does what is left.",
    )
    parser.add_argument("input", nargs="?", metavar="INPUT", help="file, folder, glob or s3:// URL (input.path)")
    parser.add_argument("output", nargs="?", metavar="OUTPUT", help="folder or s3:// URL (output.path)")
    parser.add_argument("--model", metavar="NAME", help="hub name, folder, s3:// URL or bundled:NAME (model.name)")
    parser.add_argument("--text", metavar="COLUMN", help="the text column (input.text; default: text)")
    parser.add_argument("--keep", metavar="COLUMNS", help="columns to carry through, with commas (input.keep)")
    parser.add_argument(
        "--prune",
        action="store_const",
        const="delete",
        help="delete the shards of files that are gone from the input (output.removed_inputs=delete)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done, embedded and removed")
    add_config(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = job_config(arguments, NAMES)
    from kosbert_ray.job.lifecycle import embed, preview
    from kosbert_ray.job.progress import duration

    if arguments.dry_run:
        for line in preview(config, say).lines():
            print(line)
        return 0
    summary = embed(config, say)
    totals, new = summary.totals, summary.new
    if new.slices:
        rate = new.tokens / summary.seconds
        say(
            f"{new.rows:,} rows in {duration(summary.seconds)}: {new.rows / summary.seconds:,.0f} rows/s, "
            f"{rate:,.0f} tokens/s; first slice after {summary.first_slice_seconds or 0:.1f} s; "
            f"{new.distinct:,} distinct texts encoded, {new.truncated:,} truncated"
        )
    if summary.removed:
        say(f"{summary.removed:,} shards of changed inputs were replaced")
    rejected = f", {totals.rejected:,} rows rejected (see _kosbert/rejected)" if totals.rejected else ""
    print(f"done: {totals.rows:,} rows in {totals.slices:,} shards in {summary.output}{rejected}")
    if not summary.within_limit:
        say(f"error: more rows were rejected than max_rejected={config.max_rejected:g} allows")
        return EXIT_REJECTED
    return 0
