"""PyTorch: a transformers encoder over packed batches, on a GPU or a CPU; the default everywhere."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from kosbert_ray.encoder.engines import attention, cuda
from kosbert_ray.encoder.packing import Batch, Pack, Tokens, filled, pack, pack_one_length
from kosbert_ray.encoder.pooling import pool, pool_by_offsets
from kosbert_ray.encoder.spec import OFFSET_POSITIONS, PADDING_INDEX, Dense, ModelSpec, Truncate
from kosbert_ray.errors import ModelError, first_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROBE_LENGTHS = (3, 3, 7, 24)
PROBE_LONGEST = 1024  # of a text that is tried before and after a short one
TRIAL_LONGEST = 8192  # of a text whose positions are tried
BUDGET_TOKENS = 8192  # of the batch whose memory is measured
BUDGET_LENGTH = 128
MEMORY_SHARE = 0.8  # of what is free: the allocator's pieces do not fit together without loss
COMPILED_TOKENS = 16_384  # a compiled model's batches are multiples of it
# Packed and padded differ by rounding only: bf16 keeps 8 bits of each product, fp32 keeps 24.
AGREEMENT = {"fp32": 0.99999, "bf16": 0.999, "fp16": 0.999}
# Of these encoder-decoders the encoder alone is the embedding model, as in sentence-transformers.
ENCODER_CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
# Weights that a checkpoint holds beside its encoder's, for what it was trained on.
SPARE_WEIGHTS = (
    "lm_head",
    "cls.",
    "classifier",
    "pooler",
    "decoder",
    "predictions",
    "discriminator",
    "generator",
    "qa_outputs",
    "score.",
    "position_ids",
    "inv_freq",
    "vocab_",
    "masked_bias",
    "attn.bias",
)


# What torch says where an index or a slice leaves a table of embeddings.
BEYOND_A_TABLE = ("size of tensor", "out of bounds", "out of range")


class PrecisionUnfit(ModelError):
    """The model cannot compute in the precision asked for."""


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

    Raises:
        PrecisionUnfit: the model cannot compute in this precision.
        ModelError: it cannot be loaded, or a text's vector would depend on other texts.
    """

    def __init__(self, spec: ModelSpec, device: str, precision: str, skip: int, compile: bool = False) -> None:
        self._spec, self._device, self._precision, self._skip = spec, device, precision, skip
        self._by_offsets = device == "cuda" and precision != "fp32"
        self.streams = 2 if device == "cuda" else 1
        self.pack: Pack = pack
        self._compiled: Any = None
        loaded = load_transformer(spec, DTYPES[precision], device, attention.NAME)
        self.model = loaded.model
        self.notices: list[str] = [*loaded.notices]
        self.attention = "packed" if loaded.pluggable else "padded"
        self.vocabulary = vocabulary_of(self.model)
        self._position_offset = position_offset(spec, self.model)
        accepted = inspect.signature(self.model.forward).parameters
        self._always: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
        self._type_ids = False
        if self.attention == "padded":
            self._require_no_memory()  # before anything else has gone through the model
        self._type_ids = needs_type_ids(spec, self.model)
        if self.attention == "padded":
            self.notices.append(f"{spec.model_type} has no pluggable attention: batches are padded, which is slower")
        self._self_check()
        if compile and self._by_offsets and self.attention == "packed":
            self._compile()

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
        ids = torch.from_numpy(batch.ids).to(self._device)[None]
        hidden = self.model(
            input_ids=ids,
            position_ids=torch.from_numpy(batch.positions + self._position_offset).to(self._device)[None],
            layout=attention.Layout(batch.groups),
            **self._more(ids),
        ).last_hidden_state[0]
        return pool(hidden, batch.groups, self._spec.pooling, self._skip)

    def _packed_by_offsets(self, batch: Batch) -> torch.Tensor:
        run = filled(batch, self._filled_tokens(batch), self._spec.max_seq_length)
        compiled = self._compiled is not None and len(run.ids) % COMPILED_TOKENS == 0
        offsets = cuda.to_device(run.offsets)
        if compiled:  # the number of sequences differs from batch to batch, and costs no other kernel
            torch._dynamo.mark_dynamic(offsets, 0)
        longest = max(length for _, _, length in run.groups)
        ids = cuda.to_device(run.ids)[None]
        hidden = (self._compiled if compiled else self.model)(
            input_ids=ids,
            position_ids=cuda.to_device(run.positions + self._position_offset)[None],
            # A power of two, so that a compiled model meets few of them.
            layout=attention.Layout((), offsets, 1 << (longest - 1).bit_length()),
            **self._more(ids),
        ).last_hidden_state[0]
        return pool_by_offsets(hidden, batch.offsets, self._spec.pooling, self._skip, cuda.to_device)

    def _more(self, ids: torch.Tensor) -> dict[str, Any]:
        """Keyword arguments of every call beside tokens and positions."""
        return self._always | ({"token_type_ids": torch.zeros_like(ids)} if self._type_ids else {})

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
        padding = getattr(text_config(self.model), "pad_token_id", None) or 0
        ids = pad_sequence(list(sequences), batch_first=True, padding_value=padding).to(self._device)
        mask = pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True).to(self._device)
        hidden = self.model(input_ids=ids, attention_mask=mask, **self._more(ids)).last_hidden_state
        return pool(hidden[mask.bool()], batch.groups, self._spec.pooling, self._skip)

    @torch.inference_mode()
    def _self_check(self) -> None:
        """Finds out how batches may be made for this model on this machine, so that none of them changes a vector.

        Packed must give what transformers' own attention gives on a padded batch; else batches are padded. Padded must give
        what a text alone gives; else a batch's texts are of one length.
        """
        batch = probe(self._spec, self.model)
        if self.attention == "packed":
            use_default_attention(self.model)
        expected = self._reference(batch)
        self._require_width(expected)
        if self.attention == "packed":
            self.model.set_attn_implementation(attention.NAME)
            notice = self._check_packed(batch, expected)
            if notice is None:
                return
            self.notices.append(notice)
            self.attention = "padded"
            use_default_attention(self.model)
        self._check_padded(batch, expected)

    def _reference(self, batch: Batch) -> torch.Tensor:
        """A padded batch's vectors by transformers' own attention."""
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

    def _check_packed(self, batch: Batch, expected: torch.Tensor) -> str | None:
        """The reason why the model cannot be packed, or None if it can."""
        try:
            packed = self._packed(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an architecture's own code: of any kind
            if not self._by_offsets:
                return f"self-check: {self._spec.model_type} cannot be packed ({first_line(error)}); using padded"
            # A GPU or a head size for which there is no flash attention; sequences of one length at a time may still go.
            self._by_offsets = False
            self.notices.append(f"flash attention cannot be used here ({first_line(error)}): attention by lengths, slower")
            return self._check_packed(batch, expected)
        agreement = agreement_of(packed, expected, self._spec, self._precision)
        if agreement < AGREEMENT[self._precision]:
            return f"self-check: packed and padded agree to a cosine of {agreement:.6f} only; using padded"
        return None

    @torch.inference_mode()
    def _require_no_memory(self) -> None:
        """Raises ModelError if a text's vector depends on what was encoded before it (BigBird's sparse attention does)."""
        length = min(self._spec.max_seq_length, PROBE_LONGEST)
        long, short = (random_batch([tokens], self.vocabulary) for tokens in (length, min(3, length)))
        first = self._reference(long)
        self._reference(short)
        agreement = agreement_of(self._reference(long), first, self._spec, self._precision)
        if agreement < AGREEMENT[self._precision]:
            sparse = getattr(self.model.config, "attention_type", "") == "block_sparse"
            hint = '; set "attention_type": "original_full" in its config.json' if sparse else ""
            raise ModelError(
                f"{self._spec.folder}: a {self._spec.model_type} gives a text another vector after a shorter one (cosine "
                f"{agreement:.6f}), so its vectors would depend on the order of texts{hint}"
            )

    def _check_padded(self, batch: Batch, expected: torch.Tensor) -> None:
        """A text must have the same vector alone and in a padded batch; else a batch's texts are of one length."""
        alone = torch.cat([self._reference(one) for one in singles(batch)])
        agreement = agreement_of(alone, expected, self._spec, self._precision)
        if agreement < AGREEMENT[self._precision]:
            self.pack = pack_one_length
            self.notices.append(
                f"self-check: padding changes the vectors of a {self._spec.model_type} (cosine {agreement:.6f}); a batch's "
                "texts are of one length, which is slower"
            )

    def _require_width(self, pooled: torch.Tensor) -> None:
        """Raises ModelError if the transformer's vectors are not as wide as the modules behind it expect."""
        width = pooled.shape[1]
        first = next((part for part in self._spec.head if isinstance(part, Dense | Truncate)), None)
        expected = first.in_features if isinstance(first, Dense) else self._spec.dimension
        if width < expected or (width > expected and not isinstance(first, Truncate)):
            raise ModelError(
                f"{self._spec.folder}: the transformer's vectors have {width} numbers, and {expected} are expected (see "
                "the config.json of its pooling)"
            )


def probe(spec: ModelSpec, model: Any) -> Batch:
    """A batch of a few sequences of random tokens, one longer than the model's attention window if it has one."""
    window = int(getattr(text_config(model), "sliding_window", None) or 0)
    lengths = [*PROBE_LENGTHS, *([2 * window] if 0 < 2 * window <= spec.max_seq_length else [])]
    lengths = [min(length, spec.max_seq_length) for length in lengths]
    return random_batch(lengths, vocabulary_of(model))


def random_batch(lengths: list[int], vocabulary: int) -> Batch:
    """One batch of sequences of these lengths, of the same random tokens each time."""
    ids = np.random.default_rng(0).integers(vocabulary // 2, vocabulary, sum(lengths)).astype(np.int32)
    tokens = Tokens(ids, np.array(lengths, np.int32), np.arange(len(lengths), dtype=np.int32), np.zeros(0, np.int32))
    return next(pack(tokens, sum(lengths)))


def singles(batch: Batch) -> list[Batch]:
    """Each sequence of a batch as a batch of its own."""
    found = []
    for number, ids in enumerate(np.split(batch.ids, batch.offsets[1:-1])):
        texts = batch.texts[number : number + 1]
        found.append(Batch(ids, np.arange(len(ids), dtype=np.int64), ((0, 1, len(ids)),), texts))
    return found


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


def text_config(model: Any) -> Any:
    """The part of a model's config that is about text."""
    return model.config.get_text_config()


def vocabulary_of(model: Any) -> int:
    """The number of token ids that a model has embeddings for."""
    return int(getattr(text_config(model), "vocab_size", None) or model.get_input_embeddings().num_embeddings)


def position_offset(spec: ModelSpec, model: Any) -> int:
    """What the model calls the first position."""
    if spec.model_type not in OFFSET_POSITIONS:
        return 0
    padding = model.config.pad_token_id
    return (PADDING_INDEX if padding is None else int(padding)) + 1


def use_default_attention(model: Any) -> None:
    """Puts in the attention that transformers would choose by itself."""
    model.set_attn_implementation(model.get_correct_attn_implementation(None))


@torch.inference_mode()
def needs_type_ids(spec: ModelSpec, model: Any) -> bool:
    """True if the model needs token_type_ids of 0: its tokenizer produces them, and they change its vectors.

    Most models take ids that are left out for zeros. Some (GPT-2, XLM) add the embedding of token 0 for them; there
    sentence-transformers, which passes on what the tokenizer gives, has other vectors with them than without.
    """
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return False
    before = model.config._attn_implementation
    ids = torch.from_numpy(random_batch([min(7, spec.max_seq_length)], vocabulary_of(model)).ids)[None].to(model.device)
    with contextlib.suppress(Exception):  # the self-check reports a model that fails
        if before == attention.NAME:
            use_default_attention(model)
        plain, zeros = (
            model(input_ids=ids, **more).last_hidden_state for more in ({}, {"token_type_ids": torch.zeros_like(ids)})
        )
        if not torch.allclose(plain, zeros, rtol=1e-2, atol=1e-3):
            from transformers import AutoTokenizer

            tokenizer: Any = AutoTokenizer.from_pretrained(
                spec.transformer, local_files_only=True, trust_remote_code=spec.remote_code
            )
            return "token_type_ids" in tokenizer.model_input_names
    return False


@dataclass(frozen=True)
class Loaded:
    """A transformer as it was loaded.

    Attributes:
        model: on its device.
        pluggable: whether its attention can be replaced.
        notices: what a user should know.
    """

    model: Any
    pluggable: bool
    notices: tuple[str, ...]


def load_transformer(spec: ModelSpec, dtype: torch.dtype, device: str, attention_name: str) -> Loaded:
    """The transformer in ``dtype`` on ``device``.

    Args:
        spec: the model.
        dtype: of its weights.
        device: where to.
        attention_name: the attention to put in, known to transformers.

    Raises:
        ModelError: it cannot be loaded, weights are missing, or it does not take texts of ``spec.max_seq_length``.
    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    attention.register()
    kind: Any = getattr(transformers, ENCODER_CLASSES.get(spec.model_type, "AutoModel"))
    load = {
        "dtype": dtype,
        "local_files_only": True,
        "output_loading_info": True,
        "trust_remote_code": spec.remote_code,
        # Else a *.bin beside the *.safetensors, or in their place, could be unpickled.
        "use_safetensors": True,
    }
    if spec.model_type in ENCODER_CLASSES:
        del load["trust_remote_code"]
    try:
        model: Any = None
        info: dict[str, Any] = {}
        pluggable = False
        with contextlib.suppress(ValueError):  # transformers' word for "this architecture takes no such attention"
            model, info = kind.from_pretrained(spec.transformer, attn_implementation=attention_name, **load)
            pluggable = bool(model._supports_attention_backend)
        if not pluggable:
            model, info = kind.from_pretrained(spec.transformer, **load)
    except Exception as error:
        raise ModelError(f"{spec.transformer}: cannot load the model ({first_line(error)})") from error
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise ModelError(
            f"{spec.transformer}: {len(missing)} weights are missing ({missing[0]}, …); is it a {spec.model_type} model?"
        )
    spare = sorted(name for name in info["unexpected_keys"] if not any(part in name for part in SPARE_WEIGHTS))
    notices = (
        (f"{spec.transformer}: {len(spare)} of its weights ({spare[0]}, …) are no part of a {spec.model_type}: not used",)
        if spare
        else ()
    )
    _require_positions(spec, model.eval())
    return Loaded(model.to(device), pluggable, notices)


class _Enough(Exception):
    """Ends a trial behind the embeddings."""


@torch.inference_mode()
def _require_positions(spec: ModelSpec, model: Any) -> None:
    """Raises ModelError if the embeddings do not take a text of ``spec.max_seq_length`` tokens.

    It is tried on the CPU, up to the first layer behind the embeddings: on a GPU a position beyond the table would end the
    process, and each long text would be rejected otherwise.
    """
    from transformers.pytorch_utils import Conv1D

    def stop(*_: object) -> None:
        raise _Enough

    def takes(length: int) -> bool:
        try:
            model(input_ids=torch.full((1, length), token))
        except IndexError:
            return False
        except RuntimeError as error:  # of a table that is sliced or gathered from
            return not any(mark in str(error) for mark in BEYOND_A_TABLE)
        except Exception:  # _Enough, or what the self-check will tell
            return True
        return True

    token = vocabulary_of(model) // 2
    most = min(spec.max_seq_length, TRIAL_LONGEST)
    hooks = [module.register_forward_pre_hook(stop) for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    try:
        if takes(most) or not takes(1):
            return
        fit, beyond = 1, most
        while beyond - fit > 1:
            middle = (fit + beyond) // 2
            fit, beyond = (middle, beyond) if takes(middle) else (fit, middle)
    finally:
        for hook in hooks:
            hook.remove()
    raise ModelError(
        f"{spec.folder}: its position embeddings take {fit} tokens, not {spec.max_seq_length}; set "
        f"model.max_seq_length={fit}"
    )
