"""Only listed hosts, only public addresses, only so many bytes, and no redirection."""

import asyncio
import http.server
import threading

import pytest

from hf_clip_domain.serving import fetch
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.fetch import Fetcher, is_public
from hf_clip_domain.serving.settings import Settings


def refusal(fetcher, address):
    with pytest.raises(RequestError) as caught:
        asyncio.run(fetcher.fetch(address))
    return caught.value.status, caught.value.code


def test_addresses_of_private_networks_are_known():
    private = "127.0.0.1 10.1.2.3 192.168.0.1 172.16.0.1 169.254.169.254 0.0.0.0 100.64.0.1 224.0.0.1 ::1 fe80::1%eth0 "
    private += "fc00::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 2002:7f00:1:: ::"
    assert not any(is_public(address) for address in private.split())
    assert is_public("93.184.216.34") and is_public("2606:2800:220:1::1")


def test_only_listed_hosts_are_asked():
    fetcher = Fetcher(Settings(url_hosts=("pictures.example", "localhost", "cdn.example:8443")))
    for address in (
        "https://evil.example/x.png",
        "https://pictures.example.evil.example/x.png",
        "https://pictures.example@evil.example/x.png",
        "https://user:word@pictures.example/x.png",
        "https://pictures.example:22/x.png",
        "https://cdn.example/x.png",
        "http://2130706433/",
        "http://[::1]/",
        "http:///x.png",
    ):
        assert refusal(fetcher, address) == (403, "url_not_allowed"), address
    assert refusal(fetcher, "http://[broken/") == (400, "bad_url")
    # A listed name that leads inside is refused after it was resolved.
    assert refusal(fetcher, "http://localhost/x.png") == (403, "url_not_allowed")
    assert refusal(Fetcher(Settings()), "https://pictures.example/x.png") == (403, "url_not_allowed")


@pytest.fixture
def site():
    """A server of pictures on this machine: its port, and what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["host"]))
            self.send_response(302 if self.path == "/moved" else 200)
            if self.path == "/moved":
                self.send_header("location", "/picture?size=large")
            self.end_headers()
            self.wfile.write(bytes(5000) if self.path == "/large" else b"a picture")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, asked
    server.shutdown()
    server.server_close()


def test_a_listed_host_gives_its_picture(site, monkeypatch):
    port, asked = site
    monkeypatch.setattr(fetch, "is_public", lambda address: True)
    fetcher = Fetcher(Settings(url_hosts=(f"localhost:{port}",), max_image=2000))
    base = f"http://localhost:{port}"
    assert asyncio.run(fetcher.fetch(f"{base}/picture?size=small")) == b"a picture"
    assert asked == [("/picture?size=small", f"localhost:{port}")]
    assert refusal(fetcher, f"{base}/large") == (413, "picture_too_large")
    assert refusal(fetcher, f"{base}/moved") == (400, "url_unreachable")
    assert [path for path, _ in asked][-1] == "/moved"  # not followed
