"""``kosbert-ray plan`` estimates a job; ``kosbert-ray calibrate`` measures the speed of this machine."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from kosbert_ray.cli import embed
from kosbert_ray.cli.common import Commands
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.errors import UsageError
from kosbert_ray.units import data_size, plural

if TYPE_CHECKING:
    from kosbert_ray.config import JobConfig
    from kosbert_ray.model.spec import ModelSpec
    from kosbert_ray.planning.estimate import Estimate
    from kosbert_ray.planning.options import ProfileOptions
    from kosbert_ray.run.dry_run import Preview

log = logging.getLogger(__name__)

BAR = 40
MAX_SPREAD = 0.2
SHOWN_REASONS = 5
THIS_MACHINE = "this machine"
RUNS_SO_FAR = "an encoder of the runs so far"

EXAMPLES = (
    ("estimate tokens, bytes and time", "kosbert-ray plan corpus/ vectors/ --keep id"),
    (
        "estimate the cost",
        "kosbert-ray plan corpus/ --set 'plan.profiles={a10g: {tokens_per_second: 400000, price_per_hour: 1.0}}'",
    ),
)

CALIBRATE_EXAMPLES = (("measure this machine", "kosbert-ray calibrate corpus/ --model jhgan/ko-sbert-sts"),)


def add(commands: Commands) -> None:
    """Adds the commands."""
    parser = commands.add_parser(
        "plan",
        help="estimate a job: rows, tokens, bytes, time and cost",
        description="Estimates the job from a sample of INPUT. Needs neither a GPU nor Ray. Hardware and prices come from "
        "plan.profiles in the job file and from calibrate.",
    )
    embed.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_plan)
    parser = commands.add_parser(
        "calibrate",
        help="measure how fast this machine embeds a corpus",
        description="Embeds texts of INPUT for about ten seconds as a run does, and remembers the speed for plan.",
    )
    embed.add_options(parser)
    add_examples(parser, CALIBRATE_EXAMPLES)
    parser.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> int:
    config = embed.config_of(arguments)
    from kosbert_ray.planning.speed import measure

    speed = measure(config)
    spread = f", within {speed.spread:.0%} of each other in {speed.rounds} rounds" if speed.rounds > 1 else ""
    print(f"{speed.tokens_per_second:,.0f} tokens/s{spread} ({speed.engine} {speed.precision} on {speed.device})")
    if speed.spread > MAX_SPREAD:
        log.warning("the rounds differ: another program may be using this machine; calibrate again when it is idle")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    config = embed.config_of(arguments)
    if not config.input.path:
        raise UsageError("input.path: missing; run kosbert-ray plan INPUT [OUTPUT], or set input.path in the job file")
    from kosbert_ray.job import model_ref
    from kosbert_ray.planning.estimate import estimate
    from kosbert_ray.planning.options import ProfileOptions
    from kosbert_ray.planning.speed import remembered
    from kosbert_ray.run.lifecycle import preview, settings_of

    done = preview(config) if config.output.path else None
    if done:
        config = settings_of(config)
    found = estimate(config)
    spec = model_ref(config).spec()
    speed = remembered(spec, config)
    profiles = dict(config.plan.profiles)
    if done and done.tokens_per_second:
        profiles = {RUNS_SO_FAR: ProfileOptions(tokens_per_second=done.tokens_per_second), **profiles}
    if speed:
        profiles = {THIS_MACHINE: ProfileOptions(tokens_per_second=speed.tokens_per_second), **profiles}
    if arguments.json:
        left = (done.left if done else 1.0) * found.encoded_tokens
        seconds = {name: seconds_on(profile, found.encoded_tokens) for name, profile in profiles.items()}
        seconds_left = {name: seconds_on(profile, left) for name, profile in profiles.items()}
        committed = done.committed if done else 0
        more = {"prompt": spec.prompt, "weight_bytes": _weight_bytes(config, spec), "committed": committed}
        tree = {**asdict(found), **more, "tokens_left": left, "seconds": seconds, "seconds_left": seconds_left}
        print(json.dumps(tree, ensure_ascii=False))
        return 0
    for line in _lines(config, found, done, profiles, spec):
        print(line)
    if not done:  # the preview has logged what follows from the input's files and the model
        for notice in found.notices:
            log.info(notice)
        if warning := spec.prompts.document_warning(config.model.name):
            log.warning(warning)
    for warning in found.warnings:
        log.warning(warning)
    for reason in found.unread[:SHOWN_REASONS]:
        log.error(reason, extra={"label": "problem"})
    return 0


def _lines(
    config: JobConfig, found: Estimate, done: Preview | None, profiles: dict[str, ProfileOptions], spec: ModelSpec
) -> list[str]:
    """The estimate as text."""
    from kosbert_ray.units import duration

    rows = max(found.rows, 1e-9)
    all_rows = rows + sum(found.rejected.values())
    whole = found.looked_at >= all_rows - 0.5
    about = "" if whole else "about "
    lines = [
        f"input     {config.input.path}: {plural(found.files, 'file')}, {data_size(found.file_bytes)}; "
        f"{about}{plural(all_rows, 'row')}" + ("" if whole else f" ({found.looked_at:,} sampled)"),
        f"texts     {about}{data_size(found.text_bytes)}; {found.repeated:.1%} duplicates within a slice, "
        f"{'' if whole else 'at least '}{found.shared:.1%} across slices",
        f"tokens    {about}{found.tokens:,.0f}, {_per_row(found, rows)}; {found.encoded_tokens:,.0f} to encode",
        f"prompt    {spec.prompts.described(spec.prompt)}",
        _memory(config, spec),
        _long_texts(found, rows),
    ]
    most, counted = max(found.lengths.values(), default=0), max(found.output_rows, 1e-9)
    before = 0
    for upper, count in found.lengths.items():
        bar = "█" * round(BAR * count / most) if most else ""
        lines.append(f"          {before + 1:>5}-{upper:<5} {count / counted:6.1%}  {bar}".rstrip())
        before = upper
    lines += [_capped(found, rows, cap, profiles) for cap in found.caps]
    rejected = sorted(found.rejected.items(), key=lambda item: -item[1])
    lines += [f"rejected  {about}{plural(count, 'row')}: {reason}" for reason, count in rejected[:SHOWN_REASONS]]
    lines.append(
        f"output    {about}{plural(found.slices, 'shard')}, {data_size(found.output_bytes)}{_price(config, found)}"
    )
    if {*found.vector_bytes} != {config.output.column}:
        each = ", ".join(f"{column} {size:,.0f}" for column, size in found.vector_bytes.items())
        lines.append(f"          bytes of a row's vectors: {each}")
    if found.sparse_rows or found.sparse_assumed:
        lines.append(f"          {_sparse(found)}")
    if found.pooling_seconds:
        lines.append(f"          token pooling takes {duration(found.pooling_seconds)} on one core of this machine")
    if found.copied_bytes:
        lines.append(f"          of which {data_size(found.copied_bytes)} for the texts, which --no-text leaves out")
    lines.append(f"requests  {about}{found.puts:,.0f} to write, {found.gets:,.0f} to read")
    if done:
        lines.append(
            f"done      {plural(done.committed, 'slice', 'are')} committed; "
            f"{plural(done.new[0], 'new file')}, {len(done.changed):,} changed"
        )
    part = done.left if done and done.committed else None
    if part is not None:
        lines.append(f"left      {part:.1%} of the input, about {part * found.encoded_tokens:,.0f} tokens to encode")
    currency = config.plan.currency
    for name, profile in profiles.items():
        seconds, devices, price = seconds_on(profile, found.encoded_tokens), profile.devices, profile.price_per_hour
        cost = ""
        if price is not None:
            cost = f", {seconds / 3600 * devices * price:,.2f} {currency} at {price:g} {currency} per hour each"
        many = f"{devices} x " if devices > 1 else ""
        rest = "" if part is None else f", {duration(part * seconds)} of it left"
        if {*found.vector_bytes} != {config.output.column} and seconds:
            rest += f", {data_size(found.output_bytes / seconds / devices)}/s written by each"
        lines.append(
            f"time      {many}{name}: {duration(seconds)} at {profile.tokens_per_second:,.0f} tokens/s each{cost}{rest}"
        )
    if not profiles:
        lines.append("time      unknown: run kosbert-ray calibrate to measure this machine, or set plan.profiles")
    return lines


def _weight_bytes(config: JobConfig, spec: ModelSpec) -> dict[str, int]:
    """The memory of the weights by precision: of each that the job may take."""
    from kosbert_ray.model.parameters import weight_bytes

    given = config.encoder.precision
    precisions = ("fp32",) if spec.static else ("fp32", "bf16") if given == "auto" else (given,)
    return {precision: weight_bytes(spec, precision) for precision in precisions}


def _memory(config: JobConfig, spec: ModelSpec) -> str:
    from kosbert_ray.encoder.devices import device_memory

    needed = " or ".join(f"{data_size(size)} in {name}" for name, size in _weight_bytes(config, spec).items())
    return f"memory    {needed} for the weights of each encoder; this machine has {data_size(device_memory('cpu'))}"


def _per_row(found: Estimate, rows: float) -> str:
    """Tokens of a row of the input and, where long texts are split, of a row of the output."""
    if found.output_rows == found.rows:
        return f"{found.tokens / rows:.1f} per row"
    return f"{found.tokens / rows:.1f} per text, {found.tokens / max(found.output_rows, 1e-9):.1f} per chunk"


def _long_texts(found: Estimate, rows: float) -> str:
    if found.split:
        return (
            f"length    {found.split / rows:.2%} of the rows are longer than a chunk: {found.output_rows:,.0f} output rows"
        )
    if found.max_seq_length is None:
        return "length    the model takes texts of any length"
    lost = found.dropped_tokens / max(found.tokens + found.dropped_tokens, 1)
    return (
        f"length    {found.truncated / rows:.2%} of the rows are longer than the model's {found.max_seq_length} tokens and "
        f"lose {lost:.2%} of all tokens"
    )


def _sparse(found: Estimate) -> str:
    """The number of values of a sparse vector, as text."""
    if found.sparse_assumed:
        return f"a sparse vector is assumed to have {found.sparse_values:,.0f} values: {found.sparse_assumed}"
    return f"a sparse vector has {found.sparse_values:,.1f} values, measured on {plural(found.sparse_rows, 'row')}"


def _capped(found: Estimate, rows: float, cap: int, profiles: dict[str, ProfileOptions]) -> str:
    """The effect of a lower maximum length, as text."""
    from kosbert_ray.units import duration

    would = found.caps[cap]
    saved = "".join(
        f", {duration(seconds_on(profile, would.encoded_tokens))} on {name}" for name, profile in profiles.items()
    )
    return (
        f"cap       {would.tokens / max(found.tokens, 1):.1%} of the tokens are beyond {cap:,} in their text: "
        f"model.max_seq_length={cap} truncates {would.rows / rows:.2%} of the rows and saves "
        f"{would.encoded_tokens:,.0f} tokens{saved}"
    )


def seconds_on(profile: ProfileOptions, tokens: float) -> float:
    """Wall time of encoding some tokens on given hardware, in seconds."""
    return tokens / profile.tokens_per_second / profile.devices


def _price(config: JobConfig, found: Estimate) -> str:
    plan = config.plan
    parts = []
    if plan.storage_price is not None:
        parts.append(f"{found.output_bytes / 1e9 * plan.storage_price:,.2f} {plan.currency} per month for storage")
    if plan.put_price is not None or plan.get_price is not None:
        cost = (found.puts * (plan.put_price or 0) + found.gets * (plan.get_price or 0)) / 1000
        parts.append(f"{cost:,.2f} {plan.currency} for requests")
    return f" ({', '.join(parts)})" if parts else ""
