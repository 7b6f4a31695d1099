"""Runs a complete training: base model, teacher vectors, each stage, and the final folder with its model card.

Intermediate results are kept in ``OUTPUT/_training``, so that running the same command resumes an interrupted training.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from kosbert_ray.errors import UsageError
from kosbert_ray.evaluation.sts import read_sts
from kosbert_ray.training.config import StageConfig, TrainConfig
from kosbert_ray.training.data import Examples, files, read_examples, read_texts
from kosbert_ray.units import plural

log = logging.getLogger(__name__)

WORK = "_training"
RECIPE = "recipe.json"
MODULES = "modules.json"
# Options that may change when a training is resumed.
CHANGEABLE = {"output", "workers", "threads", "card", "test", "data_root", "dtype"}


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    Attributes:
        folder: folder of the model.
        figures: (Pearson, Spearman) x 100 by data set and similarity measure.
        examples: number of examples by stage.
    """

    folder: Path
    figures: dict[str, dict[str, tuple[float, float]]]
    examples: dict[str, int]


def train(config: TrainConfig) -> Trained:
    """Runs the stages that are not complete yet and writes the model to ``config.output``.

    Raises:
        UsageError: the output is not set or belongs to another recipe, or the extra ``train`` is not installed.
        InputError: a data file is missing or has another format.
        ModelError: the base model or a teacher cannot be loaded.
        JobFailed: a stage failed.
    """
    try:
        import accelerate  # noqa: F401
        import datasets  # noqa: F401
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"training requires the extra train: pip install 'kosbert-ray[train]' ({error.name} is missing)"
        ) from error
    _silence_libraries()
    if not config.output:
        raise UsageError("output: missing; run kosbert-ray train OUTPUT --config FILE")
    output = Path(config.output)
    if (output / MODULES).exists():
        raise UsageError(f"output: {output} already contains a model; choose another folder")
    held_out = _held_out(config)
    work = output / WORK
    _claim(work, config)
    folder = _base(config, work, held_out)
    counts = {}
    for number, stage in enumerate(config.stages):
        stage_folder = work / f"{number}-{stage.name}"
        folder, counts[stage.name] = _stage(config, stage, stage_folder, folder, held_out)
    return _finish(config, folder, output, counts)


def _silence_libraries() -> None:
    """Turns off the libraries' progress bars and messages; training logs its own progress."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


def _held_out(config: TrainConfig) -> set[str]:
    names = [*([config.dev] if config.dev else []), *config.test, *config.held_out]
    return set().union(*(read_sts(path).sentences for name in names for path in files(config.data_root, name)))


def _claim(work: Path, config: TrainConfig) -> None:
    """Claims the work folder for this recipe; raises UsageError if it belongs to another."""
    recipe = json.loads(config.model_dump_json(exclude=CHANGEABLE))
    path = work / RECIPE
    if path.exists():
        existing = json.loads(path.read_text("utf-8"))
        changed = sorted(name for name in {*recipe, *existing} if recipe.get(name) != existing.get(name))
        if changed:
            raise UsageError(
                f"output: {work} belongs to a training with different {', '.join(changed)}; use another output or "
                "delete the folder"
            )
        return
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe, indent=1, ensure_ascii=False), "utf-8")


def _base(config: TrainConfig, work: Path, held_out: set[str]) -> Path:
    from kosbert_ray.training.base import load_base, make_base

    folder = work / "base"
    if folder.is_dir():
        return folder
    partial = work / "base.partial"
    shutil.rmtree(partial, ignore_errors=True)
    base = config.model
    if base.new:
        raw = work / "new"
        shutil.rmtree(raw, ignore_errors=True)
        texts = [read_texts(data, config.data_root, held_out, config.seed) for data in base.new.data]
        log.info(f"base: training a vocabulary of {base.new.vocabulary:,} on {plural(sum(map(len, texts)), 'text')}")
        make_base(base, base.new, chain.from_iterable(texts), raw, config.seed)
        base = base.model_copy(update={"base": str(raw)})
    # Train in float32, whatever precision the base was saved in.
    load_base(base, "cpu").float().save_pretrained(str(partial), create_model_card=False)
    partial.rename(folder)
    return folder


def _stage(config: TrainConfig, stage: StageConfig, folder: Path, start: Path, held_out: set[str]) -> tuple[Path, int]:
    from kosbert_ray.training.stage import StageJob, run_stage

    count = folder / "examples.json"
    if (folder / "model").is_dir() and count.exists():
        log.info(f"{stage.name}: already done")
        return folder / "model", json.loads(count.read_text("utf-8"))
    examples = [read_examples(task, config.data_root, held_out, config.seed) for task in stage.tasks]
    total = sum(len(part.rows) for part in examples)
    log.info(f"{stage.name}: {plural(total, 'example')}, {stage.epochs:g} epochs")
    folder.mkdir(parents=True, exist_ok=True)
    count.write_text(json.dumps(total), "utf-8")
    targets = [_targets(config, stage, index, part, start) for index, part in enumerate(examples)]
    dev = files(config.data_root, config.dev)[0] if config.dev else None
    job = StageJob(stage, examples, targets, start, folder, dev, config.seed, config.threads)
    if not job.model.is_dir():
        if config.workers > 1:
            from kosbert_ray.training.workers import run_on_workers

            run_on_workers(job, config.workers)
        else:
            run_stage(job)
    return job.model, total


def _targets(config: TrainConfig, stage: StageConfig, index: int, examples: Examples, start: Path) -> Path | None:
    from kosbert_ray.model.spec import read_spec
    from kosbert_ray.training.teacher import teacher_vectors

    teacher = stage.tasks[index].teacher
    if teacher is None or examples.teacher_texts is None:
        return None
    folder = Path(config.output) / WORK / "teacher"
    return teacher_vectors(teacher, examples.teacher_texts, read_spec(start).dimension, folder, config.threads)


def _finish(config: TrainConfig, folder: Path, output: Path, counts: dict[str, int]) -> Trained:
    from kosbert_ray.evaluation.evaluate import evaluate
    from kosbert_ray.model.source import ModelSource
    from kosbert_ray.training.base import open_model, write_compatible_configs
    from kosbert_ray.training.card import write_card

    final = output / WORK / "final"
    shutil.rmtree(final, ignore_errors=True)
    model = open_model(folder, "cpu")
    if config.dtype == "fp16":
        model = model.half()
    model.save_pretrained(str(final), create_model_card=False)
    write_compatible_configs(final, model.max_seq_length or config.model.max_seq_length)
    for path in final.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors makes them readable by the owner only
    names = [*([config.dev] if config.dev else []), *config.test]
    sets = [read_sts(files(config.data_root, name)[0]) for name in names]
    rows = evaluate(ModelSource(str(final)), sets, ["float32"]) if sets else []
    figures = {row.data: row.figures for row in rows}
    write_card(final, config, figures, counts)
    for path in sorted(final.iterdir(), key=lambda path: path.name == MODULES):  # modules.json last: it marks a model
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.rename(target)
    final.rmdir()
    return Trained(output, figures, counts)
