"""``kosbert-ray diff``: compares two outputs."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict

from kosbert_ray.cli.common import ENCODES, Commands, add_config, job_config, print_table
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.units import plural
from kosbert_ray.vectors.kinds import DENSE, SPARSE, Kind, named

log = logging.getLogger(__name__)

SHOWN_FILES = 10
COSINES = (DENSE, SPARSE)  # kinds that are compared by cosine, token vectors by MaxSim

EXAMPLES = (("compare two models on one corpus", "kosbert-ray diff versions/v1 versions/v2"),)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "diff",
        help="compare two outputs: rows in common, and how far their models agree",
        description="Compares two complete outputs: the rows of the input that both have, and, on a sample of these, which "
        "rows each model finds near to which.",
    )
    parser.add_argument("first", metavar="A", help="an embedded folder or s3:// URL")
    parser.add_argument("second", metavar="B", help="another")
    parser.add_argument("--sample", type=int, default=2000, metavar="N", help="rows to compare on (default: 2000)")
    parser.add_argument(
        "-k", "--neighbours", type=int, default=10, metavar="K", help="neighbours per row to compare (default: 10)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_config(parser, uses=ENCODES)
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = job_config(arguments, {})
    from kosbert_ray.outputs.diff import diff
    from kosbert_ray.outputs.output import Output

    first, second = (
        Output(config.model_copy(update={"output": config.output.model_copy(update={"path": path})}))
        for path in (arguments.first, arguments.second)
    )
    found = diff(first, second, arguments.sample, arguments.neighbours)
    if arguments.json:
        record = asdict(found)
        # Scripts that were written for version 0.1.0 read the agreement of dense vectors here.
        record["agreement"] = next(iter(record["agreements"].values()), None)
        print(json.dumps(record, ensure_ascii=False))
        return 0
    several = any({*dimensions} != {DENSE} for dimensions in found.dimensions)
    rows = [
        ["", *found.addresses],
        ["model", *found.models],
        ["dimension", *map(_dimensions, found.dimensions)],
        ["rows", *(f"{count:,}" for count in found.rows)],
        ["rows only in one", *(f"{count:,}" for count in found.only)],
        ["rows in common", f"{found.common:,}", f"{found.common:,}"],
    ]
    print_table(rows)
    for file in found.unlike[:SHOWN_FILES]:
        log.info(f"{file}: its versions, chunks or rejected rows differ, so its rows are not compared")
    if len(found.unlike) > SHOWN_FILES:
        log.info(f"… and {plural(len(found.unlike) - SHOWN_FILES, 'file')} more")
    for kinds, near in found.agreements.items():
        measure = "cosines" if kinds in COSINES else "similarities"
        about = f"{kinds.replace('_', '-')}: " if several else ""
        print(
            f"{about}of {plural(near.rows, 'row')} in common: {near.overlap:.1%} of the {near.k} nearest are the same, the "
            f"nearest of {near.same_nearest:.1%}"
            + (f"; the {measure} of neighbours correlate by {near.correlation:.4f}" if near.correlation is not None else "")
            + (f"; a row's two vectors have a cosine of {near.cosine:.4f}" if near.cosine is not None else "")
        )
    if not found.agreements:
        print("too few rows in common to compare the models")
    return 0


def _dimensions(found: Mapping[Kind, int]) -> str:
    if {*found} == {DENSE}:
        return str(found[DENSE])
    return ", ".join(f"{named([kind])} {dimension}" for kind, dimension in found.items())
