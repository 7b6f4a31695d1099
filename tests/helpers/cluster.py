"""A Ray cluster as a team has it, on this machine: nodes as processes of their own, and a token to get in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from conftest import alive, free_port, wait_for

RAY = str(Path(sys.executable).parent / "ray")


class Cluster:
    """A head and worker nodes, as processes of their own.

    Args:
        folder: for its token and its log.
        env: variables over this process's own.
        workers: how many nodes beside the head, of two CPUs each, as the head is.
        options: of the head's ``ray start``, instead of its two CPUs.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], workers: int = 1, options: Sequence[str] = ()) -> None:
        (folder / "token").write_text("0123456789abcdef" * 4)
        self.env = {**os.environ, **env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        # The job runs in the cluster's environment: that of these tests.
        self.env["PATH"] = f"{Path(sys.executable).parent}:{self.env['PATH']}"
        port, dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.head = f"127.0.0.1:{port}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.log = folder / "log"
        # Short, since sockets lie in it, whose paths have 107 bytes at most.
        self.temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._start(["--head", f"--port={port}", f"--dashboard-port={dashboard}", *(options or ["--num-cpus=2"])])
        for _ in range(workers):
            self.add()
        wait_for(lambda: self.ray("job", "list", "--address", self.address).returncode == 0, 60, "no job API")

    def add(self, *options: str) -> None:
        """One more node, of two CPUs unless ``options`` of ``ray start`` say otherwise."""
        self._start([f"--address={self.head}", *(options or ["--num-cpus=2"])])

    def _start(self, arguments: list[str]) -> None:
        # A folder for each node, as on machines of their own: else one clears away the job's folder that another runs in.
        arguments = [*arguments, f"--temp-dir={self.temporary}/{len(self.nodes)}"]
        arguments += [f"--dashboard-agent-{kind}-port={free_port()}" for kind in ("listen", "grpc")]
        with self.log.open("ab") as log:
            node = subprocess.Popen([RAY, "start", *arguments, "--block"], env=self.env, stdout=log, stderr=log)
        self.nodes.append(node)
        started = "Ray runtime started"
        wait_for(lambda: self.log.read_text().count(started) == len(self.nodes), 90, f"no node: {self.log.read_text()}")

    def ray(self, *arguments: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
        return subprocess.run([RAY, *arguments], env={**self.env, **env}, capture_output=True, text=True, timeout=280)

    def end(self) -> None:
        family = [child for node in self.nodes for child in psutil.Process(node.pid).children(recursive=True)]
        for node in reversed(self.nodes):
            node.terminate()
        for node in self.nodes:
            node.wait(60)
        for process in alive(family):
            process.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)
