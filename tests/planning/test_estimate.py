"""What ``plan`` says before a run, beside what the run then does."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, everyday
from models import save_model
from sparse_models import save_splade

from kosbert_ray.config import load_config
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.planning import sparse_sample
from kosbert_ray.planning.estimate import estimate
from kosbert_ray.units import data_size


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
    assert lines[0] == f"input     {source}: 2 files, {data_size(planned['file_bytes'])}; 672 rows"
    assert "left      0.0% of the input, about 0 tokens to encode" in lines
    assert [line for line in lines if line.startswith("time      an encoder of the runs so far: ")]
    assert any(
        line.startswith("done      ") and f"{did['shards']} slices are committed; 0 new files" in line for line in lines
    )
    assert any(
        line.startswith("time      8 x h100: 0 s at 2,000,000 tokens/s each, 0.00 USD at 3 USD per hour each")
        for line in lines
    )
    assert [line for line in lines if line.startswith("rejected  1 row: ")]


def write_texts(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    return folder


def test_a_lower_limit_of_a_model_for_long_texts_is_planned_to_the_token(cli, tmp_path: Path) -> None:
    model = save_model("bert", everyday(), tmp_path / "model", length=3000)
    texts = [*everyday()[:30], " ".join(everyday()[:70]), *[" ".join(everyday()[:250])] * 2]
    source = write_texts(tmp_path / "in", texts)
    plan = ["plan", source, "--model", model, "--set", "plan.profiles={a: {tokens_per_second: 100}}"]
    planned = json.loads(cli(*plan, "--json").stdout)
    for cap, rows in (("512", 3), ("2048", 2)):
        capped = json.loads(cli(*plan, "--json", "--set", f"model.max_seq_length={cap}").stdout)
        assert planned["caps"][cap] == {
            "rows": rows,
            "tokens": planned["tokens"] - capped["tokens"],
            "encoded_tokens": planned["encoded_tokens"] - capped["encoded_tokens"],
        }
        assert capped["truncated"] == rows
    saved = planned["caps"]["2048"]
    assert saved["encoded_tokens"] == saved["tokens"] / 2 > 0
    lines = [line for line in cli(*plan).stdout.splitlines() if line.startswith("cap ")]
    assert len(lines) == 2
    assert f"{saved['tokens'] / planned['tokens']:.1%} of the tokens are beyond 2,048 in their text" in lines[1]
    assert f"truncates 6.06% of the rows and saves {saved['encoded_tokens']:,.0f} tokens, " in lines[1]
    assert lines[1].endswith(" s on a")
    chunked = json.loads(cli(*plan, "--json", "--set", "long_text=chunk", "--set", "chunk.size=600").stdout)
    assert chunked["caps"] == {}


def test_many_unknown_tokens_are_a_warning_of_plan_also_beside_an_output(cli, tmp_path: Path) -> None:
    source = write_texts(tmp_path / "in", [unicodedata.normalize("NFD", text) for text in everyday()[:50]])
    for output in ([], [tmp_path / "out"]):
        done = cli("plan", source, *output, "--model", TINY)
        assert "prompt    none" in done.stdout.splitlines()
        assert re.search(
            r"^memory    \d.* in fp32 or \d.* in bf16 for the weights of each encoder; this", done.stdout, re.M
        )
        assert "warning: " in done.stderr and "of the tokens are unknown to the model" in done.stderr
    assert any("unknown" in line for line in json.loads(cli("plan", source, "--model", TINY, "--json").stdout)["warnings"])


@pytest.mark.slow
def test_plan_uses_the_measured_speed_of_this_machine(cli, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    plan = ["plan", "bundled:everyday", "--model", TINY]
    assert "run kosbert-ray calibrate to measure this machine" in cli(*plan, env=env).stdout
    speed = cli("calibrate", "bundled:everyday", "--model", TINY, env=env).stdout
    assert re.search(r"tokens/s, within \d+% of each other in 5 rounds \(openvino \w+ on cpu\)", speed)
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


def test_a_corpus_of_which_no_slice_can_be_read_has_no_size(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"{text} {number}"}) + "\n" for number, text in enumerate(everyday()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode())[:-2000])
    found = estimate(load_config(None, [f"input.path={tmp_path}", f"model.name={TINY}"]))
    (reason,) = {*found.unread}
    assert "a.jsonl.gz" in reason
    assert (found.rows, found.output_bytes) == (0, 0)


def test_the_values_of_sparse_vectors_are_measured_with_the_options_of_the_output(cli, tmp_path: Path) -> None:
    model = save_splade(tmp_path / "made", "bert")
    plan = ["plan", "bundled:everyday", "--model", model]
    whole = json.loads(cli(*plan, "--json").stdout)
    encoder = Encoder.load(str(model), EncoderOptions(precision="fp32", device="cpu"))
    counts = np.diff(encoder.encode_sparse(everyday()).indptr)
    assert whole["sparse_values"] == pytest.approx(counts.mean(), rel=0.05)  # and not the typical 200
    assert (whole["sparse_rows"], whole["sparse_assumed"]) == (sparse_sample.ROWS, "")
    few = [*plan, "--set", "output.sparse_top_k=20"]
    assert (
        f"          a sparse vector has 20.0 values, measured on {sparse_sample.ROWS} rows" in cli(*few).stdout.splitlines()
    )
    cli("embed", "bundled:everyday", tmp_path / "out", *few[2:], "--set", "executor=local")
    planned = json.loads(cli(*few, "--json").stdout)
    assert planned["output_bytes"] == pytest.approx(truth(tmp_path / "out")["bytes"], rel=0.05)
    none = json.loads(cli(*plan, "--set", "output.sparse_threshold=100", "--json").stdout)
    assert (none["sparse_values"], none["sparse_rows"]) == (0, sparse_sample.ROWS)


def test_the_chunks_of_long_texts_are_measured(tmp_path: Path) -> None:
    model = save_splade(tmp_path / "made", "bert")
    source = write_texts(tmp_path / "in", [" ".join(everyday()[:100])])
    options = [f"input.path={source}", f"model.name={model}", "long_text=chunk", "chunk.size=20"]
    assert estimate(load_config(None, options)).sparse_rows > 50  # chunks of one text


def test_a_model_that_is_too_large_to_run_for_a_plan_is_assumed_to_be_typical(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ["plan", "bundled:everyday", "--model", save_splade(tmp_path / "made", "bert")]
    monkeypatch.setattr(sparse_sample, "MAX_WEIGHT_BYTES", 1000)
    told = "a sparse vector is assumed to have 200 values: the model's 1.20 MB of weights are not loaded for an estimate"
    assert re.search(told.replace("1.20 MB", r"[\d.]+ .B"), cli(*plan).stdout)
    monkeypatch.undo()
    monkeypatch.setattr(Encoder, "encode_tokens", Mock(side_effect=MemoryError("no room")))
    found = json.loads(cli(*plan, "--set", "output.sparse_top_k=50", "--json").stdout)
    assert (found["sparse_values"], found["sparse_rows"]) == (50, 0)
    assert found["sparse_assumed"] == "the model cannot run here (no room)"


def test_the_shares_of_a_plan_with_chunks_add_up_to_all_of_them(cli, tmp_path: Path) -> None:
    model = save_model("bert", everyday(), tmp_path / "model", length=12000)
    texts = [*everyday()[:30], " ".join(everyday() * 2), " ".join(everyday() * 2)[100:]]
    plan = ["plan", write_texts(tmp_path / "in", texts), "--model", model, "--set", "slice.max_rows=16"]
    whole = cli(*plan).stdout
    for told in (whole, cli(*plan, "--set", "long_text=chunk", "--set", "chunk.size=100").stdout):
        shares = [float(share) for share in re.findall(r"^ +\d+-\d+ +([\d.]+)%", told, re.M)]
        assert sum(shares) == pytest.approx(100, abs=0.5)
    tokens = re.search(r"^tokens .*, ([\d.]+) per text, ([\d.]+) per chunk; ", told, re.M)
    assert tokens is not None
    assert float(tokens[1]) > 100 > float(tokens[2])
    beyond = [int(upper) for upper in re.findall(r"^ +\d+-(\d+) ", whole, re.M) if int(upper) > 8192]
    assert len(beyond) <= 1  # one bin for the longest texts of all slices
