"""``kosbert-ray export``: an output in another tool's form."""

from __future__ import annotations

import argparse

from kosbert_ray.cli.common import Commands, add_config, job_config, say


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "export",
        help="write an output as .npy files or as a Lance dataset",
        description="Writes the complete OUTPUT into FOLDER: text_emb/*.npy with metadata/*.parquet beside them, as "
        "clip-retrieval and autofaiss read them, or a Lance dataset. Run again, .npy files that are there stay, and a "
        "Lance dataset gets a new version.",
    )
    parser.add_argument("output", metavar="OUTPUT", help="an embedded folder or s3:// URL")
    parser.add_argument("folder", metavar="FOLDER", help="where to: a folder or s3:// URL")
    parser.add_argument("--format", choices=("npy", "lance"), default="npy", help="default: npy")
    parser.add_argument("--column", metavar="NAME", help="of several columns of vectors, this one")
    add_config(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = job_config(arguments, {"output": "output.path"})
    from kosbert_ray.outputs.export import export

    done = export(config, arguments.folder, arguments.format, arguments.column, say)
    print(f"exported: {done.rows:,} rows to {done.address}" + (f", {done.kept:,} files were there" if done.kept else ""))
    return 0
