"""Fetches models and Python code from the Hugging Face hub, at a commit."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator
from pathlib import Path

from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.files import files_in, model_files, module_folders, read_modules_list

FIRST_FILES = ["modules.json", "config.json"]  # enough to resolve a model's commit and list its other files


def fetch_snapshot(name: str, revision: str | None, code: bool) -> tuple[Path, str]:
    """Downloads a model's files, and no others. Offline, returns what the hub's cache holds.

    Args:
        name: the repository.
        revision: branch, tag or commit.
        code: whether to include the model's own Python code.

    Returns:
        The folder of the snapshot, and the commit that the revision resolved to.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _named(name, revision):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FIRST_FILES))
        commit = folder.name
        try:
            names = HfApi().list_repo_files(name, revision=commit)
        except Exception as error:  # offline; the type depends on the HTTP library of the hub's client
            if not any(file.endswith((".safetensors", ".bin")) for file in files_in(folder, code=False)):
                raise ModelError(f"{name}{_at(revision)}: its files cannot be listed ({first_line(error)})") from error
            return folder, commit
        wanted = model_files(names, read_modules_list(folder), code)
        snapshot_download(name, revision=commit, allow_patterns=[glob.escape(name) for name in wanted])
        return folder, commit


def fetch_code(name: str, revision: str | None) -> tuple[Path, str]:
    """Downloads a repository's Python files. Returns and raises as :func:`fetch_snapshot` does."""
    from huggingface_hub import snapshot_download

    with _named(name, revision):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=["*.py"]))
        return folder, folder.name


def fetch_other_weights(name: str, folder: Path, commit: str) -> None:
    """Fetches a model's unused weights, which version 0.1.0 fetched and hashed, too.

    Does nothing if the hub cannot be reached: the files in its cache then have to do.
    """
    from huggingface_hub import HfApi, snapshot_download

    with contextlib.suppress(Exception):
        suffix = ".safetensors" if any(folder.rglob("*.safetensors")) else ".bin"
        folders = module_folders(read_modules_list(folder))
        names = HfApi().list_repo_files(name, revision=commit)
        others = [file for file in names if file.endswith(suffix) and file.rpartition("/")[0] in folders]
        snapshot_download(name, revision=commit, allow_patterns=[glob.escape(file) for file in others])


def is_public(name: str, commit: str) -> bool:
    """Returns True if everybody can download a model; False if it needs a token, or the hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(name, revision=commit, token=False)
    except Exception:  # of many types, which depend on the HTTP library of the hub's client
        return False
    return not info.gated and not info.private


@contextlib.contextmanager
def _named(name: str, revision: str | None) -> Iterator[None]:
    """Turns the errors of the hub's client into a ModelError that names the repository and says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    at = _at(revision)
    try:
        yield
    except HFValidationError as error:
        raise ModelError(f"{name}: neither a folder here nor a hub name") from error
    except GatedRepoError as error:  # a RepositoryNotFoundError, too
        raise ModelError(
            f"{name}{at}: the hub asks for consent; accept the licence at {_page(name)} and set HF_TOKEN to a token of "
            "that account"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{name}{at}: the hub has no such model (or it is private: set HF_TOKEN)") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{name}{at}: the hub cannot be reached and the model is not in the cache; "
            "name a local folder or an s3:// copy with model.name"
        ) from error
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{name}{at}: cannot be fetched ({first_line(error)})") from error


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def _page(name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}"
