"""PyTorch: a transformers encoder over packed batches, on a GPU or a CPU; the default everywhere."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from kosbert_ray.encoder import attention, cuda
from kosbert_ray.encoder.packing import Batch, Tokens, filled, pack
from kosbert_ray.encoder.pooling import pool, pool_by_offsets
from kosbert_ray.encoder.spec import OFFSET_POSITIONS, ModelSpec
from kosbert_ray.errors import ModelError, first_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROBE_LENGTHS = (3, 3, 7, 24)
BUDGET_TOKENS = 8192  # of the batch whose memory is measured
BUDGET_LENGTH = 128
MEMORY_SHARE = 0.8  # of what is free: the allocator's pieces do not fit together without loss
COMPILED_TOKENS = 16_384  # a compiled model's batches are multiples of it
# Packed and padded differ by rounding only: bf16 keeps 8 bits of each product, fp32 keeps 24.
AGREEMENT = {"fp32": 0.99999, "bf16": 0.999, "fp16": 0.999}


class TorchEngine:
    """A loaded transformer.

    On a GPU in half precision a batch's sequences lie one after another for flash attention, two batches are under way at
    a time, and with ``compile`` batches are filled up to a few sizes, for each of which the model is compiled.

    Attributes:
        attention: "packed", or "padded" where the architecture cannot be packed or the self-check failed.
        notices: what a user should know.
        vocabulary: how many token ids it has embeddings for.
        streams: batches it takes at the same time.
        pack: how it wants its batches.
    """

    pack = staticmethod(pack)

    def __init__(self, spec: ModelSpec, device: str, precision: str, skip: int, compile: bool = False) -> None:
        self._spec, self._device, self._precision, self._skip = spec, device, precision, skip
        self._by_offsets = device == "cuda" and precision != "fp32"
        self.streams = 2 if device == "cuda" else 1
        self._compiled: Any = None
        self.notices: list[str] = []
        self.model, self.attention = load_transformer(spec, DTYPES[precision], device, attention.NAME)
        self.vocabulary = int(self.model.config.vocab_size)
        self._position_offset = position_offset(spec, self.model)
        if self.attention == "packed":
            self._self_check()
            if compile and self._by_offsets and self.attention == "packed":
                self._compile()
        else:
            self.notices.append(f"{spec.model_type} has no pluggable attention: batches are padded, which is slower")

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Pooled vectors of a batch's sequences: float32 ``[sequences, h * pooling modes]``, on the device."""
        try:
            return self._packed(batch) if self.attention == "packed" else self._padded(batch)
        except torch.OutOfMemoryError:
            cuda.empty_cache()
            raise

    def computed_tokens(self, batch: Batch) -> int:
        """Tokens that a batch is to the model, what it is padded or filled up with included."""
        if self.attention == "padded":
            return len(batch.texts) * max(length for _, _, length in batch.groups)
        return self._filled_tokens(batch)

    @torch.inference_mode()
    def token_budget(self, most: int) -> int:
        """Tokens in a batch, up to ``most``, for which a GPU's free memory suffices."""
        batch = self._even_batch(BUDGET_TOKENS)
        taken, free = cuda.memory_of(lambda: self.pooled(batch))
        return budget_of(taken / len(batch.ids), free, self.streams, most)

    def _even_batch(self, tokens: int) -> Batch:
        """Up to so many random tokens, in sequences of one length."""
        length = min(BUDGET_LENGTH, self._spec.max_seq_length)
        return random_batch([length] * (tokens // length), self.vocabulary)

    def _packed(self, batch: Batch) -> torch.Tensor:
        if self._by_offsets:
            return self._packed_by_offsets(batch)
        hidden = self.model(
            input_ids=torch.from_numpy(batch.ids).to(self._device)[None],
            position_ids=torch.from_numpy(batch.positions + self._position_offset).to(self._device)[None],
            layout=attention.Layout(batch.groups),
        ).last_hidden_state[0]
        return pool(hidden, batch.groups, self._spec.pooling, self._skip)

    def _packed_by_offsets(self, batch: Batch) -> torch.Tensor:
        run = filled(batch, self._filled_tokens(batch), self._spec.max_seq_length)
        compiled = self._compiled is not None and len(run.ids) % COMPILED_TOKENS == 0
        offsets = cuda.to_device(run.offsets)
        if compiled:  # the number of sequences differs from batch to batch, and costs no other kernel
            torch._dynamo.mark_dynamic(offsets, 0)
        longest = max(length for _, _, length in run.groups)
        hidden = (self._compiled if compiled else self.model)(
            input_ids=cuda.to_device(run.ids)[None],
            position_ids=cuda.to_device(run.positions + self._position_offset)[None],
            # A power of two, so that a compiled model meets few of them.
            layout=attention.Layout((), offsets, 1 << (longest - 1).bit_length()),
        ).last_hidden_state[0]
        return pool_by_offsets(hidden, batch.offsets, self._spec.pooling, self._skip, cuda.to_device)

    def _filled_tokens(self, batch: Batch) -> int:
        """To how many tokens a batch is filled up: a compiled model's to a multiple, unless it is small."""
        if self._compiled is None or len(batch.ids) < COMPILED_TOKENS // 2:
            return len(batch.ids)
        return -(-len(batch.ids) // COMPILED_TOKENS) * COMPILED_TOKENS

    @torch.inference_mode()
    def _compile(self) -> None:
        """Compiles the model, if that can be done here and gives what the model gives."""
        batch = self._even_batch(COMPILED_TOKENS)
        expected = self._packed(batch)
        self._compiled = torch.compile(self.model, dynamic=False)
        try:
            agreement = agreement_of(self._packed(batch), expected, self._spec, self._precision)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler's own, of many kinds
            self._compiled = None
            self.notices.append(f"encoder.compile: the model cannot be compiled here ({first_line(error)})")
            return
        if agreement < AGREEMENT[self._precision]:
            self._compiled = None
            self.notices.append(
                f"encoder.compile: compiled, the model agrees to a cosine of {agreement:.6f} only; not used"
            )

    def _padded(self, batch: Batch) -> torch.Tensor:
        sequences = torch.from_numpy(batch.ids).split(np.diff(batch.offsets).tolist())
        ids = pad_sequence(list(sequences), batch_first=True, padding_value=self.model.config.pad_token_id or 0)
        mask = pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True).to(self._device)
        hidden = self.model(input_ids=ids.to(self._device), attention_mask=mask).last_hidden_state
        return pool(hidden[mask.bool()], batch.groups, self._spec.pooling, self._skip)

    @torch.inference_mode()
    def _self_check(self) -> None:
        """Packed must give what padded gives; if it does not for this model on this machine, padded it is."""
        batch = probe(self._spec, self.model)
        try:
            packed = self._packed(batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not self._by_offsets:
                raise
            # A GPU or a head size for which there is no flash attention; sequences of one length at a time always go.
            self._by_offsets = False
            self.notices.append(f"flash attention cannot be used here ({first_line(error)}): attention by lengths, slower")
            packed = self._packed(batch)
        self.model.set_attn_implementation("sdpa")
        agreement = agreement_of(packed, self._padded(batch), self._spec, self._precision)
        if agreement >= AGREEMENT[self._precision]:
            self.model.set_attn_implementation(attention.NAME)
        else:
            self.attention = "padded"
            self.notices.append(f"self-check: packed and padded agree to a cosine of {agreement:.6f} only; using padded")


def probe(spec: ModelSpec, model: Any) -> Batch:
    """A batch of a few sequences of random tokens, one longer than the model's attention window if it has one."""
    window = int(getattr(model.config, "sliding_window", None) or 0)
    lengths = [*PROBE_LENGTHS, *([2 * window] if 0 < 2 * window <= spec.max_seq_length else [])]
    lengths = [min(length, spec.max_seq_length) for length in lengths]
    return random_batch(lengths, int(model.config.vocab_size))


def random_batch(lengths: list[int], vocabulary: int) -> Batch:
    """One batch of sequences of these lengths, of the same random tokens each time."""
    ids = np.random.default_rng(0).integers(vocabulary // 2, vocabulary, sum(lengths)).astype(np.int32)
    tokens = Tokens(ids, np.array(lengths, np.int32), np.arange(len(lengths), dtype=np.int32), np.zeros(0, np.int32))
    return next(pack(tokens, sum(lengths)))


def agreement_of(one: torch.Tensor, other: torch.Tensor, spec: ModelSpec, precision: str) -> float:
    """The least cosine between vectors of the same sequences, two ways; raises ModelError if none of them is finite."""
    finite = torch.isfinite(one).all(1) & torch.isfinite(other).all(1)
    if not finite.any():
        raise ModelError(f"{spec.folder}: every vector is NaN or Inf in {precision}; use another precision")
    return float(torch.cosine_similarity(one[finite], other[finite]).min())


def budget_of(bytes_a_token: float, free: int, streams: int, most: int) -> int:
    """The largest power of two of tokens, up to ``most``, of which ``streams`` batches fit into ``free`` bytes."""
    fit = MEMORY_SHARE * free / (streams * max(1.0, bytes_a_token))
    return min(most, 1 << max(0, int(fit).bit_length() - 1))


def position_offset(spec: ModelSpec, model: Any) -> int:
    """What the model calls the first position."""
    return int(model.config.pad_token_id) + 1 if spec.model_type in OFFSET_POSITIONS else 0


def load_transformer(spec: ModelSpec, dtype: torch.dtype, device: str, attention_name: str) -> tuple[Any, str]:
    """The transformer in ``dtype`` on ``device``, and "packed" if its attention can be replaced, else "padded".

    Args:
        spec: the model.
        dtype: of its weights.
        device: where to.
        attention_name: the attention to put in, known to transformers.

    Raises:
        ModelError: it cannot be loaded, or weights are missing.
    """
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
            model, info = AutoModel.from_pretrained(spec.transformer, attn_implementation=attention_name, **load)
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
