"""``kosbert-ray verify``: checks that an output is complete and intact."""

from __future__ import annotations

import argparse
import contextlib
import logging
from typing import TYPE_CHECKING

from kosbert_ray.cli.common import ENCODES, Commands, add_config, add_json, add_output, output_config, print_json
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.errors import VerifyFailed
from kosbert_ray.units import data_size, plural

if TYPE_CHECKING:
    from kosbert_ray.outputs.verify import Verification

log = logging.getLogger(__name__)

SHOWN_PROBLEMS = 50

EXAMPLES = (
    ("check against the input, and embed 100 rows again", "kosbert-ray verify vectors/ --input corpus/ --sample 100"),
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "verify",
        help="check that an output is complete and intact",
        description="Reads all of OUTPUT and checks that every shard is as it was written and every slice is there once; "
        "with --input, that every row of the input is accounted for.",
    )
    add_output(parser)
    parser.add_argument("--input", metavar="INPUT", help="what it was made of; its rows are counted again, slice by slice")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="embed N rows again and compare")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sample (default: 0)")
    add_json(parser)
    add_config(parser, uses=(*ENCODES, "ray", "input.path"))
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = output_config(arguments, input="input.path")
    from kosbert_ray.outputs.mapper import Mapper
    from kosbert_ray.outputs.output import Output
    from kosbert_ray.outputs.verify import is_large, require_sample, verify

    require_sample(arguments.sample)
    output = Output(config, retry=True)
    with contextlib.ExitStack() as stack:
        mapper: Mapper | None = None
        if config.ray.address is not None or is_large(output):
            from kosbert_ray.run.executors.ray.mapper import ray_mapper

            mapper = stack.enter_context(ray_mapper(config.ray))
        found = verify(output, mapper, input=config.input.path, sample=arguments.sample, seed=arguments.seed)
    if arguments.json:
        print_json(found)
        return VerifyFailed.exit_code if found.problems else 0
    for problem in found.problems[:SHOWN_PROBLEMS]:
        log.error(problem.text, extra={"label": "problem"})
    if len(found.problems) > SHOWN_PROBLEMS:
        log.info(f"… and {len(found.problems) - SHOWN_PROBLEMS:,} more")
    if found.problems:
        raise VerifyFailed(f"{found.output}: {plural(len(found.problems), 'problem')}; {found.advice}")
    parts = [f"{plural(found.rows, 'row')} in {plural(found.shards, 'shard')}, {found.rejected:,} rejected"]
    if found.input_rows is not None:
        parts.append(f"all {plural(found.input_rows, 'row')} of the input accounted for")
    if found.sampled:
        parts.append(f"{plural(found.sampled, 'row')} embedded again, cosine at least {_cosines(found)}")
    print(f"verified: {found.output}: {', '.join(parts)}; {data_size(found.bytes)} in {found.seconds:,.1f} s")
    return 0


def _cosines(found: Verification) -> str:
    """The smallest cosine of a sample; of several columns, that of each."""
    if len(found.agreements) < 2:
        return f"{found.agreement:.6f}"
    return " and ".join(f"{least:.6f} in {column}" for column, least in found.agreements.items())
