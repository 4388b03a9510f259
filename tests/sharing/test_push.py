"""Publishing: what goes out, what stays, and a connection that breaks; the client is Hugging Face's own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_clip_domain.cli.main import main
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.sharing.publication import Publication, without_local_paths

_spec = importlib.util.spec_from_file_location("hub_stand_in", Path(__file__).with_name("hub_stand_in.py"))
stand_in = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stand_in)
# The library waits up to half a minute between its attempts at one request.
HASTY = "import time; time.sleep = lambda seconds: None; import sys; from hf_clip_domain.cli.main import main; "
HASTY += "sys.exit(main(sys.argv[1:]))"


def run(hub, *arguments, token=stand_in.TOKEN, timeout=120, program=("-c", HASTY)):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": token, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert token not in done.stdout + done.stderr and "X-Signature" not in done.stdout + done.stderr
    return done


@pytest.fixture
def folder(tmp_path):
    """A run's folder as it lies there after training, checkpoints and logs included."""
    folder = tmp_path / "my run"
    (folder / "checkpoint-4").mkdir(parents=True)
    (folder / "checkpoint-4" / "model.safetensors").write_bytes(b"checkpoint")
    (folder / "checkpoint-4" / "optimizer.pt").write_bytes(b"state")
    (folder / "runs").mkdir()
    for name in ("training_args.bin", "optimizer.pt", "quarantine.jsonl", "runs/events.out", "notes.log"):
        (folder / name).write_text(f"made in {folder}")
    (folder / "model.safetensors").write_bytes(b"weights" * 50_000)
    (folder / "config.json").write_text('{"model_type": "clip"}')
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n\n# Card\n\n![Recall](recall.png)\n\n![Old](forgetting.png)\n"
    )
    (folder / "recall.png").write_bytes(b"picture")
    (folder / "run.yaml").write_text(f"dataset: {tmp_path}/pairs.csv\nlearning_rate: 1.0e-05\n")
    (folder / "evaluation.json").write_text(json.dumps({"after": {}, "dataset": f"{Path.home()}/secret/pairs.csv"}))
    return folder


PUBLISHED = {"model.safetensors", "config.json", "README.md", "recall.png", "run.yaml", "evaluation.json"}


def test_the_model_goes_out_in_one_commit_and_the_rest_stays(folder):
    with stand_in.Hub() as hub:
        done = run(hub, "push", folder, "--repo_id", "me/model", "--private")
        assert done.returncode == 0, done.stderr
        assert f"{hub.url}/me/model/commit/" in done.stdout and "checkpoint-4" in done.stdout
        assert len(hub.repositories["me/model"]) == 2 and hub.private == {"me/model"}  # what created it, and one commit
        files = hub.files("me/model")
    assert set(files) == PUBLISHED | {".gitattributes"}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    everything = b"".join(files.values())
    assert str(folder).encode() not in everything and str(Path.home()).encode() not in everything
    assert b"dataset: (local) pairs.csv\nlearning_rate: 1.0e-05" in files["run.yaml"]
    assert b"![Recall](recall.png)" in files["README.md"] and b"forgetting.png" not in files["README.md"]


def test_a_second_push_sends_what_changed_and_removes_what_is_stale(folder):
    with stand_in.Hub() as hub:
        assert run(hub, "push", folder, "--repo_id", "model").returncode == 0  # of one's own
        hub.repositories["me/model"][-1] |= {"adapter_config.json": b"{}", "theirs.txt": b"kept"}
        sent = hub.asked["upload"]
        assert run(hub, "push", folder, "--repo_id", "me/model").returncode == 0
        assert hub.asked["upload"] == sent == 2
        assert set(hub.files("me/model")) == PUBLISHED | {".gitattributes", "theirs.txt"}
        commits = len(hub.repositories["me/model"])
        assert run(hub, "push", folder, "--repo_id", "me/model").returncode == 0
        assert len(hub.repositories["me/model"]) == commits  # nothing changed: no empty commit


@pytest.mark.parametrize("kind", ["upload", "commit", "preupload"])
def test_a_connection_that_breaks_half_way_is_tried_again(folder, kind):
    with stand_in.Hub() as hub:
        hub.breaks[kind] = 2
        done = run(hub, "push", folder, "--repo_id", "me/model")
        assert done.returncode == 0, done.stderr
        assert set(hub.files("me/model")) == PUBLISHED | {".gitattributes"} and hub.asked[kind] >= 3
        assert len(hub.repositories["me/model"]) == 2


def test_a_push_that_broke_off_leaves_nothing_half_done_and_goes_on(folder):
    with stand_in.Hub() as hub:
        hub.breaks["commit"] = 1000
        done = run(hub, "push", folder, "--repo_id", "me/model")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert "Nothing was published" in last and f"hf-clip-domain push '{folder}' --repo_id me/model" in last
        assert set(hub.files("me/model")) == {".gitattributes"}
        hub.breaks.clear()
        sent = hub.asked["upload"]
        assert run(hub, "push", folder, "--repo_id", "me/model").returncode == 0
        assert hub.asked["upload"] == sent  # the weights were there already
        assert set(hub.files("me/model")) == PUBLISHED | {".gitattributes"}


def test_a_wrong_token_is_told_without_showing_it(folder):
    with stand_in.Hub() as hub:
        done = run(hub, "push", folder, "--repo_id", "me/model", token="hf_wrongwrongwrongwrongwrongwrongwr")
        assert done.returncode == 1 and "hf auth login" in done.stderr and not hub.repositories


def test_a_dry_run_shows_files_and_card_and_sends_nothing(folder, capsys):
    assert main(["push", str(folder), "--repo_id", "me/model", "--dry_run"]) == 0  # offline, as all tests are
    printed = capsys.readouterr().out
    assert "350,000  model.safetensors" in printed and "# Card" in printed and "forgetting.png" not in printed
    assert "Left out: checkpoint-4, notes.log, optimizer.pt, quarantine.jsonl, runs, training_args.bin." in printed


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        (".env", "A=1"),
        ("id_rsa", "key"),
        ("my_credentials.json", "{}"),
        ("run.yaml", "hub_token: " + stand_in.TOKEN),
        ("README.md", "-----BEGIN RSA PRIVATE KEY-----"),
        ("evaluation.json", "https://hooks.slack.com/services/T0/B0/x"),
    ],
)
def test_secrets_are_refused_by_name(folder, name, contents):
    (folder / name).write_text(contents)
    with pytest.raises(ClipDomainError, match="secret") as refused:
        Publication.of(folder)
    assert name in str(refused.value) and stand_in.TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no model"),
        (lambda folder: (folder / "README.md").unlink(), "README.md"),
        (lambda folder: folder.rename(folder.with_name("gone")), "no such folder"),
    ],
)
def test_what_is_no_model_is_not_published(folder, change, told):
    change(folder)
    with pytest.raises(ClipDomainError, match=told):
        Publication.of(folder)


def test_files_can_be_left_out_and_links_lead_nowhere(folder, tmp_path):
    (tmp_path / "private.yaml").write_text("a: 1")
    (folder / "domain.yaml").symlink_to(tmp_path / "private.yaml")
    publication = Publication.of(folder, ["*.png"])
    assert set(publication.files) == PUBLISHED - {"recall.png"} and "recall.png" not in publication.card()
    with pytest.raises(ClipDomainError, match="matches none"):
        Publication.of(folder, ["nothing*"])


def test_only_paths_of_this_machine_are_taken_out(tmp_path):
    text = (
        f"see https://huggingface.co/me/model and {tmp_path}/x.csv, a/b, 1/2, <a href='/docs/x'> and ~/mine/pairs.csv."
    )
    assert without_local_paths(text) == (
        "see https://huggingface.co/me/model and (local) x.csv, a/b, 1/2, <a href='/docs/x'> and (local) pairs.csv"
    )


def test_a_failed_push_after_training_tells_how_to_do_it_later(folder):
    from hf_clip_domain.arguments import ClipTrainingArguments
    from hf_clip_domain.cli.publishing import publish, take_destination

    with pytest.raises(ClipDomainError, match="is trained and saved in .*failed.*To publish it later: `hf-clip-domain"):
        publish(ClipTrainingArguments(str(folder)), "me/model", print)
    with_checkpoints = ClipTrainingArguments(str(folder), push_to_hub=True, hub_strategy="checkpoint")
    with pytest.raises(ClipDomainError, match="--hub_strategy checkpoint"):
        take_destination(with_checkpoints)


@pytest.mark.slow
def test_training_pushes_the_whole_folder_once(tmp_path):
    output = tmp_path / "my-model"
    with stand_in.Hub() as hub:
        options = ["--domain", "scientific", "--smoke", "--output_dir", output, "--skip_device_check", "true"]
        options += ["--push_to_hub", "true", "--hub_token", stand_in.TOKEN, "--hub_private_repo", "true"]
        options += ["--probe_dataset", "none", "--max_steps", "1"]
        done = run(hub, "train", *options, timeout=280, program=("-m", "hf_clip_domain.cli.main"))
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(hub.repositories["me/my-model"]) == 2 and hub.private == {"me/my-model"}
        files = hub.files("me/my-model")
    assert {"README.md", "model.safetensors", "evaluation.json", "recall.png", "domain.yaml", "run.yaml"} <= set(files)
    assert not [name for name in files if "checkpoint" in name or "optimizer" in name or name.endswith(".bin")]
    assert b"hf-clip-domain" in files["README.md"]  # the package's card, not the Trainer's
    everything = b"".join(contents for name, contents in files.items() if not name.endswith(".png"))
    assert stand_in.TOKEN.encode() not in everything and str(tmp_path).encode() not in everything
    assert (output / "model.safetensors").read_bytes() == files["model.safetensors"]
