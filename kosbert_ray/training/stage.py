"""One training stage: a run of sentence-transformers' trainer from one model folder to the next. Resumable."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from kosbert_ray.encoder.devices import pick_device, pick_precision
from kosbert_ray.errors import JobFailed, described
from kosbert_ray.evaluation.sts import MAX_SCORE, read_sts
from kosbert_ray.training.base import open_model
from kosbert_ray.training.config import StageConfig
from kosbert_ray.training.data import Examples
from kosbert_ray.training.losses import make_loss
from kosbert_ray.training.sampler import make_sampler

log = logging.getLogger(__name__)

METRIC = "eval_dev_spearman_cosine"
LOG_STEPS = 50


@dataclass(frozen=True)
class StageJob:
    """Everything a stage needs, in a form that can be sent to workers.

    Attributes:
        stage: options of the stage.
        examples: examples by task.
        targets: ``.npy`` file of teacher vectors by task; None without a teacher.
        start: folder of the model to start from.
        folder: folder for checkpoints and, at the end, ``model/`` and ``log.json``.
        dev: STS file that selects the best checkpoint.
        seed: seed of everything random.
        threads: CPU threads per process.
    """

    stage: StageConfig
    examples: list[Examples]
    targets: list[Path | None]
    start: Path
    folder: Path
    dev: Path | None
    seed: int
    threads: int | None

    @property
    def model(self) -> Path:
        """Folder of the trained model; exists once the stage is complete."""
        return self.folder / "model"


class _Report(TrainerCallback):
    """Logs the trainer's progress, and evaluates and saves at the end of each epoch."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        control.should_evaluate = control.should_save = True

    def on_log(  # the trainer's signature
        self,
        args: Any,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if METRIC in logs:
            progress = f"dev cosine Spearman {100 * logs[METRIC]:.2f}"
        elif "loss" in logs:
            progress = f"loss {float(logs['loss']):.4f}, learning rate {float(logs['learning_rate']):.1e}"
        else:
            return
        log.info(f"{self.name}: step {state.global_step:,} of {state.max_steps:,}: {progress}")


class _Trainer(SentenceTransformerTrainer):
    """sentence-transformers' trainer without its model card; :mod:`card` writes one after the last stage."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Does nothing."""


def run_stage(job: StageJob) -> None:
    """Trains a stage and saves the best model to ``job.model``. Every process of a data-parallel run calls it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    device = pick_device("auto")
    if device == "cpu" and job.threads:
        torch.set_num_threads(job.threads)
    model = open_model(job.start, None if device == "cuda" else device)
    if job.stage.dropout is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = job.stage.dropout
    if "embeddings" in job.stage.frozen:
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.requires_grad_(False)
    trainer = _trainer(job, model, device)
    try:
        trainer.train(resume_from_checkpoint=_checkpoint(job))
    except Exception as error:
        raise JobFailed(f"stage {job.stage.name}: {described(error)}") from error
    if not trainer.is_world_process_zero():
        return
    partial = job.folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), create_model_card=False, safe_serialization=True)
    (job.folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1), "utf-8")
    partial.rename(job.model)
    for checkpoint in (job.folder / "checkpoints").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _checkpoint(job: StageJob) -> str | None:
    folder = job.folder / "checkpoints"
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _trainer(job: StageJob, model: SentenceTransformer, device: str) -> SentenceTransformerTrainer:
    stage = job.stage
    precision = pick_precision(stage.precision, device)
    datasets = {str(index): dataset(examples) for index, examples in enumerate(job.examples)}
    targets = [None if path is None else np.load(path, mmap_mode="r") for path in job.targets]
    losses = {
        str(index): make_loss(task, model, target)
        for index, (task, target) in enumerate(zip(stage.tasks, targets, strict=True))
    }
    steps = "steps" if job.dev else "epoch"
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(job.folder / "checkpoints"),
        num_train_epochs=stage.epochs,
        per_device_train_batch_size=stage.batch_size,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.scheduler,
        warmup_steps=stage.warmup_steps,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device == "cpu",
        seed=job.seed,
        data_seed=job.seed,
        eval_strategy="steps" if job.dev else "no",
        eval_steps=stage.evaluation_steps,
        save_strategy=steps,
        save_steps=stage.evaluation_steps,
        save_total_limit=2,
        load_best_model_at_end=job.dev is not None,
        metric_for_best_model=METRIC if job.dev else None,
        greater_is_better=True,
        logging_steps=LOG_STEPS,
        batch_sampler=partial(make_sampler, group_by_length=stage.group_by_length),
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=device == "cuda",
    )
    single = len(datasets) == 1
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=datasets["0"] if single else datasets,
        loss=losses["0"] if single else losses,
        evaluator=_evaluator(job.dev) if job.dev else None,
        callbacks=[_Report(stage.name)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def dataset(examples: Examples) -> Dataset:
    """Converts examples to the trainer's format: one column per text, and ``label``, a score or a row of the targets."""
    columns: dict[str, Any] = {name: [row[index] for row in examples.rows] for index, name in enumerate(examples.columns)}
    if examples.scores is not None:
        columns["label"] = examples.scores
    if examples.teacher_texts is not None:
        columns["label"] = list(range(len(examples.rows)))
    return Dataset.from_dict(columns)


def _evaluator(path: Path) -> EmbeddingSimilarityEvaluator:
    pairs = read_sts(path)
    return EmbeddingSimilarityEvaluator(
        pairs.first, pairs.second, (pairs.scores / MAX_SCORE).tolist(), name="dev", batch_size=128, write_csv=False
    )
