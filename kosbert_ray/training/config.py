"""The recipe: what is trained on what, in which stages. The defaults are those published for jhgan/ko-sbert-sts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kosbert_ray.settings import Section

Kind = Literal["sts", "nli", "pairs", "parallel", "texts"]
Loss = Literal["cosine_similarity", "multiple_negatives_ranking", "distillation", "mse"]
KINDS: dict[Loss, tuple[Kind, ...]] = {
    "cosine_similarity": ("sts",),
    "multiple_negatives_ranking": ("nli", "pairs"),
    "distillation": ("parallel", "texts", "sts", "nli", "pairs"),
    "mse": ("parallel", "texts", "sts", "nli", "pairs"),
}
Positive = Annotated[int, Field(gt=0)]


class DataConfig(Section):
    """Files of one kind, below ``data_root``.

    ``sts``: TSV with sentence1, sentence2 and score (0 to 5), or KLUE's JSON. ``nli``: TSV or KLUE's JSON with sentence1,
    sentence2, gold_label. ``pairs``: TSV with two columns of sentences and, if there is one, ``label``, of which 1 counts.
    ``parallel``: TSV without a header, the student's language first. ``texts``: Parquet with the column ``text``, or a
    line each; of Parquet, ``where`` takes the rows whose column has one of these values. ``limit`` picks so many rows at
    random, ``max_chars`` leaves out longer texts. ``name`` and ``licence`` are for the card.
    """

    path: str
    kind: Kind
    text: str = "text"
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    limit: Positive | None = None
    max_chars: Positive | None = None
    name: str | None = None
    licence: str | None = None


class TeacherConfig(Section):
    """A model whose vectors are learnt, and what is done to them first.

    ``whitening``: None takes them as they are, which needs a student of the same dimension. Else they are centred (unless
    ``centre`` is false), turned to their principal axes, cut to the student's dimension, and axis ``i`` divided by
    ``std_i ** whitening``: 0 only turns, 1 makes all axes count the same (Su et al. 2021, arXiv:2103.15316). A model that
    was trained for likeness by cosine loses by either; one that was not gains.
    ``sides`` of parallel data, whose teacher text is always the second column: "first" is the student's language alone,
    "both" also teaches it the teacher's language (Reimers and Gurevych 2020, arXiv:2004.09813).
    ``own_language``: of parallel data, the teacher reads the first column, not the second.
    """

    model: str
    prompt: str | None = None
    whitening: Annotated[float, Field(ge=0, le=1)] | None = None
    centre: bool = True
    sides: Literal["first", "both"] = "first"
    own_language: bool = False
    contrastive: Annotated[float, Field(ge=0)] = 1.0
    similarity: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 0.05


class TaskConfig(Section):
    """A loss and its data."""

    loss: Loss = "cosine_similarity"
    data: Annotated[tuple[DataConfig, ...], Field(min_length=1)]
    teacher: TeacherConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> TaskConfig:
        for data in self.data:
            if data.kind not in KINDS[self.loss]:
                raise ValueError(f"data: {self.loss} takes {', '.join(KINDS[self.loss])}, not {data.kind}")
        if (self.teacher is not None) != (self.loss in ("distillation", "mse")):
            raise ValueError(f"teacher: {self.loss} {'takes none' if self.teacher else 'needs one'}")
        return self


class StageConfig(Section):
    """One run of the trainer; several tasks take turns in proportion to their data.

    ``warmup_steps`` below 1 is a share of all steps. The best model by ``dev`` is kept, measured every
    ``evaluation_steps`` and after each epoch; without ``dev``, the last. ``group_by_length`` makes
    batches of texts of like length, which are padded less (where the loss does not contrast them). ``frozen`` parts keep
    their weights: a large vocabulary's embeddings are most of a multilingual model and of the time of an optimizer's
    step. ``dropout``: None is the model's own.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    tasks: Annotated[tuple[TaskConfig, ...], Field(min_length=1)]
    epochs: Annotated[float, Field(gt=0)] = 4
    batch_size: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    warmup_steps: Annotated[float, Field(ge=0)] = 288
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    evaluation_steps: Positive = 1000
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    group_by_length: bool = False
    frozen: tuple[Literal["embeddings"], ...] = ()
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None


class NewModelConfig(Section):
    """A BERT with random weights and a WordPiece vocabulary trained on ``data``."""

    data: Annotated[tuple[DataConfig, ...], Field(min_length=1)]
    vocabulary: Positive = 16_000
    layers: Positive = 4
    width: Annotated[int, Field(gt=0, multiple_of=64)] = 256


class BaseConfig(Section):
    """What training starts from: ``base``, a hub name or a folder, or a ``new`` model."""

    base: str = "klue/bert-base"
    new: NewModelConfig | None = None
    pooling: Literal["mean", "cls", "max"] = "mean"
    max_seq_length: Positive = 512


class CardConfig(Section):
    """What the model card says that cannot be measured. ``dtype``: of the weights as saved at the end."""

    title: str | None = None
    licence: str | None = None
    description: str | None = None


class TrainConfig(Section):
    """A whole training.

    ``dev`` chooses between checkpoints, ``test`` is looked at once, at the end; no sentence of these nor of ``held_out``
    files is trained on. ``workers`` above 1 trains data-parallel on Ray Train, a GPU each where there are any;
    ``threads`` is for CPUs.
    """

    model: BaseConfig = BaseConfig()
    data_root: str = "."
    output: str = ""
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    dev: str | None = None
    test: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    seed: int = 42
    workers: Positive = 1
    threads: Positive | None = None
    dtype: Literal["fp32", "fp16"] = "fp32"
    card: CardConfig = CardConfig()

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError("stages: two of them have the same name")
        return self
