"""The specification of a model, read from its folder without torch: modules, lengths, prompt and files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kosbert_ray.encoder import files, support
from kosbert_ray.encoder.lengths import read_length
from kosbert_ray.encoder.modules import Dense, HeadPart, Normalize, Truncate, read_head, read_modules, read_pooling
from kosbert_ray.encoder.options import SpecOptions
from kosbert_ray.encoder.prompts import Prompts, read_prompts
from kosbert_ray.errors import ModelError

__all__ = ["Dense", "HeadPart", "ModelSpec", "Normalize", "Truncate", "read_spec"]


@dataclass(frozen=True)
class ModelSpec:
    """The pipeline from texts to vectors, as a model folder describes it.

    Attributes:
        folder: the model's folder.
        transformer: the folder of its transformer.
        model_type: the architecture, as transformers names it.
        max_seq_length: maximum number of tokens in a text, special tokens included.
        do_lower_case: whether texts are lower-cased.
        pooling: pooling modes, whose results are concatenated.
        include_prompt: whether the prompt's tokens are pooled.
        head: the modules behind pooling.
        prompt: text to put before every text; :func:`read_spec` gives that of sentence-transformers' ``encode``.
        dimension: length of a vector.
        weight_files: weights and configs of all modules, and the model's own code if it runs.
        tokenizer_files: the tokenizer's files.
        legacy_weight_files: the files that version 0.1.0 hashed as weights. They differ from ``weight_files`` only if
            there are other weights beside those in use.
        prompts: the prompts to choose from.
        remote_code: whether the model's own Python code runs.
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
    legacy_weight_files: tuple[Path, ...] = ()
    prompts: Prompts = field(default_factory=Prompts)
    remote_code: bool = False
    notices: tuple[str, ...] = ()

    @property
    def normalized(self) -> bool:
        """True if the vectors have length 1."""
        return bool(self.head) and isinstance(self.head[-1], Normalize)

    @property
    def pickled(self) -> bool:
        """True if some weights are pickles, which are converted before they are loaded."""
        return any(path.suffix == ".bin" for path in self.weight_files)

    def for_documents(self) -> ModelSpec:
        """Returns the spec with the prompt of sentence-transformers' ``encode_document``."""
        return replace(self, prompt=self.prompts.document)

    def for_queries(self) -> ModelSpec:
        """Returns the spec with the prompt of sentence-transformers' ``encode_query``."""
        return replace(self, prompt=self.prompts.query)

    def moved(self, folder: Path) -> ModelSpec:
        """Returns the spec of a copy of the model's folder, in which weights may have been converted."""

        def there(path: Path) -> Path:
            return folder / path.relative_to(self.folder)

        head = tuple(replace(part, folder=there(part.folder)) if isinstance(part, Dense) else part for part in self.head)
        weights = [path for inner in _weight_folders(there(self.transformer), head) for path in files.weight_paths(inner)]
        others = [there(path) for path in self.weight_files if path.suffix not in (".safetensors", ".bin")]
        return replace(
            self,
            folder=folder,
            transformer=there(self.transformer),
            head=head,
            weight_files=(*weights, *others),
            tokenizer_files=tuple(map(there, self.tokenizer_files)),
            legacy_weight_files=(),
        )


def read_spec(folder: Path, options: SpecOptions = SpecOptions()) -> ModelSpec:
    """Reads a sentence-transformers or a transformers folder.

    Raises:
        ModelError: a file is missing or broken, an option does not fit, or the model needs something that is not
            supported and would change its vectors.
    """
    notices: list[str] = []
    support.refuse_adapter(folder)
    modules = read_modules(folder, notices)
    transformer = folder / modules[0][1]
    support.refuse_adapter(transformer)
    config = files.read_json(transformer / "config.json")
    support.refuse_architecture(folder, transformer / "config.json", config)
    remote_code = support.runs_remote_code(transformer, options.allow_remote_code)
    settings = support.read_transformer_settings(transformer)
    length = read_length(folder, transformer, config, settings, options.max_seq_length, notices)
    pooling, include_prompt, pooled = read_pooling(folder, modules[1][1], config)
    own = support.read_model_settings(folder)
    head, dimension = _truncated(folder, *_sized(read_head(folder, modules[2:]), pooled), own, options)
    prompts = read_prompts(folder, own, options)
    folders = _weight_folders(transformer, head)
    weights = [path for inner in folders for path in files.weight_paths(inner)]
    tokenizer = files.tokenizer_paths(transformer)
    files.require_content([*weights, *tokenizer])
    configs = [path for _, name in modules if (path := folder / name / "config.json").exists()]
    others = (*configs, *(sorted(transformer.glob("*.py")) if remote_code else ()))
    return ModelSpec(
        folder=folder,
        transformer=transformer,
        model_type=config.get("model_type", "unknown"),
        max_seq_length=length,
        do_lower_case=bool(settings.get("do_lower_case")),
        pooling=pooling,
        include_prompt=include_prompt,
        head=head,
        prompt=prompts.encode,
        dimension=dimension,
        weight_files=(*weights, *others),
        tokenizer_files=tuple(tokenizer),
        legacy_weight_files=(*(path for inner in folders for path in files.legacy_weight_paths(inner)), *others),
        prompts=prompts,
        remote_code=remote_code,
        notices=tuple(notices),
    )


def _weight_folders(transformer: Path, head: tuple[HeadPart, ...]) -> list[Path]:
    """Lists the folders of the modules that have weights."""
    return [transformer, *(part.folder for part in head if isinstance(part, Dense))]


def _sized(head: tuple[HeadPart, ...], dimension: int) -> tuple[tuple[HeadPart, ...], int]:
    """Returns the head and the length of its output; raises ModelError if a Dense layer takes another length."""
    for part in head:
        if isinstance(part, Dense):
            if part.in_features != dimension:
                raise ModelError(f"{part.folder}: takes {part.in_features} features, but gets {dimension}")
            dimension = part.out_features
    return head, dimension


def _truncated(
    folder: Path, head: tuple[HeadPart, ...], dimension: int, own: dict[str, Any], options: SpecOptions
) -> tuple[tuple[HeadPart, ...], int]:
    """Appends the truncation that the user or the model asks for; returns the head and the length of its output.

    Raises:
        ModelError: the user asks for more dimensions than there are.
    """
    if options.truncate_dim:
        if options.truncate_dim > dimension:
            raise ModelError(f"{folder}: model.truncate_dim is {options.truncate_dim}, but its vectors have {dimension}")
        again = head[-1:] if head and isinstance(head[-1], Normalize) else ()
        return (*head, Truncate(options.truncate_dim), *again), options.truncate_dim
    if own.get("truncate_dim") and own["truncate_dim"] < dimension:
        # sentence-transformers does not renormalize after a truncation that the model itself sets.
        return (*head, Truncate(int(own["truncate_dim"]))), int(own["truncate_dim"])
    return head, dimension
