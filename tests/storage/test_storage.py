"""Files on disk and in a real S3 server, written whole or not at all."""

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
    return StorageOptions(**(given | more))


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage(str(tmp_path / "out"))
    s3 = request.getfixturevalue("s3")
    bucket = f"test-storage-{tmp_path.name[-20:].replace('_', '-').lower()}"
    s3.filesystem().mkdir(bucket)
    return Storage(f"s3://{bucket}/out", options(s3))


def test_what_is_written_is_listed_and_read_back(storage: Storage) -> None:
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


def test_the_version_changes_when_the_content_does(storage: Storage) -> None:
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


def test_a_storage_travels_to_workers(storage: Storage) -> None:
    storage.write_atomic("a.txt", b"one")
    assert pickle.loads(pickle.dumps(storage)).read("a.txt") == b"one"


def test_a_missing_file_is_an_answer_and_a_name_cannot_climb_out(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")
    with pytest.raises(StorageError, match="must not contain"):
        storage.write_atomic("../x", b"")


def test_sweeping_takes_the_files_of_dead_writers_only(tmp_path: Path) -> None:
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


def test_what_an_object_store_refuses_is_one_line_that_says_why(s3) -> None:
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


def test_secrets_do_not_show_in_a_printed_object() -> None:
    assert "hush" not in repr(StorageOptions(access_key_id="hush", secret_access_key="hush", session_token="hush"))


def test_a_file_is_read_like_a_python_file_wherever_it_lies(storage: Storage) -> None:
    storage.write_atomic("a.txt", b"one\n" + b"x" * 3_000_000 + b"\nthree")
    with storage.open("a.txt") as file:
        file.seek(4)
        assert file.readline(10) == b"x" * 10
        assert len(file.readline()) == 3_000_000 - 10 + 1
        assert file.read(3) == b"thr"


def test_empty_folders_go_up_to_the_root_and_no_further(tmp_path: Path) -> None:
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
