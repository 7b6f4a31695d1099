"""A mitmproxy script: an S3 server that misbehaves as the file named by FAULT_FILE says, until it is emptied.

Not a test, and not imported by one: ``mitmdump -s`` runs it in its own environment.
"""

import asyncio
import json
import os
import random
from pathlib import Path

from mitmproxy import http

SHARE = 0.3  # of the requests that are hit
CODES = {"500": (500, "InternalError"), "503": (503, "ServiceUnavailable"), "SlowDown": (503, "SlowDown")}
FILE = Path(os.environ["FAULT_FILE"])
COUNTS = Path(os.environ["FAULT_FILE"] + ".count")
hits = 0


def error(status: int, code: str) -> http.Response:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as ordered</Message></Error>'
    return http.Response.make(status, body, {"Content-Type": "application/xml"})


def hit() -> None:
    global hits
    hits += 1
    COUNTS.write_text(str(hits))


def fault() -> dict:
    text = FILE.read_text() if FILE.exists() else ""
    return json.loads(text) if text else {}


async def request(flow: http.HTTPFlow) -> None:
    ordered = fault()
    kind = ordered.get("kind")
    if kind == "expired":
        if f"Credential={ordered['key']}/" in flow.request.headers.get("Authorization", ""):
            hit()
            flow.response = error(400, "ExpiredToken")
    elif kind and random.random() < ordered.get("share", SHARE):
        if kind in CODES:
            hit()
            flow.response = error(*CODES[kind])
        elif kind == "reset":
            hit()
            flow.kill()
        elif kind == "stall":
            hit()
            await asyncio.sleep(ordered.get("seconds", 20))


def response(flow: http.HTTPFlow) -> None:
    ordered = fault()
    if ordered.get("kind") != "truncate" or flow.request.method != "GET" or random.random() > SHARE:
        return
    body = flow.response.raw_content
    if body and len(body) > 1:
        hit()
        length = str(len(body))
        flow.response.raw_content = body[: len(body) // 2]
        flow.response.headers["Content-Length"] = length
