"""`hf-clip-domain embed`: every row once and equal to the embedder's, after kills and with any number of processes."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from hf_clip_domain.cli.main import main
from hf_clip_domain.corpus import folder as folder_module
from hf_clip_domain.corpus.folder import ShardFolder
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError

ROOT = Path(__file__).parents[2]


def embed(model, data, output, *more):
    return main(["embed", str(model), str(data), "--output", str(output), *more])


def shards(output):
    return sorted(Path(output).glob("part-*.parquet"))


def rows_of(output):
    return [row for path in shards(output) for row in pq.read_table(path).to_pylist()]


def check(rows, data, model, *, bad=(3, 7), tolerance=1e-5):
    """Every row once, in order, equal to what the embedder gives, and those that cannot be read with their reason."""
    assert [row["row"] for row in rows] == list(range(len(rows)))
    embedder = ClipEmbedder.from_pretrained(model)
    good = [row["row"] for row in rows if row["row"] not in bad]
    expected = embedder.embed_images([data.parent / f"{number}.png" for number in good], progress=False).numpy()
    assert np.abs(np.array([rows[number]["image_embeds"] for number in good]) - expected).max() < tolerance
    captioned = [row["row"] for row in rows if row["row"] != 5]
    expected = embedder.embed_texts([f"caption {number}" for number in captioned], progress=False).numpy()
    assert np.abs(np.array([rows[number]["text_embeds"] for number in captioned]) - expected).max() < tolerance
    assert all(rows[number]["image_embeds"] is None for number in bad) and rows[5]["text_embeds"] is None
    assert "no such file" in rows[3]["error"] and "not a picture" in rows[7]["error"]
    assert [row["row"] for row in rows if row["error"]] == [3, 5, 7]


def test_rows_equal_the_embedders_and_none_is_lost(clip_folder, corpus, tmp_path, capsys):
    data = corpus()
    assert (
        embed(clip_folder, data, tmp_path / "out", "--shard_rows", "5", "--batch_size", "4", "--key_column", "id") == 0
    )
    rows = rows_of(tmp_path / "out")
    check(rows, data, clip_folder)
    assert [row["key"] for row in rows] == [f"id-{number}" for number in range(23)]
    assert "23 rows in 5 files: 21 pictures and 22 texts embedded; 3 rows with an error" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["rows"] == 23 and manifest["model"]["resolution"] == 32
    field = pq.read_schema(shards(tmp_path / "out")[0]).field("image_embeds")
    assert str(field.type) == "list<element: float>"


def test_missing_and_damaged_files_alone_are_embedded_again(clip_folder, corpus, tmp_path):
    data, out = corpus(), tmp_path / "out"
    assert embed(clip_folder, data, out, "--shard_rows", "5", "--dtype", "float16") == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards(out)}
    (out / "part-00000001.parquet").unlink()
    (out / "part-00000003.parquet").write_bytes(before[out / "part-00000003.parquet"][1][:-100])
    (out / ".part-00000009.parquet.1.draft").write_bytes(b"of a run that was killed")
    assert embed(clip_folder, data, out, "--shard_rows", "5", "--dtype", "float16") == 0
    check(rows_of(out), data, clip_folder, tolerance=1e-3)
    untouched = [path for path, (time_ns, _) in before.items() if path.stat().st_mtime_ns == time_ns]
    assert [path.name for path in untouched] == [f"part-{number:08d}.parquet" for number in (0, 2, 4)]
    assert not list(out.glob("*.draft")) and not list(out.glob(".*.draft"))


def test_another_model_dataset_or_setting_is_refused_by_name(clip_folder, corpus, tmp_path, capsys):
    data, out = corpus(), tmp_path / "out"
    assert embed(clip_folder, data, out, "--shard_rows", "50") == 0
    content = [path.read_bytes() for path in shards(out)]
    assert embed("starter", data, out, "--shard_rows", "50") == 1 and "another model" in capsys.readouterr().err
    assert embed(clip_folder, data, out, "--shard_rows", "5") == 1 and "--shard_rows" in capsys.readouterr().err
    assert embed(clip_folder, data, out, "--shard_rows", "50", "--only", "image") == 1
    assert "columns" in capsys.readouterr().err
    data.write_text(data.read_text().replace("caption 9", "caption 8"))
    assert embed(clip_folder, data, out, "--shard_rows", "50") == 1 and "another dataset" in capsys.readouterr().err
    assert embed(clip_folder, data.parent, data.parent / "out") == 1 and "lies in" in capsys.readouterr().err
    assert [path.read_bytes() for path in shards(out)] == content


def test_one_run_at_a_time(tmp_path):
    identity = {"shard_rows": 5, "sides": ["image"]}
    with ShardFolder(tmp_path, identity).taken():
        with pytest.raises(ClipDomainError, match="another run is writing"):
            with ShardFolder(tmp_path, identity).taken():
                pass
    with ShardFolder(tmp_path, identity).taken():
        pass


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(clip_folder, corpus, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module.os, "fsync", full)
    assert embed(clip_folder, corpus(), tmp_path / "out") == 1
    assert "No space left on device" in capsys.readouterr().err and not list((tmp_path / "out").glob("*.parquet*"))


@pytest.mark.slow
def test_killed_with_two_processes_and_resumed_with_three(clip_folder, corpus, tmp_path):
    """Files of the killed run stay as they are; the others are embedded by another number of processes."""
    data, out = corpus(rows=300), tmp_path / "out"
    more = ["--shard_rows", "2", "--batch_size", "2"]
    run = launch(2, clip_folder, data, out, more)
    until(lambda: len(shards(out)) >= 8, run)
    kill(run)
    first = {path.name: path.stat().st_mtime_ns for path in shards(out)}
    assert 8 <= len(first) < 150 and not json.loads((out / "manifest.json").read_text())["complete"]
    run = launch(3, clip_folder, data, out, more)
    printed, _ = run.communicate(timeout=700)
    assert run.returncode == 0, printed
    assert f"300 rows in 150 files ({len(first)} were there before): 298 pictures and 299 texts" in printed
    check(rows_of(out), data, clip_folder)
    assert {name: (out / name).stat().st_mtime_ns for name in first} == first
    assert not list(out.glob(".*.draft"))


def launch(processes, *words):
    model, data, out, more = words
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", "1", "--main_process_port", str(port)]
    command += [str(ROOT / "recipes" / "embed.py"), str(model), str(data), "--output", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def until(true, run):
    while not true():
        assert run.poll() is None, run.communicate()[0][-3000:]
        time.sleep(0.005)


def kill(run):
    """Launcher and processes, none of which can tidy up."""
    for process in [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]:
        process.kill()
    run.communicate()
