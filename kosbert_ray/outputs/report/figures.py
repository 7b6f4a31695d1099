"""The report's figures, drawn by plotly."""

from __future__ import annotations

import html
import math
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import plotly.graph_objects as go

from kosbert_ray.outputs.report import reference
from kosbert_ray.outputs.report.charts import BINS, COLORS, LEAST_SPREAD, Figure, chart, histogram, log_histogram, middle
from kosbert_ray.outputs.report.data import CLUSTER, COLORED, OTHERS_NAME, Mapped, Report
from kosbert_ray.outputs.report.words import Words
from kosbert_ray.shards.receipt import STAGES, Receipt

OTHERS = "#8b8b90"  # with the contrast of the other colors
MIN_COMMIT_SECONDS = 10.0  # a shorter run has no course to draw
MAX_NODES = 10
HOVER_CHARS, HOVER_WIDTH = 240, 40


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
        about = f"{say('Share of the computed tokens that were not padding, by slice.')} {middle(shares, '.1%', say)}"
        yield Figure("Fill", about, _fill(shares, say))
    if len(report.lengths):
        about = f"{say('Tokens of the sampled rows, uncut.')} {middle(report.lengths, ',.0f', say, reference.LENGTHS)}"
        yield Figure("Lengths", about, _lengths(report, say))
    if report.sample:
        yield from _of_vectors(report.sample, say)


def _of_vectors(one: Mapped, say: Words) -> Iterator[Figure]:
    color = say(CLUSTER) if one.color == CLUSTER else one.color
    about = say("{rows}, neighbours near each other (t-SNE), by {color}.", rows=say.counted(one.rows, "row"), color=color)
    placed = [say(one.first.placed)] if one.first.placed else []
    yield Figure("Map", " ".join([about, *placed]), _map(one, say), one.named[0][0])
    for kind, found in one.named:
        for figure in found.figures(say):
            yield replace(figure, kind=kind)


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
    figure = chart(bars, say("time (UTC)"), say("tokens/s"))
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
    return chart([bar], say("seconds"), "", 260)


def _fill(shares: np.ndarray, say: Words) -> go.Figure:
    figure = histogram(shares, "share", "slices", say)
    return figure.update_xaxes(range=[0, 1.02])


def _lengths(report: Report, say: Words) -> go.Figure:
    figure = log_histogram(report.lengths, "tokens", "rows", say)
    if report.max_seq_length:
        figure.add_vline(x=report.max_seq_length, line={"dash": "dash", "color": OTHERS})
        # On a logarithmic axis, plotly takes a line's place as it is and a text's as its logarithm.
        place = {
            "x": math.log10(report.max_seq_length),
            "y": 1,
            "yref": "paper",
            "xanchor": "right",
            "yanchor": "top",
            "xshift": -4,
        }
        figure.add_annotation(text=f"max_seq_length {report.max_seq_length}", showarrow=False, **place)
    return figure


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
    figure = chart(traces, "", "", 640)
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, scaleanchor="x")
    return figure.update_layout(legend={"orientation": "h", "y": -0.04}, hovermode="closest")


def _hover(text: str) -> str:
    """Shortens, wraps and escapes a text for a hover label, which plotly reads as a subset of HTML."""
    short = " ".join(text.split())
    short = short if len(short) <= HOVER_CHARS else f"{short[:HOVER_CHARS]}…"
    return "<br>".join(html.escape(line) for line in textwrap.wrap(short, HOVER_WIDTH))
