"""A Hugging Face Hub on the loopback interface: repositories with commits and branches, LFS, tokens and faults."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
LARGE = (".safetensors", ".png")  # what the Hub's .gitattributes would send through LFS


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str) -> str:
        sha = hashlib.sha1(json.dumps([branch, len(self.commits), sorted(files)]).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class MainFiles(dict[str, dict[str, bytes]]):
    """What the main branches hold, by repository and path; setting a repository's files commits them."""

    def __init__(self, repositories: dict[str, Repository]):
        super().__init__({name: held.commits[held.branches["main"]] for name, held in repositories.items()})
        self.repositories = repositories

    def __setitem__(self, name: str, files: dict[str, bytes]) -> None:
        self.repositories.setdefault(name, Repository()).commit(dict(files), "main")


class MiniHub(ThreadingHTTPServer):
    """`with MiniHub() as hub`: a Hub whose users write to `lab/` and `org/`; `hub.environment` leads to it.

    `hub.files` is what the main branches hold, `hub.repositories` everything. `hub.fault = (pattern, how, after)`
    breaks every request "METHOD /path" that the pattern is found in but the first `after`: `how` is an HTTP status,
    or "drop" for a connection that closes in the middle of the body.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.log: list[str] = []
        self.fault: tuple[str, int | str, int] | None = None
        self.lock = threading.Lock()
        self.environment = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }

    @property
    def files(self) -> "MainFiles":
        return MainFiles(self.repositories)

    def breaks(self, request: str) -> int | str | None:
        """How this request breaks, None where it does not."""
        with self.lock:
            self.log.append(request)
            if self.fault is None or not re.search(self.fault[0], request):
                return None
            pattern, how, after = self.fault
            self.fault = (pattern, how, max(0, after - 1))
            return None if after else how

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away, as one does after a fault, is nothing to report."""

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

    def refuse(self, code: int, message: str, kind: str = "") -> None:
        self.answer(code, {"error": message}, X_Error_Code=kind, X_Error_Message=message)

    def serve(self) -> None:
        path = urlsplit(self.path).path
        how = self.server.breaks(f"{self.command} {unquote(path)}")
        size = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(size if how is None else size // 2)
        token = self.headers.get("Authorization")
        if how is not None:
            # Like a careless proxy, it echoes what nobody should print.
            return self.connection.close() if how == "drop" else self.refuse(int(how), f"broken for {token}")
        if token not in (None, f"Bearer {TOKEN}"):
            return self.refuse(401, "Invalid credentials in Authorization header")
        with self.server.lock:
            return self.dispatch([unquote(segment) for segment in path.split("/")[1:]], data, token is not None)

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def dispatch(self, path: list[str], data: bytes, signed: bool) -> None:
        hub = self.server
        if path == ["api", "validate-yaml"]:
            errors = card_errors(json.loads(data)["content"])
            said = {"errors": [{"message": error} for error in errors], "warnings": []}
            plain = self.headers.get("Accept") == "text/plain"
            return self.answer(400 if errors else 200, "; ".join(errors).encode() if plain else said)
        if path == ["api", "repos", "create"]:
            return self.create(json.loads(data), signed)
        if path[0] == "lfs":  # the address is the permission, as with the Hub's signed ones
            hub.large[path[1]] = data
            return self.answer(200 if hashlib.sha256(data).hexdigest() == path[1] else 400)

        name, what = "/".join(path[:2]), path[2:]
        if path[:2] == ["api", "models"]:
            name, what = "/".join(path[2:4]), path[4:]
        name = name.removesuffix(".git")
        held = hub.repositories.get(name)
        if held is None or (not signed and (held.private or self.command == "POST")):
            return self.refuse(404 if signed else 401, "Repository not found", "RepoNotFound")
        if what[-3:] == ["lfs", "objects", "batch"]:
            return self.batch(json.loads(data)["objects"])
        action, revision, *rest = [*what, *("", "main")[len(what) :]]
        if action == "branch":
            if revision in held.branches:
                return self.refuse(409, "Reference already exists")
            held.branches[revision] = held.branches["main"]
            return self.answer(200, {})
        sha = held.resolve(revision)
        if sha is None:
            return self.refuse(404, "Invalid rev id", "RevisionNotFound")
        files = held.commits[sha]
        if action == "resolve":
            return self.resolve("/".join(rest), files, sha)
        if action == "tree":
            return self.tree("/".join([*rest, ""]) if rest else "", files)
        if action == "preupload":
            return self.preupload(json.loads(data)["files"], files)
        if action == "commit":
            sha = held.commit(self.changed(files, data), revision)
            return self.answer(200, {"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha})
        siblings = [{"rfilename": file} for file in sorted(files)]
        return self.answer(200, {"id": name, "sha": sha, "private": held.private, "siblings": siblings, "tags": []})

    def create(self, asked: dict[str, str], signed: bool) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.url}/{name}"
        if not signed:
            return self.refuse(401, "Invalid username or password.")
        if asked["organization"] not in ("lab", "org"):
            return self.refuse(403, f"You don't have the rights to create a model under {asked['organization']}")
        if name in self.server.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.server.repositories[name] = Repository(private=asked.get("visibility") == "private")
        self.server.repositories[name].commit({}, "main")
        return self.answer(200, {"url": url})

    def batch(self, asked: list[dict[str, object]]) -> None:
        objects = [{"oid": each["oid"], "size": each["size"]} for each in asked]
        for each in objects:
            if each["oid"] not in self.server.large:
                each["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def resolve(self, file: str, files: dict[str, bytes], sha: str) -> None:
        if file not in files:
            headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": sha}
            return self.answer(404, {"error": "Entry not found"}, **headers)
        tag, content = f'"{object_id(file, files[file])}"', files[file]
        linked = {"X_Linked_ETag": tag, "X_Linked_Size": str(len(content))} if file.endswith(LARGE) else {}
        return self.answer(200, content, X_Repo_Commit=sha, ETag=tag, **linked)

    def tree(self, folder: str, files: dict[str, bytes]) -> None:
        inside = {file: content for file, content in files.items() if file.startswith(folder)}
        if folder and not inside:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        return self.answer(
            200,
            [
                {"type": "file", "path": file, "size": len(inside[file]), "oid": object_id(file, inside[file])}
                for file in sorted(inside)
            ],
        )

    def preupload(self, asked: list[dict[str, str]], files: dict[str, bytes]) -> None:
        modes = []
        for path in (each["path"] for each in asked):
            mode = "lfs" if path.endswith(LARGE) else "regular"
            held = object_id(path, files[path]) if path in files else None
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": held})
        return self.answer(200, {"files": modes})

    def changed(self, files: dict[str, bytes], commit: bytes) -> dict[str, bytes]:
        """The files of a new commit; as they were where the commit is no commit at all."""
        changed = dict(files)
        for line in map(json.loads, commit.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changed[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del changed[value["path"]]
        return changed


def object_id(path: str, content: bytes) -> str:
    """As the Hub names contents: git's SHA-1 of a small file, the SHA-256 of a large one."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def card_errors(content: str) -> list[str]:
    """What the Hub would say of a card's metadata; the part of its rules that these tests need."""
    front = re.match(r"---\n(.*?)\n---\n", content, flags=re.S)
    if front is None:
        return ["no metadata"]
    try:
        data = yaml.safe_load(front[1])
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata must be a dictionary"]
    errors = []
    for key, kind in (("license", str), ("library_name", str), ("pipeline_tag", str), ("tags", list)):
        if key in data and not isinstance(data[key], kind):
            errors.append(f'"{key}" must be a {kind.__name__}')
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str):
            errors.append('"model-index[].name" is required')
        for result in model.get("results", []):
            if "type" not in result.get("task", {}):
                errors.append('"model-index[].results[].task.type" is required')
            if not {"type", "name"} <= result.get("dataset", {}).keys():
                errors.append('"model-index[].results[].dataset" needs a type and a name')
            if not all({"type", "value"} <= metric.keys() for metric in result.get("metrics", [{}])):
                errors.append('"model-index[].results[].metrics[]" needs a type and a value')
    return errors
