"""The report's figures, drawn by plotly."""

from __future__ import annotations

import html
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import plotly.graph_objects as go

from kosbert_ray.outputs.report import reference
from kosbert_ray.outputs.report.data import CLUSTER, COLORED, OTHERS_NAME, Mapped, Report
from kosbert_ray.outputs.report.words import COMPARED, MIDDLE, Words
from kosbert_ray.shards.receipt import STAGES, Receipt

# Each has a contrast of at least 3 with the light and with the dark page.
COLORS = (
    "#3478c8", "#c4601d", "#2f8a52", "#b5569a", "#1f8a94", "#a5742a", "#7a68c9", "#c94f57",
    "#668132", "#8a7a86", "#4d86a0", "#b06a56",
)  # fmt: skip
OTHERS = "#8b8b90"
MIN_COMMIT_SECONDS = 10.0  # a shorter run has no course to draw
LEAST_SPREAD = 0.005  # of values: with less, a histogram is one bar
BINS = 60
MAX_NODES = 10
HOVER_CHARS, HOVER_WIDTH = 240, 40
FONT = "Pretendard, 'Noto Sans KR', 'Noto Sans CJK KR', NanumGothic, 'Apple SD Gothic Neo', 'Malgun Gothic', sans-serif"


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: its heading, in English.
        about: a sentence about it.
        drawn: the figure.
    """

    name: str
    about: str
    drawn: go.Figure


def figures(report: Report, say: Words) -> Iterator[Figure]:
    """Yields the figures in the order of the page."""
    timed = [receipt for receipt in report.receipts if receipt.finished_at]
    times = [receipt.finished_at for receipt in timed]
    if times and max(times) - min(times) > MIN_COMMIT_SECONDS:
        about = say("Tokens per second of the rows committed, by node.")
        yield Figure("Throughput", about, _throughput(timed, say))
    if timed:
        about = say("Seconds of work in each stage, summed over all workers; waiting is that of the encoders.")
        yield Figure("Stages", about, _stages(timed, say))
    shares = np.array([one.encoded_tokens / one.computed_tokens for one in timed if one.computed_tokens])
    if len(shares) and np.ptp(shares) > LEAST_SPREAD:
        about = f"{say('Share of the computed tokens that were not padding, by slice.')} {_middle(shares, '.1%', say)}"
        yield Figure("Fill", about, _fill(shares, say))
    if len(report.lengths):
        about = f"{say('Tokens of the sampled rows, uncut.')} {_middle(report.lengths, ',.0f', say, reference.LENGTHS)}"
        yield Figure("Lengths", about, _lengths(report, say))
    if report.sample:
        yield from _of_vectors(report.sample, say)


def _of_vectors(one: Mapped, say: Words) -> Iterator[Figure]:
    color = say(CLUSTER) if one.color == CLUSTER else one.color
    about = say("{rows}, neighbours near each other (t-SNE), by {color}.", rows=say.counted(one.rows, "row"), color=color)
    yield Figure("Map", about, _map(one, say))
    found = one.health
    if np.ptp(found.norms) > LEAST_SPREAD * found.norms.max():  # else the model normalizes
        about = f"{say('Lengths of the sampled vectors.')} {_middle(found.norms, '.3g', say, reference.NORMS)}"
        yield Figure("Norms", about, _histogram(found.norms, "length", "vectors", say))
    median = float(np.median(found.deviations))
    if median > 0:
        compared = say(
            "The largest is {ratio:.2f} times the median ({reference}: {usual:.2f}).",
            ratio=float(found.deviations[0]) / median,
            reference=say(reference.NAME),
            usual=reference.SPREAD,
        )
        about = f"{say('Standard deviation of each dimension, largest first.')} {compared}"
        yield Figure("Spread", about, _spread(one, say))
    about = f"{say('Cosines of pairs picked at random.')} {_middle(found.cosines, '.3f', say, reference.COSINES)}"
    yield Figure("Similarity", about, _histogram(found.cosines, "cosine", "pairs", say))


def _middle(values: np.ndarray, form: str, say: Words, usual: tuple[float, float] | None = None) -> str:
    """The median and the 95th percentile, and those of the reference if it has them."""
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


def _figure(traces: Sequence[go.Scatter | go.Bar | go.Histogram], x: str, y: str, height: int = 320) -> go.Figure:
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


def _throughput(receipts: Sequence[Receipt], say: Words) -> go.Figure:
    """Bars of equal width from the first slice to the last commit. A slice's tokens count while it is encoded."""
    times = np.array([receipt.finished_at for receipt in receipts])
    start, stop = float(times.min()), float(times.max())
    begin = min(start - 1.0, min(receipt.finished_at - receipt.encode_seconds for receipt in receipts))
    count = int(np.clip(len(receipts), 1, BINS))
    width = max(1e-3, (stop - begin) / count)
    tokens: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(count))
    whole: dict[str, int] = defaultdict(int)
    for receipt in receipts:
        whole[receipt.node] += receipt.tokens
    named = {*sorted(whole, key=lambda node: -whole[node])[:MAX_NODES]}
    for receipt in receipts:
        node = receipt.node if receipt.node in named else say(OTHERS_NAME)
        tokens[node] += receipt.tokens * _shares(receipt, begin, width, count) / width
    middle = [datetime.fromtimestamp(begin + (number + 0.5) * width, UTC) for number in range(count)]
    bars = [
        go.Bar(x=middle, y=values, name=node, width=width * 1000, hovertemplate=f"%{{y:,.0f}} {say('tokens/s')}<br>%{{x}}")
        for node, values in sorted(tokens.items())
    ]
    figure = _figure(bars, say("time (UTC)"), say("tokens/s"))
    return figure.update_layout(barmode="stack", showlegend=len(bars) > 1, bargap=0)


def _shares(receipt: Receipt, begin: float, width: float, count: int) -> np.ndarray:
    """The part of a slice's time in an encoder that falls into each bar; the sum is 1."""
    edges = begin + width * np.arange(count + 1)
    first = min(receipt.finished_at - receipt.encode_seconds, receipt.finished_at - 1e-3)
    inside = np.diff(np.clip(edges, first, receipt.finished_at))
    return np.asarray(inside / max(1e-9, inside.sum()))


def _stages(receipts: Sequence[Receipt], say: Words) -> go.Figure:
    sums = {say(stage): sum(getattr(receipt, f"{stage}_seconds") for receipt in receipts) for stage in STAGES}
    sums[say("encoder waiting")] = sum(receipt.wait_seconds for receipt in receipts)
    names = list(sums)[::-1]
    bar = go.Bar(
        x=[sums[name] for name in names], y=names, orientation="h", hovertemplate="%{y}: %{x:,.1f} s<extra></extra>"
    )
    return _figure([bar], say("seconds"), "", 260)


def _fill(shares: np.ndarray, say: Words) -> go.Figure:
    figure = _histogram(shares, "share", "slices", say)
    return figure.update_xaxes(range=[0, 1.02])


def _lengths(report: Report, say: Words) -> go.Figure:
    """On a logarithmic axis: most texts are short, and the figure is about the few that are not."""
    edges = np.unique(np.geomspace(1, report.lengths.max() + 1, BINS).astype(np.int64))
    figure = _histogram(report.lengths, "tokens", "rows", say, edges).update_xaxes(type="log")
    if report.max_seq_length:
        figure.add_vline(
            x=report.max_seq_length, line_dash="dash", annotation_text=f"max_seq_length {report.max_seq_length}"
        )
    return figure


def _spread(sample: Mapped, say: Words) -> go.Figure:
    return _figure([go.Scatter(y=sample.health.deviations, mode="lines")], say("dimension"), say("standard deviation"))


def _histogram(values: np.ndarray, x: str, y: str, say: Words, edges: np.ndarray | None = None) -> go.Figure:
    """Counts the values here, so that the file does not contain each of them."""
    counts, edges = np.histogram(values, BINS if edges is None else edges)
    middle = (edges[1:] + edges[:-1]) / 2
    low, high = edges[:-1], edges[1:]
    template = "%{customdata[0]:.4g} – %{customdata[1]:.4g}: %{y:,}<extra></extra>"
    bar = go.Bar(x=middle, y=counts, width=high - low, customdata=np.stack([low, high], 1), hovertemplate=template)
    return _figure([bar], say(x), say(y)).update_layout(bargap=0)


def _map(sample: Mapped, say: Words) -> go.Figure:
    groups = np.array(sample.groups)
    common = [group.name for group in sample.by_size if group.name != OTHERS_NAME][:COLORED]
    traces = []
    for number, name in enumerate([*common, None]):
        chosen = np.flatnonzero(groups == name if name is not None else ~np.isin(groups, common))
        if not len(chosen):
            continue
        texts = [_hover(sample.texts[row]) if sample.texts else say("row {row}", row=row) for row in chosen.tolist()]
        label = f"{textwrap.shorten(say(OTHERS_NAME) if name is None else name, 40, placeholder='…')} ({len(chosen):,})"
        traces.append(
            go.Scatter(
                x=sample.places[chosen, 0],
                y=sample.places[chosen, 1],
                mode="markers",
                name=html.escape(label),
                text=texts,
                marker={"size": 6, "opacity": 0.75, "color": COLORS[number] if name is not None else OTHERS},
                hovertemplate="%{text}",
            )
        )
    figure = _figure(traces, "", "", 640)
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, scaleanchor="x")
    return figure.update_layout(legend={"orientation": "h", "y": -0.04}, hovermode="closest")


def _hover(text: str) -> str:
    """Shortens, wraps and escapes a text for a hover label, which plotly reads as a subset of HTML."""
    short = " ".join(text.split())
    short = short if len(short) <= HOVER_CHARS else f"{short[:HOVER_CHARS]}…"
    return "<br>".join(html.escape(line) for line in textwrap.wrap(short, HOVER_WIDTH))
