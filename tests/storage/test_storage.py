"""Files on disk and on a real S3 server: atomic writes, conditional writes and clear errors."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kosbert_ray.errors import StorageError
from kosbert_ray.storage import Storage, StorageOptions


def options(s3, **more) -> StorageOptions:
    given = {"endpoint_url": s3.endpoint, "region": "us-east-1", "access_key_id": "admin", "secret_access_key": "secret"}
    return StorageOptions(**(given | {"retry_seconds": 0} | more))


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage(str(tmp_path / "out"))
    s3 = request.getfixturevalue("s3")
    bucket = f"test-storage-{tmp_path.name[-20:].replace('_', '-').lower()}"
    s3.filesystem().mkdir(bucket)
    return Storage(f"s3://{bucket}/out", options(s3))


def test_written_files_are_listed_and_read_back(storage: Storage) -> None:
    storage.write_atomic("a.txt", b"one")
    storage.write_atomic("sub/b.txt", "둘".encode())
    storage.write_atomic("a.txt", b"three")
    assert storage.read("a.txt") == b"three"
    assert [(entry.name, entry.size) for entry in storage.list(recursive=True)] == [("a.txt", 5), ("sub/b.txt", 3)]
    assert [entry.name for entry in storage.list()] == ["a.txt"]
    with storage.open("sub/b.txt") as file:
        assert file.read() == "둘".encode()
    storage.delete(["a.txt", "never-there.txt"])
    assert not storage.exists("a.txt")


@pytest.mark.parametrize("size", [0, 5, 12 * 2**20])
def test_a_file_of_any_size_is_copied_in(size: int, storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "파일").write_bytes(content)
    storage.copy_in("models/파일", tmp_path / "파일")
    assert storage.read("models/파일") == content
    assert [entry.name for entry in storage.list(recursive=True)] == ["models/파일"]


def test_the_version_changes_with_the_content(storage: Storage) -> None:
    storage.write_atomic("a.txt", b"one")
    before = storage.entry("a.txt").version
    assert storage.entry("a.txt").version == before
    storage.write_atomic("a.txt", b"two")
    assert storage.entry("a.txt").version != before


def test_only_one_of_many_creators_wins(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.create("_kosbert/job.json", b"%d" % number), range(8)))
    assert sum(won) == 1
    assert storage.read("_kosbert/job.json") == b"%d" % won.index(True)


def test_a_storage_can_be_pickled(storage: Storage) -> None:
    storage.write_atomic("a.txt", b"one")
    assert pickle.loads(pickle.dumps(storage)).read("a.txt") == b"one"


def test_a_missing_file_raises_file_not_found_and_a_name_cannot_leave_the_folder(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")
    with pytest.raises(StorageError, match="must not contain"):
        storage.write_atomic("../x", b"")


def test_sweep_removes_only_files_of_dead_writers(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "_kosbert" / "tmp"
    folder.mkdir(parents=True)
    ours, theirs = folder / f"{socket.gethostname()}~{os.getpid()}~1~a", folder / f"{socket.gethostname()}~{dead.pid}~1~a"
    young, old = folder / "elsewhere~1~1~a", folder / "elsewhere~1~2~a"
    for path in (ours, theirs, young, old):
        path.touch()
    os.utime(old, (0, 0))
    assert Storage(str(tmp_path)).sweep() == 2
    assert sorted(folder.iterdir()) == sorted([ours, young])


def test_a_refusal_by_an_object_store_is_a_one_line_error(s3) -> None:
    s3.filesystem().mkdir("refusals")
    with pytest.raises(StorageError, match=r"s3://refusals/x.*permission denied.*credentials"):
        Storage("s3://refusals/x", options(s3, secret_access_key="wrong")).list()
    with pytest.raises(StorageError, match=r"permission denied"):
        Storage("s3://refusals/x", options(s3, access_key_id="reader", secret_access_key="readonly")).write_atomic("a", b"")
    with pytest.raises(StorageError, match=r"s3://refusals/x"):
        Storage("s3://refusals/x", options(s3, profile="nobody")).list()
    with pytest.raises(StorageError, match=r"s3://refusals/x"):
        Storage("s3://refusals/x", options(s3, endpoint_url="http://127.0.0.1:9", retries=0)).list()
    with pytest.raises(StorageError, match="klingon"):
        Storage("klingon://x")


def test_secrets_are_not_in_the_repr_of_options() -> None:
    assert "hush" not in repr(StorageOptions(access_key_id="hush", secret_access_key="hush", session_token="hush"))


def test_an_open_file_behaves_like_a_python_file(storage: Storage) -> None:
    storage.write_atomic("a.txt", b"one\n" + b"x" * 3_000_000 + b"\nthree")
    with storage.open("a.txt") as file:
        file.seek(4)
        assert file.readline(10) == b"x" * 10
        assert len(file.readline()) == 3_000_000 - 10 + 1
        assert file.read(3) == b"thr"


def test_empty_folders_are_deleted_up_to_the_root(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "a" / "root"))
    storage.create("b/c/file", b"")
    storage.write_atomic("b/other", b"")
    storage.delete(["b/c/file"])
    storage.delete_empty("b/c")
    assert not storage.exists("b/c") and storage.exists("b/other")
    storage.delete(["b/other"])
    storage.delete_empty("b")
    storage.delete_empty("_kosbert/tmp")
    assert not storage.exists() and (tmp_path / "a").is_dir()
