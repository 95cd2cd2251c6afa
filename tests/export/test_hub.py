"""Pushing, to a stand-in of the Hub's API on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.export.hub import push, require_push

# httpx warns of how huggingface_hub uploads files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Hub(ThreadingHTTPServer):
    """Takes small files inside of commits, and large ones by the LFS protocol."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.created: dict[str, Any] = {}
        self.tokens: set[str] = set()
        self.refuses = False


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.server.refuses:
            self.reply(403, {"error": "no right to write"})
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.reply(200, {"url": f"{self.server.address}/me/model"})
        elif self.path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif self.path == "/api/models/me/model/preupload/main":
            wanted = json.loads(body)["files"]
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".gguf") else "regular",
                    "shouldIgnore": False,
                }
                for each in wanted
            ]
            self.reply(200, {"files": modes})
        elif self.path == "/me/model.git/info/lfs/objects/batch":
            objects = [
                {
                    **each,
                    "actions": {"upload": {"href": f"{self.server.address}/lfs/{each['oid']}"}},
                }
                for each in json.loads(body)["objects"]
            ]
            self.reply(200, {"transfer": "basic", "objects": objects})
        elif self.path == "/api/models/me/model/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[value["path"]] = self.server.objects[value["oid"]]
            commit = f"{self.server.address}/me/model/commit/{'0' * 40}"
            self.reply(200, {"commitUrl": commit, "commitOid": "0" * 40})
        else:
            self.reply(404, {"error": self.path})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[self.path.removeprefix("/lfs/")] = content
        self.reply(200, {})

    def do_GET(self) -> None:
        self.reply(200, {"sha": "0" * 40, "id": "me/model", "siblings": []})

    def reply(self, code: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)  # read at import
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        # hf_xet speaks another protocol, to other servers.
        monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
        server.shutdown()


def test_files_arrive_in_a_private_repository(hub: Hub, tmp_path: Path) -> None:
    contents = {"README.md": b"# card\n", "model.gguf": bytes(range(256)) * 64}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    require_push("me/model")
    address = push("me/model", [tmp_path / name for name in contents])

    assert hub.files == contents
    assert address == f"{hub.address}/me/model"
    assert "private" in hub.created.values() or hub.created["private"] is True
    assert hub.tokens == {"Bearer hf_secret"}


def test_what_a_server_refuses_is_an_error(hub: Hub, tmp_path: Path) -> None:
    hub.refuses = True
    (tmp_path / "a").write_text("a")

    with pytest.raises(LlmtrainError, match=r"me/model did not take the files: .*403"):
        push("me/model", [tmp_path / "a"])


def test_nothing_is_pushed_where_the_network_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(UsageError, match="HF_HUB_OFFLINE forbids it"):
        require_push("me/model")


def test_nothing_is_pushed_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)

    with pytest.raises(UsageError, match="needs a token") as caught:
        require_push("me/model")
    assert caught.value.hint == "hf auth login, or set HF_TOKEN"
    with pytest.raises(UsageError, match="not the name of a repository"):
        require_push("../model")
