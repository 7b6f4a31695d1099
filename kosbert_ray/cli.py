"""The ``kosbert-ray`` command: parses arguments, prints results, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 usage, 3 done but with more rejected rows than ``max_rejected`` allows, 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from kosbert_ray import __version__
from kosbert_ray.errors import KosbertError, VerifyFailed

if TYPE_CHECKING:
    from kosbert_ray.job.config import JobConfig

EXIT_REJECTED = 3
EXIT_INTERRUPTED = 130
INTERRUPTED = "interrupted: what is committed stays; run the same command again to go on"
GRACE_SECONDS = 20.0
SHOWN_PROBLEMS = 50


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives the exit code."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        return int(arguments.run(arguments))
    except KosbertError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say(INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    """Ends the run in good order, or at once if that takes too long or the user insists."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _abandon())
    timer = threading.Timer(GRACE_SECONDS, _abandon)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _abandon() -> NoReturn:
    _say(INTERRUPTED)
    os._exit(EXIT_INTERRUPTED)


def _say(line: str) -> None:
    print(f"kosbert-ray: {line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kosbert-ray", description="Sentence embeddings of a large text corpus, on Ray.")
    parser.add_argument("--version", action="version", version=f"kosbert-ray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    embed = commands.add_parser(
        "embed",
        help="turn text shards into Parquet shards of vectors",
        description="Embeds every row of INPUT into OUTPUT. Run it again after a crash: it does what is left.",
    )
    embed.add_argument("input", nargs="?", metavar="INPUT", help="file, folder, glob or s3:// URL (input.path)")
    embed.add_argument("output", nargs="?", metavar="OUTPUT", help="folder or s3:// URL (output.path)")
    embed.add_argument("--model", metavar="NAME", help="hub name, folder, s3:// URL or bundled:NAME (model.name)")
    embed.add_argument("--text", metavar="COLUMN", help="the text column (input.text; default: text)")
    embed.add_argument("--keep", metavar="COLUMNS", help="columns to carry through, with commas (input.keep)")
    _add_config(embed)
    embed.set_defaults(run=_embed)

    search = commands.add_parser(
        "search",
        help="show the rows of an output nearest to a query",
        description="Encodes QUERY with the output's own model and shows the rows nearest by cosine.",
    )
    search.add_argument("output", metavar="OUTPUT", help="an embedded folder or s3:// URL")
    search.add_argument("query", metavar="QUERY", help="any text")
    search.add_argument("--top", type=int, default=5, metavar="N", help="how many rows (default: 5)")
    _add_config(search)
    search.set_defaults(run=_search)

    verify = commands.add_parser(
        "verify",
        help="prove that an output is whole and right",
        description="Reads all of OUTPUT: every shard whole and as it was written, every slice there once; with --input, "
        "every row of it accounted for.",
    )
    verify.add_argument("output", metavar="OUTPUT", help="an embedded folder or s3:// URL")
    verify.add_argument("--input", metavar="INPUT", help="what it was made of: counted anew, slice by slice")
    verify.add_argument("--sample", type=int, default=0, metavar="N", help="embed N rows again and compare")
    _add_config(verify)
    verify.set_defaults(run=_verify)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a job file in YAML")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="encoder.precision=bf16, …")


def _config(arguments: argparse.Namespace, names: dict[str, str]) -> JobConfig:
    from kosbert_ray.job.config import load_config

    given = {name: value for option, name in names.items() if (value := getattr(arguments, option)) is not None}
    return load_config(arguments.config, arguments.set, given)


def _embed(arguments: argparse.Namespace) -> int:
    names = {
        "input": "input.path",
        "output": "output.path",
        "model": "model.name",
        "text": "input.text",
        "keep": "input.keep",
    }
    config = _config(arguments, names)
    from kosbert_ray.job.lifecycle import embed
    from kosbert_ray.job.progress import duration

    summary = embed(config, _say)
    totals, new = summary.totals, summary.new
    if new.slices:
        rate = new.tokens / summary.seconds
        _say(
            f"{new.rows:,} rows in {duration(summary.seconds)}: {new.rows / summary.seconds:,.0f} rows/s, "
            f"{rate:,.0f} tokens/s; first slice after {summary.first_slice_seconds or 0:.1f} s; "
            f"{new.distinct:,} distinct texts encoded, {new.truncated:,} truncated"
        )
    if summary.removed:
        _say(f"{summary.removed:,} shards of changed inputs were replaced")
    rejected = f", {totals.rejected:,} rows rejected (see _kosbert/rejected)" if totals.rejected else ""
    print(f"done: {totals.rows:,} rows in {totals.slices:,} shards in {summary.output}{rejected}")
    if not summary.within_limit:
        _say(f"error: more rows were rejected than max_rejected={config.max_rejected:g} allows")
        return EXIT_REJECTED
    return 0


def _search(arguments: argparse.Namespace) -> int:
    config = _config(arguments, {"output": "output.path"})
    from kosbert_ray.job.search import search

    found = search(config, arguments.query, arguments.top, _say)
    for hit in found:
        kept = "  ".join(str(value) for value in hit.row.values())
        print(f"{hit.score:7.4f}  {kept or hit.shard}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    config = _config(arguments, {"output": "output.path", "input": "input.path"})
    from kosbert_ray.job.verify import verify

    found = verify(config, arguments.sample, _say)
    for problem in found.problems[:SHOWN_PROBLEMS]:
        _say(f"problem: {problem}")
    if len(found.problems) > SHOWN_PROBLEMS:
        _say(f"… and {len(found.problems) - SHOWN_PROBLEMS:,} more")
    if found.problems:
        raise VerifyFailed(f"{found.output}: {len(found.problems):,} problems; delete what is broken and run the job again")
    parts = [f"{found.rows:,} rows in {found.shards:,} shards, {found.rejected:,} rejected"]
    if found.input_rows is not None:
        parts.append(f"all {found.input_rows:,} rows of the input accounted for")
    if found.sampled:
        parts.append(f"{found.sampled:,} rows embedded again, cosine at least {found.agreement:.6f}")
    print(f"verified: {found.output}: {', '.join(parts)}; {found.bytes / 1e6:,.1f} MB in {found.seconds:,.1f} s")
    return 0


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the installed command: :func:`main`, and then the end of the process."""
    code = main(argv)
    if code == EXIT_INTERRUPTED:
        # A Ray that was interrupted in its start can keep an interpreter from ending, when no timer of ours runs any more.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
