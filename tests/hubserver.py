"""A stand-in for the Hugging Face hub on the loopback address: the documented HTTP calls that sending and fetching models make.

Files that end in .safetensors are large (git-lfs): they are uploaded by themselves, and a request for one is redirected.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import yaml

TOKEN, USER = "hf_of_the_tester", "tester"

Tree = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Tree] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, tree: Tree, message: str) -> str:
        name = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = tree, name
        self.messages.append(message)
        return name

    def tree(self, revision: str) -> tuple[str, Tree]:
        name = self.branches.get(revision, revision)
        if name not in self.commits:
            raise Refused(404, "RevisionNotFound")
        return name, self.commits[name]


class Hub:
    """What the stand-in knows, and what it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.endpoint = ""

    @property
    def store(self) -> str:
        """Where large files are fetched from: another host, which gets no token."""
        return self.endpoint.replace("127.0.0.1", "localhost")

    def put(self, name: str, tree: Tree, private: bool = False) -> str:
        """Make a repository that holds these files; its commit."""
        self.repositories[name] = Repository(private)
        return self.repositories[name].commit("main", tree, "initial commit")


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def etag(path: str, content: bytes) -> str:
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send(self, document: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(document).encode(), Content_Type="application/json")

    def handle_request(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {unquote(path)}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            for method, pattern, call in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    call(self, *(unquote(part) for part in match.groups()))
                    return
            raise Refused(404, message="no such call")
        except Refused as error:
            said = json.dumps({"error": str(error)}).encode()
            self.answer(error.status, said, X_Error_Code=error.code, X_Error_Message=str(error) or error.code)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def repository(self, name: str, writes: bool = False) -> Repository:
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            raise Refused(401, message="Invalid credentials in Authorization header")
        if writes:
            self.check_owner(name.partition("/")[0])
        found = self.hub.repositories.get(name)
        if found is None or (found.private and token is None):
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return found

    def check_owner(self, owner: str) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, message="Invalid username or password.")
        if owner != USER:
            raise Refused(403, message=f"You don't have the rights to create a model under the namespace {owner!r}")

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or USER
        self.check_owner(owner)
        name = f"{owner}/{asked['name']}"
        there = name in self.hub.repositories
        if not there:
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.put(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, bool(private))
        self.send({"url": f"{self.hub.endpoint}/{name}", "name": name}, 409 if there else 200)

    def branch(self, name: str, branch: str) -> None:
        repository = self.repository(name, writes=True)
        if branch in repository.branches:
            raise Refused(409, message="Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self.send({})

    def validate(self) -> None:
        """The front matter is YAML, and model-index has what a hub asks for."""
        text = json.loads(self.body)["content"]
        data = yaml.safe_load(text.split("---\n")[1])
        for model in data.get("model-index", []):
            for result in model["results"]:
                assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
                assert all({"type", "value"} <= metric.keys() for metric in result["metrics"])
        self.send({"errors": [], "warnings": []})

    def modes(self, name: str, revision: str) -> None:
        tree = self.repository(name, writes=True).tree(revision)[1]
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        files = [
            {
                "path": path,
                "uploadMode": "lfs" if is_large(path) else "regular",
                "shouldIgnore": False,
                "oid": etag(path, tree[path]) if path in tree else None,
            }
            for path in paths
        ]
        self.send({"files": files})

    def batch(self, name: str) -> None:
        self.repository(name, writes=True)
        objects = [
            {**thing, "actions": {"upload": {"href": f"{self.hub.endpoint}/objects/{thing['oid']}"}}}
            for thing in json.loads(self.body)["objects"]
        ]
        self.send({"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.hub.objects[digest] = self.body
        self.answer(200)

    def commit(self, name: str, branch: str) -> None:
        repository = self.repository(name, writes=True)
        tree = dict(repository.tree(branch)[1])
        lines = [json.loads(line) for line in self.body.splitlines()]
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del tree[value["path"]]
        done = repository.commit(branch, tree, lines[0]["value"]["summary"])
        self.send({"commitOid": done, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{done}", "pullRequestUrl": None})

    def info(self, name: str, revision: str | None = None) -> None:
        repository = self.repository(name)
        commit, tree = repository.tree(revision or "main")
        siblings = [{"rfilename": path} for path in tree]
        self.send({"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": siblings, "tags": []})

    def list(self, name: str, revision: str) -> None:
        def entry(path: str, content: bytes) -> dict[str, Any]:
            whole = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            large = {"oid": etag(path, content), "size": len(content), "pointerSize": 134}
            return whole | ({"lfs": large} if is_large(path) else {})

        self.send([entry(*item) for item in self.repository(name).tree(revision)[1].items()])

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit, tree = self.repository(name).tree(revision)
        if path not in tree:
            raise Refused(404, "EntryNotFound")
        content, tag = tree[path], etag(path, tree[path])
        headers = {"X_Repo_Commit": commit, "ETag": f'"{tag}"'}
        if is_large(path):
            self.hub.objects[tag] = content
            there = {"Location": f"{self.hub.store}/objects/{tag}", "X_Linked_Size": str(len(content))}
            self.answer(302, **headers, **there, X_Linked_ETag=f'"{tag}"')
        else:
            self.answer(200, content, **headers)

    def download(self, digest: str) -> None:
        assert "Authorization" not in self.headers
        self.answer(200, self.hub.objects[digest])


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/models/{NAME}/branch/([^/]+)", Handler.branch),
    ("POST", rf"/api/models/{NAME}/preupload/([^/]+)", Handler.modes),
    ("POST", rf"/api/models/{NAME}/commit/([^/]+)", Handler.commit),
    ("GET", rf"/api/models/{NAME}/tree/([^/]+)", Handler.list),
    ("GET", rf"/api/models/{NAME}", Handler.info),
    ("GET", rf"/api/models/{NAME}/revision/([^/]+)", Handler.info),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/objects/(\w+)", Handler.upload),
    ("GET HEAD", r"/objects/(\w+)", Handler.download),
    ("GET HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def serving() -> Iterator[Hub]:
    """Within this context, a hub without repositories answers at its ``endpoint``."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
