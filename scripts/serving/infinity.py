"""infinity-emb in an environment of its own (it brings another torch), which is kept for the next time."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HOME = Path.home() / ".cache" / "hf_clip_domain" / "infinity-emb"


def command(model: Path) -> list[str] | None:
    """Its command for a CLIP, to be followed by the port; `None`, after saying why, where it cannot be installed."""
    program = HOME / "bin" / "infinity_emb"
    if not program.exists():
        print(f"installing infinity-emb into {HOME} ...", flush=True)
        venv.create(HOME, with_pip=True, clear=True)
        pip = [
            str(HOME / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "infinity-emb[server,torch,vision]==0.0.78",
        ]
        pip += [
            "torch==2.8.0",
            "transformers==4.57.6",
            "typer==0.12.5",
            "click==8.1.8",
        ]  # of its time; later ones break it
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            print(f"infinity-emb cannot be installed here: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return None
    options = ["--engine", "torch", "--device", "cpu", "--batch-size", "64", "--no-model-warmup", "--url-prefix", "/v1"]
    return [str(program), "v2", "--model-id", str(model), *options, "--port"]
