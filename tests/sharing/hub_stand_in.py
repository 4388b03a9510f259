"""A stand-in of the Hub's endpoints on 127.0.0.1, enough for one client to create a repository and commit to it.

It keeps what it is sent, in memory: objects of large files by digest, and commits, each a whole list of files. `breaks`
says how often a kind of request is to be cut off when half of its body has arrived.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "standInStandInStandInStandIn" + "42"


class Hub:
    """`with Hub() as hub:` serves at `hub.url`."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.repositories: dict[str, list[dict[str, bytes]]] = {}  # of every repository its commits
        self.private: set[str] = set()
        self.breaks: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def files(self, repository):
        return self.repositories[repository][-1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer("GET")

    def do_POST(self):
        self.answer("POST")

    def do_PUT(self):
        self.answer("PUT")

    def answer(self, method):
        path = self.path.split("?")[0].strip("/")
        kind = self.kind(method, path)
        self.hub.asked[kind] += 1
        length = int(self.headers.get("Content-Length") or 0)
        if self.hub.breaks[kind] > 0:
            self.hub.breaks[kind] -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.read_chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        if kind not in ("upload", "validate") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "Invalid user token."})
        getattr(self, kind)(path.split("/"), body)

    @staticmethod
    def kind(method, path):
        if method == "PUT":
            return "upload"
        if path.endswith("objects/batch"):
            return "batch"
        for part, kind in (("whoami-v2", "whoami"), ("repos/create", "create"), ("validate-yaml", "validate")):
            if path == f"api/{part}":
                return kind
        parts = path.split("/")
        return parts[4] if len(parts) > 4 else "info"

    def reply(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def read_chunks(self):
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def whoami(self, parts, body):
        self.reply(200, {"name": "me", "type": "user", "orgs": []})

    def create(self, parts, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name'].split('/')[-1]}"
        there = name in self.hub.repositories
        if not there:
            self.hub.repositories[name] = [{".gitattributes": b"*.safetensors filter=lfs\n"}]
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
        self.reply(409 if there else 200, {"url": f"{self.hub.url}/{name}", "error": "You already created this."})

    def tree(self, parts, body):
        files = self.hub.files("/".join(parts[2:4]))
        self.reply(200, [{"type": "file", "path": p, "size": len(c), "oid": _git(c)} for p, c in files.items()])

    def validate(self, parts, body):
        if not json.loads(body)["content"].startswith("---"):
            return self.reply(400, {"errors": [{"message": "no metadata"}]})
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, parts, body):
        there, files = self.hub.files("/".join(parts[2:4])), []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith((".safetensors", ".onnx", ".png"))
            known = there.get(file["path"])
            oid = None if known is None else hashlib.sha256(known).hexdigest() if large else _git(known)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply(200, {"files": files})

    def batch(self, parts, body):
        objects = []
        for wanted in json.loads(body)["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                signed = f"{self.hub.url}/objects/{wanted['oid']}?X-Signature=signed"
                found["actions"] = {"upload": {"href": signed}}
            objects.append(found)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def upload(self, parts, body):
        if hashlib.sha256(body).hexdigest() != parts[-1]:
            return self.reply(400, {"error": "cut short"})
        self.hub.objects[parts[-1]] = body
        self.reply(200, {})

    def commit(self, parts, body):
        name = "/".join(parts[2:4])
        files = dict(self.hub.files(name))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.repositories[name].append(files)
        number = f"{len(self.hub.repositories[name]):040d}"
        self.reply(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{number}", "commitOid": number})

    def info(self, parts, body):
        name = "/".join(parts[2:4])
        if name not in self.hub.repositories:
            return self.reply(404, {"error": "Repository not found"})
        self.reply(200, {"id": name, "sha": f"{len(self.hub.repositories[name]):040d}", "siblings": []})

    revision = info


def _git(contents):
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()
