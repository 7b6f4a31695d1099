"""job.json as an output's memory: what a command does not say comes from there, whatever today's defaults are."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
import yaml

from kosbert_ray.config import load_config
from kosbert_ray.deploy.ray_jobs import JOB_FILE, ClusterJob
from kosbert_ray.errors import InputError, UsageError
from kosbert_ray.storage import Storage
from kosbert_ray.stored import resumed, schema_entry, settled_types, stored_config, taken


def job(settings: list[str], **fingerprint: object) -> dict:
    config = load_config(None, ["input.path=old-in", "output.path=old-out", *settings])
    return json.loads(json.dumps({"sha256": "x", "fingerprint": fingerprint, "config": config.public()}))


def test_what_is_not_said_comes_from_the_output_and_what_is_said_wins() -> None:
    made = job(["model.name=m", "input.keep=id", "slice.max_rows=8", "encoder.precision=bf16", "encoder.threads=3"])
    config = load_config(None, ["input.path=in", "output.path=out", "encoder.precision=fp32", "max_rejected=5"])
    found = resumed(config, made, "out")
    assert (found.model.name, found.input.keep, found.slice.max_rows) == ("m", ("id",), 8)
    assert (found.input.path, found.output.path) == ("in", "out")
    assert (found.encoder.precision, found.encoder.threads, found.max_rejected) == ("fp32", None, 5)
    assert taken(config, made, "out") == "model.name=m, input.keep=id, slice.max_rows=8"


def test_what_belongs_to_a_run_is_not_taken_over() -> None:
    made = job(["output.removed_inputs=delete", "max_rejected=0.5", "ray.address=auto", "encoder.device=cpu"])
    found = resumed(load_config(None), made, "out")
    assert found.output.removed_inputs == "keep"
    assert found.max_rejected == 0.01
    assert found.ray.address is None
    assert found.encoder.device == "auto"


def test_the_prompt_and_the_length_are_those_that_the_first_run_settled_on() -> None:
    made = job(["model.prompt_name=query"], prompt="질문: ", max_seq_length=128)
    model = resumed(load_config(None), made, "out").model
    assert (model.prompt, model.prompt_name, model.max_seq_length) == ("질문: ", None, 128)
    model = resumed(load_config(None, ["model.prompt_name=passage", "model.max_seq_length=64"]), made, "out").model
    assert (model.prompt, model.prompt_name, model.max_seq_length) == (None, "passage", 64)


def test_settings_that_came_or_went_are_no_reason_to_refuse() -> None:
    made = job(["model.name=m"])
    made["config"]["model"] |= {"allow_pickle": True, "of_a_later_version": 1}
    made["config"]["also_later"] = {"a": 1}
    del made["config"]["chunk"], made["config"]["input"]["normalize"]
    assert stored_config(made, "job.json").model.name == "m"


@pytest.mark.parametrize("config", [None, [], {"slice": {"max_rows": "many"}}])
def test_a_config_that_cannot_be_used_is_named(config: object) -> None:
    with pytest.raises(InputError, match=r"^out/job\.json: "):
        stored_config({"config": config}, "out/job.json")


def test_what_cannot_go_with_the_stored_job_is_told_in_one_line() -> None:
    made = job(["long_text=chunk", "chunk.size=64"])
    with pytest.raises(UsageError, match=r"^out: chunk: .*choose another output$"):
        resumed(load_config(None, ["long_text=truncate"]), made, "out")


def test_types_of_the_kept_columns_survive_job_json(tmp_path) -> None:
    keep = pa.schema([("a", pa.list_(pa.struct([("b", pa.timestamp("us", "Asia/Seoul"))]))), ("c", pa.decimal128(9, 2))])
    entry = json.loads(json.dumps(schema_entry(keep)))
    assert settled_types(entry, Storage(str(tmp_path)), {}) == keep
    assert settled_types({}, Storage(str(tmp_path)), {}) is None


@pytest.mark.parametrize("schema", ["x", "xxxx", "AAAA", "ÿ"])
def test_damaged_types_of_the_kept_columns_are_named(tmp_path, schema: str) -> None:
    output = Storage(str(tmp_path))
    with pytest.raises(InputError, match=r"job\.json: the types of the kept columns cannot be read; delete the file"):
        settled_types({"schema": schema, "fingerprint": {}}, output, {})


def test_a_submitted_job_file_holds_what_was_said_and_no_defaults(tmp_path) -> None:
    config = load_config(None, ["input.path=/a", "output.path=/b", "encoder.precision=bf16", "storage.retries=3"])
    ClusterJob.of(config).write(tmp_path)
    sent = yaml.safe_load((tmp_path / JOB_FILE).read_text("utf-8"))
    assert sent == {
        "input": {"path": "/a"},
        "output": {"path": "/b"},
        "encoder": {"precision": "bf16"},
        "storage": {"retries": 3},
    }
