"""Encodes every text of a slice, and finds the texts that cannot be encoded by bisection.

A text that makes the model fail fails its whole batch, so the batch is halved until the text is alone. When memory runs
out, batches are too large, so the token budget is halved for good instead.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kosbert_ray.encoder.collected import Rows
from kosbert_ray.encoder.packing import Batch, Pack, Tokens, pack
from kosbert_ray.errors import DeviceBroken, described, first_line

CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "bad allocation")

Found = TypeVar("Found")
Forward = Callable[[Batch], Any]


def encode_all(
    tokens: Tokens,
    unfit: Mapping[int, str],
    token_budget: int,
    forward: Forward,
    rows: Rows,
    pack: Pack = pack,
    streams: int = 1,
    done: npt.NDArray[np.int64] | None = None,
    encode_empty: bool = False,
) -> tuple[dict[int, str], int]:
    """Runs ``forward`` over the texts of a slice.

    Terminates: a failed batch is either split or given up, and a single text is given up after one attempt.

    Args:
        tokens: the slice.
        unfit: reasons for texts not to try, by index.
        token_budget: maximum number of tokens in a batch.
        forward: returns the vectors of a batch; may raise.
        rows: takes the vectors of the distinct texts, but for those that fail or are left out.
        pack: splits the slice into batches.
        streams: number of batches that ``forward`` takes concurrently, each from its own thread.
        done: indices of texts to leave out.
        encode_empty: whether ``forward`` takes texts without tokens; otherwise they fail.

    Returns:
        The reasons for texts that failed, by index, and the remaining token budget.

    Raises:
        DeviceBroken: the engine no longer works in this process, or a CUDA error makes its later results unreliable.
    """
    left_out = np.empty(0, np.int64) if done is None else done
    empty = () if encode_empty else np.setdiff1d(np.flatnonzero(tokens.lengths == 0), left_out).tolist()
    failed = dict.fromkeys(empty, "no tokens are left of it") | dict(unfit)
    texts = np.arange(len(tokens.lengths))
    skip = np.array([*failed, *left_out], np.int64)
    todo = list(pack(tokens, token_budget, texts[~np.isin(texts, skip)] if len(skip) else None))
    while todo:
        batches, todo = todo, []
        with contextlib.closing(in_streams(partial(_attempt, forward), batches, streams)) as tried:
            for number, found in enumerate(tried):
                batch = batches[number]
                if isinstance(found, Exception):
                    if isinstance(found, DeviceBroken):
                        raise found
                    if is_device_broken(found):
                        raise DeviceBroken(
                            f"the GPU failed in this process ({first_line(found)}); run the same command again"
                        ) from found
                    if is_out_of_memory(found) and len(batch.texts) > 1:
                        token_budget = max(1, min(token_budget, len(batch.ids)) // 2)
                        left = np.concatenate([later.texts for later in batches[number:]])
                        todo.extend(pack(tokens, token_budget, left))
                        break
                    if len(batch.texts) > 1:
                        todo.extend(_halves(tokens, batch.texts, pack))
                    elif is_out_of_memory(found):
                        failed[int(batch.texts[0])] = f"out of memory on its {len(batch.ids)} tokens alone"
                    else:
                        failed[int(batch.texts[0])] = f"the model fails on it ({described(found)})"
                    continue
                good = rows.finite(batch.texts, found)
                rows.put(batch.texts, found, good)
                suspects = batch.texts[~good]
                if len(batch.texts) == 1 and len(suspects):
                    failed[int(suspects[0])] = "its vector holds NaN or Inf"
                elif len(suspects):  # find out which of them cause it and which are a neighbour's victims
                    todo.extend(_halves(tokens, suspects, pack))
    return failed, token_budget


def _attempt(forward: Forward, batch: Batch) -> Any:
    try:
        return forward(batch)
    except Exception as error:
        return error


def in_streams(run: Callable[[Batch], Found], batches: list[Batch], streams: int) -> Generator[Found, None, None]:
    """Yields ``run(batch)`` for each batch in order, running ``streams`` of them concurrently in threads."""
    if streams == 1 or len(batches) == 1:  # in this thread, whose number of OpenMP threads is set
        yield from map(run, batches)
        return
    with ThreadPoolExecutor(streams) as pool:
        try:
            yield from pool.map(run, batches)
        finally:
            pool.shutdown(cancel_futures=True)


def _halves(tokens: Tokens, texts: npt.NDArray[np.int64], pack: Pack) -> list[Batch]:
    """Returns a batch for each half of ``texts``, or for the one text."""
    middle = (len(texts) + 1) // 2
    whole = int(tokens.lengths[texts].sum())
    return [batch for half in (texts[:middle], texts[middle:]) for batch in pack(tokens, whole, half)]


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if the device, or the machine for a CPU, ran out of memory."""
    if isinstance(error, MemoryError) or _is_torchs(error, "OutOfMemoryError"):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in CPU_OUT_OF_MEMORY)


def is_device_broken(error: BaseException) -> bool:
    """Returns True for a CUDA error other than out of memory; such errors persist in the process."""
    return _is_torchs(error, "AcceleratorError") and not is_out_of_memory(error)


def _is_torchs(error: BaseException, name: str) -> bool:
    """Returns True for an instance of a torch class, without loading torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, getattr(torch, name))
