"""``kosbert-ray evaluate``: evaluates a model on semantic textual similarity."""

from __future__ import annotations

import argparse
import dataclasses
import json

from kosbert_ray.cli.common import Commands, add_config, job_config, print_table
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.shards.vector_types import CODECS

EXAMPLES = (("evaluate on KorSTS", "kosbert-ray evaluate jhgan/ko-sbert-sts sts-test.tsv --dimension 256"),)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "evaluate",
        help="evaluate a model on semantic textual similarity, for each output type",
        description="Prints the correlation (x100) of the model's similarity of two sentences with human scores: Pearson "
        "and Spearman for cosine, Euclidean, Manhattan and dot.",
    )
    parser.add_argument("model", metavar="MODEL", help="{model.name}")
    parser.add_argument(
        "data", nargs="+", metavar="DATA", help="file or s3:// URL: TSV with sentence1, sentence2, score; or KLUE's JSON"
    )
    parser.add_argument("--types", default=",".join(CODECS), help="output types, comma-separated (default: all)")
    parser.add_argument(
        "--dimension", type=int, action="append", default=[], dest="dimensions", metavar="N", help="also truncate to N"
    )
    parser.add_argument("--max-drop", type=float, metavar="X", help="fail if a type loses more than X cosine Spearman")
    parser.add_argument(
        "--least", type=float, metavar="X", help="fail if float32 has a cosine Spearman below X on any data"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    add_config(parser)
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = job_config(arguments, {"model": "model.name"})
    from kosbert_ray.evaluation.evaluate import evaluate, require_quality, require_small_drop, table, types_of
    from kosbert_ray.evaluation.sts import read_sts
    from kosbert_ray.job import model_source

    data = [read_sts(path, config.storage.fail_fast()) for path in arguments.data]
    types = types_of(arguments.types)
    rows = evaluate(model_source(config), data, types, arguments.dimensions, config.encoder, config.model)
    if arguments.json:
        for row in rows:
            print(json.dumps(dataclasses.asdict(row), ensure_ascii=False))
    else:
        print_table(table(rows, config.model.name))
    if arguments.max_drop is not None:
        require_small_drop(rows, arguments.max_drop)
    if arguments.least is not None:
        require_quality(rows, arguments.least)
    return 0
