"""The peers' environments, made once and kept; the machine's own torch build is asked for, so that nothing differs.

open_clip needs torchvision and transformers must not see one that does not fit, so there are two environments.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

HOME = Path.home() / ".cache" / "hf_clip_domain"
TORCHVISION = {"2.13": "0.28.0"}  # the one that belongs to a torch


def python_of(peer: str) -> str:
    """The interpreter that runs a peer's program; this package's own for "ours".

    Raises:
        SystemExit: it cannot be installed.
    """
    if peer == "ours":
        return sys.executable
    # A copy of transformers at our version runs the plain example too.
    home = HOME / ("open_clip" if peer == "open_clip" else "sentence-transformers")
    python = home / "bin" / "python"
    if not (home / ".ready").exists():
        print(f"installing into {home} ...", file=sys.stderr, flush=True)
        venv.create(home, with_pip=True, clear=True)
        same = [f"{name}=={version(name)}" for name in ("transformers", "accelerate", "datasets", "pillow", "numpy")]
        _install(
            python, f"torch=={version('torch').partition('+')[0]}"
        )  # first, so that nothing else chooses its build
        if peer == "open_clip":
            release = ".".join(version("torch").split(".")[:2])
            _install(python, "--no-deps", f"torchvision=={TORCHVISION.get(release, '')}".removesuffix("=="))
            _install(python, "open_clip_torch==3.3.0", "webdataset", "pandas", *same)
        else:
            _install(python, "sentence-transformers[train]==6.2.0", *same)
        (home / ".ready").touch()
    return str(python)


def _install(python: Path, *packages: str) -> None:
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"cannot install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1]}")
