"""The encoder: a model folder's transformer, pooling and head, run over packed batches.

``Encoder.load(name).encode(texts)`` is the library; the job calls :meth:`Encoder.encode_tokens` on a slice that was
tokenised elsewhere.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.nn.utils.rnn import pad_sequence

from kosbert_ray.encoder import attention
from kosbert_ray.encoder.bisection import encode_all
from kosbert_ray.encoder.options import Device, EncoderOptions, Precision, usable_cores
from kosbert_ray.encoder.packing import Batch, Tokens, pack
from kosbert_ray.encoder.pooling import Head, pool
from kosbert_ray.encoder.source import ModelSource, fetch_model
from kosbert_ray.encoder.spec import OFFSET_POSITIONS, ModelSpec, SpecOptions, read_spec
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import ModelError, UsageError, first_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Measured on 2 CPU cores with BERT-base: 1,024 to 4,096 tokens a batch differ by less than the noise.
TOKEN_BUDGET = {"cpu": 4096, "mps": 16_384, "cuda": 65_536}
PROBE_LENGTHS = (3, 3, 7, 24)
# Packed and padded differ by rounding only: bf16 keeps 8 bits of each product, fp32 keeps 24.
AGREEMENT = {torch.float32: 0.99999, torch.bfloat16: 0.999, torch.float16: 0.999}


@dataclass(frozen=True)
class Encoded:
    """Vectors of a slice's rows.

    ``vectors`` is float32 ``[n, dimension]``; of the rows in ``failed``, which have no vector, it holds zeros and
    ``failed`` the reason.
    """

    vectors: npt.NDArray[np.float32]
    failed: dict[int, str]


class Encoder:
    """A loaded model. Make one with :meth:`load`, or from a spec that was read already.

    Attributes:
        spec: what the model folder says.
        device: "cuda", "mps" or "cpu".
        precision: "bf16", "fp16" or "fp32": what "auto" came to.
        attention: "packed", or "padded" where the architecture cannot be packed or the self-check failed.
        notices: what a user should know (a fallback, mean pooling assumed).
    """

    def __init__(self, spec: ModelSpec, options: EncoderOptions) -> None:
        self.spec = spec
        self.device = pick_device(options.device)
        self.precision = pick_precision(options.precision, self.device)
        if self.device == "cpu":
            torch.set_num_threads(options.threads or usable_cores())
        self.token_budget = options.token_budget or TOKEN_BUDGET[self.device]
        self.notices = list(spec.notices)
        self._tokenizer: Tokenizer | None = None
        self._skip = 0 if spec.include_prompt or not spec.prompt else self.tokenizer.prompt_length
        self._model, self.attention = _load_transformer(spec, DTYPES[self.precision], self.device)
        self._head = Head(spec.head).to(self.device).eval()
        self._position_offset = 0
        if spec.model_type in OFFSET_POSITIONS:
            self._position_offset = int(self._model.config.pad_token_id) + 1
        if self.attention == "packed":
            self._self_check()
        else:
            self.notices.append(f"{spec.model_type} has no pluggable attention: batches are padded, which is slower")

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
        """
        pickles, code = spec_options.allow_pickle, spec_options.allow_remote_code
        source = ModelSource(model, allow_pickle=pickles, allow_remote_code=code) if isinstance(model, str) else model
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

    def encode_tokens(self, tokens: Tokens) -> Encoded:
        """Sentence vectors of a tokenised slice, in the order of its rows.

        Where memory runs out, ``token_budget`` is halved, which stays so and stands in ``notices``.

        Raises:
            DeviceBroken: the GPU is lost to this process.
        """
        unfit = {**tokens.failed, **self._unknown_ids(tokens)}
        vectors, failed, budget = encode_all(tokens, unfit, self.token_budget, self._forward, self.spec.dimension)
        if budget < self.token_budget:
            self.notices.append(f"out of memory: batches of {budget:,} tokens instead of {self.token_budget:,}")
            self.token_budget = budget
        hit = np.flatnonzero(np.isin(tokens.rows, list(failed))).tolist() if failed else []
        rows = {row: failed[int(tokens.rows[row])] for row in hit}
        if len(tokens.rows) == len(tokens.lengths):  # no duplicates: rows are texts, in the order they first appear
            return Encoded(vectors, rows)
        return Encoded(vectors[tokens.rows], rows)

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        forward = self._packed if self.attention == "packed" else self._padded
        try:
            vectors: npt.NDArray[np.float32] = self._head(forward(batch)).cpu().numpy()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise
        return vectors

    def _unknown_ids(self, tokens: Tokens) -> dict[int, str]:
        """The texts with a token that the model has no embedding for; on a GPU such an id would kill the process."""
        known = int(self._model.config.vocab_size)
        if not len(tokens.ids) or int(tokens.ids.max()) < known:
            return {}
        texts = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths)
        beyond = np.flatnonzero(tokens.ids >= known)
        return {
            int(texts[place]): f"token {tokens.ids[place]} is beyond the model's {known} (not the model's own tokenizer?)"
            for place in reversed(beyond.tolist())
        }

    def _packed(self, batch: Batch) -> torch.Tensor:
        offsets = torch.from_numpy(batch.offsets).to(self.device) if self.device == "cuda" else None
        hidden = self._model(
            input_ids=torch.from_numpy(batch.ids).to(self.device)[None],
            position_ids=torch.from_numpy(batch.positions + self._position_offset).to(self.device)[None],
            layout=attention.Layout(batch.groups, offsets),
        ).last_hidden_state[0]
        return pool(hidden, batch.groups, self.spec.pooling, self._skip)

    def _padded(self, batch: Batch) -> torch.Tensor:
        sequences = torch.from_numpy(batch.ids).split(np.diff(batch.offsets).tolist())
        ids = pad_sequence(list(sequences), batch_first=True, padding_value=self._model.config.pad_token_id or 0)
        mask = pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True).to(self.device)
        hidden = self._model(input_ids=ids.to(self.device), attention_mask=mask).last_hidden_state
        return pool(hidden[mask.bool()], batch.groups, self.spec.pooling, self._skip)

    @torch.inference_mode()
    def _self_check(self) -> None:
        """Packed must give what padded gives; if it does not for this model on this machine, padded it is."""
        window = int(getattr(self._model.config, "sliding_window", None) or 0)
        lengths = [*PROBE_LENGTHS, *([2 * window] if 0 < 2 * window <= self.spec.max_seq_length else [])]
        lengths = [min(length, self.spec.max_seq_length) for length in lengths]
        vocabulary = int(self._model.config.vocab_size)
        ids = np.random.default_rng(0).integers(vocabulary // 2, vocabulary, sum(lengths)).astype(np.int32)
        probe = Tokens(ids, np.array(lengths, np.int32), np.arange(len(lengths), dtype=np.int32), np.zeros(0, np.int32))
        batch = next(pack(probe, sum(lengths)))
        packed = self._packed(batch)
        self._model.set_attn_implementation("sdpa")
        padded = self._padded(batch)
        finite = torch.isfinite(packed).all(1) & torch.isfinite(padded).all(1)
        if not finite.any():
            raise ModelError(f"{self.spec.folder}: every vector is NaN or Inf in {self.precision}; use another precision")
        agreement = float(torch.cosine_similarity(packed[finite], padded[finite]).min())
        if agreement >= AGREEMENT[DTYPES[self.precision]]:
            self._model.set_attn_implementation(attention.NAME)
        else:
            self.attention = "padded"
            self.notices.append(f"self-check: packed and padded agree to a cosine of {agreement:.6f} only; using padded")


def pick_device(device: Device) -> str:
    """The device to compute on; raises UsageError for one that is not here."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, here in present.items() if here)
    if not present[device]:
        raise UsageError(f"encoder.device: there is no {device} device here; use auto or cpu")
    return device


def pick_precision(precision: Precision, device: str) -> str:
    """bf16 where the hardware multiplies it natively, else fp32, for "auto"; any other as asked."""
    if precision != "auto":
        if precision == "fp16" and device == "cpu":
            raise UsageError("encoder.precision: fp16 is for GPUs; use bf16 or fp32 on a CPU")
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32"
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"


def _load_transformer(spec: ModelSpec, dtype: torch.dtype, device: str) -> tuple[Any, str]:
    """The transformer in ``dtype`` on ``device``, and "packed" if its attention can be replaced, else "padded"."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    attention.register()
    load = {
        "dtype": dtype,
        "local_files_only": True,
        "output_loading_info": True,
        "trust_remote_code": spec.remote_code,
        # Else a *.bin beside the *.safetensors, or in their place, could be unpickled.
        "use_safetensors": any(path.suffix == ".safetensors" for path in spec.weight_files),
    }
    try:
        model: Any = None
        info: dict[str, Any] = {}
        kind = "padded"
        with contextlib.suppress(ValueError):  # transformers' word for "this architecture takes no such attention"
            model, info = AutoModel.from_pretrained(spec.transformer, attn_implementation=attention.NAME, **load)
            kind = "packed" if model._supports_attention_backend else "padded"
        if kind == "padded":
            model, info = AutoModel.from_pretrained(spec.transformer, **load)
    except Exception as error:
        raise ModelError(f"{spec.transformer}: cannot load the model ({first_line(error)})") from error
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise ModelError(
            f"{spec.transformer}: {len(missing)} weights are missing ({missing[0]}, …); is it a {spec.model_type} model?"
        )
    return model.to(device).eval(), kind
