"""A job file to start from: every option there is, what it is for, and its default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from kosbert_ray.config import JobConfig

ABOUT = {
    "model.name": "hub name, folder, s3:// copy, or bundled:kosbert-mini",
    "model.revision": "branch, tag or commit on the hub",
    "model.prompt": "put before every text; else the model's default prompt",
    "model.prompt_name": "which of the model's own prompts",
    "model.max_seq_length": "tokens, special ones included; else the model's own",
    "model.truncate_dim": "keep the first so many numbers of a vector (Matryoshka models)",
    "model.allow_remote_code": "run the Python code that a model brings",
    "input.path": "file, folder, glob, s3:// URL (gs://, az:// are experimental), or hub://OWNER/NAME",
    "input.format": "parquet, arrow, jsonl, csv, tsv or text; else by the file's name",
    "input.text": 'the text column, or several joined: "{title}\\n{body}"',
    "input.keep": "columns to carry through, keys of partitioned folders (year=2026/) among them",
    "input.normalize": "of html, nfc, whitespace: make texts alike before they are embedded",
    "input.delimiter": "of CSV and TSV; else by the format",
    "input.quoting": "of CSV and TSV: minimal or none",
    "input.newlines_in_values": "quoted CSV values may hold newlines: each file is read in one pass",
    "input.columns": "column names of CSV and TSV files without a header line",
    "input.encoding": "of line formats, for example cp949",
    "input.escape": "of CSV and TSV: the character before a quote inside a value, for example \\",
    "input.null_values": "of CSV and TSV: values that stand for null, for example \\N",
    "input.types": "types of columns to keep, else by the files: {id: string, at: 'timestamp[us]'}",
    "output.path": "folder or s3:// URL",
    "output.column": "name of the vector column",
    "output.dtype": "float32, float16, int8, ubinary; several make columns of their own",
    "output.list_type": "list or fixed_size_list",
    "output.compression": "zstd, snappy or none",
    "output.removed_inputs": "keep or delete the vectors of files that are gone",
    "slice.max_rows": "rows of a slice, the unit of work and of commit",
    "slice.max_bytes": "bytes of text of a slice, like 32MiB",
    "encoder.precision": "auto, bf16, fp16, fp32; int8 on CPUs with OpenVINO",
    "encoder.device": "auto, cuda, mps or cpu",
    "encoder.actors": "encoders: a number or [min, max]; else as many as fit the cluster",
    "encoder.threads": "of an encoder on a CPU; else all cores",
    "encoder.token_budget": "tokens of a batch; else by the device",
    "encoder.engine": "torch; on CPUs also openvino, or auto, the faster one",
    "encoder.compile": "torch.compile, on a GPU",
    "storage.endpoint_url": "of an S3-compatible store; what is left out here comes from the usual AWS variables",
    "storage.region": "of the store",
    "storage.profile": "of the AWS files",
    "storage.anonymous": "read without credentials",
    "storage.access_key_id": "better in AWS_ACCESS_KEY_ID",
    "storage.secret_access_key": "better in AWS_SECRET_ACCESS_KEY",
    "storage.session_token": "better in AWS_SESSION_TOKEN",
    "storage.retries": "how often a failed request is sent again",
    "storage.timeout": "seconds to wait for an answer",
    "storage.retry_seconds": "how long a run outlasts a store that is down, or credentials that expired",
    "storage.requester_pays": "pay for requests to a bucket that asks its readers to",
    "storage.server_side_encryption": "AES256 or aws:kms, with each write; else as the bucket is set",
    "storage.sse_kms_key_id": "the key for aws:kms; else the bucket's",
    "ray.address": "of a running cluster; else RAY_ADDRESS, else a Ray of this run's own",
    "ray.runtime_env": "Ray's, for all processes of the job",
    "plan.slices": "slices that plan looks at",
    "plan.profiles": "hardware by name: {a10g: {tokens_per_second: 400000, devices: 4, price_per_hour: 1.0}}",
    "plan.storage_price": "of a GB for a month",
    "plan.put_price": "of 1,000 write requests",
    "plan.get_price": "of 1,000 read requests",
    "long_text": "what becomes of texts longer than the model takes: truncate, mean or chunk",
    "chunk.size": "tokens of a chunk; else as many as the model takes",
    "chunk.overlap": "tokens that a chunk shares with the one before; else an eighth",
    "chunk.splitter": "words, or kiwi (between sentences; pip install 'kosbert-ray[kiwi]')",
    "chunk.text": "write the chunk's text, too",
    "dedup": "embed a text once in each slice, or once in the whole corpus: slice or corpus",
    "on_bad_row": "reject, fail, or null_vector: keep it in its place without a vector",
    "max_rejected": "rows that may be rejected: a share (0.01) or a number (100)",
    "stall_timeout": "seconds without a commit after which the run says what it waits for",
    "log_format": "text or json",
    "on_finish": "a shell command or an http(s) address that is told of the run's end",
}
HEADER = """\
# A job of kosbert-ray: run it with kosbert-ray embed --config {name}
# What is commented out is the default; the same names work as --set section.key=value.
"""


def job_file(name: str, values: Mapping[str, Any]) -> str:
    """A commented YAML job file.

    Args:
        name: what it will be called.
        values: options that are set, by dotted name; all others are there as comments.
    """
    lines = [HEADER.format(name=name)]
    defaults = JobConfig()
    sections = [key for key in JobConfig.model_fields if isinstance(getattr(defaults, key), BaseModel)]
    for section in sections:
        inner: BaseModel = getattr(defaults, section)
        chosen = any(dotted.startswith(f"{section}.") for dotted in values)
        lines.append(f"{'' if chosen else '# '}{section}:")
        for key in type(inner).model_fields:
            lines.append(_line(f"{section}.{key}", getattr(inner, key), values, "  "))
        lines.append("")
    lines += [_line(key, getattr(defaults, key), values, "") for key in JobConfig.model_fields if key not in sections]
    return "\n".join(lines) + "\n"


def _line(dotted: str, default: Any, values: Mapping[str, Any], indent: str) -> str:
    value = values.get(dotted, default)
    if isinstance(value, tuple):
        value = list(value)
    shown = yaml.safe_dump({dotted.rpartition(".")[2]: value}, default_flow_style=True, allow_unicode=True, width=10**6)
    shown = shown.strip().removeprefix("{").removesuffix("}")
    return f"{indent if dotted in values else f'# {indent}'}{shown:<34}  # {ABOUT[dotted]}"
