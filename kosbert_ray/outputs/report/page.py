"""The report as one HTML file of figures and tables that loads nothing from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import plotly.io
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from kosbert_ray._version import __version__
from kosbert_ray.outputs.report.charts import FONT, Table
from kosbert_ray.outputs.report.data import Pair, Report
from kosbert_ray.outputs.report.figures import figures
from kosbert_ray.outputs.report.words import Language, Words

TEXT_CHARS = 300


def page(report: Report, language: Language = "en") -> str:
    """Renders the report as HTML. It includes plotly's script, some five megabytes."""
    say = Words(language)
    environment = Environment(loader=PackageLoader("kosbert_ray.outputs.report", ""), autoescape=True, trim_blocks=True)
    environment.filters["short"] = lambda text: text if len(text) <= TEXT_CHARS else f"{text[:TEXT_CHARS]}…"
    config = {"displayModeBar": False, "responsive": True}
    drawn = [
        (
            say.heading(one.name, one.kind),
            one.about,
            plotly.io.to_html(one.drawn, config, include_plotlyjs=False, full_html=False, div_id=_id(one.name, one.kind)),
        )
        for one in figures(report, say)
    ]
    return environment.get_template("page.html.jinja").render(
        report=report,
        say=say,
        version=__version__,
        font=FONT,
        script=get_plotlyjs(),
        summary=list(_summary(report, say)),
        warnings=list(_warnings(report, say)),
        tables=list(_tables(report, say)),
        pairs=list(_pairs(report, say)),
        nodes=_nodes(report, say),
        costs=list(_costs(report, say)),
        figures=drawn,
        evaluation_columns=list(dict.fromkeys(name for row in report.evaluation for name in row["figures"])),
    )


def _id(name: str, kind: str | None) -> str:
    return "-".join([*(kind or "").split(), *name.lower().split()])


def _warnings(report: Report, say: Words) -> Iterator[str]:
    """Remarks that a reader should see first."""
    if truncation := report.totals.truncation(report.written, say):
        yield f"{truncation}."
    for _, found in report.kinds:
        yield from found.warnings(say)
    for text, values in report.notes:
        yield say(text, **values)


def _tables(report: Report, say: Words) -> Iterator[Table]:
    """The tables of each kind of vectors."""
    for kind, found in report.kinds:
        for table in found.tables(say):
            yield replace(table, name=say.heading(table.name, kind))


def _pairs(report: Report, say: Words) -> Iterator[tuple[str, str, tuple[Pair, ...]]]:
    """The tables of pairs: heading, a sentence, rows."""
    found = report.sample
    if found is None or not found.nearest:
        return
    compared = [say(found.first.compared)] if found.first.compared else []
    for name, about, pairs in (
        ("Nearest pairs", "Of the sampled rows, without equal texts: are they duplicates?", found.nearest),
        ("Most isolated rows", "The nearest sampled row is far: are they of this corpus?", found.isolated),
    ):
        yield say.heading(name, found.named[0][0]), " ".join([say(about), *compared]), pairs


def _summary(report: Report, say: Words) -> Iterator[tuple[str, str]]:
    """Lines of the summary, with those of each kind of vectors: name and value."""
    for name, value in _of_run(report, say):
        yield say(name), value
    for kind, found in report.kinds:
        for name, value in found.summary(say):
            yield say.heading(name, kind), value
    yield say("Fingerprint"), report.digest


def _of_run(report: Report, say: Words) -> Iterator[tuple[str, str]]:
    totals, receipts = report.totals, report.receipts
    yield "Model", report.config.model.name
    yield "Input", report.config.input.path
    shards, size = say.counted(totals.slices, "shard"), say.size(totals.output_bytes)
    yield "Rows", say("{rows:,} in {shards}, {size}", rows=totals.rows, shards=shards, size=size)
    share = totals.rejected / max(1, totals.rows + totals.rejected)
    yield "Rejected", f"{say.counted(totals.rejected, 'row')} ({share:.2%})"
    yield "Tokens", say("{all:,}; {encoded:,} through the model", all=totals.tokens, encoded=totals.encoded_tokens)
    # Rows that were not encoded share the vector of an equal text in their slice, or in the whole corpus.
    repeated = max(0, 1 - (totals.distinct + totals.reused) / max(1, totals.rows))
    yield "Duplicates", say("{share:.1%} of the rows share another row's vector", share=repeated)
    if totals.reused:
        texts = say.counted(totals.reused, "text")
        yield "Reused", say("{texts} took their vectors from an older output", texts=texts)
    yield "Long texts", totals.long_texts(say) or say("none")
    ways = dict.fromkeys(
        say(
            "{precision}, {attention} attention, on {device}",
            precision=one.precision,
            attention=one.attention,
            device=one.device,
        )
        for one in receipts
        if one.precision
    )
    yield "Computed in", "; ".join(ways)
    computed = sum(receipt.computed_tokens for receipt in receipts)
    if computed:
        fill = sum(receipt.encoded_tokens for receipt in receipts if receipt.computed_tokens) / computed
        yield "Fill", say("{fill:.1%} of the computed tokens were not padding", fill=fill)
    times = [receipt.finished_at for receipt in receipts if receipt.finished_at]
    if times:
        yield "Commits", say("{time} from the first to the last", time=say.time(max(times) - min(times)))
    encoding = sum(receipt.encode_seconds for receipt in receipts)
    if encoding:
        rate = sum(one.encoded_tokens for one in receipts) / encoding
        yield "Encoding", say("{rate:,.0f} tokens/s for each encoder", rate=rate)


def _nodes(report: Report, say: Words) -> list[tuple[str, list[str]]]:
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 5)
    for receipt in report.receipts:
        values = (1, receipt.rows, receipt.encoded_tokens, receipt.encode_seconds, receipt.wait_seconds)
        node = receipt.node or say("not known")
        sums[node] = [a + b for a, b in zip(sums[node], values, strict=True)]
    return [
        (node, [f"{slices:,.0f}", f"{rows:,.0f}", f"{tokens:,.0f}", f"{busy:,.1f}", f"{waiting:,.1f}"])
        for node, (slices, rows, tokens, busy, waiting) in sorted(sums.items())
    ]


def _costs(report: Report, say: Words) -> Iterator[tuple[str, str]]:
    """Costs by the prices in ``plan``; nothing for what has no price."""
    plan = report.config.plan
    hours = sum(receipt.encode_seconds + receipt.wait_seconds for receipt in report.receipts) / 3600
    for name, profile in plan.profiles.items():
        if profile.price_per_hour is not None:
            cost = hours * profile.price_per_hour
            yield (
                name,
                say(
                    "{cost:,.4g} {currency}: {hours:,.3f} encoder hours at {price:g} {currency}",
                    cost=cost,
                    currency=plan.currency,
                    hours=hours,
                    price=profile.price_per_hour,
                ),
            )
    if plan.storage_price is not None:
        cost = report.totals.output_bytes / 1e9 * plan.storage_price
        yield say("storage"), say("{cost:,.4g} {currency} a month", cost=cost, currency=plan.currency)
