"""The encoder: a model folder's tokenizer, and an engine that runs over packed batches. Loads no engine's library itself.

``Encoder.load(name).encode(texts)`` is the library. A job calls :meth:`Encoder.encode_tokens` on slices that were
tokenized elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kosbert_ray.encoder.bisection import encode_all
from kosbert_ray.encoder.collected import DenseRows, KindRows
from kosbert_ray.encoder.devices import device_memory, pick_device, pick_precision
from kosbert_ray.encoder.engines import table
from kosbert_ray.encoder.engines.base import Computed, EngineSettings, PrecisionUnfit
from kosbert_ray.encoder.engines.choice import fitted, preferred_engine, require_fitting
from kosbert_ray.encoder.late import LateVectors
from kosbert_ray.encoder.long_text import join_parts
from kosbert_ray.encoder.options import EncoderOptions, require_possible, usable_cores
from kosbert_ray.encoder.packing import Batch, Pack, Tokens, take_rows
from kosbert_ray.encoder.queries import are_different, query_pack
from kosbert_ray.encoder.query_weights import WeightedQueries
from kosbert_ray.encoder.texts import Texts, as_array
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import ModelError, UsageError, without_remedy
from kosbert_ray.model.locate import locate_folder
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.parameters import weight_bytes
from kosbert_ray.model.prepare import as_safetensors
from kosbert_ray.model.source import ModelSource, bundled_sentences
from kosbert_ray.model.spec import ModelSpec, read_spec
from kosbert_ray.units import data_size, plural
from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.kinds import DENSE, METHODS, MULTI_VECTOR, SPARSE, Kind, named
from kosbert_ray.vectors.ragged import Ragged
from kosbert_ray.vectors.sparse import SparseVectors
from kosbert_ray.vectors.token_vectors import TokenVectors

if TYPE_CHECKING:
    import scipy.sparse

Vectors = npt.NDArray[np.float32]
Task = Literal["query", "document"]


SHOWN_TEXTS = 1024  # that are encoded between two steps of a progress bar
OVERFLOW_TEXTS, OVERFLOW_TOKENS = 64, 4096  # sentences, and tokens of a batch, by which half precision is tried


@dataclass(frozen=True)
class Encoded:
    """The vectors of a slice.

    Attributes:
        distinct: dense vectors, float32 ``[u + s, dimension]``, one row per distinct text and per span; zeros for a text
            without a vector. Empty if they were not asked for.
        rows: int32 ``[n]``, the index of each row's text or span.
        failed: the reason for each row without a vector, by row number.
        batches: number of batches that were computed.
        computed_tokens: number of tokens in them, padding included.
        ragged: the sparse and token vectors of the distinct texts that were asked for.
    """

    distinct: Vectors
    rows: npt.NDArray[np.int32]
    failed: dict[int, str]
    batches: int
    computed_tokens: int
    ragged: Mapping[Kind, Ragged] = field(default_factory=dict)

    @property
    def vectors(self) -> Vectors:
        """The vector of each row, float32 ``[n, dimension]``."""
        return take_rows(self.distinct, self.rows)


class Encoder:
    """A loaded model. Create it with :meth:`load`, or from a spec.

    Args:
        spec: the model's specification.
        options: how to compute.
        strict: whether the engine in ``options`` is required; if not, torch replaces an engine that is not installed or
            cannot load the model.
        kinds: the kinds of vectors that the engine must compute; by default the first of the model's.

    Attributes:
        spec: the model's specification.
        kinds: the kinds of vectors that the engine computes.
        device: "cuda", "mps" or "cpu".
        precision: the precision in use: "bf16", "fp16", "fp32" or "int8".
        engine: the engine in use, a key of :data:`~kosbert_ray.encoder.engines.table.ENGINES`.
        attention: how batches are computed: "packed"; "padded" if the model cannot be packed; "one_length" in OpenVINO;
            "none" for a static embedding model.
        token_budget: maximum number of tokens in a batch.
        notices: messages for the user, such as a fallback.
    """

    def __init__(
        self, spec: ModelSpec, options: EncoderOptions, strict: bool = True, kinds: Sequence[Kind] | None = None
    ) -> None:
        self.spec = spec = as_safetensors(spec)
        self.kinds = tuple(kinds or spec.kinds[:1])
        require_fitting(spec, options, self.kinds)
        self._options, self._strict = options, strict
        self._others: dict[tuple[object, ...], Encoder] = {}  # encoders with other prompts, lengths or kinds
        options = fitted(spec, options)
        self.device = pick_device(options.device)
        require_possible(options.model_copy(update={"device": self.device}))
        auto = options.engine == "auto"
        self.engine = preferred_engine(spec, options, self.device, self.kinds) if auto else options.engine
        self.precision = pick_precision(options.precision, self.device)
        if options.precision == "auto" and self.engine not in table.engines_for(self.device, self.precision):
            self.precision = "fp32"
        self._require_memory()
        self._tokenizer: Tokenizer | None = None
        self._skip = 0 if spec.include_prompt or not spec.prompt else self.tokenizer.prompt_length
        settings = EngineSettings(
            self.device,
            self.precision,
            threads=options.threads or usable_cores(),
            skip=self._skip,
            compile=options.compile,
        )
        fallback: list[str] = []
        try:
            self._engine = table.load(self.engine, spec, settings)
            if options.precision == "auto" and self.precision == "fp16":
                self._require_no_overflow()
        except PrecisionUnfit as error:
            if options.precision != "auto":
                raise
            fallback = [f"{without_remedy(error)}; using fp32"]
            self.precision = "fp32"
            self._engine = table.load(self.engine, spec, replace(settings, precision="fp32"))
        except (ModelError, UsageError) as error:
            replaceable = self.engine not in (table.TORCH, table.STATIC) and table.supports(table.TORCH, self.precision)
            if (strict and not auto) or not replaceable:
                raise
            fallback = [f"{without_remedy(error)}; using torch"]
            self.engine = table.TORCH
            self._engine = table.load(self.engine, spec, settings)
        self.token_budget = options.token_budget or self._engine.default_token_budget()
        self.attention = self._engine.attention
        self.notices = [*spec.notices, *fallback, *self._engine.notices]
        self._computed: list[int] = []  # tokens of each batch of the slice; appended to from several threads

    @classmethod
    def load(
        cls,
        model: str | ModelSource,
        options: EncoderOptions = EncoderOptions(),
        spec_options: SpecOptions = SpecOptions(),
    ) -> Encoder:
        """Loads a model by hub name, folder, ``s3://`` URL or ``bundled:NAME``.

        Raises:
            ModelError: there is no such model, or it is not supported.
            UsageError: the requested device or precision is not available here.

        >>> from kosbert_ray import Encoder
        >>> encoder = Encoder.load("bundled:kosbert-mini")
        >>> encoder.encode(["비가 온다.", "눈이 내린다."]).shape
        (2, 256)
        """
        code = bool(spec_options.allow_remote_code)
        source = ModelSource(model, allow_remote_code=code) if isinstance(model, str) else model
        return cls(read_spec(locate_folder(source), spec_options), options)

    def _require_memory(self) -> None:
        """Raises ModelError if the device cannot hold the weights."""
        needed, present = weight_bytes(self.spec, self.precision), device_memory(self.device)
        if needed > present:
            raise ModelError(
                f"{self.spec.folder}: its weights take {data_size(needed)} in {self.precision}, and {self.device} "
                f"has {data_size(present)} of memory; use a device with more memory, or a smaller model"
            )

    def _require_no_overflow(self) -> None:
        """Raises PrecisionUnfit if a sample of texts has vectors with NaN or Inf, as some models do in fp16."""
        sentences = bundled_sentences()
        tokens = self.tokenizer(pa.array([*sentences[:OVERFLOW_TEXTS], " ".join(sentences)]))
        for batch in self._engine.pack(tokens, OVERFLOW_TOKENS):
            found = self._engine.vectors(batch, self.kinds)
            if not self._rows(0, self.kinds).finite(batch.texts, found).all():
                raise PrecisionUnfit(f"{self.spec.folder}: overflows in fp16; use encoder.precision=fp32")

    @cached_property
    def _weighted_queries(self) -> WeightedQueries:
        return WeightedQueries(self.spec)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, loaded on first use: a job tokenizes elsewhere."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self.spec)
        return self._tokenizer

    def encode(
        self,
        texts: Texts,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize_embeddings: bool = False,
        show_progress_bar: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Encodes ``n`` texts with the spec's prompt: the model's default prompt, unless options set another.

        Args:
            texts: one text, or several: a list, a pandas or polars Series, a NumPy array or an Arrow array of strings.
            prompt: put before each text instead.
            prompt_name: the name of one of the model's prompts instead.
            normalize_embeddings: whether to scale vectors to length 1, whatever the model does.
            show_progress_bar: whether to show a progress bar on standard error.

        Returns:
            Vectors, float32 ``[n, dimension]``, or ``[dimension]`` for a single text; L2-normalized if the model normalizes
            or ``normalize_embeddings`` is set.

        A static embedding model gives a text without tokens, such as an empty one, the vector of sentence-transformers,
        which is usually 0. A job rejects such texts.

        Raises:
            UsageError: ``texts`` are not strings, the model has no prompt of that name, or no dense vectors.
            ModelError: a text cannot be encoded; the message gives its index and the reason.

        >>> from kosbert_ray import Encoder
        >>> encoder = Encoder.load("bundled:kosbert-mini")
        >>> encoder.encode("비가 온다.", normalize_embeddings=True).shape
        (256,)
        """
        if prompt is not None or prompt_name is not None:
            chosen = prompt if prompt is not None else self._own_prompt(str(prompt_name))
            return self._with_prompt(chosen).encode(
                texts, normalize_embeddings=normalize_embeddings, show_progress_bar=show_progress_bar
            )
        single = isinstance(texts, str)
        array = as_array([texts] if single else texts)
        step = SHOWN_TEXTS if show_progress_bar else max(1, len(array))
        starts: Iterable[int] = range(0, max(1, len(array)), step)
        if show_progress_bar:
            from rich.console import Console
            from rich.progress import track

            starts = track(starts, "Encoding", console=Console(stderr=True))
        vectors = np.concatenate([self._vectors(array.slice(start, step), start) for start in starts])
        if normalize_embeddings:
            vectors = unit(vectors)
        return vectors[0] if single else vectors

    def encode_sparse(
        self,
        texts: Texts,
        *,
        task: Task | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        top_k: int | None = None,
    ) -> scipy.sparse.csr_matrix:
        """Encodes ``n`` texts by a model of sparse vectors (SPLADE).

        Args:
            texts, prompt, prompt_name: as for :meth:`encode`; a single text counts as a list of one.
            task: whether the texts are queries or documents, for prompts and models in which it matters.
            top_k: how many of the largest values to keep of a vector; None for all that are not 0.

        Returns:
            Vectors, float32 ``[n, dimension]``, where the dimension is mostly the size of the vocabulary.

        Raises:
            UsageError: ``texts`` are not strings, the model has no prompt of that name, or no sparse vectors.
            ModelError: a text cannot be encoded; the message gives its index and the reason.
        """
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise UsageError(f"top_k: {top_k!r} is no number of values; choose 1 or more, or None for all")
        found = cast(SparseVectors, self._ragged(SPARSE, texts, task, prompt, prompt_name))
        assert self.spec.sparse is not None
        return (found if top_k is None else found.strongest(top_k)).to_csr(self.spec.sparse.dimension)

    def encode_multi_vector(
        self, texts: Texts, *, task: Task | None = None, prompt: str | None = None, prompt_name: str | None = None
    ) -> list[npt.NDArray[np.float16]]:
        """Encodes ``n`` texts to one vector for each token, as ``MultiVectorEncoder`` (ColBERT) does.

        A model without a head for token vectors gives its normalized hidden states.

        Args:
            texts, prompt, prompt_name: as for :meth:`encode`; a single text counts as a list of one.
            task: "query" for queries, which a model may cut, extend and pool in another way than documents.

        Returns:
            For each text its vectors, float16 ``[tokens, dimension]``.

        Raises:
            UsageError: ``texts`` are not strings, the model has no prompt of that name, or no token vectors.
            ModelError: a text cannot be encoded; the message gives its index and the reason.

        >>> from kosbert_ray import Encoder
        >>> encoder = Encoder.load("bundled:kosbert-mini")
        >>> [vectors.shape for vectors in encoder.encode_multi_vector(["비가 온다.", "눈"])]
        [(5, 256), (3, 256)]
        """
        found = self._ragged(MULTI_VECTOR, texts, task, prompt, prompt_name)
        return cast(TokenVectors, found).to_list()

    def _ragged(self, kind: Kind, texts: Texts, task: Task | None, prompt: str | None, prompt_name: str | None) -> Ragged:
        """Vectors of texts, of a kind of which each text has a different amount."""
        self._require(kind)
        if task not in (None, "query", "document"):
            raise UsageError(f"task: {task!r} is not known; choose query or document")
        spec = {"query": self.spec.for_queries, "document": self.spec.for_documents}[task]() if task else self.spec
        if prompt is not None or prompt_name is not None:
            spec = replace(spec, prompt=prompt if prompt is not None else self._own_prompt(str(prompt_name)))
        array = as_array([texts] if isinstance(texts, str) else texts)
        if kind == SPARSE and spec.queries and (task == "query" or (task is None and spec.queries.default)):
            return self._weighted_queries(array.to_pylist(), spec.prompt)
        encoder = self._for(spec, (kind,))
        pack = query_pack(spec) if kind == MULTI_VECTOR and task == "query" and are_different(spec) else None
        encoded = encoder._encoded(array, 0, (kind,), pack)
        found, pooling = encoded.ragged[kind], spec.multi_vector.pooling if spec.multi_vector else None
        if isinstance(found, TokenVectors) and pooling and task != "query":
            found = pooling(found)
        return found.take(encoded.rows)

    def _require(self, kind: Kind) -> None:
        if kind not in self.spec.kinds:
            own = self.spec.kinds[0]
            raise UsageError(f"{self.spec.folder}: has {named([own])} vectors; use {METHODS[own]}")

    def _own_prompt(self, name: str) -> str:
        own = self.spec.prompts.own
        if name not in own:
            raise UsageError(f"prompt_name: the model has no prompt {name!r}; it has {', '.join(own) or 'none'}")
        return own[name]

    def _vectors(self, texts: pa.Array, first: int) -> Vectors:
        """Vectors of texts, of which the first has this index."""
        self._require(DENSE)
        return self._for(self.spec, (DENSE,))._encoded(texts, first, (DENSE,)).vectors

    def _encoded(self, texts: pa.Array, first: int, kinds: Sequence[Kind], pack: Pack | None = None) -> Encoded:
        encoded = self.encode_tokens(self.tokenizer(texts), encode_empty=self.spec.static, kinds=kinds, pack=pack)
        for row, reason in encoded.failed.items():
            raise ModelError(f"text {first + row}: {reason}")
        return encoded

    def encode_query(self, texts: Texts, **options: Any) -> npt.NDArray[np.float32]:
        """Encodes queries, as sentence-transformers' ``encode_query`` does; otherwise the same as :meth:`encode`.

        >>> from kosbert_ray import Encoder
        >>> encoder = Encoder.load("bundled:kosbert-mini")
        >>> encoder.encode_query(["비가 오면 무엇을 먹을까?"]).shape
        (1, 256)
        """
        return self._with_prompt(self.spec.prompts.query).encode(texts, **options)

    def encode_document(self, texts: Texts, **options: Any) -> npt.NDArray[np.float32]:
        """Encodes documents, as sentence-transformers' ``encode_document`` and jobs do; otherwise the same as
        :meth:`encode`.
        """
        return self._with_prompt(self.spec.prompts.document).encode(texts, **options)

    def _with_prompt(self, prompt: str) -> Encoder:
        """Returns an encoder that puts another prompt before texts."""
        return self._for(replace(self.spec, prompt=prompt), self.kinds)

    def _for(self, spec: ModelSpec, kinds: Sequence[Kind]) -> Encoder:
        """Returns an encoder with another prompt or length of this model, or for other kinds of vectors.

        It shares this one's engine if that can compute them.
        """
        able = all(kind in self._engine.kinds for kind in kinds)
        if spec == self.spec and able:
            return self
        key = (spec.prompt, spec.max_seq_length, *(() if able else kinds))
        if key not in self._others:
            # Where the prompt is not pooled, the engine leaves as many tokens out as its own prompt has.
            if able and (spec.include_prompt or spec.prompt == self.spec.prompt):
                other = copy.copy(self)
                other.spec, other._tokenizer = spec, None
            else:
                other = Encoder(spec, self._options, self._strict, kinds)
            self._others[key] = other
        return self._others[key]

    def encode_tokens(
        self,
        tokens: Tokens,
        shared: tuple[npt.NDArray[np.int64], Vectors] | None = None,
        encode_empty: bool = False,
        on_batch: Callable[[int], None] | None = None,
        kinds: Sequence[Kind] | None = None,
        pack: Pack | None = None,
    ) -> Encoded:
        """Encodes a tokenized slice.

        When memory runs out, ``token_budget`` is halved for good and a notice is added.

        Args:
            tokens: the slice.
            shared: texts that already have a vector: their indices, int64 ``[k]``, and vectors, float32 ``[k, dimension]``.
            encode_empty: whether the engine gives a text without tokens a vector, too; otherwise such texts fail.
            on_batch: called after each batch, maybe from several threads, with the number of its tokens.
            kinds: the kinds of vectors to compute, all in one pass; by default those of the encoder.
            pack: splits the slice into batches; by default the engine does.

        Raises:
            DeviceBroken: this process can no longer use the GPU.
        """
        unfit = {**tokens.failed, **self._unknown_ids(tokens)}
        self._computed.clear()
        means = tokens.part_of.astype(np.int64)

        kinds = self.kinds if kinds is None else kinds
        late = LateVectors(tokens, self._skip) if len(tokens.span_of) else None
        rows = self._rows(len(tokens.lengths), kinds, late)

        def forward(batch: Batch) -> Computed:
            found = self._forward(late.with_spans(batch) if late else batch, kinds)
            if on_batch:
                on_batch(len(batch.ids))
            return found

        failed, budget = encode_all(
            tokens,
            unfit,
            self.token_budget,
            forward,
            rows,
            pack or self._engine.pack,
            self._engine.streams,
            np.concatenate((shared[0], means)) if shared else means,
            encode_empty,
        )
        vectors = rows.dense.vectors if rows.dense else np.empty((0, 0), np.float32)
        if shared:
            vectors[shared[0]] = shared[1]
        if len(tokens.part_of):
            join_parts(vectors, tokens, failed, self.spec.normalized)
        if budget < self.token_budget:
            self.notices.append(f"out of memory: batches of {plural(budget, 'token')} instead of {self.token_budget:,}")
            self.token_budget = budget
        texts = tokens.row_texts()
        hit = np.flatnonzero(np.isin(texts, list(failed))).tolist() if failed else []
        reasons = {row: failed[int(texts[row])] for row in hit}
        return Encoded(vectors, tokens.rows, reasons, len(self._computed), sum(self._computed), rows.ragged())

    def _rows(self, texts: int, kinds: Sequence[Kind], late: LateVectors | None = None) -> KindRows:
        """Returns what collects the vectors of some texts, of which the dense ones may be those of spans."""
        nothing: dict[Kind, Ragged] = {SPARSE: SparseVectors.empty()} if SPARSE in kinds else {}
        if MULTI_VECTOR in kinds and self.spec.multi_vector:
            nothing[MULTI_VECTOR] = TokenVectors.empty(self.spec.multi_vector.dimension)
        dense = None
        if DENSE in kinds:
            dense = late.rows(self.spec.dimension) if late else DenseRows(texts, self.spec.dimension)
        return KindRows(texts, dense, nothing)

    def _forward(self, batch: Batch, kinds: Sequence[Kind]) -> Computed:
        self._computed.append(self._engine.computed_tokens(batch))
        return self._engine.vectors(batch, kinds)

    def _unknown_ids(self, tokens: Tokens) -> dict[int, str]:
        """Finds texts with a token that the model has no embedding for. On a GPU such an id would kill the process."""
        known = self._engine.vocabulary
        if not len(tokens.ids) or int(tokens.ids.max()) < known:
            return {}
        texts = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths)
        beyond = np.flatnonzero(tokens.ids >= known)
        return {
            int(texts[place]): f"token {tokens.ids[place]} is beyond the model's {known} (a tokenizer of another model?)"
            for place in reversed(beyond.tolist())
        }
