"""Models from folders, and from a Hub that is a real HTTP server on this machine."""

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPModel

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.loading import load_model


def test_a_folder_loads_in_float32(clip_folder):
    folder = clip_folder()
    CLIPModel.from_pretrained(folder).half().save_pretrained(folder)
    model, processor = load_model(str(folder))
    assert isinstance(model, CLIPModel) and next(model.parameters()).dtype == torch.float32
    assert processor.tokenizer.model_max_length == 24


def cut(file):
    file.write_bytes(file.read_bytes()[:5000])


def keep_only(folder, *names):
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: cut(f / "model.safetensors"), "damaged|could not"),
        (lambda f: (f / "config.json").write_text("{"), "could not be loaded"),
        (lambda f: keep_only(f, "config.json", "model.safetensors"), "processor|could not"),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(clip_folder, break_it, message):
    folder = clip_folder()
    break_it(folder)
    with pytest.raises(ClipDomainError, match=message) as error:
        load_model(str(folder))
    assert str(folder) in str(error.value)


def test_a_run_folder_points_to_its_checkpoints(clip_folder, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.move(clip_folder(), tmp_path / "run" / "checkpoint-3")
    with pytest.raises(ClipDomainError, match="checkpoint-3"):
        load_model(str(tmp_path / "run"))


def test_a_missing_folder_and_a_file_are_named(clip_folder):
    folder = clip_folder()
    with pytest.raises(ClipDomainError, match="Did you mean .*clip"):
        load_model(str(folder.with_name("clop")))
    with pytest.raises(ClipDomainError, match="is a file"):
        load_model(str(folder / "config.json"))


def test_a_model_of_one_tower_is_refused(tmp_path):
    small = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)
    BertModel(small).save_pretrained(tmp_path / "bert")
    with pytest.raises(ClipDomainError, match="bert model, no dual encoder"):
        load_model(str(tmp_path / "bert"))


def test_offline_the_error_says_how_to_use_a_local_folder():
    with pytest.raises(ClipDomainError, match="someone/clip could not be reached.*hf download someone/clip"):
        load_model("someone/clip")


class Hub(BaseHTTPRequestHandler):
    """The few endpoints of the Hub that a download uses."""

    folder = None
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = [{"rfilename": file.name} for file in self.folder.iterdir()]
            content = {"id": "/".join(parts[2:4]), "sha": "a" * 40, "siblings": files}
            if "tree" in parts:
                content = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                    for file in self.folder.iterdir()
                ]
            return self.send(200, dumps(content).encode(), body, "application/json")
        file = self.folder / parts[-1]
        if parts[:2] != ["someone", "tiny"] or not file.is_file():
            missing = "EntryNotFound" if parts[:2] == ["someone", "tiny"] else "RepoNotFound"
            return self.send(404, b"not found", body, "text/plain", {"X-Error-Code": missing})
        self.send(200, file.read_bytes(), body, "application/octet-stream")

    def send(self, status, content, body, kind, headers=()):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def in_a_process(tmp_path, endpoint, program):
    """The Hub's address is read when the library is imported, so each try is a process of its own."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_a_hub_id_is_downloaded_by_the_ordinary_path(clip_folder, tmp_path):
    Hub.folder = clip_folder()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = in_a_process(
            tmp_path,
            f"http://127.0.0.1:{server.server_port}",
            """
            from hf_clip_domain.models.loading import load_model
            from hf_clip_domain.errors import ClipDomainError
            model, processor = load_model("someone/tiny")
            print("sum", float(sum(p.detach().double().sum() for p in model.parameters())), len(processor.tokenizer))
            try:
                load_model("nobody/nothing")
            except ClipDomainError as error:
                print("refused", error)
            """,
        )
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    model, processor = load_model(str(Hub.folder))
    total, size = done.stdout.split("sum ")[1].split()[:2]
    assert float(total) == pytest.approx(float(sum(p.detach().double().sum() for p in model.parameters())), abs=1e-9)
    assert int(size) == len(processor.tokenizer)
    assert "refused nobody/nothing is neither a local folder nor a model on the Hub" in done.stdout


@pytest.mark.slow
def test_an_unreachable_hub_is_one_sentence(tmp_path):
    done = in_a_process(
        tmp_path,
        "http://127.0.0.1:9",  # the discard port: nothing listens
        """
        from hf_clip_domain.models.loading import load_model
        from hf_clip_domain.errors import ClipDomainError
        try:
            load_model("someone/tiny")
        except ClipDomainError as error:
            print("refused", error)
        """,
    )
    assert "refused someone/tiny could not be reached on the Hub" in done.stdout, done.stderr[-2000:]
    assert "--local-dir" in done.stdout
