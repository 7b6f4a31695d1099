"""PyTorch: a transformers encoder over packed batches, on a GPU or a CPU. The default engine."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from kosbert_ray.encoder.engines import attention, cuda
from kosbert_ray.encoder.engines.base import AGREEMENT, Computed, Engine, EngineSettings, PrecisionUnfit
from kosbert_ray.encoder.engines.heads import States, heads, pooled
from kosbert_ray.encoder.engines.loading import load_transformer
from kosbert_ray.encoder.engines.model_info import position_offset, text_config, use_default_attention, vocabulary_of
from kosbert_ray.encoder.engines.probe import Yardstick, agreement_of, in_float32, probe, singles
from kosbert_ray.encoder.engines.trials import needs_type_ids, require_width
from kosbert_ray.encoder.packing import Batch, Pack, filled, pack, pack_one_length, random_batch
from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.spec import ModelSpec
from kosbert_ray.vectors.kinds import DENSE, Kind

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Tokens per batch. Measured on 2 CPU cores with BERT-base: 1,024 to 4,096 tokens differ by less than the noise.
TOKEN_BUDGET = {"cpu": 4096, "mps": 16_384, "cuda": 65_536}
PROBE_LONGEST = 1024  # tokens of the text that is encoded before and after a short one
BUDGET_TOKENS = 8192  # of the batch whose memory is measured
BUDGET_LENGTH = 128
MEMORY_SHARE = 0.8  # of the free memory; fragmentation takes the rest
COMPILED_TOKENS = 16_384  # batches of a compiled model are padded to a multiple of it


def load(spec: ModelSpec, settings: EngineSettings) -> Engine:
    """Loads a model. Raises as :class:`TorchEngine` does."""
    return TorchEngine(spec, settings)


class TorchEngine:
    """A model in PyTorch; implements :class:`~kosbert_ray.encoder.engines.base.Engine`.

    On a GPU in half precision, a batch's sequences are concatenated for flash attention and two batches run at a time.
    With ``compile`` set, batches are padded to a few sizes and the model is compiled once per size.

    Attributes:
        attention: "packed"; where the architecture cannot be packed or the self-check failed, "one_length" on a CPU and
            "padded" elsewhere.

    Raises:
        PrecisionUnfit: the model cannot compute in the requested precision.
        ModelError: the model cannot be loaded, or the vector of a text would depend on other texts.
    """

    def __init__(self, spec: ModelSpec, settings: EngineSettings) -> None:
        self._spec, self._device, self._precision, self._skip = spec, settings.device, settings.precision, settings.skip
        if self._device == "cpu":
            torch.set_num_threads(settings.threads)
        self._by_offsets = self._device == "cuda" and self._precision != "fp32"
        self.streams = 2 if self._device == "cuda" else 1
        self.pack: Pack = pack
        self._compiled: Any = None
        loaded = load_transformer(spec, DTYPES[self._precision], self._device, attention.NAME)
        self.model = loaded.model
        self._heads = heads(spec, self._device, self._skip, loaded.head)
        self.kinds: tuple[Kind, ...] = tuple(self._heads)
        self.notices: list[str] = [*loaded.notices]
        self.attention = "packed"
        if not loaded.pluggable:
            self._unpack(f"{spec.model_type} has no pluggable attention")
        self.vocabulary = vocabulary_of(self.model)
        self._position_offset = position_offset(spec, self.model)
        accepted = inspect.signature(self.model.forward).parameters
        self._always: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
        self._type_ids = False
        if self.attention != "packed":
            self._require_no_memory()  # before any other forward pass
        self._type_ids = needs_type_ids(spec, self.model)
        self._self_check()
        if settings.compile and self._by_offsets and self.attention == "packed":
            self._compile()

    @torch.inference_mode()
    def vectors(self, batch: Batch, kinds: Sequence[Kind] = (DENSE,)) -> Computed:
        """Returns the vectors of a batch's sequences, of each of ``kinds``: the transformer runs once for all of them."""
        try:
            states = self._states(batch)
            return {kind: self._heads[kind](states) for kind in kinds}
        except torch.OutOfMemoryError:
            cuda.empty_cache()
            raise

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Returns pooled vectors, float32 ``[sequences, h * pooling modes]``, on the device."""
        return self._pool(self._states(batch))

    def computed_tokens(self, batch: Batch) -> int:
        """Counts the tokens that the model computes for a batch, padding included."""
        if self.attention == "padded":
            return len(batch.texts) * max(length for _, _, length in batch.groups)
        return self._filled_tokens(batch)

    def default_token_budget(self) -> int:
        """Returns the tokens per batch for the device; on a GPU no more than its free memory holds."""
        most = TOKEN_BUDGET[self._device]
        return self.measured_budget(most) if self._device == "cuda" else most

    @torch.inference_mode()
    def measured_budget(self, most: int) -> int:
        """Returns the tokens per batch, up to ``most``, that fit into a GPU's free memory."""
        batch = self._even_batch(BUDGET_TOKENS)
        taken, free = cuda.memory_of(lambda: self.pooled(batch))
        return budget_of(taken / len(batch.ids), free, self.streams, most)

    def _even_batch(self, tokens: int) -> Batch:
        """Returns a batch of about ``tokens`` random tokens in sequences of equal length."""
        length = min(BUDGET_LENGTH, self._spec.max_seq_length)
        return random_batch([length] * (tokens // length), self.vocabulary)

    # -- forward passes --------------------------------------------------------------------------------------------

    def _states(self, batch: Batch) -> States:
        if self.attention == "packed":
            return States(self._packed_states(batch), batch, self._by_offsets)
        return States(self._padded_states(batch), batch, False)

    def _pool(self, states: States) -> torch.Tensor:
        return pooled(states, self._spec.pooling, self._skip)

    def _packed(self, batch: Batch) -> torch.Tensor:
        return self._pool(States(self._packed_states(batch), batch, self._by_offsets))

    def _packed_states(self, batch: Batch) -> torch.Tensor:
        if self._by_offsets and batch.attended is None:
            return self._states_by_offsets(batch)
        ids = torch.from_numpy(batch.ids).to(self._device)[None]
        hidden: torch.Tensor = self.model(
            input_ids=ids,
            position_ids=torch.from_numpy(batch.positions + self._position_offset).to(self._device)[None],
            layout=attention.Layout(batch.groups, attended=batch.attended),
            **self._more(ids),
        ).last_hidden_state[0]
        return hidden

    def _states_by_offsets(self, batch: Batch) -> torch.Tensor:
        run = filled(batch, self._filled_tokens(batch), self._spec.max_seq_length)
        compiled = self._compiled is not None and len(run.ids) % COMPILED_TOKENS == 0
        offsets = cuda.to_device(run.offsets)
        if compiled:  # the number of sequences varies from batch to batch and needs no kernel of its own
            torch._dynamo.mark_dynamic(offsets, 0)
        longest = max(length for _, _, length in run.groups)
        ids = cuda.to_device(run.ids)[None]
        hidden: torch.Tensor = (self._compiled if compiled else self.model)(
            input_ids=ids,
            position_ids=cuda.to_device(run.positions + self._position_offset)[None],
            # Rounded up to a power of two, so that a compiled model sees few values.
            layout=attention.Layout((), offsets, 1 << (longest - 1).bit_length()),
            **self._more(ids),
        ).last_hidden_state[0]
        return hidden

    def _padded(self, batch: Batch) -> torch.Tensor:
        return self._pool(States(self._padded_states(batch), batch, False))

    def _padded_states(self, batch: Batch) -> torch.Tensor:
        sequences = torch.from_numpy(batch.ids).split(np.diff(batch.offsets).tolist())
        padding = getattr(text_config(self.model), "pad_token_id", None) or 0
        ids = pad_sequence(list(sequences), batch_first=True, padding_value=padding).to(self._device)
        mask = pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True).to(self._device)
        seen = mask
        if batch.attended is not None:
            seen = mask.clone()
            seen[:, batch.attended :] = 0
        hidden: torch.Tensor = self.model(input_ids=ids, attention_mask=seen, **self._more(ids)).last_hidden_state
        return hidden[mask.bool()]

    def _more(self, ids: torch.Tensor) -> dict[str, Any]:
        """Returns the keyword arguments of every call besides tokens and positions."""
        return self._always | ({"token_type_ids": torch.zeros_like(ids)} if self._type_ids else {})

    def _filled_tokens(self, batch: Batch) -> int:
        """Returns the size that a batch is padded to: a multiple for a compiled model unless the batch is small."""
        if self._compiled is None or len(batch.ids) < COMPILED_TOKENS // 2:
            return len(batch.ids)
        return -(-len(batch.ids) // COMPILED_TOKENS) * COMPILED_TOKENS

    @torch.inference_mode()
    def _compile(self) -> None:
        """Compiles the model, and keeps the result only if it works here and returns the same vectors."""
        batch = self._even_batch(COMPILED_TOKENS)
        expected = self._packed(batch)
        self._compiled = torch.compile(self.model, dynamic=False)
        try:
            agreement = agreement_of(self._packed(batch), expected, self._spec, self._precision)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler raises many types
            self._compiled = None
            self.notices.append(f"encoder.compile: the model cannot be compiled here ({first_line(error)})")
            return
        if agreement < AGREEMENT[self._precision]:
            self._compiled = None
            self.notices.append(
                f"encoder.compile: ignored, because the compiled model returns other vectors (cosine {agreement:.6f})"
            )

    def _unpack(self, reason: str) -> None:
        """Switches to batches of whole sequences; on a CPU to sequences of equal length, so that nothing is padded."""
        if self._device == "cpu":
            self.attention, self.pack = "one_length", pack_one_length
            self.notices.append(f"{reason}: the texts of a batch have equal length, which is slower")
        else:
            self.attention = "padded"
            self.notices.append(f"{reason}: batches are padded, which is slower")

    # -- self-check ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _self_check(self) -> None:
        """Picks a way to make batches that changes no vector of this model on this machine.

        Packed batches must give what transformers' own attention gives to each text alone. So must padded batches, else the
        texts of a batch have equal length.
        """
        batch = probe(self._spec, self.model)
        if self.attention == "packed":
            use_default_attention(self.model)
        alone = torch.cat([self._reference(one) for one in singles(batch)])
        if DENSE in self.kinds:
            require_width(self._spec, alone.shape[1])
        yardstick = Yardstick(self._spec, self._precision, alone, self._in_float32(batch))
        if self.attention == "packed":
            self.model.set_attn_implementation(attention.NAME)
            reason = self._check_packed(batch, yardstick)
            if reason is None:
                return
            self._unpack(reason)
            use_default_attention(self.model)
        if self.attention == "padded":
            self._check_padded(batch, yardstick)

    def _in_float32(self, batch: Batch) -> torch.Tensor | None:
        """Returns the vectors of a batch's texts in fp32; None if the model computes in it anyway, or cannot."""
        if self._precision == "fp32":
            return None
        with contextlib.suppress(Exception), in_float32(self.model):
            return torch.cat([self._padded(one) for one in singles(batch)])
        return None

    def _reference(self, batch: Batch) -> torch.Tensor:
        """Returns a padded batch's vectors by transformers' own attention."""
        try:
            return self._padded(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self._precision == "fp32":
                raise ModelError(f"{self._spec.folder}: the model fails on any text ({first_line(error)})") from error
            kind = self._spec.model_type
            raise PrecisionUnfit(
                f"{self._spec.folder}: a {kind} cannot compute in {self._precision} ({first_line(error)}); use "
                "encoder.precision=fp32"
            ) from error

    def _check_packed(self, batch: Batch, yardstick: Yardstick) -> str | None:
        """Returns the reason why the model cannot be packed, or None if it can."""
        try:
            packed = self._packed(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # raised in an architecture's own code, so of any type
            if not self._by_offsets:
                return f"self-check: {self._spec.model_type} cannot be packed ({first_line(error)})"
            # No flash attention for this GPU or head size; attention per group of equal lengths may still work.
            self._by_offsets = False
            self.notices.append(f"flash attention is not available ({first_line(error)}); using slower attention by length")
            return self._check_packed(batch, yardstick)
        if (agreement := yardstick.disagreement(packed)) is not None:
            return f"self-check: a text's vector changes in a packed batch (cosine {agreement:.6f})"
        return None

    @torch.inference_mode()
    def _require_no_memory(self) -> None:
        """Raises ModelError if a text's vector depends on earlier batches (as with BigBird's sparse attention)."""
        length = min(self._spec.max_seq_length, PROBE_LONGEST)
        long, short = (random_batch([tokens], self.vocabulary) for tokens in (length, min(3, length)))
        first = self._reference(long)
        self._reference(short)
        agreement = agreement_of(self._reference(long), first, self._spec, self._precision)
        if agreement < AGREEMENT[self._precision]:
            sparse = getattr(self.model.config, "attention_type", "") == "block_sparse"
            hint = '; set "attention_type": "original_full" in its config.json' if sparse else ""
            raise ModelError(
                f"{self._spec.folder}: a {self._spec.model_type} returns a different vector for a text after a shorter one "
                f"(cosine {agreement:.6f}), so vectors would depend on the order of texts{hint}"
            )

    def _check_padded(self, batch: Batch, yardstick: Yardstick) -> None:
        """Switches to batches of equal lengths if padding changes a text's vector."""
        if (agreement := yardstick.disagreement(self._reference(batch))) is not None:
            self.attention, self.pack = "one_length", pack_one_length
            self.notices.append(
                f"self-check: padding changes the vectors of a {self._spec.model_type} (cosine {agreement:.6f}); using "
                "batches of texts of equal length, which is slower"
            )


def budget_of(bytes_per_token: float, free: int, streams: int, most: int) -> int:
    """Returns the largest power of two, up to ``most``, of tokens such that ``streams`` such batches fit into ``free``."""
    fit = MEMORY_SHARE * free / (streams * max(1.0, bytes_per_token))
    return min(most, 1 << max(0, int(fit).bit_length() - 1))
