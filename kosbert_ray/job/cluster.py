"""Ray itself: joining a cluster or starting a local one, and how many encoders fit on it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import DataContext

from kosbert_ray.corpus.plan import Limits
from kosbert_ray.encoder.options import EncoderOptions, require_possible, usable_cores
from kosbert_ray.errors import JobFailed, first_line
from kosbert_ray.job.config import EncoderConfig, RayConfig

# Reading, tokenising and writing a slice take a few percent of the time of encoding it on a CPU. A local Ray is told of
# this many cores more than there are, so that those tasks run beside the encoders instead of waiting for them.
LOCAL_TASK_CORES = 2
NODE_SPARE_CORES = 1
CONNECT_SECONDS = 10.0
ENCODERS_PER_NODE = 8
BYTES_PER_ENCODER = 64 * 2**10
WHOLE_SLICES_OF_A_GPU = 4  # of the default size and 768 numbers a row: 200 MB of vectors
PARTS_OF_AN_ENCODER = 8  # of the input, at the least, where its files are small: so that encoders end at the same time

CORE_NOISE = b"has constructor arguments in the object store and max_restarts > 0"

_local = False  # whether the Ray in use is one that this process started
_hushed = False  # whether the core's noise is filtered already


@dataclass(frozen=True)
class EncoderPool:
    """Size and shape of the actor pool: ``minimum`` to ``maximum`` actors of ``cpus`` and ``gpus`` each.

    ``local``: all of them are on this machine.
    """

    minimum: int
    maximum: int
    cpus: int
    gpus: int
    threads: int
    local: bool = True

    def together(self, limits: Limits) -> Limits:
        """How much of slices of these limits may stay together on its way: a GPU is done with a whole one soon."""
        times = WHOLE_SLICES_OF_A_GPU if self.gpus else 1
        return Limits(times * limits.max_rows, times * limits.max_bytes)

    def part(self, input_bytes: int) -> int:
        """As much of so large an input as may stay together on its way to one encoder."""
        return input_bytes // (PARTS_OF_AN_ENCODER * self.maximum)

    def encoder_options(self, options: EncoderOptions) -> EncoderOptions:
        """The options of one of its actors; raises UsageError if they do not go together."""
        chosen = replace(options, device="cuda" if self.gpus else options.device, threads=self.threads)
        on_cpu = chosen.device == "auto" and sys.platform != "darwin"
        require_possible(replace(chosen, device="cpu") if on_cpu else chosen)
        return chosen


def start(config: RayConfig) -> bool:
    """Joins the cluster at ``ray.address`` or ``RAY_ADDRESS``, or starts a local one that dies with this process.

    Returns:
        Whether it was not joined before: then :func:`stop` is to be called at the end.

    Raises:
        JobFailed: there is no cluster at that address, or a local one does not start.
    """
    global _local
    if ray.is_initialized():
        return False
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    _require_listener(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers' warnings and Ray's banners are not the user's business; errors reach us as exceptions.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if config.runtime_env:
        options["runtime_env"] = config.runtime_env
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _local = address == "local"
        if _local:
            ray.init("local", num_cpus=usable_cores() + LOCAL_TASK_CORES, include_dashboard=False, **options)
        else:
            ray.init(address, **options)
    except SystemExit:  # Ray's handler of SIGTERM, which it puts in place early, exits without a word
        if callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)
        raise
    except Exception as error:
        hint = "" if _local else "; if the cluster asks for a token, set RAY_AUTH_MODE=token"
        reason = first_line(error)
        raise JobFailed(f"Ray at {address} cannot be reached or started ({reason}){hint}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    _hush_core()
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return True


def _require_listener(address: str) -> None:
    """Ray waits for minutes for a head that is not there; a connection tells at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise JobFailed(f"Ray at {address} cannot be reached ({error.strerror or error}); check ray.address") from error


def _hush_core() -> None:
    """Drops the one harmless line that Ray's C++ core prints past Python for every actor pool (ray#53727).

    All else that is written to the process's standard error goes through; Python's own goes there directly.
    """
    global _hushed
    if _hushed:
        return
    _hushed = True
    original = os.dup(2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)

    def pass_on() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if CORE_NOISE not in line:
                    os.write(original, line)

    threading.Thread(target=pass_on, daemon=True).start()


def stop() -> None:
    """Leaves the cluster that :func:`start` joined; a local one ends."""
    ray.shutdown()


def described() -> str:
    """The cluster in use: where it is and what it has."""
    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    where = "a local Ray starts" if _local else f"Ray at {ray.get_runtime_context().gcs_address} answers"
    return f"{where}: {nodes} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"


def encoder_pool(config: EncoderConfig, input_bytes: int) -> EncoderPool:
    """How many encoders, from the config and what the cluster has.

    A GPU has one encoder. On CPUs it is one a core, as long as they are few: two encoders of a thread each did 9 % more
    than one of two threads (BERT-base on 2 cores), whose threads wait for each other whenever Ray needs a core. On many
    cores that would be many copies of the model, so a node has no more than eight.

    Args:
        config: what the user asks for.
        input_bytes: size of the corpus; a small one does not repay the start of many encoders.

    Raises:
        JobFailed: the config asks for GPUs, and the cluster has none and is not said to bring some.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    on_gpu = config.device == "cuda" or (config.device == "auto" and gpus > 0)
    if on_gpu and not gpus and (_local or config.actors is None):
        raise JobFailed(
            "encoder.device is cuda, but no node of the Ray cluster has a GPU; use encoder.device=cpu, or say how many "
            "encoders there are to be (encoder.actors=[1, 8]) where a cluster brings its GPU nodes on demand"
        )
    if on_gpu:
        cpus, threads, fit = 1, 1, gpus
    else:
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        # A local Ray has been told of more cores than there are; any other node keeps one for the tasks.
        spare = LOCAL_TASK_CORES if _local else NODE_SPARE_CORES
        threads = config.threads or max(1, (max(nodes) - spare) // ENCODERS_PER_NODE)
        cpus = threads if max(nodes) > spare else 0
        fit = sum((node - spare) // cpus for node in nodes) if cpus else 1
    fit = max(1, min(fit, 1 + input_bytes // BYTES_PER_ENCODER))
    minimum, maximum = config.actors if isinstance(config.actors, tuple) else (config.actors or fit,) * 2
    return EncoderPool(minimum, maximum, cpus, int(on_gpu), threads, _local)


def configure_data() -> None:
    """Ray Data's settings for this run: every row is a block of its own (a row is a slice), and it keeps quiet."""
    context = DataContext.get_current()
    context.target_max_block_size = 1
    context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else an error of ours comes back without its type and its line
    context.log_internal_stack_trace_to_stdout = False
    context.execution_options.preserve_order = False


@contextlib.contextmanager
def row_blocks() -> Iterator[None]:
    """For a pass over rows instead of slices: blocks of the size that Ray Data would choose."""
    context = DataContext.get_current()
    before = context.target_max_block_size, context.target_min_block_size
    context.target_max_block_size, context.target_min_block_size = DataContext().target_max_block_size, 2**20
    try:
        yield
    finally:
        context.target_max_block_size, context.target_min_block_size = before
