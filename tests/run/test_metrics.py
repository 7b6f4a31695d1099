"""What Prometheus finds at a node of a cluster while a job runs there, and what the dashboard asks for."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import ROOT, TINY, everyday, free_port, wait_for

from kosbert_ray.run.executors.ray.metrics import COUNTERS, GAUGES, ascii_tag
from kosbert_ray.run.monitor.board import Doing, View
from kosbert_ray.run.monitor.throughput import REASONS, waiting_for

DASHBOARD = ROOT / "configs" / "grafana_dashboard.json"


@pytest.mark.parametrize(
    ("view", "busy", "reason"),
    [
        (View(encoders_ready=0), 0.0, "resources"),
        (View(encoders_ready=0, encoders_starting=1), 0.0, "model"),
        (View((Doing("read", "a", "h", 1),), 0, 1), 0.95, "nothing"),
        (View((Doing("read", "a", "h", 1), Doing("encode", "b", "h", 1)), 0, 1), 0.5, "input"),
        (
            View((Doing("tokenize", "a", "h", 1), Doing("tokenize", "b", "h", 1), Doing("read", "c", "h", 1)), 0, 1),
            0.5,
            "tokenizing",
        ),
        (View((Doing("write", "a", "h", 1), Doing("write", "b", "h", 1), Doing("read", "c", "h", 1)), 0, 1), 0.5, "output"),
        (View(encoders_ready=1), 0.1, "input"),
    ],
)
def test_what_encoders_wait_for_is_told_from_what_the_others_are_at(view: View, busy: float, reason: str) -> None:
    assert waiting_for(view, busy) == reason
    assert reason in REASONS


def asked_for(panel: dict) -> set[str]:
    return {name for target in panel.get("targets", []) for name in re.findall(r"ray_kosbert_\w+", target["expr"])}


def test_the_dashboard_asks_only_for_what_there_is_and_for_all_of_it() -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    there = {f"ray_kosbert_{name}_total" for name in (*COUNTERS, "stage_seconds", "retries", "failed_slices")}
    there |= {f"ray_kosbert_{name}" for name in (*GAUGES, "encoder_waiting", "encoders_asked")}
    asked = set().union(*(asked_for(panel) for panel in dashboard["panels"]))
    assert asked == there
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_prometheus_finds_a_jobs_figures(cli, tmp_path: Path) -> None:
    port = free_port()
    cluster = Cluster(tmp_path, {}, workers=0, options=["--num-cpus=2", f"--metrics-export-port={port}"])
    try:
        (tmp_path / "in").mkdir()
        for number in range(40):
            (tmp_path / "in" / f"{number}.txt").write_text("\n".join(f"{text} {number}" for text in everyday()))
        out = tmp_path / "out"
        cli("submit", tmp_path / "in", out, "--model", TINY, "--address", cluster.address, env=cluster.env)

        def found() -> dict[str, float]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            mine = [line for line in lines if line.startswith("ray_kosbert_") and f'output="{out}"' in line]
            return {re.split(r"[{ ]", line)[0]: float(line.rpartition(" ")[2]) for line in mine}

        wait_for(lambda: found().get("ray_kosbert_rows_total") == 40 * 520, 60, "the rows never showed")
        figures = found()
        assert figures["ray_kosbert_slices_total"] == 40
        assert figures["ray_kosbert_encoded_tokens_total"] == figures["ray_kosbert_computed_tokens_total"] > 40 * 520
        assert figures["ray_kosbert_encoders"] >= 1
        assert 0 < figures["ray_kosbert_encoder_busy"] <= 1
    finally:
        cluster.end()


@pytest.mark.parametrize(
    ("address", "tag"),
    [
        ("s3://bucket/out 1/100%", "s3://bucket/out 1/100%"),
        ("/data/결과", "/data/%EA%B2%B0%EA%B3%BC"),
        ("/data/\udcb0", "/data/%B0"),
    ],
)
def test_a_tag_is_ascii_whatever_the_address(address: str, tag: str) -> None:
    assert ascii_tag(address) == tag
