"""What was found as Markdown, and what it says of the targets."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from peers.recall import time_to

LARGEST = 1024  # the batch of which the targets for memory speak
TABLES = ("steps", "recall", "recall by batch", "targets")
NAMES = {
    "plain": "Trainer + `CLIPModel`",
    "open_clip": "open_clip",
    "sentence": "sentence-transformers",
    "ours": "**this package**",
}


def take_gradient(out: str) -> dict[str, torch.Tensor]:
    """What a run kept; its file goes, since those of all runs would take gigabytes."""
    file = Path(out) / "gradient.pt"
    gradient = torch.load(file)
    file.unlink()
    return gradient


def over_rounds(lines: list[dict]) -> list[dict]:
    """A line for each program and batch: the medians of its rounds' speed and memory, and the first round's gradient."""
    found: dict[tuple, list[dict]] = {}
    for line in lines:
        found.setdefault(tuple(line[key] for key in ("size", "batch", "program", "micro")), []).append(line)
    return [
        rounds[0] | {key: statistics.median(line[key] for line in rounds) for key in ("pairs", "mib")}
        for rounds in found.values()
    ]


def steps(lines: list[dict]) -> str:
    """Speed, memory and gradient of every program; a Trainer's batch that does not fit is extrapolated."""
    rows = ["| model | batch | | micro-batch | pairs/s | peak, MiB | gradient error | temperature's |"]
    rows.append("|:--|--:|:--|--:|--:|--:|--:|--:|")
    for line in lines:
        error, scale = (f"{line[key]:.0e}" if line[key] is not None else "" for key in ("error", "scale"))
        if line["program"] == "sentence" and line["error"] is not None:
            scale = "not learnt"
        cells = [line["size"], f"{line['batch']:,}", NAMES[line["program"]], line["micro"] or "whole"]
        cells += [f"{line['pairs']:.1f}", f"{line['mib']:,.0f}", error, scale]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def recall(lines: list[dict]) -> str:
    """Seconds to the Trainer's best recall: means over the seeds, and the ratio of each seed to the Trainer's."""
    rows = ["| | whole run, s | recall@10 at its end | to the Trainer's best, s | times shorter, by seed |"]
    rows.append("|:--|--:|--:|--:|:--|")
    for way in dict.fromkeys(line["way"] for line in lines):
        own = [line for line in lines if line["way"] == way]
        reached = [one["reached"] for one in ratios(lines, way)]
        seconds = "-" if None in reached else f"{statistics.mean(reached):.0f}"
        by_seed = ", ".join(
            "not reached" if one["ratio"] is None else f"{one['ratio']:.2f}" for one in ratios(lines, way)
        )
        name = way.replace("ours", NAMES["ours"]) if way.startswith("ours") else NAMES[way]
        total = statistics.mean(line["epochs"][-1]["seconds"] for line in own)
        final = statistics.mean(line["recall"][-1] for line in own)
        rows.append(f"| {name} | {total:.0f} | {final:.1f} | {seconds} | {by_seed} |")
    return "\n".join(rows)


def recall_by_batch(lines: dict[int, list[dict]], ways: Sequence[str]) -> str:
    """`recall` of these ways, the batches one below the other; the Trainer's best is the one with that batch."""
    rows: list[str] = []
    for batch, found in sorted(lines.items()):
        head, rule, *body = recall([line for line in found if line["way"] in ways]).splitlines()
        rows = rows or [f"| batch {head}", f"|--:{rule}"]
        rows += [f"| {batch:,} {row}" for row in body]
    return "\n".join(rows)


def ratios(lines: list[dict], way: str) -> list[dict]:
    """By seed: seconds to the best recall of the Trainer with that seed, and how many times shorter that is."""
    found = []
    for plain in (line for line in lines if line["way"] == "plain"):
        goal = max(plain["recall"])
        own = next(line for line in lines if line["way"] == way and line["seed"] == plain["seed"])
        times = [time_to(goal, one["recall"], [epoch["seconds"] for epoch in one["epochs"]]) for one in (plain, own)]
        found.append({"reached": times[1], "ratio": times[0] / times[1] if times[1] else None})
    return found


def targets(lines: list[dict], runs: list[dict], reading: list[dict], micro: int) -> str:
    """Each target, what was measured, and whether it is met; none where it was not measured."""
    rows = ["| target | measured | |", "|:--|:--|:--|"]

    def add(target: str, measured: str, met: bool | None) -> None:
        rows.append(f"| {target} | {measured} | {'' if met is None else 'met' if met else '**missed**'} |")

    for way, least in (
        ("ours, defaults", 3.0),
        ("ours, and Muon", 3.0),
        ("ours, and small pictures first", 3.0),
        ("ours, only short padding", 1.3),
    ):
        if any(line["way"] == way for line in runs):
            by_seed = [one["ratio"] for one in ratios(runs, way)]
            mean = 0.0 if None in by_seed else statistics.mean(by_seed)
            add(
                f"time to the Trainer's recall, {way.removeprefix('ours, ')}: {least:g} times shorter",
                f"{mean:.2f}" if mean else "not reached",
                mean >= least,
            )
    for size in dict.fromkeys(line["size"] for line in lines):
        found = {(line["program"], line["batch"], line["micro"]): line for line in lines if line["size"] == size}
        batches = sorted({batch for _, batch, _ in found})
        both = [batch for batch in batches if ("ours", batch, 0) in found and ("ours", batch, micro) in found]
        if both:
            batch = both[-1]
            cost = found["ours", batch, 0]["pairs"] / found["ours", batch, micro]["pairs"]
            add(
                f"{size}: a step in micro-batches at most 1.4 times the whole batch's",
                f"{cost:.2f} (batch {batch:,})",
                cost <= 1.4,
            )
        for peer in ("open_clip", "sentence"):
            faster = [
                found["ours", batch, micro]["pairs"] / found[peer, batch, micro]["pairs"]
                for batch in batches
                if (peer, batch, micro) in found
            ]
            if faster:
                shown = ", ".join(f"{one:.2f}" for one in faster)
                add(f"{size}: no slower than {NAMES[peer]}, every batch", f"{shown} times its speed", min(faster) >= 1)
        last = batches[-1]
        if last < LARGEST:
            add(f"{size}: peak at batch {LARGEST:,}", f"not measured: no batch above {last:,} was run", None)
        elif ("sentence", last, micro) in found:
            ours, theirs = found["ours", last, micro]["mib"], found["sentence", last, micro]["mib"]
            add(
                f"{size}: peak at batch {last:,} no more than sentence-transformers'",
                f"{ours:,.0f} of {theirs:,.0f} MiB",
                ours <= theirs,
            )
            whole = extrapolated(lines, size, last)
            if whole:
                add(
                    f"{size}: peak at batch {last:,} under a tenth of the Trainer's",
                    f"{ours:,.0f} of {whole:,.0f} MiB",
                    ours < whole / 10,
                )
    if reading:
        slowest = min(reading, key=lambda kind: kind["times"])
        measured = f"{slowest['times']:.2f} ({slowest['kind']})"
        add(
            "photographs above a megapixel read at least 2 times as fast as by the Pillow processor",
            measured,
            slowest["times"] >= 2,
        )
        apart = max(kind["apart"] for kind in reading)
        add("and at most 2/255 from its pixels on average", f"{apart:.2f}/255", apart <= 2)
    return "\n".join(rows)


def extrapolated(lines: list[dict], size: str, batch: int) -> float | None:
    """The Trainer's peak at `batch`: measured, or on the line through its two largest batches."""
    plain = [line for line in lines if line["size"] == size and line["program"] == "plain"]
    if plain and plain[-1]["batch"] == batch:
        return plain[-1]["mib"]
    if len(plain) < 2:
        return None
    one, two = plain[-2:]
    slope = (two["mib"] - one["mib"]) / (two["batch"] - one["batch"])
    return two["mib"] + slope * (batch - two["batch"])


def check_marks(files: Sequence[Path]) -> None:
    """Before anything is measured: every file has the marks of a table.

    Raises:
        SystemExit: one has none.
    """
    for file in files:
        if not any(_marks(name).search(file.read_text(encoding="utf-8")) for name in TABLES):
            raise SystemExit(f"{file}: no marks of {', '.join(TABLES)}, such as <!-- {TABLES[0]}: start -->.")


def write(files: Sequence[Path], name: str, text: str) -> None:
    """`text` between the marks `<!-- name: start -->` and `<!-- name: end -->` of those Markdown files that have them."""
    for file in files:
        page = file.read_text(encoding="utf-8")
        file.write_text(_marks(name).sub(lambda found: found[1] + text + "\n" + found[2], page), encoding="utf-8")


def _marks(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}: start -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
