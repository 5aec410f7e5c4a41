"""Real HTTP servers on 127.0.0.1 for tests: static files, and as much of the Hugging Face hub as `datasets` asks for.

A `Fault` is spent on the first requests that it fits, one each, so a plan is a list of things that go wrong in order.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

CHUNK_BYTES = 32_768  # of a body whose length is not told
Kind = Literal["status", "stall", "drip", "cut", "reset", "ignore range"]


@dataclass
class Fault:
    """One thing that goes wrong: `count` times, on GETs of paths that contain `path`, after `after` bytes of body."""

    kind: Kind
    status: int = 500
    count: int = 1
    path: str = ""
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Site:
    """What a server serves: bytes by path, faults still to come, requests that came."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str | None, int]] = field(default_factory=list)  # method, path, Range, status
    etags: bool = True
    ranges: bool = True
    lengths: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def fault(self, path: str) -> Fault | None:
        """The next fault for a path, spent."""
        with self.lock:
            for fault in self.faults:
                if fault.count > 0 and fault.path in path:
                    fault.count -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """Static files with Range and faults."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        self.answer(self.path)

    def do_HEAD(self) -> None:
        self.answer(self.path)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Tests are quiet."""

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        with self.site.lock:
            self.site.requests.append((self.command, self.path, self.headers.get("Range"), int(code)))

    def answer(self, path: str) -> None:
        name = unquote(urlsplit(path).path)
        if name not in self.site.files:
            self.plain(404, b"not found")
            return
        self.send_file(name, self.site.files[name])

    def plain(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        """The file or the part of it that is asked for, with whatever fault is due."""
        fault = self.site.fault(name) if self.command == "GET" else None
        if fault and fault.kind == "status":
            self.plain(fault.status, b"fault", fault.headers)
            return
        if fault and fault.kind == "reset" and not fault.after:
            self.reset()
            return
        etag = '"' + hashlib.sha256(content).hexdigest()[:16] + '"'
        start, stop = self.part(len(content), etag, ignore=bool(fault and fault.kind == "ignore range"))
        if start is not None and start >= len(content):
            self.plain(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        self.send_response(200 if start is None else 206)
        body = content if start is None else content[start:stop]
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        if self.site.etags:
            self.send_header("ETag", etag)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        chunked = not self.site.lengths
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))))
        self.end_headers()
        if self.command == "GET":
            self.send_body(body, fault, chunked)

    def part(self, size: int, etag: str, ignore: bool) -> tuple[int | None, int]:
        """First byte and end of the asked range; (None, size) for all of it."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if not match or ignore or not self.site.ranges or (condition and condition != etag):
            return None, size
        return int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)

    def send_body(self, body: bytes, fault: Fault | None, chunked: bool) -> None:
        good = body if fault is None or fault.kind == "ignore range" else body[: fault.after]
        size = CHUNK_BYTES if chunked else max(1, len(good))
        for place in range(0, len(good), size):
            piece = good[place : place + size]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        self.wfile.flush()
        if good is body:
            self.wfile.write(b"0\r\n\r\n" if chunked else b"")
        elif fault is not None and fault.kind == "reset":
            self.reset()
        elif fault is not None and fault.kind in ("stall", "drip"):
            self.hold(body[fault.after :] if fault.kind == "drip" else b"", b"1\r\n%s\r\n" if chunked else b"%s")
        self.close_connection = self.close_connection or good is not body

    def hold(self, dripped: bytes, frame: bytes) -> None:
        """Keeps the connection open without a word, or with a byte now and then, until the other side leaves."""
        self.connection.settimeout(0.05)
        for place in range(100_000):
            if self.site.stopping.is_set():
                return
            try:
                if place < len(dripped) and place % 4 == 0:
                    self.wfile.write(frame % dripped[place // 4 : place // 4 + 1])
                if self.connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def reset(self) -> None:
        """Ends the connection as a crashed peer does: with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        os.close(self.connection.detach())  # close() would wait for the files made from the socket, and send FIN first


@dataclass
class Repository:
    """A dataset repository: `files` by path; `gated` ones give their files to nobody."""

    files: dict[str, bytes]
    gated: bool = False

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha1(content).digest())
        return digest.hexdigest()


@dataclass
class Hub(Site):
    """A hub with dataset repositories by name."""

    repositories: dict[str, Repository] = field(default_factory=dict)


class HubHandler(Handler):
    """The hub's API for datasets: info, auth-check, tree, paths-info, resolve."""

    body = b""

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.answer(self.path)

    def answer(self, path: str) -> None:
        parts = urlsplit(path)
        name = unquote(parts.path)
        match = re.fullmatch(
            r"/(?:api/)?datasets/([^/]+/[^/]+?)(?:/(revision|auth-check|tree|paths-info|resolve)(/.*)?)?", name
        )
        site = self.site
        repository = site.repositories.get(match[1]) if match and isinstance(site, Hub) else None
        if match is None or repository is None:
            self.plain(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return
        action, rest = match[2] or "info", (match[3] or "").strip("/")
        if name.startswith("/api/"):
            fault = self.site.fault(name)
            if fault:
                self.plain(fault.status, b"fault", fault.headers)
                return
        self.act(match[1], repository, action, rest, parse_qs(parts.query))

    def act(self, name: str, repository: Repository, action: str, rest: str, query: dict[str, list[str]]) -> None:
        refused = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to dataset {name} is restricted"}
        if action in ("info", "revision"):
            if action == "revision" and rest not in ("main", repository.commit):
                self.plain(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            else:
                self.json(self.info(name, repository))
        elif action == "auth-check":
            self.plain(403, b"{}", refused) if repository.gated else self.json({"ok": True})
        elif action == "tree":
            folder = rest.partition("/")[2]
            self.json(self.tree(repository, folder, query.get("recursive", ["false"])[0].lower() == "true"))
        elif action == "paths-info":
            form = parse_qs(self.body.decode())
            wanted = form.get("paths") or json.loads(self.body or b"{}").get("paths", [])
            known = {entry["path"]: entry for entry in self.tree(repository, "", True)}
            self.json([known[path] for path in wanted if path in known])
        elif repository.gated:
            self.plain(403, b"", refused)
        else:
            self.resolve(name, repository, rest.partition("/")[2])

    def resolve(self, name: str, repository: Repository, path: str) -> None:
        if path not in repository.files:
            self.plain(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.commit})
            return
        self.send_file(f"/{name}/{path}", repository.files[path], {"X-Repo-Commit": repository.commit})

    def info(self, name: str, repository: Repository) -> dict[str, Any]:
        siblings = [{"rfilename": path} for path in sorted(repository.files)]
        return {
            "id": name, "sha": repository.commit, "private": False, "gated": "auto" if repository.gated else False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings,
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip

    def tree(self, repository: Repository, folder: str, recursive: bool) -> list[dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        prefix = f"{folder}/" if folder else ""
        for path, content in sorted(repository.files.items()):
            if not path.startswith(prefix):
                continue
            parents = path[len(prefix) :].split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                parent = prefix + "/".join(parents[:depth])
                entries[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
            oid = hashlib.sha1(content).hexdigest()
            entries[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
        return [entry for path, entry in entries.items() if recursive or "/" not in path[len(prefix) :]]

    def json(self, content: Any) -> None:
        self.plain(200, json.dumps(content).encode(), {"Content-Type": "application/json"})


Served = TypeVar("Served", bound=Site)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave early are part of the tests."""


@contextmanager
def running(site: Served) -> Generator[Served, None, None]:
    """The site on a free port of 127.0.0.1, its address in `site.url`, until the `with` ends."""
    base = HubHandler if isinstance(site, Hub) else Handler
    handler = type("SiteHandler", (base,), {"site": site})
    server = Server(("127.0.0.1", 0), handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
