"""The parts that the report's figures are made of: colours, histograms, and the sentence about their middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from kosbert_ray.outputs.report import reference
from kosbert_ray.outputs.report.words import COMPARED, MIDDLE, Words

# Each has a contrast of at least 3 with the light and with the dark page.
COLORS = (
    "#3478c8", "#c4601d", "#2f8a52", "#b5569a", "#1f8a94", "#a5742a", "#7a68c9", "#c94f57",
    "#668132", "#8a7a86", "#4d86a0", "#b06a56",
)  # fmt: skip
LEAST_SPREAD = 0.005  # of values: with less, a histogram is one bar
BINS = 60
FONT = "Pretendard, 'Noto Sans KR', 'Noto Sans CJK KR', NanumGothic, 'Apple SD Gothic Neo', 'Malgun Gothic', sans-serif"


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: its heading, in English.
        about: a sentence about it.
        drawn: the figure.
        kind: name of the kind of vectors that it is about, in English; None if the heading does not say it.
    """

    name: str
    about: str
    drawn: go.Figure
    kind: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        name: its heading, in English until the page translates it.
        about: a sentence about it.
        columns: headings of the columns; all but the first are numbers.
        rows: the cells of each row.
    """

    name: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def middle(values: np.ndarray, form: str, say: Words, usual: tuple[float, float] | None = None) -> str:
    """Says the median and the 95th percentile, and those of the reference if it has them."""
    median, high = np.quantile(values, [0.5, 0.95]).tolist()
    if usual is None:
        return say(MIDDLE, median=median, high=high, form=form)
    return say(
        COMPARED,
        median=median,
        high=high,
        form=form,
        reference=say(reference.NAME),
        usual_median=usual[0],
        usual_high=usual[1],
    )


def chart(traces: Sequence[go.Scatter | go.Bar | go.Histogram], x: str, y: str, height: int = 320) -> go.Figure:
    """Draws traces in the report's style.

    Args:
        traces: what to draw.
        x, y: titles of the axes.
        height: in pixels.
    """
    figure = go.Figure(traces)
    figure.update_layout(
        template="none",
        colorway=list(COLORS),
        font={"family": FONT, "size": 13},
        height=height,
        margin={"l": 64, "r": 16, "t": 16, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"font": {"family": FONT, "size": 13}, "align": "left"},
        legend={"font": {"size": 12}},
    )
    figure.update_xaxes(title=x, automargin=True)
    figure.update_yaxes(title=y, automargin=True)
    return figure


def histogram(values: np.ndarray, x: str, y: str, say: Words, edges: np.ndarray | None = None) -> go.Figure:
    """Draws a histogram. Counts the values here, so that the file does not contain each of them."""
    counts, edges = np.histogram(values, BINS if edges is None else edges)
    middle = (edges[1:] + edges[:-1]) / 2
    low, high = edges[:-1], edges[1:]
    template = "%{customdata[0]:.4g} – %{customdata[1]:.4g}: %{y:,}<extra></extra>"
    bar = go.Bar(x=middle, y=counts, width=high - low, customdata=np.stack([low, high], 1), hovertemplate=template)
    return chart([bar], say(x), say(y)).update_layout(bargap=0)


def count_histogram(counts: np.ndarray, x: str, y: str, say: Words) -> go.Figure:
    """Draws a histogram of whole numbers, with bars that are equally many numbers wide: others would look like a comb."""
    low, high = int(counts.min()), int(counts.max())
    step = -(-(high - low + 1) // BINS)
    return histogram(counts, x, y, say, np.arange(low, high + step + 1, step))


def log_histogram(counts: np.ndarray, x: str, y: str, say: Words, low: int = 1) -> go.Figure:
    """Draws a histogram of whole numbers on a logarithmic axis: most are small, and the figure is about the few others.

    Args:
        counts: the numbers; those below ``low`` are left out.
        x, y: titles of the axes.
        say: the words of the page.
        low: where the axis starts, at least 1.
    """
    edges = np.unique(np.geomspace(low, max(low, counts.max()) + 1, BINS).astype(np.int64))
    return histogram(counts, x, y, say, edges).update_xaxes(type="log")
