"""Plots texts per second by text length as SVG from the results of ``benchmark.py``. Runs in matplotlib's environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def plot(found: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """Draws one line per competitor.

    Args:
        found: texts per second by competitor and by length in tokens.
        title: title with model and machine.
        path: SVG file to write.
    """
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    # Make the file reproducible.
    mpl.rcParams.update({"svg.hashsalt": "kosbert-ray", "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(8, 5))
    for name, rates in found.items():
        ours = name.startswith("kosbert-ray")
        axes.plot([int(length) for length in rates], list(rates.values()), "o-" if ours else "s--", label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens in a text", ylabel="texts per second", title=title)
    lengths = sorted({int(length) for rates in found.values() for length in rates})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    plot(asked["texts_per_second"], asked["title"], Path(sys.argv[2]))
