"""Who is told that a run has ended, and what: by a command or a webhook, whether it ended well or not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from conftest import TINY

from kosbert_ray.run.notify import Ended, notify

Logged = Callable[[str], list[str]]

ENDED = Ended("done", "/out", totals={"rows": 3}, seconds=1.5)


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict]]]:
    calls: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            calls.append({"path": self.path, "type": self.headers["Content-Type"], **json.loads(content)})
            self.send_response(500 if "broken" in self.path else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", calls
    server.shutdown()
    server.server_close()


def test_a_webhook_is_sent_the_summary(webhook: tuple[str, list[dict]], logged: Logged) -> None:
    address, calls = webhook
    messages = logged("kosbert_ray.run.notify")
    notify(f"{address}/secret", ENDED)
    assert not messages
    (call,) = calls
    assert (call["path"], call["type"]) == ("/secret", "application/json")
    assert (call["status"], call["totals"], call["seconds"]) == ("done", {"rows": 3}, 1.5)


def test_what_cannot_be_told_is_said_without_the_address(webhook: tuple[str, list[dict]], logged: Logged) -> None:
    said = logged("kosbert_ray.run.notify")
    notify(f"{webhook[0]}/broken", ENDED)
    notify("http://127.0.0.1:9/hush", ENDED)
    notify("echo no such thing >&2; exit 7", ENDED)
    assert said[0] == "on_finish: the notification failed (HTTP Error 500: Internal Server Error)"
    assert said[1].startswith("on_finish: the notification failed (")
    assert said[2] == "on_finish: the command ended with exit code 7 (no such thing)"
    assert "hush" not in "".join(said)


@pytest.mark.parametrize("address", ["http://localhost:abc/x?hush", "http://[bad/hush", "https://host/T 1?hush"])
def test_an_invalid_url_is_a_warning_that_does_not_show_it(address: str, logged: Logged) -> None:
    messages = logged("kosbert_ray.run.notify")
    notify(address, ENDED)
    (line,) = messages
    assert line == "on_finish: the notification failed (the URL or the server's answer is invalid)"


def test_an_output_whose_name_is_not_utf_8_is_sent() -> None:
    notify("cat > /dev/null", Ended("done", "/o\udc80"))


@pytest.mark.slow
def test_a_run_tells_its_end_and_nothing_of_it_is_kept(cli, tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(f"import sys\nopen({str(tmp_path / 'told')!r}, 'a').write(sys.stdin.read() + '\\n')")
    command = f"python3 {tmp_path / 'told.py'}"
    embed = ["embed", "bundled:everyday", tmp_path / "out", "--model", TINY, "--set", f"on_finish={command}"]
    cli(*embed)
    cli(*embed, "--text", "nothing", code=1)
    done, failed = map(json.loads, (tmp_path / "told").read_text().splitlines())
    assert (done["status"], done["totals"]["rows"], done["new"]["rows"]) == ("done", 520, 520)
    assert done["output"] == str(tmp_path / "out")
    assert failed["status"] == "failed"
    assert "no column 'nothing'" in failed["error"]
    assert "told.py" not in (tmp_path / "out" / "_kosbert" / "job.json").read_text()
