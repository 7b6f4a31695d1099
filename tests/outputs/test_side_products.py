"""Exports, clusterings and dedup's vectors belong to one output and one run, and are replaced as a whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kosbert_ray.cli import main
from kosbert_ray.outputs import clusters
from kosbert_ray.outputs.export.by_shard import SIDECAR
from kosbert_ray.run.shared_vectors import VECTORS_FILE, SharedVectors
from kosbert_ray.shards.formats.dense import EmbeddingFormat
from kosbert_ray.storage import Storage

PINNED = Path(__file__).parents[1] / "outputs_0_1_0"


@pytest.fixture
def output(tmp_path: Path, own_signals: None) -> Path:
    return Path(shutil.copytree(PINNED / "whole", tmp_path / "출력"))


def test_an_export_is_never_mixed_with_an_older_state_or_another_output(output: Path, tmp_path: Path, told) -> None:
    folder = tmp_path / "npy"
    assert main(["export", str(output), str(folder)]) == 0
    sidecar = json.loads((folder / SIDECAR).read_text("utf-8"))
    assert sidecar["complete"] is True
    for place in ("text_emb/older.npy", "metadata/older.parquet"):
        (folder / place).write_bytes(b"of an older state")
    (folder / SIDECAR).write_text(json.dumps(sidecar | {"complete": False}), "utf-8")  # it was killed
    assert main(["export", str(output), str(folder)]) == 0
    assert not list(folder.rglob("older*"))
    assert json.loads((folder / SIDECAR).read_text("utf-8")) == sidecar
    (folder / SIDECAR).write_text(json.dumps(sidecar | {"sha256": "another"}), "utf-8")
    assert "holds another export (sha256 another)" in told("export", output, folder, code=2)
    (folder / SIDECAR).unlink()
    (folder / "text_emb" / "strange.npy").write_bytes(b"")
    assert "strange.npy, of no export of this output" in told("export", output, folder, code=2)


def test_labels_of_two_clusterings_never_stand_side_by_side(
    output: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None
) -> None:
    assert main(["cluster", str(output), "-n", "2"]) == 0
    first = {path.name for path in (output / "_clusters").iterdir()}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clusters, "_describe", killed)
    assert main(["cluster", str(output), "-n", "3"]) == 130
    monkeypatch.undo()
    left = list((output / "_clusters").iterdir())
    assert "_clusters.parquet" not in {path.name for path in left}, "without a summary it was interrupted"
    runs = {pq.read_metadata(path).metadata[b"kosbert_ray.clustering"] for path in left}
    assert len(runs) == 1
    assert main(["cluster", str(output), "-n", "2"]) == 0
    assert {path.name for path in (output / "_clusters").iterdir()} == first


def test_a_foreign_parquet_file_is_left_out_by_every_command(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "zz.parquet").write_bytes(b"PAR1 of another program PAR1")
    for arguments in (["search", output, "비"], ["cluster", output, "-n", "2"], ["status", output]):
        assert main(list(map(str, arguments))) == 0, arguments
    assert main(["verify", str(output)]) == 1
    assert "zz.parquet: not an intact shard of kosbert-ray" in capsys.readouterr().err


def test_an_incomplete_output_says_so_when_it_is_searched(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "_SUCCESS").unlink()
    assert main(["search", str(output), "비"]) == 0
    assert "is not complete: only the 42 rows committed so far are searched" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\0" * 100, None])
def test_vectors_of_a_node_that_a_power_loss_has_cut_are_made_again(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shard = next(path.name for path in output.glob("a.*.parquet"))
    format = EmbeddingFormat(256)
    known = SharedVectors(Storage(str(output)), (shard,), format, 8, "key")
    expected = np.array(known.open())
    assert expected.shape == (8, 256)
    path = known.folder / VECTORS_FILE
    path.write_bytes(bytes(path.stat().st_size) if content is None else content)
    assert np.array_equal(known.open(), expected)
