"""job.json: the job that an output belongs to. The first run writes it, and later runs join it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from kosbert_ray._version import __version__
from kosbert_ray.errors import FingerprintMismatch, StorageError
from kosbert_ray.shards.fingerprint import Difference, Fingerprint, digest_of, mismatch
from kosbert_ray.shards.lease import holders
from kosbert_ray.shards.ledger_files import LedgerFiles, to_json
from kosbert_ray.shards.manifest import read_success
from kosbert_ray.shards.shard import read_metadata
from kosbert_ray.storage import Storage

JOB_FILE = "_kosbert/job.json"
CLAIM_ATTEMPTS = 8


def read_job(files: LedgerFiles) -> dict[str, Any] | None:
    """Reads job.json. Returns None if there is none, and an empty dict if it is broken."""
    files.broken.pop(JOB_FILE, None)
    job = files.read_json(JOB_FILE)
    if job and (reason := _defect(job)):
        files.broken[JOB_FILE] = reason
        return {}
    return job


def require_readable_job(files: LedgerFiles) -> dict[str, Any]:
    """Reads job.json. Returns an empty dict if there is none.

    Raises:
        StorageError: it is broken.
    """
    job = read_job(files)
    if job is not None and JOB_FILE in files.broken:
        raise StorageError(
            f"{files.storage.url(JOB_FILE)}: broken JSON ({files.broken[JOB_FILE]}); run kosbert-ray embed with the "
            "options of the first run to recreate it"
        )
    return job or {}


def claim(
    files: LedgerFiles,
    run: str,
    fingerprint: Fingerprint,
    config: Mapping[str, Any],
    extra: Mapping[str, Any],
    same_weights: Collection[str],
) -> str:
    """Claims an output for a job, or joins the job that it belongs to; see :meth:`Ledger.claim`."""
    job = {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "kosbert_ray": __version__,
        "run": run,
        "sha256": fingerprint.sha256,
        "fingerprint": fingerprint.described(),
        "config": dict(config),
        **extra,
    }
    content = to_json(job)
    for _ in range(CLAIM_ATTEMPTS):
        # Read before writing: a store may ignore the condition of a conditional write.
        stored = read_job(files)
        if stored is None or JOB_FILE in files.broken:
            _require_own_shards(files, fingerprint)
            if JOB_FILE in files.broken:
                files.set_aside_broken(run)
            files.storage.create(JOB_FILE, content)
            continue
        if stored.get("run") == run:
            return str(stored["sha256"])
        if not is_abandoned(files, run, stored):
            _require_same_job(files.storage, _differences(fingerprint, stored, same_weights))
            return str(stored["sha256"])
        files.storage.replace(JOB_FILE, content, files.storage.read(JOB_FILE))
    raise StorageError(
        f"{files.storage.url(JOB_FILE)}: cannot be read back after writing it; check that the store keeps what is written"
    )


def join(files: LedgerFiles, run: str, fingerprint: Fingerprint, same_weights: Collection[str]) -> str | None:
    """Joins an output without writing; see :meth:`Ledger.join`."""
    stored = read_job(files)
    if not stored:
        _require_own_shards(files, fingerprint)
        return fingerprint.sha256
    differences = _differences(fingerprint, stored, same_weights)
    if differences and is_abandoned(files, run, stored):
        return None
    _require_same_job(files.storage, differences)
    return str(stored["sha256"])


def is_abandoned(files: LedgerFiles, run: str, job: Mapping[str, Any]) -> bool:
    """True if nothing was committed under this job.json and no run other than ``run`` is active."""
    if read_success(files) is not None or any(holder.run != run for holder in holders(files.storage)):
        return False
    return all(_shard_digest(files.storage, name) != job.get("sha256") for name in files.each_shard())


def _differences(fingerprint: Fingerprint, job: Mapping[str, Any], same_weights: Collection[str]) -> list[Difference]:
    return fingerprint.differences(job.get("fingerprint", {}), same_weights)


def _require_same_job(storage: Storage, differences: list[Difference]) -> None:
    if differences:
        raise FingerprintMismatch(f"{storage.url()} belongs to another job: {mismatch(differences)}")


def _require_own_shards(files: LedgerFiles, fingerprint: Fingerprint) -> None:
    """Checks an output without a usable job.json: every shard in it must belong to this job.

    Raises:
        StorageError: a shard belongs to another job.
    """
    reason = files.broken.get(JOB_FILE, "it does not exist")
    for name in files.shards():
        digest = _shard_digest(files.storage, name)
        if digest and digest != fingerprint.sha256:
            if read_job(files) and JOB_FILE not in files.broken:
                return  # another run has just created it
            raise StorageError(
                f"{files.storage.url(JOB_FILE)}: cannot be read ({reason}), and {name} belongs to a different job than "
                "this command describes; restore job.json, repeat the options of the first run, or choose another output"
            )


def _shard_digest(storage: Storage, name: str) -> Any:
    """Returns the job's digest from a shard's footer; None if there is none."""
    return (read_metadata(storage, name) or {}).get("fingerprint")


def _defect(job: Mapping[str, Any]) -> str:
    """Returns the reason that job.json is unusable, or an empty string. A flipped bit must not look like another job."""
    digest, fingerprint = job.get("sha256"), job.get("fingerprint")
    if not (isinstance(digest, str) and isinstance(fingerprint, dict)):
        return "it names no job"
    if digest != digest_of(fingerprint):
        return "its sha256 does not match its fingerprint"
    return "" if isinstance(job.get("config"), dict) else "it has no config"
