"""A model by hub name (through the real huggingface_hub cache), by folder, by s3:// URL, or bundled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kosbert_ray.errors import ModelError, StorageError
from kosbert_ray.model.files import sha256
from kosbert_ray.model.locate import locate_folder
from kosbert_ray.model.source import ModelSource
from kosbert_ray.model.spec import read_spec
from kosbert_ray.storage import StorageOptions

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import sys
from kosbert_ray.model.locate import locate_folder
from kosbert_ray.model.source import ModelSource
print(locate_folder(ModelSource(*sys.argv[1:])))
"""
# Fills a folder slowly, and notes on standard output that it did.
FILL = """
import sys, time
from pathlib import Path
from kosbert_ray.model.source import fill_once

def fill(partial):
    print("filling", flush=True)
    time.sleep(2)
    (partial / "file").write_text("whole")

fill_once(Path(sys.argv[1]), fill)
assert (Path(sys.argv[1]) / "file").read_text() == "whole"
"""


def fetch_apart(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs in a separate process, because huggingface_hub reads its environment once."""
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", FETCH, *arguments], env=env, capture_output=True, text=True, check=False)


def test_a_hub_name_is_found_in_the_hub_cache_and_by_its_revision(tiny_model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--jhgan--ko-sbert-sts"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(tiny_model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for arguments in (["jhgan/ko-sbert-sts"], ["jhgan/ko-sbert-sts", COMMIT]):
        done = fetch_apart(tmp_path, *arguments)
        assert done.stdout.strip() == str(snapshot), done.stderr
    done = fetch_apart(tmp_path, "jhgan/ko-sbert-nli")
    assert "jhgan/ko-sbert-nli: the hub cannot be reached and the model is not in the cache" in done.stderr


def test_a_local_folder_is_itself_and_what_is_none_is_named(tiny_model: Path, tmp_path: Path) -> None:
    assert locate_folder(ModelSource(str(tiny_model))) == tiny_model
    with pytest.raises(ModelError, match="no such model folder"):
        locate_folder(ModelSource(str(tmp_path / "nothing")))
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="this is a file"):
        locate_folder(ModelSource(str(tmp_path / "file")))
    with pytest.raises(ModelError, match="neither a folder here nor a hub name"):
        locate_folder(ModelSource("not a name!"))


def test_bundled_models_are_listed_where_one_is_not_there() -> None:
    assert read_spec(locate_folder(ModelSource("bundled:kosbert-mini"))).dimension == 256
    for name in ("bundled:nothing", "bundled:../encoder"):
        with pytest.raises(ModelError, match="available are everyday, kosbert-mini"):
            locate_folder(ModelSource(name))


def test_an_s3_copy_is_fetched_once_and_again_when_it_changes(s3, tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = s3.filesystem()
    files.mkdir("models")
    files.put(str(tiny_model), "models/tiny", recursive=True)
    options = StorageOptions(
        endpoint_url=s3.endpoint, region="us-east-1", access_key_id="admin", secret_access_key="secret"
    ).fail_fast()
    source = ModelSource("s3://models/tiny", storage=options)
    first = locate_folder(source)
    spec, original = read_spec(first), read_spec(tiny_model)
    assert sha256(spec.folder, spec.weight_files) == sha256(original.folder, original.weight_files)
    assert locate_folder(source) == first
    files.pipe_file("models/tiny/modules.json", (tiny_model / "modules.json").read_bytes() + b"\n")
    assert locate_folder(source) != first
    assert not list(tmp_path.rglob("partial-*"))
    with pytest.raises(ModelError, match="s3://models/nothing: no model there"):
        locate_folder(ModelSource("s3://models/nothing", storage=options))
    with pytest.raises(StorageError, match="s3://no-such-bucket"):
        locate_folder(ModelSource("s3://no-such-bucket/x", storage=options))


def test_the_processes_of_a_machine_fill_a_folder_once(tmp_path: Path) -> None:
    folder = tmp_path / "모델" / "copy"
    arguments = [sys.executable, "-c", FILL, str(folder)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert "".join(process.communicate()[0] for process in processes) == "filling\n"
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert os.listdir(folder.parent) == ["copy"]
    # The one that fills is killed: those that wait go on.
    folder.rename(tmp_path / "earlier")
    first = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "filling\n"
    second = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    first.kill()
    first.communicate()
    assert second.communicate()[0] == "filling\n"
    assert second.returncode == 0
