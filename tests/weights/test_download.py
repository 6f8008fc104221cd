import hashlib
import http.server
import multiprocessing
import threading
from typing import ClassVar

import gdown
import pytest
import torch
from gdown.exceptions import FileURLRetrievalError
from support import authors_state

from isonet_det import ISONet, ISONetError, model_zoo
from isonet_det.weights.loader import resolve_weights
from isonet_det.weights.zoo import cache_dir, fetch

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Misbehaving(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, in the ways that servers fail."""

    requests: ClassVar[list[str]] = []
    cut = 0

    def do_GET(self):
        self.requests.append(self.path)
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
        body = CONTENT[start:]
        if self.path.startswith("/quota"):
            body = b"<!DOCTYPE html><html><body>Quota exceeded</body></html>"
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            place = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            self.send_header("Content-Range", place)
        self.end_headers()
        if self.path.startswith("/cut") and Misbehaving.cut > 0:
            Misbehaving.cut -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    Misbehaving.requests, Misbehaving.cut = [], 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def test_a_file_comes_once_and_its_hash_is_remembered(server):
    path = fetch(f"{server}/file", "a.pth")
    assert path.read_bytes() == CONTENT and path.parent == cache_dir()
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert (path.parent / "a.pth.sha256").read_text().strip() == digest
    assert fetch(f"{server}/file", "a.pth") == path and len(Misbehaving.requests) == 1
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ISONetError, match="sha256"):
        fetch(f"{server}/file", "a.pth")
    assert resolve_weights(f"{server}/x/file") != resolve_weights(f"{server}/y/file")


def test_a_file_put_there_by_hand_fills_a_detector(server):
    cache_dir().mkdir(parents=True)
    torch.save(authors_state(ISONet(18, num_classes=10)), cache_dir() / "R-ISONet-18-dropout.pth")
    model = model_zoo.get("mask_rcnn_risonet18_fpn.yaml", device="cpu", pretrained_backbone=True)
    expected = authors_state(ISONet(18))["module.stem.conv.weight"]
    assert torch.equal(model.backbone.bottom_up.stem.conv.weight, expected)


def test_a_cut_download_is_an_error_and_resumes(server):
    Misbehaving.cut = 1
    with pytest.raises(ISONetError, match="cut short") as error:
        fetch(f"{server}/cut", "b.pth")
    assert f"{server}/cut" in str(error.value) and str(cache_dir() / "b.pth") in str(error.value)
    assert not (cache_dir() / "b.pth").exists()
    assert fetch(f"{server}/cut", "b.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(("path", "extra", "named"), [
    ("/gone", {}, "404"),
    ("/quota", {}, "web page"),
    ("/file", {"sha256": "f37072fd"}, "sha256"),
    ("/file", {"num_bytes": 7}, "expected 7"),
])  # fmt: skip
def test_a_refused_file_never_appears(server, path, extra, named):
    with pytest.raises(ISONetError, match=named) as error:
        fetch(server + path, "c.pth", **extra)
    assert server + path in str(error.value) and "\n" not in str(error.value)
    assert not (cache_dir() / "c.pth").exists()


def test_google_drives_refusal_names_address_and_place(server, monkeypatch):
    def refuse(*args, **kwargs):
        raise FileURLRetrievalError("Too many users have viewed\nor downloaded this file")

    monkeypatch.setattr(gdown, "download", refuse)
    with pytest.raises(ISONetError, match="Too many users") as error:
        model_zoo.get_checkpoint("R-ISONet-50-dropout")
    assert "19KIBwTQs6kxu9kYAX5b3pTyaIkpsUMzl" in str(error.value)
    assert str(cache_dir() / "R-ISONet-50-dropout.pth") in str(error.value)


@pytest.mark.slow
def test_one_process_of_many_downloads(server):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        paths = pool.starmap(fetch, [(f"{server}/file", "e.pth")] * 3)
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert len(Misbehaving.requests) == 1
