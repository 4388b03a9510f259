"""Models from folders, and from a Hub that is a real HTTP server on this machine."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, CLIPModel, CLIPTokenizer

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


def without_vision_tower(file):
    tensors = {name: value for name, value in load_file(file).items() if not name.startswith("vision_model")}
    save_file(tensors, file, metadata={"format": "pt"})


def with_a_wider_text_tower(file):
    config = json.loads(file.read_text())
    config["text_config"]["hidden_size"] = 64
    file.write_text(json.dumps(config))


def in_two_shards_of_which_one_is_there(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"logit_scale": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "config.json.* could not be loaded"),
        (
            lambda f: (f / "config.json").rename(f / "adapter_config.json"),
            "an adapter alone, whose .* names no base",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: cut(f / "model.safetensors"), "weights are damaged or cut short"),
        (lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
        (lambda f: without_vision_tower(f / "model.safetensors"), "39 tensors are missing, such as vision_model"),
        (lambda f: with_a_wider_text_tower(f / "config.json"), r"has shape \(24, 32\) in the file and \(24, 64\)"),
        (in_two_shards_of_which_one_is_there, "lacks 1 of 2 weight files, such as model-00002"),
        (lambda f: keep_only(f, "config.json", "model.safetensors"), "processor .* could not be loaded"),
        (lambda f: (f / "tokenizer.json").unlink(), "no vocabulary: tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "processor .* could not be loaded"),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(clip_folder, break_it, message):
    """Nothing that is missing may be made up: neither random weights nor a tokenizer of two tokens."""
    folder = clip_folder()
    break_it(folder)
    with pytest.raises(ClipDomainError, match=message) as error:
        load_model(str(folder))
    assert str(folder) in str(error.value)


def test_a_tokenizer_of_another_model_is_refused(clip_folder):
    folder = clip_folder()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["radiograph"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ClipDomainError, match="tokens and the text tower .* they belong to different models"):
        load_model(folder)


def test_old_checkpoints_load_without_a_word(clip_folder, capfd):
    """The first CLIP checkpoints hold position ids, which today's models make themselves."""
    folder = clip_folder()
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    load_model(folder)
    output = capfd.readouterr()
    assert "position_ids" not in output.out + output.err


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


@pytest.mark.parametrize(
    "name", ["./out", "/x/y", "~/no-such-model", "outputs/run/best", "C:\\models\\clip", "my model", "out/"]
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ClipDomainError, match="no such folder"):
        load_model(name)


def test_a_near_miss_is_told(clip_folder, tmp_path, monkeypatch):
    clip_folder("medical")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ClipDomainError, match=f"Did you mean {tmp_path.name}/medical"):
        load_model(f"{tmp_path.name}/medicl")
    with pytest.raises(ClipDomainError, match="Did you mean starter"):
        load_model("startr")
    with pytest.raises(ClipDomainError, match="--model_name_or_path is empty"):
        load_model("")


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
        if "no-such-branch" in parts:
            return self.send(404, b"no", body, "text/plain", {"X-Error-Code": "RevisionNotFound"})
        if parts[:2] == ["api", "models"]:
            files = [{"rfilename": file.name} for file in self.folder.iterdir()]
            content = {"id": "/".join(parts[2:4]), "sha": "a" * 40, "siblings": files}
            if "tree" in parts:
                content = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                    for file in self.folder.iterdir()
                ]
            return self.send(200, json.dumps(content).encode(), body, "application/json")
        if parts[:2] == ["someone", "gated"]:
            return self.send(403, b"no", body, "text/plain", {"X-Error-Code": "GatedRepo"})
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


EMBED = """
    import json, sys, torch
    from hf_clip_domain.errors import ClipDomainError
    from hf_clip_domain.models.loading import load_model

    def embed(name):
        model, processor = load_model(name)
        with torch.no_grad():
            return model.get_text_features(**processor.tokenizer("a red circle", return_tensors="pt")).pooler_output
"""


@pytest.mark.slow
def test_a_hub_id_is_downloaded_by_the_ordinary_path(clip_folder, tmp_path):
    Hub.folder = clip_folder()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = in_a_process(
            tmp_path,
            f"http://127.0.0.1:{server.server_port}",
            EMBED
            + f"""
    assert torch.equal(embed("someone/tiny"), embed({str(Hub.folder)!r}))
    refused = {{}}
    for name, options in (("nobody/nothing", {{}}), ("someone/gated", {{}}), ("someone/tiny", {{"revision": "no-such-branch"}})):
        try:
            load_model(name, **options)
        except ClipDomainError as error:
            refused[name] = str(error)
    print("refused", json.dumps(refused))
            """,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    finally:
        server.shutdown()
        server.server_close()
    refused = json.loads(done.stdout.partition("refused ")[2])
    assert refused["nobody/nothing"].startswith("nobody/nothing is neither a local folder nor a model on the Hub")
    assert "accept its terms there and log in" in refused["someone/gated"]
    assert "no such revision: check --model_revision" in refused["someone/tiny"]

    # The server is gone, what it sent is in the cache; one that was never asked for is not.
    start = time.monotonic()
    done = in_a_process(
        tmp_path,
        f"http://127.0.0.1:{server.server_port}",
        EMBED
        + f"""
    assert torch.equal(embed("someone/tiny"), embed({str(Hub.folder)!r}))
    try:
        load_model("someone/other")
    except ClipDomainError as error:
        print("refused", error)
        """,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused someone/other could not be reached on the Hub (http://127.0.0.1" in done.stdout
    assert "`hf download someone/other --local-dir FOLDER`" in done.stdout
    assert time.monotonic() - start < 60, "asking again for each file takes minutes"


def test_a_revision_of_a_folder_is_refused(clip_folder):
    with pytest.raises(ClipDomainError, match="has no revisions: leave out --model_revision v2"):
        load_model(str(clip_folder()), revision="v2")
