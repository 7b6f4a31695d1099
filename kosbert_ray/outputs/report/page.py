"""The report as one HTML file of figures and tables that loads nothing from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import plotly.io
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from kosbert_ray._version import __version__
from kosbert_ray.outputs.report.data import Pair, Report
from kosbert_ray.outputs.report.figures import FONT, figures
from kosbert_ray.units import data_size, duration, plural

TEXT_CHARS = 300
# For comparison: the same figures of bundled:everyday by bundled:kosbert-mini.
REFERENCE = "everyday sentences by kosbert-mini"
ANISOTROPY, EFFECTIVE = 0.158, 70.3


def page(report: Report) -> str:
    """Renders the report as HTML. It includes plotly's script, some five megabytes."""
    environment = Environment(loader=PackageLoader("kosbert_ray.outputs.report", ""), autoescape=True, trim_blocks=True)
    environment.filters["short"] = lambda text: text if len(text) <= TEXT_CHARS else f"{text[:TEXT_CHARS]}…"
    config = {"displayModeBar": False, "responsive": True}
    drawn = [
        (name, about, plotly.io.to_html(figure, config, include_plotlyjs=False, full_html=False, div_id=name.lower()))
        for name, about, figure in figures(report)
    ]
    return environment.get_template("page.html.jinja").render(
        report=report,
        version=__version__,
        font=FONT,
        script=get_plotlyjs(),
        summary=list(_summary(report)),
        warnings=list(_warnings(report)),
        pairs=list(_pairs(report)),
        nodes=_nodes(report),
        costs=list(_costs(report)),
        figures=drawn,
        evaluation_columns=list(dict.fromkeys(name for row in report.evaluation for name in row["figures"])),
    )


def _warnings(report: Report) -> Iterator[str]:
    """Remarks that a reader should see first."""
    if truncation := report.totals.truncation():
        yield f"{truncation}."
    yield from report.notes


def _pairs(report: Report) -> Iterator[tuple[str, str, tuple[Pair, ...]]]:
    """The tables of pairs: heading, a sentence, rows."""
    if report.sample and report.sample.nearest:
        yield "Nearest pairs", "Of the sampled rows, without equal texts: are they duplicates?", report.sample.nearest
        yield "Most isolated rows", "The nearest sampled row is far: are they of this corpus?", report.sample.isolated


def _summary(report: Report) -> Iterator[tuple[str, str]]:
    totals, receipts = report.totals, report.receipts
    yield "Model", report.config.model.name
    yield "Input", report.config.input.path
    yield "Rows", f"{totals.rows:,} in {plural(totals.slices, 'shard')}, {data_size(totals.output_bytes)}"
    share = totals.rejected / max(1, totals.rows + totals.rejected)
    yield "Rejected", f"{plural(totals.rejected, 'row')} ({share:.2%})"
    yield "Tokens", f"{totals.tokens:,}; {totals.encoded_tokens:,} through the model"
    # Rows that were not encoded share the vector of an equal text in their slice, or in the whole corpus.
    yield "Duplicates", f"{max(0, 1 - totals.distinct / max(1, totals.rows)):.1%} of the rows share another row's vector"
    yield "Long texts", totals.long_texts() or "none"
    ways = dict.fromkeys(
        f"{one.precision}, {one.attention} attention, on {one.device}" for one in receipts if one.precision
    )
    yield "Computed in", "; ".join(ways)
    computed = sum(receipt.computed_tokens for receipt in receipts)
    if computed:
        fill = sum(receipt.encoded_tokens for receipt in receipts if receipt.computed_tokens) / computed
        yield "Fill", f"{fill:.1%} of the computed tokens were not padding"
    times = [receipt.finished_at for receipt in receipts if receipt.finished_at]
    if times:
        yield "Committed", f"within {duration(max(times) - min(times))}"
    encoding = sum(receipt.encode_seconds for receipt in receipts)
    if encoding:
        yield "Encoding", f"{sum(one.encoded_tokens for one in receipts) / encoding:,.0f} tokens/s for each encoder"
    if report.sample:
        found = report.sample.health
        yield (
            "Anisotropy",
            f"{found.anisotropy:.3f}, the mean cosine of two rows picked at random ({REFERENCE}: {ANISOTROPY:.3f})",
        )
        yield (
            "Dimensions",
            f"{found.effective_dimensions:.1f} effective of {len(found.deviations)}; {found.constant} constant "
            f"({REFERENCE}: {EFFECTIVE:.1f} of 256)",
        )
    yield "Fingerprint", report.digest


def _nodes(report: Report) -> list[tuple[str, list[str]]]:
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 5)
    for receipt in report.receipts:
        values = (1, receipt.rows, receipt.encoded_tokens, receipt.encode_seconds, receipt.wait_seconds)
        sums[receipt.node or "not known"] = [a + b for a, b in zip(sums[receipt.node or "not known"], values, strict=True)]
    return [
        (node, [f"{slices:,.0f}", f"{rows:,.0f}", f"{tokens:,.0f}", f"{busy:,.1f}", f"{waiting:,.1f}"])
        for node, (slices, rows, tokens, busy, waiting) in sorted(sums.items())
    ]


def _costs(report: Report) -> Iterator[tuple[str, str]]:
    """Costs by the prices in ``plan``; nothing for what has no price."""
    plan = report.config.plan
    hours = sum(receipt.encode_seconds + receipt.wait_seconds for receipt in report.receipts) / 3600
    for name, profile in plan.profiles.items():
        if profile.price_per_hour is not None:
            cost = hours * profile.price_per_hour
            yield (
                name,
                f"{cost:,.4g} {plan.currency}: {hours:,.3f} encoder hours at {profile.price_per_hour:g} {plan.currency}",
            )
    if plan.storage_price is not None:
        yield "storage", f"{report.totals.output_bytes / 1e9 * plan.storage_price:,.4g} {plan.currency} a month"
