"""Kaggle's server, as much of it as the real client talks to, on loopback: requests reach it as a proxy
(HTTP_PROXY)."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest

KEY, NAME = "0123456789abcdef-secret", "stubuser"


class Stub:
    """What the server answers, to be changed by a test, and what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict]] = []  # (method's name, body)
        self.errors: dict[str, tuple[int, str]] = {}  # method's name, or "PUT" -> status and message
        self.files: dict[str, bytes] = {}  # last part of a download's address -> content
        self.etag = '"1"'
        self.cut: int | None = None  # break downloads off after so many bytes
        self.lengthless = False
        self.ranges: list[str | None] = []
        self.uploads: list[bytes] = []
        self.limits = {"numToday": 1, "numTotal": 1, "numAllowedNow": 4, "limitedByTotal": False}
        self.submissions: list[dict] = []
        self.pending = 1  # how often a new submission is listed without score
        self.scored = {"status": "COMPLETE", "publicScore": "0.913", "privateScore": ""}
        self.created = False  # the dataset
        self.dataset = {
            "ref": "stubuser/earshot-kit",
            "url": "https://www.kaggle.com/datasets/stubuser/earshot-kit",
            "status": "ok",
            "error": "",
        }
        self.states = ["READY"]  # of the dataset
        self.kernel = {
            "ref": "/stubuser/solution",
            "url": "https://www.kaggle.com/code/stubuser/solution",
            "versionNumber": 3,
        }
        self.runs = ["QUEUED", "RUNNING", "COMPLETE"]
        self.log = json.dumps(
            [
                {"stream_name": "stdout", "time": 1.0, "data": "fold 1/5\n"},
                {"stream_name": "stdout", "time": 2, "data": "done\n"},
            ]
        )

    def asked(self, name: str) -> list[dict]:
        """The bodies of the calls of a method."""
        return [body for method, body in self.calls if method == name]

    def answer(self, name: str, body: dict) -> dict:
        """The reply to a call that succeeds."""
        if name == "ListDataFiles":
            return {
                "files": [{"name": file, "totalBytes": len(content)} for file, content in self.files.items()]
            }
        if name == "ListDatasetFiles":
            return {
                "datasetFiles": [
                    {"name": file, "totalBytes": len(content)} for file, content in self.files.items()
                ]
            }
        if name == "GetSubmissionLimits":
            return self.limits
        if name == "StartSubmissionUpload":
            return {"token": "TOKEN", "createUrl": "http://localhost/upload/submission"}
        if name in ("CreateSubmission", "CreateCodeSubmission"):
            ref = 70 + len(self.submissions)
            self.submissions.insert(
                0,
                {
                    "ref": ref,
                    "fileName": "submission.csv",
                    "date": "2026-11-20T10:00:00Z",
                    "description": body.get("submissionDescription", ""),
                },
            )
            return {"message": "Successfully submitted", "ref": ref}
        if name == "ListSubmissions":
            self.pending -= 1
            return {
                "submissions": [
                    {**one, **(self.scored if self.pending < 0 else {"status": "PENDING"})}
                    for one in self.submissions
                ]
            }
        if name == "StartBlobUpload":
            return {"token": f"BLOB-{body['name']}", "createUrl": f"http://localhost/upload/{body['name']}"}
        if name in ("CreateDataset", "CreateDatasetVersion"):
            self.created = True
            return self.dataset
        if name == "GetDatasetStatus":
            return {"status": self.states.pop(0) if len(self.states) > 1 else self.states[0]}
        if name == "SaveKernel":
            return self.kernel
        if name == "GetKernelSessionStatus":
            state = self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]
            return {"status": state, **({"failureMessage": "out of memory"} if state == "ERROR" else {})}
        if name == "ListKernelSessionOutput":
            return {
                "files": [{"url": f"http://localhost/files/{file}", "fileName": file} for file in self.files],
                "log": self.log,
            }
        if name == "IntrospectToken":
            return {"active": True, "username": NAME}
        raise KeyError(name)


class Handler(BaseHTTPRequestHandler):
    """Requests to the stub in `self.server.stub`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing: the tests look at what was asked."""

    def reply(self, content: bytes, status: int = 200, **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def fault(self, name: str) -> bool:
        """Answer with the error that a test wants, if it does."""
        if name not in self.server.stub.errors:
            return False
        status, message = self.server.stub.errors[name]
        self.reply(json.dumps({"code": status, "message": message}).encode(), status, Retry_After="0")
        return True

    def body(self) -> bytes:
        """What was sent, chunked or not."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_POST(self) -> None:
        """A call of a method."""
        body, stub, name = (
            json.loads(self.body() or b"{}"),
            self.server.stub,
            urlparse(self.path).path.rsplit("/", 1)[-1],
        )
        stub.calls.append((name, body))
        wanted = "Basic " + base64.b64encode(f"{NAME}:{KEY}".encode()).decode()
        if self.headers.get("Authorization") not in (wanted, f"Bearer {KEY}"):
            return self.reply(b'{"code": 401, "message": "Unauthenticated"}', 401)
        if self.fault(name):
            return None
        if name in ("DownloadDataFiles", "DownloadDataset"):
            return self.reply(b"", 302, Location="http://localhost/files/archive.zip")
        if name == "GetDatasetStatus" and not stub.created:
            return self.reply(b'{"code": 404, "message": "no such dataset"}', 404)
        return self.reply(json.dumps(stub.answer(name, body)).encode())

    def do_PUT(self) -> None:
        """An upload."""
        content = self.body()
        if not self.fault("PUT"):
            self.server.stub.uploads.append(content)
            self.reply(b"{}")

    def do_GET(self) -> None:
        """A download: whole, from a place on, or broken off."""
        stub, name = self.server.stub, urlparse(self.path).path.rsplit("/", 1)[-1]
        if self.fault(name):
            return
        content, begin = stub.files[name], 0
        stub.ranges.append(self.headers.get("Range"))
        if self.headers.get("Range") and self.headers.get("If-Range") == stub.etag:
            begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if begin else 200)
        self.send_header("ETag", stub.etag)
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/zip")
        if not stub.lengthless:
            self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content[begin:] if stub.cut is None else content[begin : begin + stub.cut])
        self.close_connection = True


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The stub, running; the client in this process and in its children talks to it and to nothing else,
    signed in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.stub = Stub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    home = tmp_path / "home"
    home.mkdir()
    for name in (
        "KAGGLE_API_TOKEN",
        "KAGGLE_KERNEL_RUN_TYPE",
        "NO_PROXY",
        "no_proxy",
        "ALL_PROXY",
        "all_proxy",
        "VERBOSE",
    ):
        monkeypatch.delenv(name, raising=False)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for name, value in {
        "HOME": home,
        "XDG_CONFIG_HOME": home,
        "KAGGLE_CONFIG_DIR": home,
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "TMPDIR": home,
        "KAGGLE_USERNAME": NAME,
        "KAGGLE_KEY": KEY,
        "HTTP_PROXY": address,
        "http_proxy": address,
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "https_proxy": "http://127.0.0.1:1",
    }.items():  # a fuse: nothing leaves
        monkeypatch.setenv(name, str(value))
    from kaggle.api.kaggle_api_extended import KaggleApi

    from earshot.kaggle import client

    # the class may have been imported by another test, before the environment was set
    monkeypatch.setattr(KaggleApi, "args", ["--local"])
    monkeypatch.setattr(KaggleApi, "config_dir", str(home))
    monkeypatch.setattr(KaggleApi, "config", str(home / "kaggle.json"))
    monkeypatch.setattr(client, "POLL", 0.01)
    monkeypatch.chdir(tmp_path)
    yield server.stub
    server.shutdown()
    server.server_close()
