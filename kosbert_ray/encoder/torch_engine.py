"""PyTorch: a transformers encoder over packed batches, on a GPU or a CPU; the default everywhere."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from kosbert_ray.encoder import attention
from kosbert_ray.encoder.packing import Batch, Tokens, pack
from kosbert_ray.encoder.pooling import pool
from kosbert_ray.encoder.spec import OFFSET_POSITIONS, ModelSpec
from kosbert_ray.errors import ModelError, first_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROBE_LENGTHS = (3, 3, 7, 24)
# Packed and padded differ by rounding only: bf16 keeps 8 bits of each product, fp32 keeps 24.
AGREEMENT = {"fp32": 0.99999, "bf16": 0.999, "fp16": 0.999}


class TorchEngine:
    """A loaded transformer.

    Attributes:
        attention: "packed", or "padded" where the architecture cannot be packed or the self-check failed.
        notices: what a user should know.
        vocabulary: how many token ids it has embeddings for.
        streams: batches it takes at the same time.
        pack: how it wants its batches.
    """

    streams = 1
    pack = staticmethod(pack)

    def __init__(self, spec: ModelSpec, device: str, precision: str, skip: int) -> None:
        self._spec, self._device, self._precision, self._skip = spec, device, precision, skip
        self.notices: list[str] = []
        self.model, self.attention = load_transformer(spec, DTYPES[precision], device, attention.NAME)
        self.vocabulary = int(self.model.config.vocab_size)
        self._position_offset = position_offset(spec, self.model)
        if self.attention == "packed":
            self._self_check()
        else:
            self.notices.append(f"{spec.model_type} has no pluggable attention: batches are padded, which is slower")

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Pooled vectors of a batch's sequences: float32 ``[sequences, h * pooling modes]``, on the device."""
        try:
            return self._packed(batch) if self.attention == "packed" else self._padded(batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise

    def _packed(self, batch: Batch) -> torch.Tensor:
        offsets = torch.from_numpy(batch.offsets).to(self._device) if self._device == "cuda" else None
        hidden = self.model(
            input_ids=torch.from_numpy(batch.ids).to(self._device)[None],
            position_ids=torch.from_numpy(batch.positions + self._position_offset).to(self._device)[None],
            layout=attention.Layout(batch.groups, offsets),
        ).last_hidden_state[0]
        return pool(hidden, batch.groups, self._spec.pooling, self._skip)

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
    vocabulary = int(model.config.vocab_size)
    ids = np.random.default_rng(0).integers(vocabulary // 2, vocabulary, sum(lengths)).astype(np.int32)
    tokens = Tokens(ids, np.array(lengths, np.int32), np.arange(len(lengths), dtype=np.int32), np.zeros(0, np.int32))
    return next(pack(tokens, sum(lengths)))


def agreement_of(one: torch.Tensor, other: torch.Tensor, spec: ModelSpec, precision: str) -> float:
    """The least cosine between vectors of the same sequences, two ways; raises ModelError if none of them is finite."""
    finite = torch.isfinite(one).all(1) & torch.isfinite(other).all(1)
    if not finite.any():
        raise ModelError(f"{spec.folder}: every vector is NaN or Inf in {precision}; use another precision")
    return float(torch.cosine_similarity(one[finite], other[finite]).min())


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
