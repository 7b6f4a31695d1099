"""``kosbert-ray report`` in a real browser: it opens from the disk, is clean, and tells what is in the output."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday
from playwright.sync_api import Browser, Page, sync_playwright

from kosbert_ray.analysis.health import health
from kosbert_ray.analysis.projection import COMPONENTS, project, reduce_sparse
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.outputs.report import reference
from kosbert_ray.outputs.report.charts import COLORS
from kosbert_ray.outputs.report.figures import OTHERS
from kosbert_ray.outputs.report.words import KOREAN
from kosbert_ray.vectors.arithmetic import unit
from kosbert_ray.vectors.sparse import SparseVectors

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "<script>alert(1)</script> </script> & <b>한글</b> {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def output(cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    texts = [*everyday()[:200], EVIL, None, " ", *everyday()[:20], " ".join(everyday()[:40])]
    pq.write_table(pa.table({"text": texts, "lang": ["ko", "한국어", "<i>x</i>", "en"] * 56}), folder / "in.parquet")
    job = ["--model", TINY, "--keep", "text,lang", "--set", "slice.max_rows=50", "--set", "max_rejected=9"]
    cli("embed", folder / "in.parquet", folder / "out", *job)
    return folder / "out"


@pytest.fixture(scope="module")
def written(cli, output: Path) -> Path:
    """The report, with all that there can be in one."""
    figures = {"cosine": [80.0, 79.5], "dot": [70.0, 69.0]}
    row = {"data": "sts-test", "dtype": "float32", "dimension": 128, "bytes": 512, "figures": figures}
    (output.parent / "sts.jsonl").write_text(json.dumps(row) + "\n")
    target = output.parent / "report.html"
    settings = ["--set", "plan.profiles={laptop: {tokens_per_second: 1000, price_per_hour: 3600}}"]
    done = cli("report", output, "--to", target, "--evaluation", output.parent / "sts.jsonl", *settings)
    assert done.stdout == f"written: {target}\n"
    return target


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no chromium here (apt-get install chromium fonts-nanum)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def shown(browser: Browser, report: Path, scheme: str = "light", width: int = 1200) -> tuple[Page, list[str]]:
    """The page in a browser that can reach nothing, and what it complained of."""
    context = browser.new_context(color_scheme=scheme, offline=True, viewport={"width": width, "height": 900})
    page = context.new_page()
    complaints: list[str] = []

    def asked(url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            complaints.append(url)

    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked(request.url))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(report.as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length > 6")
    return page, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_the_disk_without_a_complaint(browser: Browser, written: Path, scheme: str) -> None:
    page, complaints = shown(browser, written, scheme)
    headings = page.locator("h2").all_inner_texts()
    drawn = [name for name in ("Throughput", "Fill") if name in headings]  # where there is something to see
    expected = ["Summary", *drawn, "Stages", "Lengths", "Map", "Norms", "Spread", "Similarity"]
    tables = ["Clusters", "Nearest pairs", "Most isolated rows", "Rejected rows", "Cost", "Evaluation"]
    assert sorted(headings) == sorted([*expected, *tables])
    body = page.locator("body").inner_text()
    for said in ("222 in 5 shards", "2 rows (0.89%)", "null text", "empty text", "80.00 / 79.50", "1 row truncated"):
        assert said in body, said
    paper, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    bright = [sum(map(int, color[4:-1].split(","))) for color in (paper, ink)]
    assert (bright[0] > bright[1]) == (scheme == "light")
    tick = page.locator("#norms .xtick text").first
    tick_ink = tick.evaluate("element => getComputedStyle(element).fill")
    assert (sum(map(int, tick_ink[4:-1].split(","))) < 300) == (scheme == "light")
    axis, place = page.evaluate(
        "(layout => [layout.xaxis.range, layout.annotations[0].x])(document.getElementById('lengths').layout)"
    )
    assert place == pytest.approx(np.log10(128))  # max_seq_length
    assert axis[0] < place < axis[1] < 4
    for figure in page.locator(".js-plotly-plot").all():
        assert figure.locator("path").count() > 3
    assert complaints == []


def test_a_point_on_the_map_shows_its_text(browser: Browser, written: Path) -> None:
    page, complaints = shown(browser, written)
    points = page.evaluate("document.getElementById('map').data.map(trace => trace.text)")
    texts = {text.replace("<br>", " ") for trace in points for text in trace}
    assert len(texts) == 202 and any("&lt;script&gt;" in text for text in texts)
    number, wanted = next((index, text) for index, text in enumerate(points[0]) if "&" not in text)
    point = page.locator("#map .trace").first.locator(".points path").nth(number)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = page.locator("#map .hoverlayer .hovertext")
    hover.first.wait_for()
    assert wanted.partition("<br>")[0] in hover.first.text_content()
    assert complaints == []


def test_it_prints_on_white(browser: Browser, written: Path, tmp_path: Path) -> None:
    page, complaints = shown(browser, written, "dark")
    content = page.pdf(path=tmp_path / "report.pdf")
    assert content.startswith(b"%PDF") and len(content) > 20_000
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert complaints == []


def test_the_map_is_coloured_by_a_column_or_by_the_clusters_there_are(cli, output: Path, tmp_path: Path) -> None:
    cli("report", output, "--to", tmp_path / "a.html", "--color", "lang", "--sample", "50")
    html = (tmp_path / "a.html").read_text("utf-8")
    assert "50 rows, neighbours near each other (t-SNE), by lang." in html and "<i>x</i>" not in html
    copy = tmp_path / "out"
    shutil.copytree(output, copy)
    cli("cluster", copy, "-n", "3")
    cli("report", copy, "--to", tmp_path / "b.html")
    html = (tmp_path / "b.html").read_text("utf-8")
    summary = pq.read_table(copy / "_clusters" / "_clusters.parquet").to_pylist()
    for one in summary:
        label = f"{one['cluster']}: {', '.join(one['terms'][:3])}"
        assert f"<td>{label}</td>" in html
        assert f'"name":{json.dumps(label)[:-1]} (' in html


def test_an_output_that_is_not_complete_or_not_ours(cli, told, output: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(output, copy)
    (copy / "_SUCCESS").unlink()
    cli("report", copy, "--to", tmp_path / "c.html", "--sample", "20")
    assert "Not complete" in (tmp_path / "c.html").read_text("utf-8")
    assert "not an output of kosbert-ray" in told("report", tmp_path, code=1)
    assert "--color x: not among the kept columns (text, lang)" in told("report", copy, "--color", "x", code=1)
    (tmp_path / "e.json").write_text("[]")
    assert "not what kosbert-ray evaluate --json writes" in told(
        "report", copy, "--evaluation", tmp_path / "e.json", code=1
    )
    assert "-o /nowhere/x.html: No such file" in told("report", copy, "--sample", "9", "-o", "/nowhere/x.html", code=2)


def test_missing_shards_are_named_on_the_page(cli, output: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(output, tmp_path / "out")
    gone = sorted(copy.glob("*.parquet"))[0]
    gone.unlink()
    for language, said in (("en", "The report leaves files out: "), ("ko", "일부 파일이 빠진 보고서입니다: ")):
        done = cli("report", copy, "-o", tmp_path / "r.html", "--sample", "20", "--lang", language)
        assert f"{gone.name}: missing" in done.stderr
        assert f"{said}{gone}: missing" in (tmp_path / "r.html").read_text("utf-8")


def test_an_older_file_stays_if_the_disk_is_full(
    told, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "r.html"
    page.write_text("older")
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> None:
        write(path, content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "r.html: No space left on device" in told("report", output, "-o", page, "--sample", "20", code=2)
    assert page.read_text() == "older"
    assert [*tmp_path.iterdir()] == [page]


def test_health_tells_a_cone_from_a_ball() -> None:
    random = np.random.default_rng(0)
    ball = random.normal(size=(3000, 32)).astype(np.float32)
    found = health(ball)
    assert abs(found.anisotropy) < 0.02 and found.effective_dimensions > 30 and found.repeated == 0
    cone = np.concatenate([ball[:10], ball]) * 0.1 + np.eye(32, dtype=np.float32)[0] * 5
    cone[:, 7] = 1
    found = health(cone)
    assert found.anisotropy > 0.9 and found.constant == 1 and found.repeated == 10
    assert np.all(np.diff(found.deviations) <= 0)


def test_neighbours_stay_neighbours_on_the_map() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(5, 64)) * 4
    vectors = (centres.repeat(60, axis=0) + random.normal(size=(300, 64))).astype(np.float32)
    places = project(vectors)
    assert places.shape == (300, 2) and np.array_equal(places, project(vectors))
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + np.eye(300) * 1e9
    same = np.arange(300) // 60
    assert (same[distances.argmin(1)] == same).mean() > 0.98
    assert project(vectors[:3]).shape == (3, 2)
    assert project(vectors[:, :1]).shape == (300, 2)
    assert np.isfinite(project(vectors[:1].repeat(9, axis=0))).all()


def test_sparse_vectors_are_reduced_to_their_main_directions() -> None:
    random = np.random.default_rng(0)
    topics = random.random((10, 400)) * (random.random((10, 400)) < 0.2)
    matrix = (random.random((80, 10)) @ topics).astype(np.float32)  # of rank 10, so that no cosine is lost
    matrix[7] = 0
    found = reduce_sparse(SparseVectors.of_rows(matrix))
    assert found.shape == (80, COMPONENTS) and not found[7].any()
    directions = unit(matrix)
    assert found @ found.T == pytest.approx(directions @ directions.T, abs=1e-4)
    few = SparseVectors.of_rows(np.eye(3, dtype=np.float32)[[0, 2, 2]])
    spread = replace(few, indices=few.indices * 100_000)
    assert reduce_sparse(spread).tolist() == [[1, 0], [0, 1], [0, 1]]
    assert reduce_sparse(SparseVectors.empty(4)).tolist() == [[0]] * 4


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_scrolls_sideways_and_colors_can_be_seen(browser: Browser, written: Path, scheme: str, width: int) -> None:
    page, complaints = shown(browser, written, scheme, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('.wide')].filter(e => e.querySelector('.js-plotly-plot'))"
    too_wide = page.evaluate(f"{wide}.filter(e => e.scrollWidth > e.clientWidth + 1).length")
    assert too_wide == 0
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.querySelector('.faint')).color")
    assert contrast(rgb(paper), rgb(ink)) >= 4.5
    for color in (*COLORS, OTHERS):
        shade = tuple(int(color[start : start + 2], 16) for start in (1, 3, 5))
        assert contrast(shade, rgb(paper)) >= 3, color
    assert complaints == []


def rgb(color: str) -> tuple[int, ...]:
    return tuple(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(color: tuple[int, ...]) -> float:
        parts = [value / 255 for value in color]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_pairs_are_nearest_and_rows_isolated(browser: Browser, written: Path) -> None:
    page, _ = shown(browser, written)
    tables = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('section')].map(s => [s.querySelector('h2').innerText,"
        " [...s.querySelectorAll('tr')].slice(1).map(r => [...r.children].map(c => c.innerText))]))"
    )
    nearest = [float(row[0]) for row in tables["Nearest pairs"]]
    isolated = [float(row[0]) for row in tables["Most isolated rows"]]
    assert nearest == sorted(nearest, reverse=True) and isolated == sorted(isolated)
    assert max(isolated) <= min(nearest)
    assert all(row[1] != row[2] for row in tables["Nearest pairs"])
    counts = [int(row[1]) for row in tables["Clusters"]]
    assert counts == sorted(counts, reverse=True) and sum(counts) == 222


def test_the_reference_figures_are_those_of_the_bundled_sentences() -> None:
    encoder = Encoder.load("bundled:kosbert-mini", EncoderOptions(device="cpu"))
    found = health(encoder.encode(everyday()))
    tokens = encoder.tokenizer(everyday()).row_lengths()
    assert found.anisotropy == pytest.approx(reference.ANISOTROPY, abs=0.002)
    assert found.effective_dimensions == pytest.approx(reference.EFFECTIVE_DIMENSIONS, abs=0.5)
    assert len(found.deviations) == reference.DIMENSION
    assert np.quantile(tokens, [0.5, 0.95]).tolist() == [*reference.LENGTHS]
    assert np.quantile(found.norms, [0.5, 0.95]) == pytest.approx(reference.NORMS, abs=0.02)
    assert np.quantile(found.cosines, [0.5, 0.95]) == pytest.approx(reference.COSINES, abs=0.005)
    assert found.deviations[0] / np.median(found.deviations) == pytest.approx(reference.SPREAD, abs=0.05)


LATIN = re.compile(r"[A-Za-z]{3,}")
# These stay as they are in Korean.
NAMES = {
    "Pearson",
    "Spearman",
    "SNE",
    "chunk",
    "text",
    "long",
    "mean",
    "embed",
    "evaluate",
    "kosbert",
    "ray",
    "mini",
    "UTC",
}


def test_in_korean_all_of_it_is_korean(browser: Browser, cli, output: Path, written: Path, tmp_path: Path) -> None:
    target = tmp_path / "보고서.html"
    settings = ["--set", "plan.profiles={노트북: {tokens_per_second: 1000, price_per_hour: 3600}}"]
    cli("report", output, "-o", target, "--lang", "ko", "--evaluation", output.parent / "sts.jsonl", *settings)
    page, complaints = shown(browser, target)
    assert page.evaluate("document.documentElement.lang") == "ko"
    headings = page.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")
    english, _ = shown(browser, written)
    assert headings == [
        KOREAN[name] for name in english.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")
    ]
    about = page.evaluate("[...document.querySelectorAll('h2, section > .faint, th')].map(h => h.innerText)")
    axes = page.evaluate("[...document.querySelectorAll('.g-xtitle, .g-ytitle, .ytick')].map(h => h.textContent)")
    for line in [*about, *axes]:
        assert {*LATIN.findall(line)} <= NAMES, line
    assert any("중앙값 0." in line for line in about)
    assert complaints == []


def test_a_column_with_many_values_says_which_have_a_color(cli, tmp_path: Path) -> None:
    rows = pa.table({"text": everyday()[:40], "kind": [f"k{number}" for number in range(40)]})
    pq.write_table(rows, tmp_path / "in.parquet")
    cli("embed", tmp_path / "in.parquet", tmp_path / "out", "--model", TINY, "--keep", "kind")
    cli("report", tmp_path / "out", "-o", tmp_path / "r.html", "--color", "kind")
    assert "--color kind: 40 values; the 12 most frequent have a color." in (tmp_path / "r.html").read_text("utf-8")
