"""``kosbert-ray search``: shows the rows of an output nearest to some texts."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kosbert_ray.cli.common import (
    ENCODES,
    Commands,
    add_config,
    add_output,
    add_output_file,
    job_config,
    one_line,
    output_config,
    table_lines,
    terminal_width,
    write_file,
)
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.errors import InputError, KosbertError, UsageError

if TYPE_CHECKING:
    from kosbert_ray.outputs.output import Output
    from kosbert_ray.outputs.search import Hit

log = logging.getLogger(__name__)

# What a record says of a hit beside its kept columns, and its Arrow type.
PLACE = {"query": "string", "rank": "int64", "score": "float64", "shard": "string", "row": "int64"}

EXAMPLES = (
    ("run one query", "kosbert-ray search vectors/ '환불은 어떻게 하나요?' -k 5"),
    ("compare token vectors, too", "kosbert-ray search vectors/ '환불은 어떻게 하나요?' --by hybrid"),
    ("run many queries, for a program", "kosbert-ray search vectors/ --queries questions.txt --format jsonl"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "search",
        help="show the rows of an output nearest to a query",
        description="Encodes QUERY with the output's own model and shows the nearest rows: by the output's index "
        "(kosbert-ray index) if there is one, else compared with every row.",
    )
    add_output(parser)
    parser.add_argument("query", nargs="*", metavar="QUERY", help="any text; without one, a terminal asks for queries")
    parser.add_argument("--queries", metavar="FILE", help="a text file with one query per line")
    parser.add_argument("-k", "--top-k", type=int, default=10, metavar="N", help="rows per query (default: 10)")
    parser.add_argument("--exact", action="store_true", help="compare with every row, although there is an index")
    parser.add_argument(
        "--similarity", choices=["cosine", "dot"], default="cosine", help="of dense vectors (default: cosine)"
    )
    parser.add_argument(
        "--by",
        choices=["dense", "sparse", "multi_vector", "hybrid"],
        help="kind of vectors to compare, or all that the output has; by default the first that it has of these",
    )
    parser.add_argument(
        "--rerank",
        type=int,
        default=0,
        metavar="N",
        help="with --by multi_vector: compare token vectors of the N nearest by dense or sparse vectors only",
    )
    parser.add_argument(
        "--fusion",
        choices=["standardized", "reciprocal_rank"],
        help="how --by hybrid combines scores (default: standardized)",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", metavar="TEXT", help="put before each query; by default the model's prompt for queries"
    )
    prompts.add_argument("--prompt-name", metavar="NAME", help="one of the model's own prompts instead")
    parser.add_argument("--format", choices=["table", "jsonl", "parquet"], default="table", help="default: table")
    parser.add_argument("--json", action="store_const", const="jsonl", dest="format", help="the same as --format jsonl")
    add_output_file(parser, help="write to this file; required for parquet")
    add_config(parser, uses=(*ENCODES, "model.prompt", "model.prompt_name"))
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    prompts = {"prompt": "model.prompt", "prompt_name": "model.prompt_name"}
    config = job_config(arguments, prompts)
    if config.output.path and arguments.output is not None:  # the job file names the output
        arguments.query = [arguments.output, *arguments.query]
    else:
        config = output_config(arguments, **prompts)
    queries = [*map(_utf8, arguments.query), *(_lines(arguments.queries) if arguments.queries else [])]
    asking = not arguments.query and not arguments.queries and sys.stdin.isatty() and sys.stdout.isatty()
    if not queries and not asking:
        raise UsageError("QUERY: give a text to look for, or --queries FILE")
    if arguments.format == "parquet" and not arguments.to:
        raise UsageError("-o: name the file to write the Parquet to")
    from kosbert_ray.outputs.output import Output
    from kosbert_ray.outputs.search import Searcher

    model = config.model  # only the prompt options are used
    prompt = None if arguments.prompt_name else model.prompt  # a job file may set one
    output = Output(config)
    searcher = Searcher(output, prompt, model.prompt_name)

    def find(queries: list[str]) -> list[Hit]:
        return searcher.search(
            queries,
            arguments.top_k,
            arguments.similarity,
            arguments.exact,
            arguments.by,
            arguments.rerank,
            arguments.fusion,
        )

    if asking:
        _ask(find)
        return 0
    hits = find(queries)
    if arguments.format == "parquet":
        _write_parquet(hits, output, arguments.to)
        return 0
    width = None if arguments.to else terminal_width()
    lines = [_json(hit) for hit in hits] if arguments.format == "jsonl" else tables(hits, width, len(queries) > 1)
    if arguments.to:
        write_file(arguments.to, "".join(f"{line}\n" for line in lines).encode())
    else:
        for line in lines:
            print(line)
    return 0


def _ask(find: Callable[[list[str]], list[Hit]]) -> None:
    """Answers queries that are typed at a terminal until it ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() a history)
    find(["가"])  # loads the model before the first query
    while True:
        try:
            query = input("query> ")
        except EOFError:
            print()
            return
        if not query.strip():
            continue
        try:
            lines = tables(find([_utf8(query)]), terminal_width(), False)
        except KosbertError as error:  # of this query; the next may be better
            log.error(error)
            continue
        for line in lines:
            print(line)


def _utf8(query: str) -> str:
    """Decodes an argument as UTF-8, whatever the encoding of the locale."""
    try:
        text = os.fsencode(query).decode()
    except UnicodeError as error:
        raise UsageError(f"QUERY: {query!r} is not UTF-8 text") from error
    if not text.strip():
        raise UsageError("QUERY: is empty; give a text to look for")
    return text


def _lines(path: str) -> list[str]:
    try:
        return [line for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def tables(hits: list[Hit], width: int | None, headed: bool) -> list[str]:
    """A table for each query.

    Args:
        hits: of some queries, query by query.
        width: of the terminal; None to cut no line.
        headed: whether each table is under its query.
    """
    starts = [number for number, hit in enumerate(hits) if hit.rank == 1]
    lines: list[str] = []
    for start, end in zip(starts, [*starts[1:], len(hits)], strict=False):
        if headed:
            lines += [*([""] if lines else []), one_line(hits[start].query)]
        lines += table_lines(_rows(hits[start:end]), width)
    return lines


def _rows(hits: list[Hit]) -> list[list[str]]:
    """Cells of a query's hits, a header first. Texts come last; rows that differ in nothing but their place are one."""
    from kosbert_ray.config import TEXT_HASH

    shown = [name for name in hits[0].columns if name != TEXT_HASH]
    names = sorted(shown, key=lambda name: name in ("text", "chunk_text"))
    rows: dict[tuple[str, ...], int] = {}
    for hit in hits:
        values = [one_line(_spelled(hit.columns[name])) for name in names] or [hit.shard, str(hit.row)]
        row = (f"{hit.score:.4f}", *values)
        rows[row] = rows.get(row, 0) + 1
    header = ["score", *(names or ["shard", "row"])]
    times = any(count > 1 for count in rows.values())
    if times:
        header.insert(1, "rows")
    return [header, *([row[0], *([str(count)] if times else []), *row[1:]] for row, count in rows.items())]


def _record(hit: Hit) -> dict[str, object]:
    place = {name: getattr(hit, name) for name in PLACE}
    return {**hit.columns, **place} if not {*hit.columns} & {*place} else {**place, "columns": hit.columns}


def _json(hit: Hit) -> str:
    return json.dumps(_record(hit), ensure_ascii=False, default=_spelled)


def _spelled(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _write_parquet(hits: list[Hit], output: Output, path: str) -> None:
    import pyarrow as pa

    from kosbert_ray.storage.parquet import to_parquet

    table = pa.Table.from_pylist([_record(hit) for hit in hits])
    if not hits:  # no rows, but the columns
        kept = [field for field in output.dataset().schema if field.name in output.columns]
        place = [pa.field(name, kind) for name, kind in PLACE.items()]
        clash = {field.name for field in kept} & {*PLACE}
        fields = [*place, pa.field("columns", pa.struct(kept))] if clash else [*kept, *place]
        table = pa.schema(fields).empty_table()
    write_file(path, to_parquet(table).to_pybytes())
