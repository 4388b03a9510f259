"""What a program is told, and the meter it reports with. Runs in every peer's environment, so it needs torch alone."""

from __future__ import annotations

import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Work:
    """One run, read from the JSON file that is a program's only argument.

    Attributes:
        mode: "step" trains on one fixed batch of prepared pixels, "adapt" on the pictures themselves.
        inputs: folder of `inputs.py`.
        out: folder for what the run leaves.
        batch: contrastive batch, in pairs.
        micro: pairs embedded at once; 0 leaves that to the program (all at once where it cannot tell).
        steps: of "step".
        gradient: whether the first step's gradient is kept.
        epochs, learning_rate, weight_decay, warmup, seed, options: of "adapt"; `options` are for this package alone.
    """

    mode: str
    inputs: str
    out: str
    batch: int
    micro: int = 0
    steps: int = 1
    gradient: bool = False
    epochs: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.1
    seed: int = 0
    domain: str = ""
    dataset: str = ""
    options: tuple[str, ...] = ()

    @classmethod
    def read(cls) -> Work:
        return cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

    @property
    def model(self) -> str:
        return str(Path(self.inputs) / "model")

    def batch_inputs(self) -> tuple[torch.Tensor, list[str]]:
        """Prepared pixels `(batch, 3, s, s)` and as many captions."""
        texts = json.loads((Path(self.inputs) / "texts.json").read_text(encoding="utf-8"))[: self.batch]
        return torch.load(Path(self.inputs) / "pixels.pt", mmap=True)[: self.batch].clone(), texts

    def pairs(self) -> list[dict[str, Any]]:
        """The training rows: `image` (path) and `texts`."""
        return json.loads((Path(self.inputs) / "pairs.json").read_text(encoding="utf-8"))

    def steps_of_all(self) -> tuple[int, int]:
        """Steps of the whole "adapt" run, and those of them that warm up."""
        steps = len(self.pairs()) // self.batch * self.epochs
        return steps, round(self.warmup * steps)


class Meter:
    """Times steps, notes memory, keeps the gradient and the models of the epochs, and writes what it found."""

    def __init__(self, work: Work) -> None:
        self.work, self.out = work, Path(work.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.seconds: list[float] = []
        self.clock = self.cpu = 0.0  # of "adapt": training alone
        self.epochs: list[dict[str, float]] = []
        self._from = self._cpu_from = 0.0

    def loaded(self) -> None:
        """To be called when program, model and data are in memory; what comes on top is the step's."""
        self._loaded = _resident()

    def start(self) -> None:
        self._from, self._cpu_from = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """The end of a step; in "adapt" of a stretch of training."""
        seconds = time.perf_counter() - self._from
        self.seconds.append(seconds)
        self.clock += seconds
        self.cpu += time.process_time() - self._cpu_from

    def keep_gradient(self, optimizer: torch.optim.Optimizer, gradient: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Save what `gradient()` gives before the first step, by Hugging Face's names, where it is asked for.

        The clock stands meanwhile, and the step's own peak of memory is past.
        """
        file = self.out / "gradient.pt"

        def save(*_: Any) -> None:
            if not file.exists():
                begun = time.perf_counter()
                torch.save(gradient(), file)
                self._from += time.perf_counter() - begun

        if self.work.gradient:
            optimizer.register_step_pre_hook(save)

    def epoch(self, save: Callable[[str], Any]) -> None:
        """The end of an epoch: `save(folder)` writes the model, off the clock."""
        self.stop()
        save(str(self.out / f"epoch-{len(self.epochs) + 1}"))
        self.epochs.append({"seconds": self.clock, "cpu": self.cpu})
        self.start()

    def report(self) -> None:
        later = self.seconds[1:] or self.seconds
        found: dict[str, Any] = {"epochs": self.epochs}
        if self.work.mode == "step":
            found |= {"seconds": statistics.median(later), "first": self.seconds[0]}
            found["mib"] = _peak() - self._loaded
        (self.out / "found.json").write_text(json.dumps(found), encoding="utf-8")


def run(step, adapt) -> None:
    """A program: the one or the other of its ways, as it is told."""
    work = Work.read()
    torch.manual_seed(work.seed)
    random.seed(work.seed)
    meter = Meter(work)
    {"step": step, "adapt": adapt}[work.mode](work, meter)
    meter.report()


class DrawnPairs(torch.utils.data.Dataset):
    """Rows of an "adapt" run for a peer: the picture, opened, and one of its captions, drawn anew every time."""

    def __init__(self, work: Work) -> None:
        self.rows = work.pairs()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from PIL import Image

        row = self.rows[index]
        with Image.open(row["image"]) as picture:
            return {"image": picture.convert("RGB"), "text": random.choice(row["texts"])}


def _resident() -> float:
    """MiB of memory that this process holds."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return _peak()


def _peak() -> float:
    """The most MiB that it ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
