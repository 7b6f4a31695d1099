"""Both executors: the same shards and records, each resumes the other's outputs, and the rule that chooses one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, TINY, command, everyday, leftovers, shards, wait_for

from kosbert_ray.config import JobConfig, load_config
from kosbert_ray.corpus.files import InputFile
from kosbert_ray.corpus.fragments import Fragment
from kosbert_ray.encoder.encoder import Encoder
from kosbert_ray.encoder.options import EncoderOptions
from kosbert_ray.errors import DeviceBroken
from kosbert_ray.model.parameters import computing_parameters
from kosbert_ray.model.source import bundled_path
from kosbert_ray.model.spec import read_spec
from kosbert_ray.run.executors.choice import FRAGMENT_SECONDS, choose, plain_seconds
from kosbert_ray.run.executors.table import EXECUTORS
from kosbert_ray.shards.ledger import Ledger
from kosbert_ray.shards.receipt import Receipt
from kosbert_ray.storage import Storage

INPUTS = ROOT / "tests" / "outputs_0_1_0"
COMMON = ["--model", TINY, "--set", "slice.max_rows=8", "--set", "encoder.engine=torch", "--set", "max_rejected=5"]
JOBS = {
    "parquet and jsonl": ("in", ("input.keep=id,text",)),
    "txt.gz": (ROOT / "tests" / "golden" / "lines", ()),
    "rejected rows": ("rejecting", ("input.keep=id", "on_bad_row=null_vector")),
    "chunks": ("long", ("input.keep=id", "long_text=chunk", "chunk.size=64", "chunk.text=true")),
    "late chunks": ("long", ("input.keep=id", "long_text=late", "chunk.size=32", "output.text_hash=true")),
    "int8": ("in", ("output.dtype=int8,ubinary",)),
    "dedup": ("in", ("dedup=corpus", "input.keep=id")),
    "token vectors": ("rejecting", ("output.vectors=dense,multi_vector", "on_bad_row=null_vector")),
}
# What differs from run to run.
TIMES = {"finished_at", "read_seconds", "tokenize_seconds", "encode_seconds", "write_seconds", "wait_seconds"}


def receipts(output: Path) -> list[dict[str, Any]]:
    found = Ledger(Storage(str(output))).manifest()
    assert found
    rows = [{name: value for name, value in asdict(item).items() if name not in TIMES} for item in found]
    return sorted(rows, key=lambda row: (row["file"], row["fragment_index"], row["slice_index"]))


def rejected(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((output / "_kosbert" / "rejected").glob("*")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("name", JOBS)
def test_executors_write_the_same_bytes_and_records(cli, tmp_path: Path, name: str) -> None:
    source, settings = JOBS[name]
    for executor in EXECUTORS:
        options = [part for item in (*settings, f"executor={executor}") for part in ("--set", item)]
        cli("embed", INPUTS / source, tmp_path / executor, *COMMON, *options)
    one, other = (tmp_path / executor for executor in EXECUTORS)
    assert shards(one)
    assert shards(one) == shards(other)
    assert receipts(one) == receipts(other)
    assert rejected(one) == rejected(other)
    assert bool(rejected(one)) == (name in ("rejected rows", "token vectors"))
    assert not (other / "_kosbert" / "dedup").exists()


def test_a_local_run_loads_neither_ray_nor_an_engine_that_it_does_not_use(tmp_path: Path) -> None:
    run = "import sys; from kosbert_ray.cli import main; code = main(sys.argv[1:]);"
    run += "print(code, sorted({'ray', 'openvino'} & set(sys.modules)))"
    arguments = ["embed", "bundled:everyday", tmp_path / "out", *COMMON[:2], "--set", "encoder.engine=torch"]
    done = subprocess.run([sys.executable, "-c", run, *map(str, arguments)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "executor=local: runs in this process" in done.stderr


def test_a_warm_local_run_on_openvino_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    run = "import sys; from kosbert_ray.cli import main; code = main(sys.argv[1:]);"
    run += "print(code, sorted({'ray', 'torch', 'transformers'} & set(sys.modules)))"
    for output in ("cold", "warm"):
        arguments = ["embed", "bundled:everyday", tmp_path / output, "--model", TINY, "--set", "encoder.engine=openvino"]
        done = subprocess.run([sys.executable, "-c", run, *map(str, arguments)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert shards(tmp_path / "cold") == shards(tmp_path / "warm")


# -- resuming ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough slices that a run can be killed in its middle."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"{everyday()[number % 520]} 그리고 {number}번째 이야기입니다." for number in range(12_000)]
    pq.write_table(pa.table({"text": texts[:6000]}), folder / "a.parquet", row_group_size=2000)
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[6000:]), "utf-8")
    return folder


SETTINGS = ["--model", TINY, "--keep", "text", "--set", "slice.max_rows=100", "--set", "encoder.engine=torch"]


@pytest.fixture(scope="module")
def undisturbed(cli, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    target = tmp_path_factory.mktemp("undisturbed") / "out"
    cli("embed", corpus, target, *SETTINGS, "--set", "executor=local")
    return shards(target)


@pytest.mark.parametrize(
    "sent",
    [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT],
    ids=lambda sent: sent.name,
)
def test_a_killed_local_run_is_resumed(
    cli, corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path, sent: signal.Signals
) -> None:
    target = tmp_path / "out"
    arguments = command("embed", corpus, target, *SETTINGS, "--set", "executor=local")
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: len(list(target.glob("*.parquet"))) >= 8, 120, "no shard was committed")
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    if sent != signal.SIGKILL:
        assert process.returncode == 130
        assert said.splitlines()[-1].endswith("run the same command again to resume")
        assert leftovers(target) == []
    committed = {path.name: path.stat().st_mtime_ns for path in target.glob("*.parquet")}
    assert 8 <= len(committed) < len(undisturbed)
    # The first run in one process after one that was killed takes Ray, which isolates its workers.
    done = cli("embed", corpus, target, *SETTINGS)
    assert f"{len(committed):,} slices are committed already" in done.stderr
    assert ("an earlier run in one process was killed" in done.stderr) == (sent == signal.SIGKILL)
    assert ("executor=local" in done.stderr) == (sent != signal.SIGKILL)
    assert shards(target) == undisturbed
    assert {name: (target / name).stat().st_mtime_ns for name in committed} == committed, "none was written again"


def test_an_output_begun_on_ray_is_resumed_locally(
    cli, corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    target = tmp_path / "out"
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy2(corpus / "a.parquet", half)
    cli("embed", half, target, *SETTINGS, "--set", "executor=ray")
    shutil.copy2(corpus / "b.jsonl", half)
    done = cli("embed", half, target, *SETTINGS)
    assert "executor=local" in done.stderr
    tables = {name.rsplit(".", 2)[0]: pq.read_table(pa.BufferReader(content)) for name, content in undisturbed.items()}
    found = {name.rsplit(".", 2)[0]: pq.read_table(pa.BufferReader(content)) for name, content in shards(target).items()}
    assert found.keys() == tables.keys()
    assert all(found[name].equals(table) for name, table in tables.items())


def test_a_broken_gpu_moves_the_run_to_ray(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Encoder.encode_tokens
    calls = []

    def breaks(self: Encoder, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise DeviceBroken("the GPU failed in this process (CUDA error); run the same command again")
        return encode(self, *arguments, **options)

    monkeypatch.setattr(Encoder, "encode_tokens", breaks)
    done = cli("embed", "bundled:everyday", tmp_path / "out", "--model", TINY, "--set", "encoder.engine=torch")
    assert "the GPU failed in this process (CUDA error): continuing on Ray" in done.stderr
    assert "done: 520 rows" in done.stdout


# -- errors, the same on both ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (("on_bad_row=fail",), 1, "bad.jsonl: byte 0: "),
        (("max_rejected=0",), 3, "1 of 3 rows"),
        (("model.max_seq_length=9999",), 2, "9999, but the model has"),
    ],
)
def test_an_error_is_the_same_line(
    told, tmp_path: Path, executor: str, settings: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jsonl").write_text('{"text": null}\n{"text": "비가 온다."}\n{"text": "눈이 온다."}\n', "utf-8")
    options = [part for item in (*settings, f"executor={executor}") for part in ("--set", item)]
    line = told("embed", tmp_path / "in", tmp_path / "out", "--model", TINY, *options, code=code)
    assert message in line


# -- the choice -------------------------------------------------------------------------------------------------------


def fragments(size: int, name: str = "a.jsonl", kind: str = "jsonl", compression: str | None = None) -> list[Fragment]:
    file = InputFile(name=name, size=size, version="v", format=kind, compression=compression)
    return [Fragment(file, 0, 0, size)]


def config(*settings: str) -> JobConfig:
    return load_config(None, settings)


def test_little_work_runs_locally_and_much_on_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kosbert_ray.run.executors.choice.usable_cores", lambda: 2)
    gpus = 0
    for module in ("run.executors.choice", "encoder.options"):
        monkeypatch.setattr(f"kosbert_ray.{module}.visible_gpus", lambda: gpus)
    spec = read_spec(bundled_path("bundled:kosbert-mini"))
    assert plain_seconds(spec, EncoderOptions(), fragments(10**6)) == pytest.approx(
        FRAGMENT_SECONDS + 10**6 / 5 * 2 * computing_parameters(spec) / 2e11
    )
    assert choose(config(), spec, fragments(10**5), crashed=False).name == "local"
    assert choose(config(), spec, fragments(10**9), crashed=False).name == "ray"
    assert choose(config(), spec, fragments(10**5), crashed=True).name == "ray"
    gzip = fragments(100, "a.jsonl.gz", compression="gzip")
    by_text = [plain_seconds(spec, EncoderOptions(), files) - FRAGMENT_SECONDS for files in (gzip, fragments(100))]
    assert by_text[0] == pytest.approx(3 * by_text[1])
    assert choose(config(), spec, fragments(10) * 1000, crashed=False).name == "local"
    assert choose(config(), spec, fragments(10) * 10_000, crashed=False).name == "ray"
    gpus = 1
    assert choose(config(), spec, fragments(10**8), crashed=False).name == "local"
    assert choose(config("encoder.device=cpu"), spec, fragments(10**8), crashed=False).name == "ray"
    gpus = 2
    assert choose(config(), spec, fragments(10**5), crashed=False).name == "ray"
    assert choose(config("encoder.device=cpu"), spec, fragments(10**5), crashed=False).name == "local"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (("ray.address=auto",), "ray"),
        (("encoder.actors=2",), "ray"),
        (("encoder.actors=[1, 4]",), "ray"),
        (("encoder.actors=1",), "local"),
        (("executor=ray",), "ray"),
        (("executor=local", "ray.address=auto"), "local"),
    ],
)
def test_options_that_ask_for_ray_get_it(settings: tuple[str, ...], name: str) -> None:
    spec = read_spec(Path(TINY))
    assert choose(config(*settings), spec, fragments(10), crashed=False).name == name


def test_a_variable_that_names_a_cluster_asks_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert choose(config(), read_spec(Path(TINY)), fragments(10), crashed=False).name == "ray"


def test_parameters_are_those_that_every_token_is_multiplied_with() -> None:
    spec = read_spec(bundled_path("bundled:kosbert-mini"))
    from transformers import AutoModel

    model = AutoModel.from_pretrained(spec.transformer)
    names = {name: weight.numel() for name, weight in model.named_parameters() if "pooler" not in name}
    assert computing_parameters(spec) == sum(count for name, count in names.items() if "embed" not in name)
    assert np.isfinite(computing_parameters(read_spec(Path(TINY))))


def test_receipts_have_the_times_that_the_comparison_leaves_out() -> None:
    assert set(Receipt.__dataclass_fields__) >= TIMES
