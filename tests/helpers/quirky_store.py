"""S3 stores that differ from AWS's, as proxies in front of the real one: each quirk is one that stores in use have."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from conftest import S3

ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
# How a PUT with If-None-Match is answered.
REFUSALS = {
    "not_implemented": (501, "NotImplemented"),
    "bad_request": (400, "InvalidArgument"),
    "false_412": (412, "PreconditionFailed"),
}


class QuirkyStore:
    """Serves a store with quirks on loopback until it is closed, and counts requests by method.

    Quirks: ``ignores_conditions`` (If-None-Match and If-Match count for nothing), those of ``REFUSALS``,
    ``no_bulk_delete`` (wants a Content-MD5), ``stale_listings`` (a listing is a minute old).
    """

    def __init__(self, s3: S3, *quirks: str) -> None:
        self.s3, self.quirks = s3, quirks
        self.requests: Counter[str] = Counter()
        self.listings: dict[str, tuple[float, bytes]] = {}
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, content = store.answer(self.command, self.path, dict(self.headers), body)
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                        self.send_header(name, value)
                length = headers.get("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def env(self) -> dict[str, str]:
        """The usual variables, as a user would set them."""
        return self.s3.env | {"AWS_ENDPOINT_URL": self.endpoint}

    def close(self) -> None:
        """Stops serving."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """What the store says."""
        query = parse_qs(urlsplit(path).query, keep_blank_values=True)
        listing = method == "GET" and "list-type" in query
        self.requests["LIST" if listing else method] += 1
        conditions = {name: value for name, value in headers.items() if name.lower() in ("if-none-match", "if-match")}
        if method == "PUT" and conditions:
            for quirk in self.quirks:
                if quirk in REFUSALS:
                    status, code = REFUSALS[quirk]
                    return status, {"Content-Type": "application/xml"}, ERROR.format(code=code).encode()
        if method == "POST" and "delete" in query and "no_bulk_delete" in self.quirks:
            return 400, {"Content-Type": "application/xml"}, ERROR.format(code="MissingContentMD5").encode()
        if listing and "stale_listings" in self.quirks and path in self.listings:
            when, content = self.listings[path]
            if time.monotonic() - when < 60:
                return 200, {"Content-Type": "application/xml"}, content
        kept = {name: value for name, value in headers.items() if name.lower() in ("range", "content-type")}
        if "ignores_conditions" not in self.quirks:
            kept |= conditions
        status, found, content = self._forward(method, path, kept, body)
        if listing and status == 200:
            self.listings[path] = (time.monotonic(), content)
        return status, found, content

    def _forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        request = AWSRequest(method, self.s3.endpoint + path, headers, body)
        S3SigV4Auth(Credentials("admin", "secret"), "s3", "us-east-1").add_auth(request)
        sent = urllib.request.Request(self.s3.endpoint + path, body or None, dict(request.headers.items()), method=method)
        try:
            with urllib.request.urlopen(sent, timeout=60) as answer:
                return answer.status, dict(answer.headers.items()), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers.items()), error.read()
