"""What ``plan`` says before a run, beside what the run then does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday


def truth(out: Path) -> dict[str, float]:
    """The sums of a finished run, and the bytes of its shards."""
    success = json.loads((out / "_SUCCESS").read_text())
    shards = list(out.glob("*.parquet"))
    return {**success, "bytes": sum(path.stat().st_size for path in shards), "shards": len(shards)}


def compare(planned: dict, did: dict[str, float], share: float) -> None:
    names = {
        "rows": "rows",
        "tokens": "tokens",
        "encoded_tokens": "encoded_tokens",
        "output_bytes": "bytes",
        "slices": "shards",
    }
    for name, other in names.items():
        assert planned[name] == pytest.approx(did[other], rel=share), name


def test_a_small_corpus_is_planned_to_the_token(cli, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    texts = [*everyday(), *everyday()[:100], None, "  "]
    pq.write_table(pa.table({"text": texts, "id": range(len(texts))}), source / "a.parquet", row_group_size=150)
    (source / "b.jsonl").write_text("\n".join(json.dumps({"text": text, "id": 1}) for text in everyday()[:50]))
    options = ["--model", TINY, "--keep", "id", "--set", "slice.max_rows=100", "--set", "max_rejected=1.0"]
    planned = json.loads(cli("plan", source, *options, "--json").stdout)
    cli("embed", source, out, *options)
    did = truth(out)
    for name in ("rows", "tokens", "encoded_tokens", "truncated", "dropped_tokens"):
        assert planned[name] == pytest.approx(did[name]), name
    assert planned["slices"] == did["shards"]
    assert planned["output_bytes"] == pytest.approx(did["bytes"], rel=0.03)
    # Texts of one slice that another embeds, too: what dedup=corpus would spare.
    assert planned["shared"] == pytest.approx(1 - len({*everyday()}) / did["distinct"])
    assert sum(planned["rejected"].values()) == did["rejected"] == 2
    assert sum(planned["lengths"].values()) == pytest.approx(did["rows"])
    told = cli(
        "plan",
        source,
        out,
        *options,
        "--set",
        "plan.profiles={h100: {tokens_per_second: 2000000, devices: 8, price_per_hour: 3}}",
    )
    lines = told.stdout.splitlines()
    assert lines[0] == f"input     {source}: 2 files, {planned['file_bytes'] / 1000:,.2f} kB; 672 rows"
    assert any(
        line.startswith("done      ") and f"{did['shards']} slices are committed; 0 new files" in line for line in lines
    )
    assert any(
        line.startswith("time      8 x h100: 0 s at 2,000,000 tokens/s each, 0.00 at 3 per hour each") for line in lines
    )
    assert [line for line in lines if line.startswith("rejected  1 rows: ")]


@pytest.mark.slow
def test_plan_uses_the_measured_speed_of_this_machine(cli, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    plan = ["plan", "bundled:everyday", "--model", TINY]
    assert "run kosbert-ray calibrate to measure this machine" in cli(*plan, env=env).stdout
    speed = cli("calibrate", "bundled:everyday", "--model", TINY, env=env).stdout
    told = cli(*plan, env=env).stdout
    assert re.search(rf"this machine: .* at {re.escape(speed.split()[0])} tokens/s each", told)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("corpus", "files"), [("korpus_short", 20), ("korpus_long", 2)])
def test_a_plan_from_some_slices_is_within_three_percent(cli, data: Path, tmp_path: Path, corpus: str, files: int) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for path in sorted((data / corpus).glob("*.parquet"))[:files]:
        table = pq.read_table(path)
        pq.write_table(table.slice(0, 4000 if corpus == "korpus_short" else 400), source / path.name)
    options = ["--model", "bundled:kosbert-mini", "--set", f"slice.max_rows={1000 if corpus == 'korpus_short' else 20}"]
    planned = json.loads(cli("plan", source, *options, "--set", "plan.slices=16", "--json").stdout)
    assert planned["looked_at"] < planned["rows"] / 2
    cli("embed", source, out, *options, timeout=550)
    did = truth(out)
    for name in ("rows", "tokens", "encoded_tokens", "output_bytes"):
        print(corpus, name, round(planned[name]), did["bytes" if name == "output_bytes" else name])
    compare(planned, did, 0.03)
