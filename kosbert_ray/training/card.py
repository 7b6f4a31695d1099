"""The model card: what the model is, what it was trained on, under which licences, and what it measured."""

from __future__ import annotations

from pathlib import Path

import yaml

from kosbert_ray.evaluation.sts import MEASURES
from kosbert_ray.training.config import DataConfig, StageConfig, TrainConfig

NAME = "README.md"


def write_card(
    folder: Path, config: TrainConfig, figures: dict[str, dict[str, tuple[float, float]]], counts: dict[str, int]
) -> None:
    """Writes ``README.md`` in the form the hub reads: YAML front matter, then Markdown.

    Args:
        folder: of the model.
        config: the recipe.
        figures: (Pearson, Spearman) x 100 by measure, by data set.
        counts: examples each stage saw.
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
    lines = ["## Measured", "", "Correlation with people's scores, times 100.", "", head, "|---" * 9 + "|"]
    for name, values in figures.items():
        cells = " | ".join(f"{pearson:.2f} | {spearman:.2f}" for pearson, spearman in (values[m] for m in MEASURES))
        lines.append(f"| {name} | {cells} |")
    return [*lines, ""]


def _training(config: TrainConfig, counts: dict[str, int]) -> list[str]:
    base = config.model
    if base.new:
        start = f"a new BERT, {base.new.layers} layers, {base.new.width} wide, WordPiece {base.new.vocabulary:,}"
    else:
        start = _model(base.base)
    lines = [
        "## Training",
        "",
        f"From {start}; {base.pooling} pooling; at most {base.max_seq_length} tokens; seed {config.seed}.",
        "",
    ]
    lines += ["| stage | losses | examples | epochs | batch | learning rate | warm-up | weight decay |", "|---" * 8 + "|"]
    for stage in config.stages:
        lines.append(
            f"| {stage.name} | {_losses(stage)} | {counts[stage.name]:,} | {stage.epochs:g} | {stage.batch_size} "
            f"| {stage.learning_rate:g} | {stage.warmup_steps:g} | {stage.weight_decay:g} |"
        )
    return [*lines, ""]


def _losses(stage: StageConfig) -> str:
    return ", ".join(f"{task.loss} of {_model(task.teacher.model)}" if task.teacher else task.loss for task in stage.tasks)


def _model(name: str) -> str:
    """A folder by its own name: where it lay on this machine is nobody's business."""
    return Path(name).name if Path(name).is_dir() else name


def _data(config: TrainConfig) -> list[str]:
    every = [data for stage in config.stages for task in stage.tasks for data in task.data]
    every += list(config.model.new.data) if config.model.new else []
    rows = dict.fromkeys(f"| {_name(data)} | {data.licence or 'not stated'} |" for data in every)
    lines = ["## Data", "", "| data | licence |", "|---|---|", *rows]
    held_out = [*([config.dev] if config.dev else []), *config.test, *config.held_out]
    if held_out:
        lines += ["", f"Held out: {', '.join(Path(name).stem for name in held_out)}."]
    return lines


def _name(data: DataConfig) -> str:
    return data.name or data.path
