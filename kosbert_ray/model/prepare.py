"""Prepares a model for a run: hashes it, and copies it to a folder that does not change during the run.

The user gives a hub name, a folder, an ``s3://`` URL or ``bundled:NAME``. :func:`prepare` hashes the files for the job's
fingerprint. :meth:`PreparedModel.kept` copies them to a cache folder named by their content, with all weights as
safetensors; snapshots in the hub's cache and bundled models are used in place. A node takes the same path if it exists,
else the copy that the driver uploaded, else the name that the user gave, and checks the digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.files import files_in, sha256
from kosbert_ray.model.hub import fetch_other_weights, is_public
from kosbert_ray.model.locate import locate
from kosbert_ray.model.options import SpecOptions
from kosbert_ray.model.pickled import copy_model
from kosbert_ray.model.source import ModelSource, cache_folder, copy_from_store, fill_once
from kosbert_ray.model.spec import ModelSpec, read_spec
from kosbert_ray.storage import Storage

CONVERSION = "safetensors 1"  # part of a converted copy's name; raise the number when the conversion changes
COMPLETE = "complete"  # the file that an upload writes last
DIGEST_LETTERS = 16  # of a folder's name


@dataclass(frozen=True)
class Digests:
    """SHA-256 digests of a model folder.

    Attributes:
        weights: digest of the weights and the modules' configs, as in the fingerprint.
        tokenizer: digest of the tokenizer's files.
        all: digest of everything that is loaded.
        heads: digest of the heads that only other kinds of vectors than dense ones depend on; empty if there are none.
    """

    weights: str
    tokenizer: str
    all: str
    heads: str = ""

    @staticmethod
    def of(spec: ModelSpec, made_of: str | None = None, converted: bool = False) -> Digests:
        """Hashes a model's files; reads each once.

        Args:
            spec: the model.
            made_of: digest of the weights that the transformer's were computed from. It takes their place in ``weights``,
                since a computation may round differently on another machine.
            converted: whether ``made_of`` stands for all modules, not only for the transformer.
        """
        weights, tokenizer = (sha256(spec.folder, files) for files in (spec.weight_files, spec.tokenizer_files))
        counted = {*spec.weight_files, *spec.tokenizer_files}
        paths = [spec.folder / name for name in files_in(spec.folder, spec.remote_code)]
        others = sha256(spec.folder, [path for path in paths if path not in counted])
        everything = hashlib.sha256(f"{weights} {tokenizer} {others}".encode()).hexdigest()
        if made_of:
            rest = [path for path in spec.weight_files if path.parent != spec.transformer and not converted]
            weights = hashlib.sha256(f"{made_of} {sha256(spec.folder, rest)}".encode()).hexdigest()
        heads = sha256(spec.folder, spec.head_files) if spec.head_files else ""
        return Digests(weights, tokenizer, everything, heads)


@dataclass(frozen=True)
class PreparedModel:
    """A model that every process of a run loads from the same files.

    Attributes:
        source: its name; ``revision`` is the resolved commit of a hub model.
        revision: the revision that the user gave.
        options: settings for reading its folder.
        origin: the folder that the user's name resolves to.
        folder: the folder to load: ``origin`` or a copy of it.
        digests: digests of ``origin``.
        digest: digest of everything that is loaded from ``folder``.
        commit: the commit of a hub model.
        frozen: whether ``folder`` never changes.
        combined: whether ``origin`` combines several repositories, or was converted.
        commits: commits by name of the other hub repositories in it.
        host: the machine that prepared it.
        uploaded: the folder below an output that holds a copy for other machines, if any.
    """

    source: ModelSource
    revision: str | None
    options: SpecOptions
    origin: Path
    folder: Path
    digests: Digests
    digest: str
    commit: str | None
    frozen: bool
    combined: bool
    commits: Mapping[str, str]
    host: str
    uploaded: Storage | None = None

    def described(self) -> dict[str, Any]:
        """Returns name, revision and commit for a run's record. :func:`prepare` accepts the commit again."""
        own = {"name": self.source.name, "revision": self.revision, "commit": self.commit, "sha256": self.digest}
        return own | ({"commits": dict(self.commits)} if self.commits else {})

    @property
    def travels(self) -> bool:
        """True if other machines need a copy: they cannot fetch the same files under the same name, at least not at once.

        So it is for a local folder, a model that was converted or combined, and one on the hub that needs a token.
        """
        if not self.frozen or self.folder != self.origin or self.combined:
            return True
        return self.commit is not None and not is_public(self.source.name, self.commit)

    def kept(self) -> PreparedModel:
        """Returns the model in a folder that never changes and has safetensors only.

        Raises:
            ModelError: it changed since it was hashed, its weights are not tensors, or the cache cannot be written to.
        """
        spec = read_spec(self.folder, self.options)
        if self.frozen and not spec.pickled:
            return self
        copy = _copied(spec, self.digests)
        return replace(self, folder=copy.folder, digest=Digests.of(copy).all, frozen=True)

    def spec(self) -> ModelSpec:
        """Finds the model on this machine, or fetches it. Returns it with the prompt for documents, as jobs embed them.

        Raises:
            ModelError: this machine does not have the model, or has other files under its name.
            StorageError: a store refuses access.
        """
        return self._found().for_documents()

    def _found(self) -> ModelSpec:
        if self.host == socket.gethostname() and self.folder.is_dir():
            return read_spec(self.folder, self.options)
        for folder in (self.folder, cache_folder("models") / self.digest[:DIGEST_LETTERS]):
            spec = self._matching(folder)
            if spec:
                return spec
        if self.uploaded:
            names = [entry.name for entry in self.uploaded.list(recursive=True) if entry.name != COMPLETE]
            folder = cache_folder("models") / self.digest[:DIGEST_LETTERS]
            copy_from_store(self.uploaded, names, folder)
            spec = self._matching(folder)
        else:
            fetched = read_spec(locate(self.source).folder, self.options)
            spec = self._matching(as_safetensors(fetched).folder)
        if spec is None:
            raise ModelError(
                f"{self.source.name}: node {socket.gethostname()} has other files under that name than {self.host}; put "
                "the same files on all nodes, or use a hub model or an s3:// copy"
            )
        return spec

    def _matching(self, folder: Path) -> ModelSpec | None:
        """Returns the spec of a folder if it holds this model, else None."""
        with contextlib.suppress(ModelError):
            spec = read_spec(folder, self.options)
            if Digests.of(spec).all == self.digest:
                return spec
        return None

    def upload(self, mirror: Storage) -> PreparedModel:
        """Returns the model with a copy for other machines; uploads the copy if it does not exist.

        Args:
            mirror: a folder that all machines can read. The copy gets a folder of its own in it, named by its content.

        Raises:
            StorageError: the store refuses access.
        """
        root = self.digest[:DIGEST_LETTERS]
        if not mirror.exists(f"{root}/{COMPLETE}"):
            for name in files_in(self.folder, bool(self.options.allow_remote_code)):
                mirror.copy_in(f"{root}/{name}", self.folder / name)
            mirror.write_atomic(f"{root}/{COMPLETE}", self.digest.encode())
        return replace(self, uploaded=Storage(mirror.url(root), mirror.options))

    def made(self, fingerprint: Mapping[str, Any]) -> bool:
        """Returns True if a fingerprint names this model; also accepts version 0.1.0's hash of the weights."""
        if fingerprint.get("tokenizer") != self.digests.tokenizer:
            return False
        if fingerprint.get("head_weights", "") not in ("", self.digests.heads):
            return False
        weights = fingerprint.get("weights")
        return weights == self.digests.weights or weights == self.legacy_weights()

    def legacy_weights(self) -> str:
        """Returns version 0.1.0's hash of the weights, which covers weight files that are not loaded, too."""
        if self.commit and not self.combined:
            fetch_other_weights(self.source.name, self.origin, self.commit)
        spec = read_spec(self.origin, self.options)
        return sha256(spec.folder, spec.legacy_weight_files)

    def same_weights(self, fingerprint: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns other hashes of these weights under which an output with this fingerprint may know them."""
        theirs = fingerprint.get("weights", self.digests.weights)
        return () if theirs == self.digests.weights else (self.legacy_weights(),)

    def require_made(self, fingerprint: Mapping[str, Any], output: str) -> None:
        """Raises ModelError unless this model made ``output``, whose fingerprint is given."""
        if not self.made(fingerprint):
            at = f" at commit {self.commit}" if self.commit else ""
            raise ModelError(
                f"{self.source.name}{at}: not the model that made {output} (its weights or tokenizer differ); restore that "
                "model, or embed into another output"
            )

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Replaces the path of a copy in errors by the name that the user gave."""
        try:
            yield
        except ModelError as error:
            text = str(error)
            own = set() if self.combined else {self.origin}  # the folder that the user named
            for folder in {self.folder, cache_folder("models") / self.digest[:DIGEST_LETTERS]} - own:
                text = text.replace(str(folder), self.source.name)
            raise type(error)(text) from error


def prepare(source: ModelSource, options: SpecOptions = SpecOptions()) -> PreparedModel:
    """Finds and hashes a model.

    Args:
        source: its name.
        options: settings for reading its folder.

    Raises:
        ModelError: there is no such model, or it is not supported.
        StorageError: the object store refuses access.
    """
    fetched = locate(source)
    spec = read_spec(fetched.folder, options)
    _require_known(spec)
    digests = Digests.of(spec, fetched.made_of, fetched.converted)
    return PreparedModel(
        source=replace(source, revision=fetched.commit) if fetched.commit else source,
        revision=source.revision,
        options=options,
        origin=fetched.folder,
        folder=fetched.folder,
        digests=digests,
        digest=digests.all,
        commit=fetched.commit,
        frozen=fetched.frozen,
        combined=fetched.combined,
        commits=fetched.commits,
        host=socket.gethostname(),
    )


def as_safetensors(spec: ModelSpec) -> ModelSpec:
    """Returns the model with safetensors only: a converted copy in the cache if it has pickles.

    Raises:
        ModelError: a file holds more than tensors or is broken, or the cache cannot be written to.
    """
    return _copied(spec, Digests.of(spec)) if spec.pickled else spec


def _copied(spec: ModelSpec, digests: Digests) -> ModelSpec:
    """Returns a copy in the cache, named by its content and with safetensors only; creates it if it does not exist."""
    name = digests.all
    if spec.pickled:
        name = hashlib.sha256(f"{name} {CONVERSION}".encode()).hexdigest()
    folder = cache_folder("models") / name[:DIGEST_LETTERS]

    def fill(partial: Path) -> None:
        copy_model(spec.folder, files_in(spec.folder, spec.remote_code), partial)
        if Digests.of(spec).all != digests.all:
            raise ModelError(f"{spec.folder}: changed while it was copied; run the same command again")

    try:
        fill_once(folder, fill)
    except OSError as error:
        raise ModelError(f"{spec.folder}: cannot be copied to {folder.parent} ({first_line(error)})") from error
    return spec.moved(folder)


def _require_known(spec: ModelSpec) -> None:
    """Raises ModelError for an architecture that the installed transformers does not have."""
    if spec.remote_code or spec.static:
        return
    package = find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    # Most architectures have a folder of their name, which can be seen without the second that an import takes.
    if (Path(package.origin).parent / "models" / spec.model_type.replace("-", "_") / "__init__.py").is_file():
        return
    from transformers import CONFIG_MAPPING, __version__

    if spec.model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"{spec.transformer / 'config.json'}: transformers {__version__} does not support models of type "
            f"{spec.model_type!r}"
        )
