"""A Hugging Face Hub on the loopback interface: just enough of it to create a repository, push files and read them."""

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_loopback"


class MiniHub(ThreadingHTTPServer):
    """`with MiniHub() as hub`: `hub.files[repository][path]` holds what was pushed; `hub.environment` leads to it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.files: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server_address[1]}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }

    def __enter__(self) -> "MiniHub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class Requests(BaseHTTPRequestHandler):
    server: MiniHub

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, code: int, content: object = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(data)
            repository = f"{asked['organization']}/{asked['name']}"
            self.server.files[repository]
            return self.answer(200, {"url": f"{self.server.environment['HF_ENDPOINT']}/{repository}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        repository, what = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main.*", self.path).groups()
        if what == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(data)["files"]]
            return self.answer(200, {"files": [file | {"shouldIgnore": False} for file in files]})
        for line in map(json.loads, data.splitlines()):
            if line["key"] == "file":
                self.server.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer(200, {"commitUrl": f"/{repository}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def do_GET(self) -> None:
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        if resolve is None:
            return self.answer(404, {"error": "not here"})
        content = self.server.files[resolve[1]].get(resolve[2])
        if content is None:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit="0" * 40)
        tag = hashlib.sha1(content).hexdigest()
        return self.answer(200, content, X_Repo_Commit="0" * 40, ETag=f'"{tag}"')

    do_HEAD = do_GET
