"""What the Hugging Face hub answers to those who list and read a dataset: its API, over a folder, on loopback.

There is no hub without the internet. The client (huggingface_hub) is the real one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves ``folder/OWNER/NAME`` as datasets until it is closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(*hub.get(unquote(urlsplit(self.path).path), self.headers.get("Range")))

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(*hub.post(unquote(urlsplit(self.path).path), content))

            def answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Repo-Commit", SHA)
                if status == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
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
