"""Checks whether a job could run from this machine, and names the remedy for each problem."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from kosbert_ray._version import __version__
from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.sample import sampled_texts
from kosbert_ray.encoder.devices import device_memory
from kosbert_ray.encoder.engines.choice import fitted
from kosbert_ray.encoder.options import Device, usable_cores
from kosbert_ray.encoder.tokenizer import Tokenizer, unknown_notice
from kosbert_ray.errors import InputError, KosbertError, ModelError, described
from kosbert_ray.job import Job, asked_kinds, model_ref, open_corpus, open_output
from kosbert_ray.model.parameters import weight_bytes
from kosbert_ray.model.source import cache_folder
from kosbert_ray.planning.compare import compare
from kosbert_ray.run.lifecycle import preview, settings_of
from kosbert_ray.storage import TMP_FOLDER, is_url
from kosbert_ray.units import data_size, plural
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, named

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy", "s3fs")
OPTIONAL = ("openvino", "nncf", "peft", "sentence-transformers", "apache-airflow")
NODE_SECONDS = 120.0  # a busy node does not answer in time
TEXT = "안녕하세요, 잘 되는지 보려고 합니다."
SAMPLED_SLICES, SAMPLED_TEXTS = 4, 256  # of the input, per kind of file


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: of the check.
        ok: whether it passed.
        message: what was found, or the problem and its remedy.
    """

    name: str
    ok: bool
    message: str


def examine(config: JobConfig, compared: int = 0) -> Iterator[Finding]:
    """Checks this machine, the model, the job's dry run, the output and Ray; on a cluster also one node of each kind.

    Args:
        config: the job.
        compared: number of texts to embed with sentence-transformers, too, and compare.
    """
    yield _tried("versions", _versions)
    yield _tried("machine", _machine)
    yield _tried("devices", _devices)
    yield _tried("disk", lambda: _disk(config))
    yield _tried("model", lambda: _model(config))
    if compared:
        yield _tried("compare", lambda: compare(config, compared))
    if config.input.path:
        yield _tried("input", lambda: _input(config))
    if config.input.path and config.output.path:
        yield _tried("job", lambda: _job(config))
    if config.output.path:
        yield _tried("output", lambda: _output(config))
    yield from _ray(config)


def _tried(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except KosbertError as error:
        return Finding(name, False, str(error))
    except Exception as error:
        return Finding(name, False, described(error))


def _versions() -> str:
    found = [f"kosbert-ray {__version__}", f"Python {platform.python_version()}"]
    found += [f"{name} {version(name)}" for name in PACKAGES]
    for name in OPTIONAL:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _machine() -> str:
    memory = device_memory("cpu") / 2**30
    return f"{usable_cores()} usable cores ({platform.processor() or platform.machine()}), {memory:,.0f} GiB of memory"


def _devices(asked: Device = "auto") -> str:
    from kosbert_ray.encoder.devices import pick_device, pick_precision

    device = pick_device(asked)
    precision = pick_precision("auto", device)
    native = "" if precision != "fp32" else "; no native bf16"
    return f"{device} with {precision}{native}"


def _model(config: JobConfig) -> str:
    from kosbert_ray.encoder.encoder import Encoder

    if config.output.path:
        with contextlib.suppress(KosbertError):  # the check of the output reports it
            config = settings_of(config)  # an existing output keeps its prompt
    started = time.perf_counter()
    spec = model_ref(config).spec()
    kinds = [kind for kind in asked_kinds(config, spec) if kind in spec.kinds]
    encoder = Encoder(spec, config.encoder, kinds=kinds)
    for reason in encoder.encode_tokens(encoder.tokenizer([TEXT])).failed.values():
        raise ModelError(f"{config.model.name}: {reason}")
    sizes = {DENSE: spec.dimension, SPARSE: spec.sparse, MULTI_VECTOR: spec.multi_vector}
    each = {kind: f"{getattr(sizes[kind], 'dimension', sizes[kind])}" for kind in encoder.kinds}
    dimensions = " and ".join(f"{named([kind])} {size}" if len(each) > 1 else size for kind, size in each.items())
    prompts = encoder.spec.prompts
    tokens = encoder.tokenizer([TEXT])
    unknown = unknown_notice(encoder.tokenizer.unknown(tokens), len(tokens.ids))
    more = [*encoder.notices, *filter(None, [prompts.document_warning(config.model.name), unknown])]
    notices = "".join(f"; {notice}" for notice in more)
    limit = encoder.spec.length_limit
    tokens_taken = f"up to {limit}" if limit else "any number of"
    return (
        f"{config.model.name}: {dimensions} dimensions, {tokens_taken} tokens, "
        f"prompt {prompts.described(encoder.spec.prompt)}; "
        f"{encoder.engine} {encoder.precision} on {encoder.device}, attention {encoder.attention}; "
        f"{weight_bytes(encoder.spec, encoder.precision) / 2**30:,.2f} GiB of weights for each encoder, of "
        f"{device_memory(encoder.device) / 2**30:,.0f} GiB; loaded and tested in "
        f"{time.perf_counter() - started:.1f} s{notices}"
    )


def _input(config: JobConfig) -> str:
    corpus, columns = open_corpus(config)
    kept = ", ".join(f"{field.name}: {field.type}" for field in columns.keep) or "no column"
    unknown = _unknown(Job(config, corpus, columns, model_ref(config)))
    notices = f"; {unknown}" if unknown else ""
    return f"{corpus.storage.address}: {plural(len(corpus.files), 'file')}, {data_size(corpus.size)}; keeps {kept}{notices}"


def _unknown(job: Job) -> str | None:
    """Returns a message if many tokens of a sample of the input are unknown to the model, else None."""
    try:
        tokenizer = Tokenizer.load(job.spec)
    except KosbertError:  # the check of the model reports it
        return None
    unknown = count = 0
    for texts in sampled_texts(job.reader(), job.fragments(), SAMPLED_SLICES):
        tokens = tokenizer(texts[:SAMPLED_TEXTS])
        unknown, count = unknown + tokenizer.unknown(tokens), count + len(tokens.ids)
    return unknown_notice(unknown, count)


def _job(config: JobConfig) -> str:
    """Summarizes a dry run, which also finds an output of another job or one inside the input."""
    found = preview(config)
    if found.failed:
        raise InputError(f"{found.failed[0]} ({plural(len(found.failed), 'file')} would fail)")
    return "; ".join(found.lines()[1:3])


def _disk(config: JobConfig) -> str:
    """Free space where files are written on this machine."""
    places = {"temporary files": tempfile.gettempdir(), "models": str(cache_folder("models"))}
    if config.output.path and not is_url(config.output.path):
        places["the output"] = config.output.path
    return ", ".join(f"{_free(path):,.1f} GiB free for {what}" for what, path in places.items())


def _free(path: str) -> float:
    """GiB free on the disk that holds a path, which need not exist."""
    place = os.path.abspath(path)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    return shutil.disk_usage(place).free / 2**30


def _output(config: JobConfig) -> str:
    """Writes and deletes a file, as a job must, including the conditional write that only one of two jobs wins."""
    storage = open_output(config)
    there = storage.exists()
    name = f"{TMP_FOLDER}/doctor-{uuid.uuid4().hex}"
    first, second = storage.create(name, b"1"), storage.create(name, b"2")
    storage.delete([name])
    if not there:
        storage.delete_empty(TMP_FOLDER)
    if not first or second:
        return f"{storage.address}: writable, but without conditional writes: two jobs started at once could both claim it"
    return f"{storage.address}: readable, writable and deletable"


def _ray(config: JobConfig) -> Iterator[Finding]:
    from kosbert_ray.run.executors.ray import session

    started = time.perf_counter()
    try:
        with session.joined(config.ray):
            yield Finding("ray", True, f"{session.described()}, in {time.perf_counter() - started:.1f} s")
            yield _tried("encoders", lambda: _encoders(config))
            if not session.is_local():
                yield from _nodes(config)
    except KosbertError as error:
        yield Finding("ray", False, str(error))


def _encoders(config: JobConfig) -> str:
    from kosbert_ray.run.executors.ray import session

    pool = session.encoder_pool(fitted(model_ref(config).spec(), config.encoder), input_bytes=2**40)
    return f"{pool.minimum:,} to start with, each with {pool.cpus} CPUs and {pool.gpus} GPUs"


def _nodes(config: JobConfig) -> Iterator[Finding]:
    """Checks one node of each kind: versions, access to the output, disk space, GPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kinds: dict[tuple[float, float], list[str]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            kinds.setdefault((resources.get("CPU", 0), resources.get("GPU", 0)), []).append(node["NodeID"])
    task = ray.remote(num_cpus=0)(_node)
    for (cpus, gpus), ids in sorted(kinds.items()):
        place = NodeAffinitySchedulingStrategy(ids[0], soft=False)
        asked = task.options(num_gpus=1 if gpus else 0, scheduling_strategy=place).remote(config, gpus > 0)
        name = f"node x{len(ids)}"
        try:
            ok, message = ray.get(asked, timeout=NODE_SECONDS)
            yield Finding(name, ok, f"{cpus:g} CPUs, {gpus:g} GPUs: {message}")
        except Exception as error:
            yield Finding(name, False, f"{cpus:g} CPUs, {gpus:g} GPUs: cannot be checked ({described(error)})")


def _node(config: JobConfig, gpu: bool) -> tuple[bool, str]:
    """Checks the node that this task runs on."""
    findings = [_tried("versions", _versions)]
    if gpu:
        findings.append(_tried("devices", lambda: _devices("cuda")))
    findings.append(_tried("disk", lambda: _disk(config)))
    if config.output.path:
        findings.append(_tried("output", lambda: _output(config)))
    return all(item.ok for item in findings), "; ".join(item.message for item in findings)
