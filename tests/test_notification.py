"""Messages arrive at real addresses and real programs, and what does not arrive disturbs nobody."""

import json
import shlex
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hf_clip_domain import notification
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.notification import Notifier


@pytest.fixture
def server():
    """A web server that keeps what it is sent, answers `server.status`, and waits for `server.gate` first."""

    class Keep(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.received.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.server.gate.wait(10)
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Keep) as server:
        server.received, server.status, server.gate = [], 200, threading.Event()
        server.gate.set()
        server.url = f"http://127.0.0.1:{server.server_port}/hook?key=secret"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.gate.set()
        server.shutdown()


def keeping_command(file, then="pass"):
    """A program that writes down what it finds on standard input and in its environment."""
    program = (
        "import json, os, sys; "
        f"open({str(file)!r}, 'a').write(json.dumps([sys.stdin.read(), os.environ['HF_CLIP_DOMAIN_EVENT'], sys.argv[1]]) + '\\n'); "
        f"{then}"
    )
    return f"command: {shlex.join([sys.executable, '-c', program, '$HOME; x'])}"


def test_an_address_gets_json_in_order(server):
    notifier = Notifier(server.url)
    for number in range(3):
        notifier.send({"event": "é", "number": number})
    notifier.close()
    assert [message["number"] for _, _, message in server.received] == [0, 1, 2]
    assert server.received[0][:2] == ("/hook?key=secret", "application/json")
    assert server.received[0][2]["event"] == "é"
    notifier.send({"number": 3})  # a notifier can be used again
    notifier.close()
    assert len(server.received) == 4


def test_a_command_gets_json_on_its_input_and_in_its_environment_and_no_shell_reads_it(tmp_path):
    notifier = Notifier(keeping_command(tmp_path / "kept"))
    notifier.send({"event": "finished", "text": 'it\'s "done"'})
    notifier.close()
    given, environment, argument = json.loads((tmp_path / "kept").read_text())
    assert json.loads(given) == json.loads(environment) == {"event": "finished", "text": 'it\'s "done"'}
    assert argument == "$HOME; x"


def test_a_slow_address_holds_nobody_up(server):
    server.gate.clear()
    notifier = Notifier(server.url)
    start = time.monotonic()
    for _ in range(5):
        notifier.send({"event": "started"})
    assert time.monotonic() - start < 0.5
    notifier.close(seconds=0.2)
    assert time.monotonic() - start < 2
    server.gate.set()  # what still waits must not fail within the next test
    notifier._thread.join(10)
    assert not notifier._thread.is_alive()


@pytest.mark.parametrize("kind", ["status", "nobody", "timeout", "command"])
def test_failures_are_logged_once_without_the_address(server, kind, caplog, monkeypatch, tmp_path):
    target = server.url
    if kind == "status":
        server.status = 500
    elif kind == "nobody":
        target = "http://127.0.0.1:1/secret"  # where nobody listens
    elif kind == "timeout":
        monkeypatch.setattr(notification, "SECONDS", 0.2)
        server.gate.clear()
    else:
        target = keeping_command(tmp_path / "kept", "sys.exit('no such luck')")
    notifier = Notifier(target)
    notifier.send({"event": "started"})
    notifier.send({"event": "finished"})
    notifier.close()
    assert len(caplog.records) == 1 and "Notification failed" in caplog.text and "secret" not in caplog.text
    expected = {"status": "500", "nobody": "refused", "timeout": "timed out", "command": "no such luck"}
    assert expected[kind] in caplog.text


@pytest.mark.parametrize(
    "target",
    ["", "example.com/x", "ftp://example.com", "http://", "http://host:port/secret", "command:", "command: 'open"],
)
def test_a_target_that_cannot_be_is_refused(target):
    with pytest.raises(ClipDomainError, match="--notify") as refused:
        Notifier(target)
    assert "secret" not in str(refused.value)


def test_a_program_that_is_not_there_is_refused():
    with pytest.raises(ClipDomainError, match="no program 'no-such-program'"):
        Notifier("command: no-such-program --loud")
