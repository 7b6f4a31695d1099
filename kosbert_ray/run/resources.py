"""The model and the executor of one run, each prepared when it is first needed."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kosbert_ray.config import JobConfig
from kosbert_ray.encoder.tokenizer import Tokenizer
from kosbert_ray.errors import StorageError
from kosbert_ray.job import model_ref, recorded_commits
from kosbert_ray.model.prepare import PreparedModel
from kosbert_ray.run.output_state import OutputState
from kosbert_ray.storage import Storage

MIRROR = "_kosbert/model"  # below the output

if TYPE_CHECKING:
    from kosbert_ray.run.executors.base import EncoderPool, Executor


class Resources:
    """The model and the executor of a run.

    Args:
        config: the job's options.
        output: the output.
        stack: ends the executor when the run ends.
        model: the model, if it is prepared already.
    """

    def __init__(self, config: JobConfig, output: OutputState, stack: ExitStack, model: PreparedModel | None) -> None:
        self._config, self._output, self._stack, self._model = config, output, stack, model
        self._loading: Future[Tokenizer] | None = None
        self._executor: Executor | None = None

    @property
    def model(self) -> PreparedModel | None:
        """The model, once it is prepared."""
        return self._model

    def prepare(self, pickled: bool, executor: str | None) -> PreparedModel:
        """Prepares the model and its tokenizer in the background while the executor starts.

        Args:
            pickled: whether the model has to be converted. One that is refused is refused before the executor starts.
            executor: the executor to start; None if it is not chosen yet.
        """
        with ThreadPoolExecutor(2) as background:
            preparing = background.submit(self.prepare_model, keep=True)
            if pickled:
                preparing.result()
            self._loading = background.submit(lambda: _tokenizer(preparing.result()))
            if executor:
                self.start(executor)
            return preparing.result()

    def prepare_model(self, keep: bool) -> PreparedModel:
        """Hashes the model.

        Args:
            keep: whether to copy it to a folder that nothing changes.
        """
        model = self._model or model_ref(self._config, recorded_commits(self._config, self._output.stored)).prepare()
        self._model = model.kept() if keep else model
        return self._model

    def shared_model(self, pool: EncoderPool) -> PreparedModel:
        """The model as every node can load it: uploaded to a mirror if the user names one or nodes cannot fetch it."""
        assert self._model is not None
        model = self._model.kept()
        if not pool.local and not model.uploaded and (self._config.model.mirror or model.travels):
            model = model.upload(self._mirror())
        self._model = model
        return model

    def _mirror(self) -> Storage:
        output = self._output.ledger.storage
        return Storage(self._config.model.mirror or output.url(MIRROR), output.options)

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        assert self._model is not None
        return self._loading.result() if self._loading else _tokenizer(self._model)

    @property
    def executor(self) -> Executor | None:
        """The executor, once it is started."""
        return self._executor

    def start(self, name: str) -> Executor:
        """Starts an executor, if it is not started yet. When the run ends, it is left and temporary files are swept."""
        from kosbert_ray.run.executors import table

        if self._executor is None or self._executor.name != name:
            self._stack.callback(self._sweep)
            self._executor = self._stack.enter_context(table.started(name, self._config))
        return self._executor

    def _sweep(self) -> None:
        with contextlib.suppress(StorageError, OSError):
            self._output.ledger.storage.sweep()


def _tokenizer(model: PreparedModel) -> Tokenizer:
    with model.naming():
        return Tokenizer.load(model.spec())
