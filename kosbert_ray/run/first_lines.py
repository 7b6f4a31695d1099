"""Messages of a run about its input and its model, before it starts."""

from __future__ import annotations

from kosbert_ray.config import JobConfig
from kosbert_ray.corpus.listing import Corpus
from kosbert_ray.encoder.engines import table
from kosbert_ray.job import Job
from kosbert_ray.model.options import PROMPT_OPTIONS
from kosbert_ray.model.prompts import DOCUMENT
from kosbert_ray.run.bookkeeping import MAX_FAILED
from kosbert_ray.run.notices import Notices


def report_input(corpus: Corpus, notices: Notices) -> None:
    """Logs how the input is read, which files are skipped, and which cannot be embedded."""
    notices.info(*corpus.notices, *filter(None, [corpus.ignored_line()]))
    notices.failed(*(file.reason for file in corpus.failed[:MAX_FAILED]))


def report_prompt(job: Job, given: JobConfig, resumes: bool, notices: Notices) -> None:
    """Logs the prompt, and a warning if the model seems to want another one.

    Args:
        job: the job.
        given: the options as they were given.
        resumes: whether the output exists, so that it keeps its prompt.
        notices: logs the lines.
    """
    spec, asked = job.spec, given.model.model_fields_set.intersection(PROMPT_OPTIONS)
    line = f"prompt: {spec.prompts.described(spec.prompt)}"
    default = spec.prompts.own.get(DOCUMENT, "")
    if resumes and not asked and default != spec.prompt:
        line += f"; kept from job.json, a new output gets {default!r}" if default else "; kept from job.json"
    notices.info(line)
    if warning := spec.prompts.document_warning(job.config.model.name):
        notices.warning(warning)


def report_engine(before: JobConfig, job: Job, notices: Notices) -> None:
    """Logs the engine if it was chosen for the user and is not the usual one.

    Args:
        before: the options before the choice.
        job: the job with the chosen engine.
        notices: logs the line.
    """
    engine = job.config.encoder.engine
    if before.encoder.engine == "auto" and engine not in (table.TORCH, table.STATIC):
        notices.info(f"encoder.engine={engine} on CPUs, which suits the model (encoder.engine=torch for PyTorch)")
