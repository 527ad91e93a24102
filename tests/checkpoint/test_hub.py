"""Fetching from a hub: against a server on loopback that answers as the hub does (resolve, ETag, X-Linked-*, Range)."""

import hashlib
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from turbodiffusion.checkpoint.hub import fetch
from turbodiffusion.errors import CheckpointError, MissingFilesError
from turbodiffusion.presets import HubFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
LARGE = HubFile("team/model", "sub/weights.pth", "transformer", len(WEIGHTS))
SMALL = HubFile("team/model", "config.json", "configuration", 2)


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict = field(default_factory=lambda: {"sub/weights.pth": WEIGHTS, "config.json": b"{}"})
    cut_after: int | None = None  # bytes of a body after which the connection is closed
    cuts: int = 0  # how many bodies are cut so
    damaged: bool = False
    status: int = 200
    asked: list = field(default_factory=list)  # (method, path, Range)
    url: str = ""


def handler_of(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(send_body=False)

        def do_GET(self):
            self.answer(send_body=True)

        def answer(self, send_body):
            hub.asked.append((self.command, self.path, self.headers.get("Range")))
            match = re.fullmatch(r"/team/model/resolve/[^/]+/(.+)", self.path)
            if hub.status != 200:
                return self.refuse(hub.status, "")
            if match is None:
                return self.refuse(404, "RepoNotFound")
            if match[1] not in hub.files:
                return self.refuse(404, "EntryNotFound")
            body = hub.files[match[1]]
            large = match[1].endswith(".pth")
            etag = hashlib.sha256(body).hexdigest() if large else hashlib.sha1(body).hexdigest()
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{etag}"')
            if large:
                self.send_header("X-Linked-ETag", f'"{etag}"')
                self.send_header("X-Linked-Size", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            if send_body:
                self.send(body[start:])

        def send(self, body):
            if hub.damaged:
                body = bytes(len(body))
            if hub.cuts:
                hub.cuts -= 1
                body = body[: hub.cut_after]
                self.close_connection = True
            self.wfile.write(body)

        def refuse(self, status, code):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's attempts
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(state))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def gets(hub):
    return [asked for asked in hub.asked if asked[0] == "GET"]


def test_download_with_progress_then_from_the_cache(hub):
    seen = []
    paths = fetch([LARGE, SMALL], endpoint=hub.url, on_progress=lambda *args: seen.append(args))
    assert paths.keys() == {"sub/weights.pth", "config.json"}
    assert paths["sub/weights.pth"].read_bytes() == WEIGHTS
    assert paths["config.json"].read_bytes() == b"{}"
    assert (LARGE, len(WEIGHTS), len(WEIGHTS)) in seen
    assert [done for file, done, _ in seen if file is LARGE] == sorted(done for file, done, _ in seen if file is LARGE)
    asked = len(hub.asked)
    assert fetch([LARGE, SMALL], endpoint=hub.url) == paths
    assert len(hub.asked) == asked  # the cache is enough


def test_cut_connection_is_resumed(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # what has come is kept by chunks, 10 MB otherwise
    hub.cut_after, hub.cuts = 300_000, 2
    seen = []
    path = fetch([LARGE], endpoint=hub.url, on_progress=lambda *args: seen.append(args))["sub/weights.pth"]
    assert path.read_bytes() == WEIGHTS
    assert [asked[2] for asked in gets(hub)] == [None, "bytes=300000-", "bytes=600000-"]
    assert seen[-1] == (LARGE, len(WEIGHTS), len(WEIGHTS))


def test_connection_that_is_always_cut_is_told(hub):
    hub.cut_after, hub.cuts = 0, 100
    with pytest.raises(MissingFilesError, match=r"sub/weights\.pth \(transformer, 1\.0 MB\)") as caught:
        fetch([LARGE], endpoint=hub.url)
    assert "\n" not in str(caught.value)
    assert hub.cuts > 50  # it gave up


def test_damaged_body_is_detected_and_not_kept(hub, tmp_path):
    hub.damaged = True
    with pytest.raises(CheckpointError, match=r"sub/weights\.pth from team/model came damaged"):
        fetch([LARGE], endpoint=hub.url)
    blobs = tmp_path / "cache" / "models--team--model" / "blobs"
    assert list(blobs.iterdir()) == []
    hub.damaged = False
    assert fetch([LARGE], endpoint=hub.url)["sub/weights.pth"].read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (HubFile("team/none", "a.pth", "vae", 3_000), "team/none does not exist there, or is private"),
        (HubFile("team/model", "a.pth", "vae", 3_000), r"team/model has no file a\.pth"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub, file, reason):
    with pytest.raises(MissingFilesError, match=reason):
        fetch([file], endpoint=hub.url)


def test_hub_that_fails_is_told(hub):
    hub.status = 503
    with pytest.raises(MissingFilesError, match="the hub cannot be reached"):
        fetch([SMALL], endpoint=hub.url)


def test_hub_that_is_away_is_told(hub):
    with pytest.raises(MissingFilesError, match="the hub cannot be reached"):
        fetch([SMALL], endpoint="http://127.0.0.1:9")  # the discard port: nobody listens


def test_message_has_everything_that_is_left_to_do(hub, monkeypatch):
    fetch([SMALL], endpoint=hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    files = [
        SMALL,
        HubFile("team/model", "high.pth", "transformer", 28_600_000_000),
        HubFile("team/model", "low.pth", "transformer_low", 28_600_000_000),
        HubFile("other/parts", "vae.pth", "vae", 508_000_000),
    ]
    with pytest.raises(MissingFilesError) as caught:
        fetch(files)
    assert str(caught.value) == (
        f"3 files are missing, 57.7 GB from {constants.ENDPOINT}: high.pth (transformer, 28.6 GB) of team/model, "
        "low.pth (transformer_low, 28.6 GB) of team/model, vae.pth (vae, 508.0 MB) of other/parts; "
        "HF_HUB_OFFLINE is set; fetch with: "
        "HF_HUB_OFFLINE=0 hf download team/model high.pth low.pth && HF_HUB_OFFLINE=0 hf download other/parts vae.pth"
    )
    assert fetch([SMALL])["config.json"].read_bytes() == b"{}"  # offline, from the cache


def test_command_names_another_endpoint(hub):
    with pytest.raises(MissingFilesError) as caught:
        fetch([HubFile("team/model", "a.pth", "vae", 5)], endpoint=hub.url)
    assert str(caught.value).endswith(f"fetch with: HF_ENDPOINT={hub.url} hf download team/model a.pth")


SCRIPT = """
from turbodiffusion.checkpoint.hub import HubFile, fetch
from turbodiffusion.errors import MissingFilesError
for path in ("config.json", "sub/weights.pth"):
    try:
        print(fetch([HubFile("team/model", path, "vae", 5)])[path].read_bytes()[:3])
    except MissingFilesError as error:
        print(error)
"""


@pytest.mark.slow
def test_environment_is_honoured(hub, tmp_path):
    def run(**settings):
        # HF_HUB_CACHE of the machine that runs this test would win over HF_HOME
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        env = kept | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | settings
        run = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
        return run.stdout.splitlines()

    del hub.files["sub/weights.pth"]
    first = run(HF_ENDPOINT=hub.url)
    assert first[0] == "b'{}'"
    assert "team/model has no file sub/weights.pth" in first[1]
    asked = len(hub.asked)
    offline = run(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert offline[0] == "b'{}'"
    assert f"from {hub.url}" in offline[1]
    assert "HF_HUB_OFFLINE is set" in offline[1]
    assert len(hub.asked) == asked
