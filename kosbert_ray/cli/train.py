"""``kosbert-ray train``: trains a model by a recipe."""

from __future__ import annotations

import argparse

from kosbert_ray.cli.common import Commands, add_config, given
from kosbert_ray.cli.examples import add_examples
from kosbert_ray.units import plural

EXAMPLES = (("train by a recipe", "kosbert-ray train my-model --config configs/train_ko_sbert_sts.yaml --data-root data/"),)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "train",
        help="train a model by a recipe",
        description="Trains a model by the recipe in --config and writes it to OUTPUT. After a crash, run the same command "
        "again to resume.",
    )
    parser.add_argument("output", nargs="?", metavar="OUTPUT", help="the new model's folder (output)")
    parser.add_argument("--data-root", metavar="FOLDER", help="folder of the recipe's data files (data_root)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes, each with a GPU if available (workers)")
    add_config(parser, "recipe in YAML, such as configs/train_ko_sbert_sts.yaml")
    add_examples(parser, EXAMPLES)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kosbert_ray.settings import load_settings
    from kosbert_ray.training.config import TrainConfig

    names = {"output": "output", "data_root": "data_root", "workers": "workers"}
    config = load_settings(TrainConfig, arguments.config, arguments.set, given(arguments, names))
    from kosbert_ray.training.train import train

    trained = train(config)
    for data, figures in trained.figures.items():
        shown = ", ".join(f"{measure} {pearson:.2f}/{spearman:.2f}" for measure, (pearson, spearman) in figures.items())
        print(f"{data}: {shown} (Pearson/Spearman x 100)")
    stages, examples = len(trained.examples), sum(trained.examples.values())
    print(f"done: {stages} stages, {plural(examples, 'example')}; the model is in {trained.folder}")
    return 0
