"""Model cards: description, evaluation scores, training settings, and data with licences."""

from __future__ import annotations

from pathlib import Path

import yaml

from kosbert_ray.evaluation.sts import MEASURES
from kosbert_ray.training.config import DataConfig, StageConfig, TrainConfig

NAME = "README.md"


def write_card(
    folder: Path, config: TrainConfig, figures: dict[str, dict[str, tuple[float, float]]], counts: dict[str, int]
) -> None:
    """Writes ``README.md`` in the hub's format: YAML front matter, then Markdown.

    Args:
        folder: folder of the model.
        config: training recipe.
        figures: (Pearson, Spearman) x 100 by data set and similarity measure.
        counts: number of examples by stage.
    """
    front = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "language": "ko",
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction"],
        **({"license": config.card.licence} if config.card.licence else {}),
        "model-index": [
            {
                "name": config.card.title or Path(config.output).name,
                "results": [_result(name, values) for name, values in figures.items()],
            }
        ],
    }
    lines = ["---", yaml.safe_dump(front, allow_unicode=True, sort_keys=False).rstrip(), "---", ""]
    lines += [f"# {config.card.title or Path(config.output).name}", ""]
    if config.card.description:
        lines += [config.card.description.strip(), ""]
    lines += _figures(figures) + _training(config, counts) + _data(config)
    (folder / NAME).write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _result(name: str, values: dict[str, tuple[float, float]]) -> dict[str, object]:
    metrics = [
        {"type": f"{kind}_{measure}", "value": round(value, 2)}
        for measure, pair in values.items()
        for kind, value in zip(("pearson", "spearman"), pair, strict=True)
    ]
    return {
        "task": {"type": "semantic-similarity"},
        "dataset": {"name": Path(name).stem, "type": "sts"},
        "metrics": metrics,
    }


def _figures(figures: dict[str, dict[str, tuple[float, float]]]) -> list[str]:
    if not figures:
        return []
    head = "| data | " + " | ".join(f"{measure} Pearson | {measure} Spearman" for measure in MEASURES) + " |"
    lines = ["## Evaluation", "", "Correlation with human similarity scores, times 100.", "", head, "|---" * 9 + "|"]
    for name, values in figures.items():
        cells = " | ".join(f"{pearson:.2f} | {spearman:.2f}" for pearson, spearman in (values[m] for m in MEASURES))
        lines.append(f"| {name} | {cells} |")
    return [*lines, ""]


def _training(config: TrainConfig, counts: dict[str, int]) -> list[str]:
    base = config.model
    if base.new:
        start = (
            f"a BERT with random weights, {base.new.layers} layers, width {base.new.width} and a WordPiece vocabulary of "
            f"{base.new.vocabulary:,}"
        )
    else:
        start = _public_name(base.base)
    lines = [
        "## Training",
        "",
        f"Trained from {start}; {base.pooling} pooling; maximum length {base.max_seq_length} tokens; seed {config.seed}.",
        "",
    ]
    columns = ("stage", "losses", "examples", "epochs", "batch size", "learning rate", "warm-up", "weight decay")
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for stage in config.stages:
        lines.append(
            f"| {stage.name} | {_losses(stage)} | {counts[stage.name]:,} | {stage.epochs:g} | {stage.batch_size} "
            f"| {stage.learning_rate:g} | {stage.warmup_steps:g} | {stage.weight_decay:g} |"
        )
    return [*lines, ""]


def _losses(stage: StageConfig) -> str:
    return ", ".join(
        f"{task.loss} (teacher: {_public_name(task.teacher.model)})" if task.teacher else task.loss for task in stage.tasks
    )


def _public_name(model: str) -> str:
    """Returns a model's name without the local path: cards are published."""
    return Path(model).name if Path(model).is_dir() else model


def _data(config: TrainConfig) -> list[str]:
    used = [data for stage in config.stages for task in stage.tasks for data in task.data]
    used += list(config.model.new.data) if config.model.new else []
    rows = dict.fromkeys(f"| {_name(data)} | {data.licence or 'not stated'} |" for data in used)
    lines = ["## Data", "", "| data | licence |", "|---|---|", *rows]
    held_out = [*([config.dev] if config.dev else []), *config.test, *config.held_out]
    if held_out:
        lines += ["", f"Held out: {', '.join(Path(name).stem for name in held_out)}."]
    return lines


def _name(data: DataConfig) -> str:
    return data.name or data.path
