"""A stand-in for OpenSearch that takes bulk requests and holds the documents.

Source: https://docs.opensearch.org/latest/api-reference/document-apis/bulk/.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_ID = 512  # bytes


def parse(body: bytes) -> dict[str, dict[str, Any]]:
    """Documents by id of the body of a bulk request; raises ValueError if it is not one, or an id occurs twice."""
    *lines, last = body.decode().split("\n")
    if last or not lines or len(lines) % 2:
        raise ValueError("each line, also the last, ends with a newline, and an action is followed by its document")
    found: dict[str, dict[str, Any]] = {}
    for action, document in zip(lines[::2], lines[1::2], strict=True):
        (name, metadata), *others = _loads(action).items()
        number = metadata["_id"]
        if name != "index" or others or {*metadata} != {"_id"} or number in found or len(number.encode()) > MAX_ID:
            raise ValueError(f"no action: {action}")
        found[number] = _loads(document)
    return found


def _loads(line: str) -> dict[str, Any]:
    """Parses an object strictly: without NaN, and each key once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError(f"a key is repeated in {line[:200]}")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in {line[:200]}")

    found = json.loads(line, object_pairs_hook=unique, parse_constant=refuse)
    if not isinstance(found, dict):
        raise ValueError(f"no object: {line[:200]}")
    return found


class BulkServer:
    """A server on a port of its own.

    Attributes:
        address: its URL.
        indexes: documents by id of each index.
        requests: number of bulk requests.
    """

    def __init__(self) -> None:
        self.indexes: dict[str, dict[str, dict[str, Any]]] = {}
        self.requests = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.indexes[self.path.strip("/")] = {}
                self.answer(200, {"acknowledged": True})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                index, _, what = self.path.partition("?")[0].strip("/").partition("/")
                try:
                    if what != "_bulk" or self.headers["Content-Type"] != "application/x-ndjson":
                        raise ValueError(f"{self.path}: no bulk request")
                    server.indexes[index] |= parse(body)
                    server.requests += 1
                    self.answer(200, {"errors": False})
                except (ValueError, KeyError) as error:
                    self.answer(400, {"error": str(error)})

            def answer(self, status: int, content: dict[str, Any]) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(content, separators=(",", ":")).encode() + b"\n")

            def log_message(self, *arguments: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()
