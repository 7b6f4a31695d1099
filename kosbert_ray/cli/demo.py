"""``kosbert-ray demo``: embeds bundled sentences with a bundled model and searches them."""

from __future__ import annotations

import argparse
import os
from typing import Any

from kosbert_ray.cli.common import Commands, terminal_width
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR

FOLDER = "demo-out"
MODEL, INPUT, MAX_ROWS = "bundled:kosbert-mini", "bundled:everyday", 65
QUERY = "비가 오는 날에는 무엇을 먹을까?"
TOP_K = 5
VECTORS = (DENSE, MULTI_VECTOR)

EXAMPLES = (("see it work in ten seconds, without a download", "kosbert-ray demo"),)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "demo",
        help="embed bundled sentences and search them",
        description="Embeds 520 bundled sentences with the bundled model kosbert-mini into FOLDER, and searches them by "
        "one vector a text and by one a token. Downloads nothing, and prints the commands that do the same.",
    )
    parser.add_argument("folder", nargs="?", default=FOLDER, metavar="FOLDER", help=f"the output (default: {FOLDER})")
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    folder = arguments.folder
    vectors = f"--set output.vectors={','.join(VECTORS)}"
    _show(f"kosbert-ray embed {INPUT} {folder} --model {MODEL} --keep id {vectors} --set slice.max_rows={MAX_ROWS}")
    from kosbert_ray.api import embed
    from kosbert_ray.cli.search import tables
    from kosbert_ray.outputs.output import Output

    options: dict[str, Any] = {"output": {"vectors": list(VECTORS)}, "slice": {"max_rows": MAX_ROWS}}
    summary = embed(INPUT, folder, model=MODEL, keep="id", **options)
    print(summary.result())
    _show(f"ls {folder}")
    print("  ".join(sorted(name for name in os.listdir(folder) if not name.startswith("_"))[:2]) + "  …")
    output = Output.open(summary)
    for by in VECTORS:
        _show(f'kosbert-ray search {folder} "{QUERY}" -k {TOP_K} --by {by}')
        for line in tables(output.search(QUERY, TOP_K, by=by), terminal_width(), False):
            print(line)
    print(
        f"\nNext: kosbert-ray report {folder} -o report.html, or embed your own texts: kosbert-ray embed corpus/ vectors/"
    )
    return 0


def _show(command: str) -> None:
    print(f"\n$ {command}", flush=True)
