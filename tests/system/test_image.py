"""The image, built for real from the Dockerfile (make test-image): its CPU target embeds and searches as its user.

buildah builds it without a daemon, on a base that mmdebstrap makes of Debian's packages; python:3.11-slim is not to be had
everywhere. The wheel index of PyTorch's CPU build is a folder with the wheel that pip downloads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

MOST_BYTES = 2.5e9
PACKAGES = "python3,python3-venv,ca-certificates"
# What the build needs of this machine to reach the package indexes.
HOST_FILES = ("/etc/ssl/certs", "/etc/pip.conf")


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}

    def __call__(self, *arguments: str, cwd: Path = ROOT, code: int = 0) -> str:
        store = [f"--root={self.folder}/store", f"--runroot={self.folder}/run"]
        command = ["buildah", *store, *arguments]
        done = subprocess.run(command, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=3000)
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    for program in ("buildah", "mmdebstrap"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (apt-get install buildah mmdebstrap)")
    folder = tmp_path_factory.mktemp("image")
    base = folder / "base"
    base.mkdir()
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(base / "base.tar")],
        check=True,
    )
    (base / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    index = folder / "index" / "torch"
    index.mkdir(parents=True)
    version = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    subprocess.run(["pip", "download", "--quiet", "--no-deps", "--dest", str(index), f"{version}+cpu"], check=True)
    (index / "index.html").write_text("".join(f'<a href="{path.name}">{path.name}</a>' for path in index.glob("*.whl")))
    run = Buildah(folder)
    run("build", "--tag", "base", ".", cwd=base)
    volumes = [f"--volume={path}:{path}:ro" for path in HOST_FILES if Path(path).exists()]
    arguments = [f"--build-arg={name}" for name in ("BASE=localhost/base", "TARGET=cpu", "TORCH_INDEX=file:///index")]
    run("build", *arguments, *volumes, f"--volume={folder}/index:/index:ro", "--tag", "kosbert-ray", ".")
    run("from", "--name", "made", "localhost/kosbert-ray")
    yield run
    run("rm", "made")
    run("rmi", "--all", "--force")


def test_the_image_embeds_and_searches_as_its_user(buildah: Buildah) -> None:
    assert "uid=1000(ray)" in buildah("run", "made", "--", "id")
    embed = "cd /tmp && kosbert-ray embed bundled:everyday out --model bundled:kosbert-mini --keep id,text"
    assert "done: 520 rows" in buildah("run", "made", "--", "sh", "-c", embed)
    assert (
        len(buildah("run", "made", "--", "kosbert-ray", "search", "/tmp/out", "비가 오는 날", "-k", "3").splitlines()) == 3
    )


def test_the_image_is_small_and_has_no_compiler(buildah: Buildah) -> None:
    for program in ("gcc", "cc", "g++"):
        buildah("run", "made", "--", "sh", "-c", f"! command -v {program}")
    size = buildah("images", "--format", "{{.Size}}", "localhost/kosbert-ray").strip()
    number, unit = size.split()
    assert float(number) * {"MB": 1e6, "GB": 1e9}[unit] <= MOST_BYTES, size
