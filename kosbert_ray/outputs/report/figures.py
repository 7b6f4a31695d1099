"""The report's figures, drawn by plotly."""

from __future__ import annotations

import html
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
import plotly.graph_objects as go

from kosbert_ray.outputs.report.data import COLORED, OTHERS_NAME, Mapped, Report
from kosbert_ray.shards.receipt import STAGES, Receipt
from kosbert_ray.units import plural

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


def figures(report: Report) -> Iterator[tuple[str, str, go.Figure]]:
    """Yields each figure with its heading and a sentence about it, in the order of the page."""
    timed = [receipt for receipt in report.receipts if receipt.finished_at]
    times = [receipt.finished_at for receipt in timed]
    if times and max(times) - min(times) > MIN_COMMIT_SECONDS:
        yield "Throughput", "Tokens per second of the rows committed, by node.", _throughput(timed)
    if timed:
        yield (
            "Stages",
            "Seconds of work in each stage, summed over all workers; waiting is that of the encoders.",
            _stages(timed),
        )
    shares = np.array([one.encoded_tokens / one.computed_tokens for one in timed if one.computed_tokens])
    if len(shares) and np.ptp(shares) > LEAST_SPREAD:
        yield "Fill", "Share of the computed tokens that were not padding, by slice.", _fill(shares)
    if len(report.lengths):
        yield "Lengths", "Tokens of the sampled rows, uncut.", _lengths(report)
    if report.sample:
        one = report.sample
        yield "Map", f"{plural(one.rows, 'row')}, neighbours near each other (t-SNE), by {one.color}.", _map(one)
        if np.ptp(one.health.norms) > LEAST_SPREAD * one.health.norms.max():  # else the model normalizes
            yield "Norms", "Lengths of the sampled vectors.", _histogram(one.health.norms, "length", "vectors")
        yield "Spread", "Standard deviation of each dimension, largest first.", _spread(one)
        yield "Similarity", "Cosines of pairs picked at random.", _histogram(one.health.cosines, "cosine", "pairs")


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


def _throughput(receipts: Sequence[Receipt]) -> go.Figure:
    """Bars of equal width from the first commit to the last. A slice's tokens count at the time of its commit."""
    times = np.array([receipt.finished_at for receipt in receipts])
    start, stop = float(times.min()), float(times.max())
    begin = start - max(1.0, max(receipt.encode_seconds + receipt.wait_seconds for receipt in receipts))
    count = int(np.clip(len(receipts), 1, BINS))
    width = max(1e-3, (stop - begin) / count)
    tokens: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(count))
    whole: dict[str, int] = defaultdict(int)
    for receipt in receipts:
        whole[receipt.node] += receipt.tokens
    named = {*sorted(whole, key=lambda node: -whole[node])[:MAX_NODES]}
    for receipt in receipts:
        node = receipt.node if receipt.node in named else "others"
        tokens[node][min(count - 1, int((receipt.finished_at - begin) / width))] += receipt.tokens / width
    middle = [datetime.fromtimestamp(begin + (number + 0.5) * width, UTC) for number in range(count)]
    bars = [
        go.Bar(x=middle, y=values, name=node, width=width * 1000, hovertemplate="%{y:,.0f} tokens/s<br>%{x}")
        for node, values in sorted(tokens.items())
    ]
    figure = _figure(bars, "time (UTC)", "tokens/s")
    return figure.update_layout(barmode="stack", showlegend=len(bars) > 1, bargap=0)


def _stages(receipts: Sequence[Receipt]) -> go.Figure:
    sums = {stage: sum(getattr(receipt, f"{stage}_seconds") for receipt in receipts) for stage in STAGES}
    sums["encoder waiting"] = sum(receipt.wait_seconds for receipt in receipts)
    names = list(sums)[::-1]
    bar = go.Bar(
        x=[sums[name] for name in names], y=names, orientation="h", hovertemplate="%{y}: %{x:,.1f} s<extra></extra>"
    )
    return _figure([bar], "seconds", "", 260)


def _fill(shares: np.ndarray) -> go.Figure:
    figure = _histogram(shares, "share", "slices")
    return figure.update_xaxes(range=[0, 1.02])


def _lengths(report: Report) -> go.Figure:
    """On a logarithmic axis: most texts are short, and the figure is about the few that are not."""
    edges = np.unique(np.geomspace(1, report.lengths.max() + 1, BINS).astype(np.int64))
    figure = _histogram(report.lengths, "tokens", "rows", edges).update_xaxes(type="log")
    if report.max_seq_length:
        figure.add_vline(
            x=report.max_seq_length, line_dash="dash", annotation_text=f"max_seq_length {report.max_seq_length}"
        )
    return figure


def _spread(sample: Mapped) -> go.Figure:
    return _figure([go.Scatter(y=sample.health.deviations, mode="lines")], "dimension", "standard deviation")


def _histogram(values: np.ndarray, x: str, y: str, edges: np.ndarray | None = None) -> go.Figure:
    """Counts the values here, so that the file does not contain each of them."""
    counts, edges = np.histogram(values, BINS if edges is None else edges)
    middle = (edges[1:] + edges[:-1]) / 2
    low, high = edges[:-1], edges[1:]
    template = "%{customdata[0]:.4g} to %{customdata[1]:.4g}: %{y:,}<extra></extra>"
    bar = go.Bar(x=middle, y=counts, width=high - low, customdata=np.stack([low, high], 1), hovertemplate=template)
    return _figure([bar], x, y).update_layout(bargap=0)


def _map(sample: Mapped) -> go.Figure:
    groups = np.array(sample.groups)
    common = [group.name for group in sample.by_size if group.name != OTHERS_NAME][:COLORED]
    traces = []
    for number, name in enumerate([*common, None]):
        chosen = np.flatnonzero(groups == name if name is not None else ~np.isin(groups, common))
        if not len(chosen):
            continue
        texts = [_hover(sample.texts[row]) if sample.texts else f"row {row}" for row in chosen.tolist()]
        label = f"{textwrap.shorten(OTHERS_NAME if name is None else name, 40, placeholder='…')} ({len(chosen):,})"
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
