"""Strangers' URLs are fetched from public addresses, or by the machine's proxy, whatever its address is called."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

FETCH = """
import json, sys
from modeling_mote.processing.limits import Limits
from modeling_mote.processing.public_fetch import fetch_public
limits, said = Limits(max_megabytes=0.001), {}
for url in sys.argv[1:]:
    try:
        said[url] = fetch_public(url, limits).decode()
    except ValueError as error:
        said[url] = str(error)
print(json.dumps(said))
"""


class Proxy(BaseHTTPRequestHandler):
    """The way out of this machine."""

    def do_GET(self) -> None:
        content = b"x" * 2000 if "large" in self.path else b"a clip"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("name", [pytest.param("127.0.0.1", marks=pytest.mark.slow), "localhost"])
def test_by_the_machines_proxy_and_to_nothing_else_inside(name):
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as out, ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as inner:
        for server in (out, inner):
            Thread(target=server.serve_forever, daemon=True).start()
        inside = f"http://127.0.0.1:{inner.server_address[1]}/clip.mp4"
        public, large = "http://public.example/clip.mp4", "http://public.example/large.mp4"
        environ = {**os.environ, "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
        environ["http_proxy"] = f"http://{name}:{out.server_address[1]}"
        command = [sys.executable, "-c", FETCH, public, large, inside]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
        for server in (out, inner):
            server.shutdown()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said[public] == "a clip"
    assert (
        said[large]
        == f"{large} is larger than 0.000953674 MiB, the limit of what is read into memory: send a smaller one."
    )
    assert "127.0.0.1 is no public address" in said[inside]
