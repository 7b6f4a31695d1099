"""Whether a job could run from here: each thing it needs is tried, and what is wrong is said with what to do about it."""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from kosbert_ray import __version__
from kosbert_ray.encoder.options import usable_cores
from kosbert_ray.errors import KosbertError, described
from kosbert_ray.job.config import JobConfig
from kosbert_ray.job.resolve import encoder_options, list_input, model_ask, open_output
from kosbert_ray.storage import TMP_FOLDER

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy", "s3fs")
OPTIONAL = ("openvino", "nncf", "sentence-transformers", "apache-airflow")
TEXT = "안녕하세요, 잘 되는지 보려고 합니다."


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is well, and what was found or what to do."""

    what: str
    well: bool
    words: str


def examine(config: JobConfig) -> Iterator[Finding]:
    """Looks at versions, the machine, the model, the input and the output if they are named, and Ray, one after another."""
    yield _tried("versions", _versions)
    yield _tried("machine", _machine)
    yield _tried("devices", _devices)
    yield _tried("model", lambda: _model(config))
    if config.input.path:
        yield _tried("input", lambda: _input(config))
    if config.output.path:
        yield _tried("output", lambda: _output(config))
    yield _tried("ray", lambda: _ray(config))


def _tried(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except KosbertError as error:
        return Finding(what, False, str(error))
    except Exception as error:
        return Finding(what, False, described(error))


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
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{usable_cores()} cores to use ({platform.processor() or platform.machine()}), {memory:,.0f} GiB of memory"


def _devices() -> str:
    from kosbert_ray.encoder.model import pick_device, pick_precision

    device = pick_device("auto")
    precision = pick_precision("auto", device)
    native = "" if precision != "fp32" else "; it does not multiply bf16 natively"
    return f"{device} would be used, with {precision}{native}"


def _model(config: JobConfig) -> str:
    from kosbert_ray.encoder.model import Encoder

    started = time.perf_counter()
    encoder = Encoder(model_ask(config).spec(), encoder_options(config))
    encoder.encode([TEXT])
    notices = "".join(f"; {notice}" for notice in encoder.notices)
    return (
        f"{config.model.name}: {encoder.spec.dimension} dimensions, up to {encoder.spec.max_seq_length} tokens; "
        f"{encoder.engine} {encoder.precision} on {encoder.device}, attention {encoder.attention}, loaded and tried in "
        f"{time.perf_counter() - started:.1f} s{notices}"
    )


def _input(config: JobConfig) -> str:
    corpus = list_input(config)
    return f"{corpus.storage.address}: {len(corpus.files):,} files, {corpus.size:,} bytes"


def _output(config: JobConfig) -> str:
    """Writes, and deletes what it wrote: what a job has to be able to do, among it the write that only one of two wins."""
    storage = open_output(config)
    there = storage.exists()
    name = f"{TMP_FOLDER}/doctor-{uuid.uuid4().hex}"
    first, second = storage.create(name, b"1"), storage.create(name, b"2")
    storage.delete([name])
    if not there:
        storage.delete_empty(TMP_FOLDER)
    if not first or second:
        return f"{storage.address}: can be written to, but two jobs at once could both claim it (no conditional writes)"
    return f"{storage.address}: can be read, written to and deleted from"


def _ray(config: JobConfig) -> str:
    from kosbert_ray.job import cluster

    started = time.perf_counter()
    cluster.start(config.ray)
    try:
        return f"{cluster.described()}, in {time.perf_counter() - started:.1f} s"
    finally:
        cluster.stop()
