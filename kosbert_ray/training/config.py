"""Training recipes: base model, stages, losses and data. The defaults are those published for jhgan/ko-sbert-sts."""

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
    """Data files of one kind.

    Attributes:
        path: glob pattern below ``data_root``.
        kind: format of the files.
            ``sts``: TSV with sentence1, sentence2 and score (0 to 5), or KLUE's JSON.
            ``nli``: TSV with sentence1, sentence2 and gold_label, or KLUE's JSON.
            ``pairs``: TSV with two columns of sentences and an optional ``label``; only rows with 1 are used.
            ``parallel``: TSV without a header, the student's language first.
            ``texts``: Parquet, or a text file with one text per line.
        text: text column of Parquet files.
        where: of Parquet files, use only rows whose columns have one of these values.
        limit: use a random sample of this many rows.
        max_chars: skip longer texts.
        name: name on the model card; by default the path.
        licence: licence on the model card.
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
    """A teacher model whose vectors the student learns.

    Attributes:
        model: hub name, folder, URL or ``bundled:NAME``.
        prompt: text put before each text; None uses the teacher's default prompt.
        whitening: None uses the vectors as they are; the student must have the same dimension. A number rotates them to
            their principal axes, keeps as many as the student has dimensions, and divides axis ``i`` by
            ``std_i ** whitening``: 0 only rotates, 1 gives all axes equal variance (Su et al. 2021, arXiv:2103.15316).
            Whitening and centring help models that were not trained for cosine similarity and hurt models that were.
        centre: with ``whitening``, subtract the mean first.
        sides: of parallel data, the columns that the student reads. "first" is its own language; "both" also teaches it
            the teacher's language (Reimers and Gurevych 2020, arXiv:2004.09813).
        own_language: of parallel data, the teacher reads the first column instead of the second.
        contrastive: weight of the contrastive part of the ``distillation`` loss.
        similarity: weight of its similarity part.
        temperature: temperature of its contrastive part.
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
    """A loss, its data and, for ``distillation`` and ``mse``, a teacher."""

    loss: Loss = "cosine_similarity"
    data: Annotated[tuple[DataConfig, ...], Field(min_length=1)]
    teacher: TeacherConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> TaskConfig:
        for data in self.data:
            if data.kind not in KINDS[self.loss]:
                raise ValueError(f"data: {self.loss} takes {', '.join(KINDS[self.loss])}, not {data.kind}")
        if (self.teacher is not None) != (self.loss in ("distillation", "mse")):
            raise ValueError(f"teacher: {self.loss} {'does not use one' if self.teacher else 'requires one'}")
        return self


class StageConfig(Section):
    """One run of the trainer. Several tasks take turns in proportion to their data.

    Attributes:
        name: name of the stage, also of its folder.
        tasks: losses with their data.
        epochs: passes over the data.
        batch_size: examples per batch and worker.
        learning_rate: peak learning rate.
        warmup_steps: number of steps; below 1, a share of all steps.
        scheduler: learning-rate schedule.
        weight_decay: weight decay of the optimizer.
        max_grad_norm: gradient clipping.
        evaluation_steps: steps between evaluations on ``dev``, in addition to one after each epoch. The best model is
            kept; without ``dev``, the last one.
        precision: ``auto`` is bf16 where the hardware supports it, else fp32.
        group_by_length: batch texts of similar length, which reduces padding. Ignored for
            ``multiple_negatives_ranking``.
        frozen: parts whose weights do not change. A large vocabulary's embeddings are most of a multilingual model and
            of the optimizer's time.
        dropout: dropout rate; None uses the model's own.
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
    """A BERT with random weights.

    Attributes:
        data: texts to train the WordPiece vocabulary on.
        vocabulary: size of the vocabulary.
        layers: number of layers.
        width: size of the hidden layers.
    """

    data: Annotated[tuple[DataConfig, ...], Field(min_length=1)]
    vocabulary: Positive = 16_000
    layers: Positive = 4
    width: Annotated[int, Field(gt=0, multiple_of=64)] = 256


class BaseConfig(Section):
    """Base model of the first stage.

    Attributes:
        base: hub name, folder, URL or ``bundled:NAME``.
        new: create a model instead of loading ``base``.
        pooling: pooling added to a model without one.
        max_seq_length: maximum number of tokens per text.
    """

    base: str = "klue/bert-base"
    new: NewModelConfig | None = None
    pooling: Literal["mean", "cls", "max"] = "mean"
    max_seq_length: Positive = 512


class CardConfig(Section):
    """Title, licence and description for the model card."""

    title: str | None = None
    licence: str | None = None
    description: str | None = None


class TrainConfig(Section):
    """A complete training recipe.

    Attributes:
        model: base model.
        data_root: folder that contains the data files.
        output: folder of the trained model.
        stages: stages in order.
        dev: STS file that selects the best checkpoint.
        test: STS files that are evaluated once, at the end.
        held_out: further STS files to exclude from training. A single text is excluded if it occurs in ``dev``, ``test``
            or ``held_out``; a pair or triplet, if all its texts do.
        seed: seed of everything random.
        workers: number of processes; more than one train data-parallel on Ray Train, with a GPU each if there are any.
        threads: CPU threads per process.
        dtype: precision of the saved weights.
        card: text for the model card.
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
            raise ValueError("stages: two stages have the same name")
        return self
