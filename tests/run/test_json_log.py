"""Lines for machines: every one is JSON, each committed slice has its address and its figures."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from conftest import TINY


@pytest.mark.slow
def test_every_line_is_json_and_names_each_slice(cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        rows = [json.dumps({"text": f"문장 {number} {row}" if row else None}) for row in range(10)]
        (tmp_path / "in" / f"{number}.jsonl").write_text("\n".join(rows))
    embed = ["embed", tmp_path / "in", tmp_path / "out", "--model", TINY, "--log-format", "json"]
    done = cli(*embed, "--set", "slice.max_rows=5", "--set", "max_rejected=1.0")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(datetime.fromisoformat(line["time"]).tzinfo and line["message"] for line in lines)
    (warning,) = [line["message"] for line in lines if line["level"] != "info"]
    assert "of the tokens are unknown to the model" in warning
    assert {line["level"] for line in lines} == {"info", "warning"}
    slices = [line for line in lines if line.get("event") == "slice"]
    addresses = [(line["file"], line["fragment_index"], line["slice_index"]) for line in slices]
    assert sorted(addresses) == [(f"{number}.jsonl", 0, index) for number in range(2) for index in range(2)]
    assert sum(line["rows"] for line in slices) == 18
    assert sum(line["rejected"] for line in slices) == 2
    for line in slices:
        assert (tmp_path / "out" / line["shard"]).exists()
        assert line["batches"] >= 1
        assert line["computed_tokens"] == line["encoded_tokens"] > 0
        assert min(line[f"{stage}_seconds"] for stage in ("read", "tokenize", "encode", "write", "wait")) > 0
    assert [line["share"] for line in lines if line.get("event") == "progress"][-1] == 1
    assert done.stdout.startswith("done: 18 rows")

    failed = cli(*embed, "--text", "nothing", code=1)
    last = json.loads(failed.stderr.splitlines()[-1])
    assert last["level"] == "error"
    assert "no column 'nothing'" in last["message"]
