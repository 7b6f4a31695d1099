"""What the Hugging Face hub answers to those who list and read a dataset or a model: its API, over a folder, on loopback.

There is no hub without the internet. The client (huggingface_hub) is the real one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"  # of every dataset


class Hub:
    """Serves ``folder/OWNER/NAME`` as datasets and models until it is closed.

    Attributes:
        read: the paths of model files whose content was sent, as ``OWNER/NAME/FILE``.
        earlier: what a model was at earlier commits, by commit: a folder each.
        gated: names of models that need a token.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: list[str] = []
        self.earlier: dict[str, Path] = {}
        self.gated: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                path, span = unquote(urlsplit(self.path).path), self.headers.get("Range")
                named = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
                if named in hub.gated and not self.headers.get("Authorization"):
                    # The API lists a gated model; its files are refused.
                    self.answer(*((401, b"", SHA, "GatedRepo") if "/resolve/" in path else hub.model(path)))
                elif "/resolve/" in path and not path.startswith("/datasets/"):
                    self.answer(*hub.model_file(path, span, self.command == "GET"))
                elif path.startswith("/api/models/"):
                    self.answer(*hub.model(path))
                else:
                    self.answer(*hub.get(path, span))

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(*hub.post(unquote(urlsplit(self.path).path), content))

            def answer(self, status: int, content: bytes, commit: str = SHA, error: str = "RepoNotFound") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
                if status in (401, 404):
                    self.send_header("X-Error-Code", error)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def env(self) -> dict[str, str]:
        """The variables that lead a client here."""
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "HF_HUB_OFFLINE": "0"}

    def close(self) -> None:
        """Stops serving."""
        self.server.shutdown()
        self.server.server_close()

    # -- models ----------------------------------------------------------------------------------------------------

    def commit(self, name: str) -> str:
        """The commit of a model as it is now: it changes with the content."""
        folder = self.folder / name
        digest = hashlib.sha1()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()

    def _at(self, name: str, revision: str) -> tuple[Path, str] | None:
        """A model's folder at a revision, and its commit."""
        if not (self.folder / name).is_dir():
            return None
        now = self.commit(name)
        if revision in ("main", now):
            return self.folder / name, now
        return (self.earlier[revision], revision) if revision in self.earlier else None

    def model(self, path: str) -> tuple[int, bytes, str, str]:
        """The answer to a GET of the models' API."""
        owner, name, *more = path.removeprefix("/api/models/").split("/")
        found = self._at(f"{owner}/{name}", more[1] if len(more) > 1 else "main")
        if found is None:
            exists = (self.folder / owner / name).is_dir()
            return 404, b"{}", SHA, "RevisionNotFound" if exists else "RepoNotFound"
        folder, commit = found
        if more[:1] == ["tree"]:
            entries = [self._entry(item, folder) for item in sorted(folder.rglob("*"))]
            return 200, json.dumps(entries).encode(), commit, ""
        names = [item.relative_to(folder).as_posix() for item in sorted(folder.rglob("*")) if item.is_file()]
        answer = {"id": f"{owner}/{name}", "sha": commit, "siblings": [{"rfilename": item} for item in names]}
        answer |= {"private": False, "gated": "manual" if f"{owner}/{name}" in self.gated else False}
        return 200, json.dumps(answer).encode(), commit, ""

    def model_file(self, path: str, span: str | None, whole: bool) -> tuple[int, bytes, str, str]:
        """The answer to a GET or HEAD of a model's file."""
        owner, name, _, revision, *inner = path.strip("/").split("/")
        found = self._at(f"{owner}/{name}", revision)
        if found is None:
            return 404, b"", SHA, "RepoNotFound"
        folder, commit = found
        file = folder.joinpath(*inner)
        if not file.is_file():
            return 404, b"", commit, "EntryNotFound"
        if whole:
            self.read.append("/".join([owner, name, *inner]))
        return 200, file.read_bytes(), commit, ""

    # -- datasets --------------------------------------------------------------------------------------------------

    def get(self, path: str, span: str | None) -> tuple[int, bytes]:
        """The answer to a GET."""
        parts = path.strip("/").split("/")
        if parts[0] == "datasets":
            content = self.folder.joinpath(*parts[1:3], *parts[5:]).read_bytes()
            if not span:
                return 200, content
            start, stop = span.removeprefix("bytes=").split("-")
            return 206, content[int(start) : int(stop) + 1]
        repository = self.folder.joinpath(*parts[2:4])
        if not repository.is_dir():
            return 404, b"{}"
        if parts[4:5] == ["tree"]:
            root = repository.joinpath(*parts[6:])
            return 200, json.dumps([self._entry(item, repository) for item in sorted(root.rglob("*"))]).encode()
        return 200, json.dumps({"id": "/".join(parts[2:4]), "sha": SHA, "siblings": []}).encode()

    def post(self, path: str, content: dict[str, list[str]]) -> tuple[int, bytes]:
        """The answer to a question for some paths."""
        repository = self.folder.joinpath(*path.strip("/").split("/")[2:4])
        there = [repository / name for name in content["paths"] if (repository / name).exists()]
        return 200, json.dumps([self._entry(item, repository) for item in there]).encode()

    def _entry(self, item: Path, repository: Path) -> dict[str, object]:
        name = item.relative_to(repository).as_posix()
        if item.is_dir():
            return {"type": "directory", "path": name, "oid": SHA}
        content = item.read_bytes()
        return {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
