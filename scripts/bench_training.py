"""Training beside what one would use instead, on the same pairs, weights, batch and machine, in one run.

    python scripts/bench_training.py --data DATA/medical --domain medical    # all of it; some two hours and a half
    python scripts/bench_training.py --data DATA/medical --domain medical --write README.md docs/peers.md
    python scripts/bench_training.py --sizes starter --batches 64 256 --seeds 0         # minutes, synthetic samples
    python scripts/bench_training.py --sizes tiny --batches 16 32 --micro 8 --seeds --reading 1     # to try the script

The peers: transformers' Trainer with `CLIPModel`, as in its contrastive image-text example (captions padded to 77, one
picture size, the batch at once); open_clip's own loop with `--accum-freq`; sentence-transformers' CLIP with its cached
ranking loss. They run in environments of their own, made at the first call and kept (two, 1.7 GB each).

Three things are measured, every run in a process of its own, the programs taking turns:

1. The step: a fixed batch of prepared pixels and captions through each program's own loop (forward, loss, backward,
   AdamW), float32, all with the same micro-batch. The programs take turns; of the rounds the medians count, of a round's
   seconds that of the steps after the first. Memory is the peak above the loaded program, model and pairs. The first
   gradient is compared with the whole batch's in float64, which takes ten minutes for ViT-B/32 at 1,024.
2. A given recall: whole runs from picture files, from the starter's weights and with the hyperparameters that the domain
   has for it (the same for all), and with other batches in place of the domain's. The recall is the best that the Trainer
   reaches with that batch after any of its epochs, on the test split; time is training alone, up to the first epoch that
   scores it. The targets speak of the domain's own batch.

3. Reading photographs above a megapixel (synthetic ones), beside transformers' Pillow processor: `bench_data.py`.

--keep FILE notes every measurement as it is made; a run that was stopped goes on from there, with the same data, steps and
micro-batch, and should with the same code. The tables then say from when to when it was measured.

--write puts the tables `steps`, `recall`, `recall by batch` and `targets` between the marks of these names, in whichever
file has them; those of what was left out stay as they are, and `targets` wherever something was.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from bench_data import beside_the_pillow_processor
from data_path.pictures import synthetic
from peers import tables
from peers.environment import python_of
from peers.inputs import write_inputs
from peers.recall import recalls, test_rows
from peers.reference import float64_gradient, relative_error
from peers.work import Work

from hf_clip_domain.cli.options import parse_options

# The program that goes this way, and the options of its command.
WAYS = {
    "plain": ("plain", ()),
    "open_clip": ("open_clip", ()),
    "sentence": ("sentence", ()),
    "ours, defaults": ("ours", ()),
    "ours, and Muon": ("ours", ("--muon_ratio", "16")),
    "ours, and small pictures first": ("ours", ("--resolutions", "96,128", "--resolution_warmup", "0.5")),
    "ours, only short padding": ("ours", ("--precision", "fp32")),
}

# With other batches than the domain's: what one would choose between.
BY_BATCH = ("plain", "open_clip", "sentence", "ours, defaults", "ours, and Muon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder or file of pairs. Default: the domain's embedded synthetic samples")
    parser.add_argument("--domain", default="scientific")
    parser.add_argument("--sizes", nargs="*", default=["starter", "vit-b32"], choices=["starter", "vit-b32", "tiny"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 64, 256, 1024])
    parser.add_argument(
        "--vit_b32_up_to", type=int, default=1024, help="its largest batch; 1,024 take 8 minutes a step"
    )
    parser.add_argument("--micro", type=int, default=32, help="rows embedded at once by all that can. Default: 32")
    parser.add_argument("--steps", type=int, default=3, help="a run, the first of which warms up; 1 where it is long")
    parser.add_argument("--rounds", type=int, default=3, help="in which the programs take turns with a batch")
    parser.add_argument("--whole", type=float, default=12, help="GiB that a batch embedded at once may take")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=list(WAYS),
        choices=list(WAYS),
        help='to a given recall, besides "plain", which gives it',
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the runs to a given recall")
    parser.add_argument(
        "--recall_batches", nargs="*", type=int, default=[64, 256, 1024], help="of such runs, besides the domain's own"
    )
    parser.add_argument("--reading", type=int, default=5, metavar="ROUNDS", help="of reading pictures; 0 leaves it out")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="FILE", help="Markdown that has the marks")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="of measurements, one a line; those in it are not made anew"
    )
    options = parser.parse_args()
    tables.check_marks(options.write)
    today = datetime.date.today().isoformat()
    what = {name: getattr(options, name) for name in ("data", "domain", "steps", "micro")}
    options.kept = Kept(options.keep, what, today)
    with tempfile.TemporaryDirectory() as folder:
        steps = [line for size in options.sizes for line in bench_steps(Path(folder) / size, size, options)]
        by_batch = bench_recall(Path(folder) / "recall", options) if options.seeds else {}
        reading = bench_reading(Path(folder) / "photographs", options.reading) if options.reading else []
    runs = next(iter(by_batch.values()), [])
    parts = {
        "steps": tables.steps(steps) if steps else "",
        "recall": tables.recall(runs) if runs else "",
        "recall by batch": tables.recall_by_batch(by_batch, BY_BATCH) if len(by_batch) > 1 else "",
        "targets": tables.targets(steps, runs, reading, options.micro),
    }
    when = today if options.kept.begun == today else f"{options.kept.begun} to {today}"
    for name, table in parts.items():
        print(f"\n{table}")
        if table and (name != "targets" or (steps and runs and reading)):
            tables.write(options.write, name, f"{table}\n\n{when}, {os.cpu_count()} CPU cores.")


def bench_reading(folder: Path, rounds: int) -> list[dict]:
    """Synthetic photographs above a megapixel, read by this package and by transformers' Pillow processor."""
    folder.mkdir()
    photographs = {
        kind: files for kind, files in synthetic(folder, 3, 1.0).items() if files[0].stat().st_size > 500_000
    }
    return beside_the_pillow_processor(photographs, rounds)


def bench_steps(folder: Path, size: str, options) -> list[dict]:
    """A line of figures for every program and batch."""
    batches = [batch for batch in options.batches if size != "vit-b32" or batch <= options.vit_b32_up_to]
    write_inputs(folder, size, options.domain, options.data, max(batches))
    lines: list[dict] = []
    for batch in batches:
        base = Work("step", str(folder), "", batch, steps=_steps(size, batch, options.steps))
        true = None
        whole_fits = _expected_gib(lines, size, batch) <= options.whole
        ways = [*([("plain", 0), ("ours", 0)] if whole_fits else []), *_cut(batch, options.micro)]
        turns = [(turn, *way) for turn in range(_rounds(size, batch, options.rounds)) for way in ways]
        for turn, program, micro in turns:
            line = {"size": size, "batch": batch, "program": program, "micro": micro, "round": turn}
            if known := options.kept.line(line):
                lines.append(known)
                continue
            work = replace(base, micro=micro, out=str(folder / f"{program}-{batch}-{micro}"), gradient=turn == 0)
            found = run(program, work)
            line |= {"pairs": batch / found["seconds"], "mib": found["mib"]}
            if work.gradient:
                true = float64_gradient(base) if true is None else true
                line["error"], line["scale"] = relative_error(tables.take_gradient(work.out), true)
            lines.append(options.kept.add(line))
    return tables.over_rounds(lines)


def _cut(batch: int, micro: int) -> list[tuple[str, int]]:
    return [(program, micro) for program in ("open_clip", "sentence", "ours")] if micro < batch else []


def _steps(size: str, batch: int, asked: int) -> int:
    """Fewer where a step takes long on a CPU: its warming up counts little then."""
    if size == "vit-b32":
        return min(asked, 2) if batch < 256 else 1
    return asked if batch < 1000 else min(asked, 3)


def _rounds(size: str, batch: int, asked: int) -> int:
    """Fewer where a step takes minutes."""
    return asked if size != "vit-b32" else min(asked, 2 if batch < 1000 else 1)


def _expected_gib(lines: list[dict], size: str, batch: int) -> float:
    """What the batch at once would take, by the largest one before it."""
    before = [line for line in lines if line["program"] == "plain" and line["size"] == size]
    return before[-1]["mib"] / before[-1]["batch"] * batch / 1024 if before else 0.0


def bench_recall(folder: Path, options) -> dict[int, list[dict]]:
    """For every batch, the domain's own first, a line for every way and seed: seconds and recall after each epoch."""
    domain = options.domain
    defaults = parse_options(
        ["--domain", domain, "--model_name_or_path", "starter", "--output_dir", str(folder)]
    ).training
    write_inputs(folder, "starter", domain, options.data, 2)
    rows = test_rows(domain, options.data)
    work = Work(
        "adapt",
        str(folder),
        "",
        batch=defaults.per_device_train_batch_size,
        epochs=int(defaults.num_train_epochs),
        learning_rate=defaults.learning_rate,
        weight_decay=defaults.weight_decay,
        warmup=defaults.warmup_steps,
        domain=domain,
        dataset=options.data or "",
    )
    found: dict[int, list[dict]] = {}
    for batch in dict.fromkeys([work.batch, *options.recall_batches]):
        found[batch] = []
        ways = [way for way in WAYS if way in ("plain", *options.ways) and (batch == work.batch or way in BY_BATCH)]
        for seed, way in itertools.product(options.seeds, ways):
            line = {"way": way, "seed": seed, "batch": batch}
            if not (known := options.kept.line(line)):
                program, extra = WAYS[way]
                out = folder / f"{way}-{batch}-{seed}"
                epochs = run(program, replace(work, out=str(out), batch=batch, seed=seed, options=extra))["epochs"]
                scores = recalls(out, len(epochs), domain, rows)
                known = options.kept.add(line | {"recall": scores, "epochs": epochs})
            found[batch].append(known)
    return found


class Kept:
    """Measurements as they are made, told on standard error and kept in `file`, one JSON object a line.

    Args:
        file: its first line says what was measured, and when that was begun; `None` keeps nothing.
        settings: that all measurements share.
        today: the date.

    Raises:
        SystemExit: `file` holds measurements with other settings.
    """

    def __init__(self, file: Path | None, settings: dict, today: str) -> None:
        self.file, self.begun = file, today
        self.lines: list[dict] = []
        if file is None:
            return
        if not file.exists():
            file.write_text(json.dumps({"settings": settings, "begun": today}) + "\n", encoding="utf-8")
            return
        head, *self.lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
        if head.get("settings") != settings:
            raise SystemExit(f"{file}: measured with {head.get('settings')}, not {settings}. Name another file.")
        self.begun = head["begun"]

    def line(self, what: dict) -> dict | None:
        """The measurement of this, if there is one."""
        return next((line for line in self.lines if what.items() <= line.items()), None)

    def add(self, line: dict) -> dict:
        text = json.dumps(line)
        print(text, file=sys.stderr, flush=True)
        if self.file:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")
        return line


def run(program: str, work: Work) -> dict:
    """What a program found, in a process of its own.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    out = Path(work.out)
    out.mkdir(parents=True, exist_ok=True)
    told = out / "work.json"
    told.write_text(json.dumps(asdict(work)), encoding="utf-8")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    scripts = Path(__file__).resolve().parent
    environment = {**os.environ, **offline, "PYTHONPATH": os.pathsep.join([str(scripts.parent), str(scripts)])}
    command = [python_of(program), "-m", f"peers.{program}", str(told)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{program} failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))
    return json.loads((out / "found.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
