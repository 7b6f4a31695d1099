"""``kosbert-ray search``: shows the rows of an output nearest to some texts."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kosbert_ray.cli.common import Commands, add_config, job_config
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.errors import InputError, UsageError

if TYPE_CHECKING:
    from kosbert_ray.outputs.search import Hit

EXAMPLES = (
    ("run one query", "kosbert-ray search vectors/ '환불은 어떻게 하나요?' -k 5"),
    ("run many queries, for a program", "kosbert-ray search vectors/ --queries questions.txt --format jsonl"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "search",
        help="show the rows of an output nearest to a query",
        description="Encodes QUERY with the output's own model, compares it with every row and shows the nearest.",
    )
    parser.add_argument("output", metavar="OUTPUT", help="an embedded folder or s3:// URL")
    parser.add_argument("query", nargs="*", metavar="QUERY", help="any text")
    parser.add_argument("--queries", metavar="FILE", help="a text file with one query per line")
    parser.add_argument("-k", "--top-k", type=int, default=10, metavar="N", help="rows per query (default: 10)")
    parser.add_argument("--similarity", choices=["cosine", "dot"], default="cosine", help="default: cosine")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", metavar="TEXT", help="put before each query; by default the model's prompt for queries"
    )
    prompts.add_argument("--prompt-name", metavar="NAME", help="one of the model's own prompts instead")
    parser.add_argument("--format", choices=["table", "jsonl", "parquet"], default="table", help="default: table")
    parser.add_argument("--to", metavar="FILE", help="write to this file; required for parquet")
    add_config(parser)
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = job_config(arguments, {"output": "output.path", "prompt": "model.prompt", "prompt_name": "model.prompt_name"})
    queries = [*map(_utf8, arguments.query), *(_lines(arguments.queries) if arguments.queries else [])]
    if not queries:
        raise UsageError("QUERY: give a text to look for, or --queries FILE")
    if arguments.format == "parquet" and not arguments.to:
        raise UsageError("--to: name the file to write the Parquet to")
    from kosbert_ray.outputs.output import Output
    from kosbert_ray.outputs.search import search

    model = config.model  # only the prompt options are used
    prompt = None if arguments.prompt_name else model.prompt  # a job file may set one
    output = Output(config)
    hits = search(output, queries, arguments.top_k, arguments.similarity, prompt, model.prompt_name)
    if arguments.format == "parquet":
        _write_parquet(hits, arguments.to)
        return 0
    lines = [_json(hit) for hit in hits] if arguments.format == "jsonl" else _table(hits, len(queries) > 1)
    if arguments.to:
        _write(arguments.to, "".join(f"{line}\n" for line in lines).encode())
    else:
        for line in lines:
            print(line)
    return 0


def _utf8(query: str) -> str:
    """Decodes an argument as UTF-8, whatever the encoding of the locale."""
    try:
        return os.fsencode(query).decode()
    except UnicodeError as error:
        raise UsageError(f"QUERY: {query!r} is not UTF-8 text") from error


def _lines(path: str) -> list[str]:
    try:
        return [line for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def _table(hits: list[Hit], several: bool) -> list[str]:
    lines: list[str] = []
    for hit in hits:
        if several and hit.rank == 1:
            lines.append(f"{'' if not lines else chr(10)}{hit.query}")
        kept = "  ".join(str(value) for value in hit.columns.values())
        lines.append(f"{hit.score:7.4f}  {kept or f'{hit.shard} row {hit.row}'}")
    return lines


def _record(hit: Hit) -> dict[str, object]:
    place = {"query": hit.query, "rank": hit.rank, "score": hit.score, "shard": hit.shard, "row": hit.row}
    return {**hit.columns, **place} if not {*hit.columns} & {*place} else {**place, "columns": hit.columns}


def _json(hit: Hit) -> str:
    return json.dumps(_record(hit), ensure_ascii=False, default=str)


def _write_parquet(hits: list[Hit], path: str) -> None:
    import pyarrow as pa

    from kosbert_ray.storage.parquet import to_parquet

    _write(path, to_parquet(pa.Table.from_pylist([_record(hit) for hit in hits])).to_pybytes())


def _write(path: str, content: bytes) -> None:
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise UsageError(f"--to {path}: {error.strerror or error}") from error
