"""The encoder: a model folder's transformer, pooling and head, run over packed batches.

``Encoder.load(name).encode(texts)`` is the library; the job calls :meth:`Encoder.encode_tokens` on a slice that was
tokenised elsewhere.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from kosbert_ray.encoder.bisection import encode_all, in_streams
from kosbert_ray.encoder.engines import cuda
from kosbert_ray.encoder.engines import openvino as openvino_engine
from kosbert_ray.encoder.engines.torch import PrecisionUnfit, TorchEngine
from kosbert_ray.encoder.long_text import join_parts
from kosbert_ray.encoder.options import Device, EncoderOptions, Precision, require_possible, usable_cores
from kosbert_ray.encoder.packing import Batch, Pack, Tokens, take_rows
from kosbert_ray.encoder.pooling import Head
from kosbert_ray.encoder.prepare import as_safetensors
from kosbert_ray.encoder.source import ModelSource, fetch_model
from kosbert_ray.encoder.spec import ModelSpec, SpecOptions, read_spec
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import ModelError, UsageError

# Measured on 2 CPU cores with BERT-base: 1,024 to 4,096 tokens a batch differ by less than the noise.
TOKEN_BUDGET = {"cpu": 4096, "mps": 16_384, "cuda": 65_536}
OPENVINO_BUDGET = 1024
Vectors = npt.NDArray[np.float32]
TRIAL_LENGTHS = (12, 16, 20, 24, 28, 40, 64, 128)  # of a trial that tells which engine is faster
TRIAL_TOKENS = 512  # of each length


class Engine(Protocol):
    """What computes: one transformer, loaded."""

    attention: str
    notices: list[str]
    vocabulary: int
    streams: int
    pack: Pack

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Pooled vectors of a batch's sequences: float32 ``[sequences, h * pooling modes]``."""
        ...

    def computed_tokens(self, batch: Batch) -> int:
        """Tokens that a batch is to it, what it is padded or filled up with included."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Vectors of a slice's rows.

    Attributes:
        distinct: float32 ``[u, dimension]``, of each distinct text; zeros where it has none.
        rows: int32 ``[n]``, for each row which of them is its own.
        failed: of the rows that have no vector, the reason.
        batches: how many went through the model.
        computed_tokens: tokens in them, what they were padded with included.
    """

    distinct: Vectors
    rows: npt.NDArray[np.int32]
    failed: dict[int, str]
    batches: int
    computed_tokens: int

    @property
    def vectors(self) -> Vectors:
        """float32 ``[n, dimension]``, row by row."""
        return take_rows(self.distinct, self.rows)


class Encoder:
    """A loaded model. Make one with :meth:`load`, or from a spec that was read already.

    Attributes:
        spec: what the model folder says.
        device: "cuda", "mps" or "cpu".
        precision: "bf16", "fp16", "fp32" or "int8": what "auto" came to.
        engine: "torch" or "openvino": what "auto" came to.
        attention: "packed", or "padded" where the architecture cannot be packed or the self-check failed; of OpenVINO
            "one_length".
        notices: what a user should know (a fallback, mean pooling assumed).
    """

    def __init__(self, spec: ModelSpec, options: EncoderOptions) -> None:
        self.spec = spec = as_safetensors(spec)
        self.device = pick_device(options.device)
        require_possible(replace(options, device=self.device))
        self.precision = pick_precision(options.precision, self.device)
        self._compile = options.compile
        threads = options.threads or usable_cores()
        self._tokenizer: Tokenizer | None = None
        self._skip = 0 if spec.include_prompt or not spec.prompt else self.tokenizer.prompt_length
        self._head = Head(spec.head).to(self.device).eval()
        self.engine = self._pick_engine(options.engine, threads)
        if self.device == "cpu":
            torch.set_num_threads(threads if self.engine == "torch" else 1)
        fallback: list[str] = []
        try:
            self._engine = self._load(self.engine, threads)
        except PrecisionUnfit as error:
            if options.precision != "auto":
                raise
            fallback = [f"{error.args[0].partition(';')[0]}: fp32 is used"]
            self.precision = "fp32"
            self._engine = self._load(self.engine, threads)
        self.token_budget = options.token_budget or self._budget(self.engine)
        if self.device == "cuda" and not options.token_budget and isinstance(self._engine, TorchEngine):
            self.token_budget = self._engine.token_budget(self.token_budget)
        self.attention = self._engine.attention
        self.notices = [*spec.notices, *fallback, *self._engine.notices]
        self._computed: list[int] = []  # tokens of each batch of the slice, from several threads

    def _load(self, engine: str, threads: int) -> Engine:
        if engine == "torch":
            return TorchEngine(self.spec, self.device, self.precision, self._skip, self._compile)
        return openvino_engine.OpenVinoEngine(self.spec, self.precision, threads, self._skip)

    def _budget(self, engine: str) -> int:
        return TOKEN_BUDGET[self.device] if engine == "torch" else OPENVINO_BUDGET

    def _pick_engine(self, asked: str, threads: int) -> str:
        """The engine for "auto", or the one asked for."""
        if self.device != "cpu":
            return "torch"
        if asked != "auto":
            return asked
        if self.precision == "int8":
            return "openvino"
        if not openvino_engine.available():
            return "torch"
        return openvino_engine.faster(self.spec, self.precision, threads, lambda engine: self._trial(engine, threads))

    @torch.inference_mode()
    def _trial(self, name: str, threads: int) -> float:
        """Seconds an engine takes for some batches of random tokens; endless if it cannot take them."""
        try:
            torch.set_num_threads(threads if name == "torch" else 1)
            engine = self._load(name, threads)
        except ModelError:
            return math.inf
        lengths = np.concatenate([np.full(TRIAL_TOKENS // n, min(n, self.spec.max_seq_length)) for n in TRIAL_LENGTHS])
        ids = np.random.default_rng(0).integers(0, engine.vocabulary, int(lengths.sum())).astype(np.int32)
        count = len(lengths)
        tokens = Tokens(ids, lengths.astype(np.int32), np.arange(count, dtype=np.int32), np.zeros(count, np.int32))
        batches = list(engine.pack(tokens, self._budget(name)))
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            for _ in in_streams(engine.pooled, batches, engine.streams):
                pass
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    @classmethod
    def load(
        cls,
        model: str | ModelSource,
        options: EncoderOptions = EncoderOptions(),
        spec_options: SpecOptions = SpecOptions(),
    ) -> Encoder:
        """Loads a model by hub name, folder, ``s3://`` URL or ``bundled:NAME``.

        Raises:
            ModelError: there is no such model, or it is of an unsupported kind.
            UsageError: the device or precision asked for is not to be had here.

        >>> from kosbert_ray import Encoder
        >>> encoder = Encoder.load("bundled:kosbert-mini")
        >>> encoder.encode(["비가 온다.", "눈이 내린다."]).shape
        (2, 256)
        """
        code = spec_options.allow_remote_code
        source = ModelSource(model, allow_remote_code=code) if isinstance(model, str) else model
        return cls(read_spec(fetch_model(source), spec_options), options)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, loaded when first asked for: a job tokenises elsewhere."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self.spec)
        return self._tokenizer

    def encode(self, texts: list[str] | pa.Array) -> npt.NDArray[np.float32]:
        """Sentence vectors of ``n`` texts: float32 ``[n, dimension]``, L2-normalised only if the model says so.

        Raises:
            ModelError: a text cannot be embedded; the message gives its index and the reason.
        """
        encoded = self.encode_tokens(self.tokenizer(texts))
        for row, reason in encoded.failed.items():
            raise ModelError(f"text {row}: {reason}")
        return encoded.vectors

    def encode_tokens(self, tokens: Tokens, known: tuple[npt.NDArray[np.int64], Vectors] | None = None) -> Encoded:
        """Sentence vectors of a tokenised slice, in the order of its rows.

        Args:
            tokens: the slice.
            known: indices of texts whose vectors are known, int64 ``[k]``, and these, float32 ``[k, dimension]``.

        Where memory runs out, ``token_budget`` is halved, which stays so and stands in ``notices``.

        Raises:
            DeviceBroken: the GPU is lost to this process.
        """
        unfit = {**tokens.failed, **self._unknown_ids(tokens)}
        self._computed.clear()
        means = tokens.part_of.astype(np.int64)
        vectors, failed, budget = encode_all(
            tokens,
            unfit,
            self.token_budget,
            self._forward,
            self.spec.dimension,
            self._engine.pack,
            self._engine.streams,
            np.concatenate((known[0], means)) if known else means,
        )
        if known:
            vectors[known[0]] = known[1]
        if len(tokens.part_of):
            join_parts(vectors, tokens, failed, self.spec.normalized)
        if budget < self.token_budget:
            self.notices.append(f"out of memory: batches of {budget:,} tokens instead of {self.token_budget:,}")
            self.token_budget = budget
        hit = np.flatnonzero(np.isin(tokens.rows, list(failed))).tolist() if failed else []
        rows = {row: failed[int(tokens.rows[row])] for row in hit}
        return Encoded(vectors, tokens.rows, rows, len(self._computed), sum(self._computed))

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        self._computed.append(self._engine.computed_tokens(batch))
        vectors = self._head(self._engine.pooled(batch))
        found: Vectors = cuda.to_host(vectors) if self.device == "cuda" else vectors.cpu().numpy()
        return found

    def _unknown_ids(self, tokens: Tokens) -> dict[int, str]:
        """The texts with a token that the model has no embedding for; on a GPU such an id would kill the process."""
        known = self._engine.vocabulary
        if not len(tokens.ids) or int(tokens.ids.max()) < known:
            return {}
        texts = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths)
        beyond = np.flatnonzero(tokens.ids >= known)
        return {
            int(texts[place]): f"token {tokens.ids[place]} is beyond the model's {known} (not the model's own tokenizer?)"
            for place in reversed(beyond.tolist())
        }


def pick_device(device: Device) -> Device:
    """The device to compute on; raises UsageError for one that is not here."""
    present: dict[Device, bool] = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, here in present.items() if here)
    if not present[device]:
        raise UsageError(f"encoder.device: there is no {device} device here; use auto or cpu")
    return device


def pick_precision(precision: Precision, device: str) -> str:
    """bf16 where the hardware multiplies it natively, else fp32, for "auto"; any other as asked."""
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32"
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"
