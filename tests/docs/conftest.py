"""What the guides' blocks find where they are run: pairs, pictures, finished runs, and a server."""

import csv
import json
import shutil
import threading
import time

import pytest

from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.models.loading import load_model
from tests.docs.blocks import ROOT


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    """`pairs.csv` with 60 scans and `scans/`, one picture under several names, the recipes; the starter as `outputs/...`."""
    folder = tmp_path_factory.mktemp("things")
    rows = load_samples("medical", train=60, validation=1, test=1)["train"]
    (folder / "scans").mkdir()
    table = []
    for number, row in enumerate(rows):
        file = f"scans/{number:03}.png"
        (folder / file).write_bytes(row["image"]["bytes"])
        table.append({"image": file, "text": row["text"][0], "patient_id": f"p{number}"})
    for name in ("picture.jpg", "scan.png"):
        shutil.copy(folder / "scans/000.png", folder / name)
    for name in ("pairs.csv", "photos.csv"):
        with open(folder / name, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    pairs = folder / "path/to/pairs"
    (pairs / "scans").mkdir(parents=True)
    for row in table:
        shutil.copy(folder / row["image"], pairs / row["image"])
    lines = [
        json.dumps({"file_name": row["image"], "text": row["text"], "patient_id": row["patient_id"]}) for row in table
    ]
    (pairs / "metadata.jsonl").write_text("\n".join(lines))
    shutil.copy(folder / "pairs.csv", folder / "path/to/pairs.csv")
    shutil.copytree(folder / "scans", folder / "path/to/scans")
    shutil.copytree(pairs, folder / "path/or/hub-id")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    model, processor = load_model("starter")
    for name in ("my-model", "medical"):
        model.save_pretrained(folder / "outputs" / name)
        processor.save_pretrained(folder / "outputs" / name)
    (folder / "outputs/industrial").mkdir()
    (folder / "outputs/industrial/tuned.yaml").write_text("loss: info_nce\nloss_settings: {label_smoothing: 0.1}\n")
    return folder


@pytest.fixture
def workplace(things, tmp_path, monkeypatch):
    """A copy of these, which is the working folder."""
    shutil.copytree(things, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def address():
    """Of a real server of the starter, on this machine."""
    import uvicorn

    from hf_clip_domain.serving.app import create_app
    from hf_clip_domain.serving.settings import Settings

    settings = Settings(model="starter", gallery=None, device="cpu")
    server = uvicorn.Server(uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 120
    while not server.started and time.monotonic() < until:
        time.sleep(0.05)
    assert server.started
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
