"""The specification of a model, read from its folder without torch: modules, lengths, prompt and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from kosbert_ray.errors import ModelError, UsageError
from kosbert_ray.model import files, support
from kosbert_ray.model.lengths import NO_LIMIT, read_length, read_static_length, text_config
from kosbert_ray.model.m3_heads import read_m3_heads
from kosbert_ray.model.modules import (
    AUTOENCODER,
    MASK,
    SPLADE,
    STATIC,
    Dense,
    HeadPart,
    LayerNorm,
    Normalize,
    Truncate,
    hidden_width,
    output_width,
    read_head,
    read_modules,
    read_pooling,
)
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.prompts import Prompts, read_prompts
from kosbert_ray.model.query_weights import QueryWeights, read_query_weights
from kosbert_ray.model.static_table import read_width
from kosbert_ray.model.vector_heads import (
    AutoEncoder,
    SparseHead,
    Splade,
    TokenHead,
    plain_token_head,
    read_autoencoder,
    read_splade,
    read_token_head,
)
from kosbert_ray.vectors.kinds import DENSE, MULTI_VECTOR, SPARSE, Kind, named

WEIGHTED = (Dense, LayerNorm, AutoEncoder)  # modules that have weights in a folder of their own
CLASSES = {DENSE: support.DENSE_MODEL, SPARSE: support.SPARSE_MODEL, MULTI_VECTOR: support.MULTI_VECTOR_MODEL}

__all__ = ["Dense", "HeadPart", "LayerNorm", "ModelSpec", "Normalize", "Truncate", "read_spec"]


@dataclass(frozen=True)
class ModelSpec:
    """The pipeline from texts to vectors, as a model folder describes it.

    Attributes:
        folder: the model's folder.
        transformer: the folder of its transformer, or of its static embedding.
        model_type: the architecture, as transformers names it; "static" for a static embedding model.
        max_seq_length: maximum number of tokens in a text, special tokens included.
        do_lower_case: whether texts are lower-cased.
        pooling: pooling modes, whose results are concatenated. Those of a model without dense vectors serve its self-check
            only.
        include_prompt: whether the prompt's tokens are pooled.
        head: the modules behind pooling.
        prompt: text to put before every text; :func:`read_spec` gives that of sentence-transformers' ``encode``.
        dimension: length of a dense vector; 0 if the model has none.
        kinds: the kinds of vectors that the model has, that of its sentence-transformers class first.
        weight_files: weights and configs of all modules, and the model's own code if it runs.
        tokenizer_files: the tokenizer's files.
        head_files: weights of heads for other kinds of vectors than dense ones, where those are an addition (BGE-M3): they
            are not among ``weight_files``, so that the dense vectors keep their fingerprint.
        legacy_weight_files: the files that version 0.1.0 hashed as weights. They differ from ``weight_files`` only if
            there are other weights beside those in use.
        prompts: the prompts to choose from.
        remote_code: whether the model's own Python code runs.
        static: whether it is a static embedding model, which averages a vector for each token and has no transformer.
        sparse: how sparse vectors are made; None if the model has none.
        queries: how the sparse vectors of queries are made; None if like those of documents.
        multi_vector: how token vectors are made; None if the model has none.
        notices: messages for the user.
    """

    folder: Path
    transformer: Path
    model_type: str
    max_seq_length: int
    do_lower_case: bool
    pooling: tuple[str, ...]
    include_prompt: bool
    head: tuple[HeadPart, ...]
    prompt: str
    dimension: int
    weight_files: tuple[Path, ...]
    tokenizer_files: tuple[Path, ...]
    kinds: tuple[Kind, ...] = (DENSE,)
    head_files: tuple[Path, ...] = ()
    legacy_weight_files: tuple[Path, ...] = ()
    prompts: Prompts = field(default_factory=Prompts)
    remote_code: bool = False
    static: bool = False
    sparse: SparseHead | None = None
    queries: QueryWeights | None = None
    multi_vector: TokenHead | None = None
    notices: tuple[str, ...] = ()

    @property
    def length_limit(self) -> int | None:
        """The maximum number of tokens in a text; None if texts are never truncated."""
        return None if self.max_seq_length >= NO_LIMIT else self.max_seq_length

    @property
    def normalized(self) -> bool:
        """True if the vectors have length 1."""
        return bool(self.head) and isinstance(self.head[-1], Normalize)

    @property
    def pickled(self) -> bool:
        """True if some weights are pickles, which are converted before they are loaded."""
        return any(path.suffix in files.PICKLES for path in (*self.weight_files, *self.head_files))

    def for_documents(self) -> ModelSpec:
        """Returns the spec with the prompt and the length of sentence-transformers' ``encode_document``."""
        length = self.multi_vector.document_length if self.multi_vector else None
        return replace(self, prompt=self.prompts.document, max_seq_length=length or self.max_seq_length)

    def for_queries(self) -> ModelSpec:
        """Returns the spec with the prompt and the length of sentence-transformers' ``encode_query``."""
        length = self.multi_vector.query_limit if self.multi_vector else None
        return replace(self, prompt=self.prompts.query, max_seq_length=length or self.max_seq_length)

    def moved(self, folder: Path) -> ModelSpec:
        """Returns the spec of a copy of the model's folder, in which weights may have been converted."""

        def there(path: Path) -> Path:
            place = folder / path.relative_to(self.folder)
            return place.with_suffix(".safetensors") if path in self.head_files else place

        moved = replace(
            self,
            folder=folder,
            transformer=there(self.transformer),
            head=_moved(self.head, there),
            sparse=_moved(self.sparse, there),
            queries=_moved(self.queries, there),
            multi_vector=_moved(self.multi_vector, there),
            head_files=_moved(self.head_files, there),
            tokenizer_files=_moved(self.tokenizer_files, there),
            legacy_weight_files=(),
        )
        weights = [path for inner in moved._weight_folders() for path in files.weight_paths(inner)]
        others = [there(path) for path in self.weight_files if path.suffix not in (".safetensors", *files.PICKLES)]
        return replace(moved, weight_files=(*weights, *others))

    def _weight_folders(self) -> list[Path]:
        """Lists the folders of the modules that have weights."""
        parts = (*self.head, *(self.multi_vector.head if self.multi_vector else ()), self.sparse)
        folders = [self.transformer, *(part.folder for part in parts if isinstance(part, WEIGHTED))]
        return [*folders, self.queries.folder] if self.queries and not self.queries.table else folders


@dataclass(frozen=True)
class _Body:
    """The part of a model before its head: a transformer with pooling, or a static embedding.

    Attributes:
        width: length of its vector.
        modules: number of its entries in modules.json.
        code: files of the model's own code, if it runs.

    The other attributes are those of :class:`ModelSpec`.
    """

    folder: Path
    model_type: str
    max_seq_length: int
    pooling: tuple[str, ...]
    width: int
    modules: int
    tokenizer_files: tuple[Path, ...]
    include_prompt: bool = True
    do_lower_case: bool = False
    code: tuple[Path, ...] = ()
    remote_code: bool = False
    static: bool = False
    kinds: tuple[Kind, ...] = (DENSE,)
    sparse: SparseHead | None = None
    multi_vector: TokenHead | None = None
    head_files: tuple[Path, ...] = ()


def read_spec(folder: Path, options: SpecOptions = SpecOptions()) -> ModelSpec:
    """Reads a sentence-transformers, a transformers or a model2vec folder.

    Raises:
        ModelError: a file is missing or broken, or the model needs something that is not supported and would change its
            vectors.
        UsageError: an option does not fit the model.
    """
    notices: list[str] = []
    modules, route = read_modules(folder)
    body = (_static if modules[0][0] == STATIC else _transformer)(folder, modules, options, notices)
    own = support.read_model_settings(folder, CLASSES[body.kinds[0]])
    prompts = read_prompts(folder, own, options)
    head: tuple[HeadPart, ...] = ()
    dimension, sparse = 0, body.sparse
    if DENSE in body.kinds:
        parts = read_head(folder, [module for module in modules[body.modules :] if module[0] != AUTOENCODER])
        head, dimension = _truncated(folder, parts, output_width(parts, body.width), own, options)
    if modules[-1][0] == AUTOENCODER:
        sparse = read_autoencoder(folder / modules[-1][1], dimension)
    if isinstance(sparse, Splade | AutoEncoder) and own.get("max_active_dims") is not None:
        limit = own["max_active_dims"]
        if not isinstance(limit, int) or limit < 1:
            raise ModelError(f"{folder}: max_active_dims {limit!r} must be a whole number above 0")
        sparse = replace(sparse, limit=limit)
    queries = read_query_weights(folder, route.module[1], route.default) if route else None
    tokenizer_files = (*body.tokenizer_files, *(files.tokenizer_paths(queries.folder) if queries else ()))
    spec = ModelSpec(
        folder=folder,
        transformer=body.folder,
        model_type=body.model_type,
        max_seq_length=body.max_seq_length,
        do_lower_case=body.do_lower_case,
        pooling=body.pooling,
        include_prompt=body.include_prompt,
        head=head,
        prompt=prompts.encode,
        dimension=dimension,
        kinds=body.kinds,
        weight_files=(),
        head_files=body.head_files,
        tokenizer_files=tokenizer_files,
        prompts=prompts,
        remote_code=body.remote_code,
        static=body.static,
        sparse=sparse,
        queries=queries,
        multi_vector=body.multi_vector,
        notices=tuple(notices),
    )
    folders = spec._weight_folders()
    weights = [path for inner in folders for path in files.weight_paths(inner)]
    files.require_content([*weights, *tokenizer_files])
    names = [name for _, name in (*modules, *([route.module] if route else ()))]
    configs = [path for name in names if (path := folder / name / "config.json").exists()]
    others = (*configs, *body.code, *([queries.table] if queries and queries.table else ()))
    legacy = [path for inner in folders for path in files.legacy_weight_paths(inner)]
    return replace(spec, weight_files=(*weights, *others), legacy_weight_files=(*legacy, *others))


def _transformer(folder: Path, modules: list[tuple[str, str]], options: SpecOptions, notices: list[str]) -> _Body:
    """Reads a transformer and its pooling."""
    transformer = folder / modules[0][1]
    config = files.read_object(transformer / "config.json")
    support.refuse_architecture(transformer / "config.json", config)
    remote_code = support.runs_remote_code(transformer, config, options.allow_remote_code, notices)
    names = [kind for kind, _ in modules]
    masked, tokens, coded = SPLADE in names, MASK in names, AUTOENCODER in names
    settings = support.read_transformer_settings(transformer, "fill-mask" if masked else "feature-extraction", tokens)
    length = read_length(folder, transformer, config, settings, options.max_seq_length, notices)
    kinds: tuple[Kind, ...] = (DENSE, MULTI_VECTOR)
    sparse: SparseHead | None = None
    multi_vector: TokenHead | None = None
    head_files: tuple[Path, ...] = ()
    pooling: tuple[str, ...] = ("mean",)
    include_prompt, width = True, 0
    if masked or tokens or coded:
        kinds = (MULTI_VECTOR,) if tokens else (SPARSE, DENSE) if coded else (SPARSE,)
        if options.pooling or options.truncate_dim:
            raise UsageError(
                f"{folder}: has {named(kinds[:1])} vectors; model.pooling and model.truncate_dim are for dense ones"
            )
    if masked:
        sparse = read_splade(folder / modules[1][1], int(text_config(config)["vocab_size"]))
    elif tokens:
        multi_vector = read_token_head(folder, modules[1:], hidden_width(config), settings)
        if options.max_seq_length:
            multi_vector = replace(multi_vector, document_length=None)
    else:
        plain = _plain_pooling(folder, config, options, notices)
        pooling, include_prompt, width = read_pooling(folder, modules[1][1], config, plain)
        if not coded:
            head_files = files.head_paths(folder)
            files.require_content(head_files)
            hidden = width // len(pooling)
            heads = read_m3_heads(head_files, hidden, int(text_config(config).get("vocab_size", 0)))
            sparse, multi_vector = heads.sparse, heads.multi_vector or plain_token_head(hidden)
            kinds = (DENSE, SPARSE, MULTI_VECTOR) if sparse else kinds
    return _Body(
        folder=transformer,
        model_type=config.get("model_type", "unknown"),
        max_seq_length=length,
        pooling=pooling,
        width=width,
        modules=2,
        tokenizer_files=tuple(files.tokenizer_paths(transformer)),
        include_prompt=include_prompt,
        do_lower_case=bool(settings.get("do_lower_case")),
        code=tuple(sorted(transformer.glob("*.py"))) if remote_code else (),
        remote_code=remote_code,
        kinds=kinds,
        sparse=sparse,
        multi_vector=multi_vector,
        head_files=head_files,
    )


def _static(folder: Path, modules: list[tuple[str, str]], options: SpecOptions, _notices: list[str]) -> _Body:
    """Reads a static embedding."""
    if options.pooling:
        raise UsageError(f"{folder}: a static embedding is averaged, so model.pooling cannot be set")
    static = folder / modules[0][1]
    weights, tokenizer = files.weight_paths(static), static / "tokenizer.json"
    files.require_content(weights)
    return _Body(
        folder=static,
        model_type="static",
        max_seq_length=read_static_length(tokenizer, options.max_seq_length),
        pooling=("mean",),
        width=read_width(weights),
        modules=1,
        tokenizer_files=(tokenizer,),
        static=True,
    )


def _plain_pooling(folder: Path, config: dict[str, Any], options: SpecOptions, notices: list[str]) -> str:
    """Returns the pooling mode of a plain transformers folder; raises UsageError if the model names its own."""
    if (folder / files.MODULES).exists():
        if options.pooling:
            raise UsageError(f"{folder}: names its pooling itself (modules.json), so model.pooling cannot be set")
        return ""
    mode = options.pooling or support.plain_pooling(folder, config)
    if not options.pooling:
        notices.append(support.plain_notice(folder, config, mode))
    return mode


def _moved(value: Any, there: Callable[[Path], Path]) -> Any:
    """Returns a value in which ``there`` has replaced all paths, also those in tuples and in dataclasses."""
    if isinstance(value, Path):
        return there(value)
    if isinstance(value, tuple):
        return tuple(_moved(item, there) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: _moved(getattr(value, item.name), there) for item in fields(value)})
    return value


def _truncated(
    folder: Path, head: tuple[HeadPart, ...], dimension: int, own: dict[str, Any], options: SpecOptions
) -> tuple[tuple[HeadPart, ...], int]:
    """Appends the truncation that the user or the model asks for; returns the head and the length of its output.

    Raises:
        UsageError: the user asks for more dimensions than there are.
    """
    if options.truncate_dim:
        if options.truncate_dim > dimension:
            raise UsageError(f"{folder}: model.truncate_dim is {options.truncate_dim}, but its vectors have {dimension}")
        again = head[-1:] if head and isinstance(head[-1], Normalize) else ()
        return (*head, Truncate(options.truncate_dim), *again), options.truncate_dim
    if own.get("truncate_dim") and own["truncate_dim"] < dimension:
        # sentence-transformers does not renormalize after a truncation that the model itself sets.
        return (*head, Truncate(int(own["truncate_dim"]))), int(own["truncate_dim"])
    return head, dimension
