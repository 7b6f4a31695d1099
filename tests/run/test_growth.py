"""The encoder pool follows the cluster: nodes that join get encoders, nodes that die cost their slices only."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pyarrow.dataset as ds
import pytest
from cluster import Cluster
from conftest import TINY, command, everyday, wait_for


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("actors", [(), ("encoder.actors=[1, 4]",)], ids=["default", "range"])
def test_encoders_are_added_on_nodes_that_join_and_the_loss_of_a_node_loses_no_rows(
    tmp_path: Path, actors: tuple[str, ...]
) -> None:
    cluster = Cluster(tmp_path, {}, workers=0)

    def encoders() -> int:
        found = 0
        for node in cluster.nodes:
            for process in psutil.Process(node.pid).children(recursive=True):
                try:
                    found += "EncodeSlices" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
                except psutil.Error:
                    continue
        return found

    try:
        (tmp_path / "in").mkdir()
        for number in range(160):  # a minute of work: nodes take half of one to join
            texts = [f"{text} {number} {again}" for again in range(10) for text in everyday()]
            (tmp_path / "in" / f"{number}.txt").write_text("\n".join(texts), "utf-8")
        settings = [*actors, "encoder.threads=1", "slice.max_rows=400", f"ray.address={cluster.head}"]
        job = subprocess.Popen(
            command("embed", tmp_path / "in", tmp_path / "out", "--model", TINY, *(f"--set={item}" for item in settings)),
            env=cluster.env,
        )
        wait_for(lambda: list((tmp_path / "out").glob("*.parquet")), 60, "no shard")
        before = encoders()
        assert before <= 2
        for _ in range(2):
            cluster.add()
        joined = time.monotonic()
        wait_for(lambda: encoders() > before, 60, "no encoder was added")
        print(f"an encoder was added {time.monotonic() - joined:.1f} s after the nodes joined")
        lost = cluster.nodes[-1]
        for process in [*psutil.Process(lost.pid).children(recursive=True), lost]:
            process.kill()
        assert job.wait(240) == 0
        assert ds.dataset(tmp_path / "out", format="parquet").count_rows() == 160 * 5200
    finally:
        cluster.end()
