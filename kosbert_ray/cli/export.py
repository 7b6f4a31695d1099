"""``kosbert-ray export``: writes an output in another tool's format."""

from __future__ import annotations

import argparse

from kosbert_ray.cli.common import READS_OUTPUT, Commands, add_config, add_output, output_config, size_of
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.errors import UsageError
from kosbert_ray.outputs.export.table import EXPORTERS
from kosbert_ray.units import plural

EXAMPLES = (
    ("export for clip-retrieval, autofaiss and FAISS", "kosbert-ray export vectors/ npy/"),
    ("write files for the bulk API of OpenSearch", "kosbert-ray export vectors/ documents/ --format ndjson"),
    ("write few large files", "kosbert-ray export vectors/ large/ --format parquet --shard-size 256MB"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "export",
        help="write an output as .npy files, as NDJSON for OpenSearch or as few large Parquet files",
        description="Writes the complete OUTPUT into FOLDER: text_emb/*.npy with metadata/*.parquet beside them, as "
        "clip-retrieval and autofaiss read them, .ndjson files for the bulk API of OpenSearch and Elasticsearch, or few "
        "large Parquet files. A second export keeps the files that are there. For databases, see kosbert-ray load.",
    )
    add_output(parser)
    parser.add_argument("folder", metavar="FOLDER", help="the destination: a folder or s3:// URL")
    parser.add_argument("--format", choices=tuple(EXPORTERS), default="npy", help="default: npy")
    parser.add_argument("--column", metavar="NAME", help="the column of vectors to export, if there are several")
    parser.add_argument("--shard-size", metavar="SIZE", help="with --format parquet: bytes of a file (default: 256MB)")
    parser.add_argument(
        "--token-ids",
        action="store_true",
        help="with --format ndjson: keys of sparse vectors are token ids, not tokens (for OpenSearch's sparse_vector)",
    )
    add_config(parser, uses=(*READS_OUTPUT, "model.mirror", "model.allow_remote_code"))
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = output_config(arguments)
    from kosbert_ray.outputs.export.base import export

    if arguments.shard_size and arguments.format != "parquet":
        raise UsageError("--shard-size: for --format parquet only")
    if arguments.token_ids and arguments.format != "ndjson":
        raise UsageError("--token-ids: for --format ndjson only")
    shard_size = size_of("--shard-size", arguments.shard_size)
    if shard_size == 0:
        raise UsageError("--shard-size: is 0; write it like 256MB")
    from kosbert_ray.outputs.output import Output

    exporter = EXPORTERS[arguments.format]()
    done = export(Output(config), arguments.folder, exporter, arguments.column, shard_size, arguments.token_ids)
    files = "" if done.files is None else f" in {plural(done.files, 'file')}"
    print(
        f"exported: {plural(done.rows, 'row')}{files} to {done.address}"
        + (f", {plural(done.kept, 'file', 'were')} already there" if done.kept else "")
    )
    return 0
