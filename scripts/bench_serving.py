"""The server under load, beside a plain FastAPI endpoint around the same model, on the same machine in the same run.

    python scripts/bench_serving.py                    # ViT-B/32's shape, random weights; about eight minutes
    python scripts/bench_serving.py --soak 300         # instead: five minutes of good and bad requests and model swaps
    python scripts/bench_serving.py --infinity         # besides: infinity-emb, in an environment made for it
    python scripts/bench_serving.py --size tiny --seconds 2                  # to try the script

The load comes from a process of its own on the same machine, over loopback, and shares its cores with the server. Texts
are new in every request and caches are off, except where the cache is measured. Servers take turns, `--rounds` times,
and the median of the rounds is printed. The plain endpoint is run in both of FastAPI's ways (in threads, and on the
event loop); the better one of each measurement is the one compared with. Ours serves the same model in three ways: as it
is by default (torch, fp32), its ONNX export (fp32 too, the same embeddings), and with `--precision auto`, which takes
bf16 where the processor has it and a retrieval trial finds the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from serving import infinity, soak
from serving.inputs import pictures
from serving.model import export, make_model
from serving.processes import load, ours, script, server

OURS = ("this package, torch", "this package, ONNX", "this package, auto")
MEASUREMENTS = {
    "texts, 32 clients": {"kind": "texts", "clients": 32},
    "pictures, 32 clients": {"kind": "pictures", "clients": 32},
    "texts, 1 client": {"kind": "texts", "clients": 1, "pause": 0.02},
    "pictures, 1 client": {"kind": "pictures", "clients": 1, "pause": 0.02},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", choices=["vit-b32", "tiny"], default="vit-b32", help="Of the model.")
    parser.add_argument("--seconds", type=float, default=8, help="Of each measurement. Default: 8.")
    parser.add_argument("--rounds", type=int, default=2, help="Turns of each server. Default: 2.")
    parser.add_argument("--infinity", action="store_true", help="Compare with infinity-emb, installed from PyPI.")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="Only that, for so long.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "clip", args.size)
        files = []
        for number, picture in enumerate(pictures(64)):
            files.append(str(Path(folder) / f"{number}.jpg"))
            Path(files[-1]).write_bytes(picture)
        if args.soak:
            raise SystemExit(soak.run(model, files[:24], args.soak))
        compare(model, files, args)
        cache(model, args.seconds)
        for kind in ("texts", "pictures"):
            profile(model, files, args.seconds, kind)


def compare(model: Path, files: list[str], args: argparse.Namespace) -> None:
    """Throughput and latency of every server, and ours against the better plain one."""
    commands = {
        OURS[0]: (ours(model, "--cache", "0"), ()),
        OURS[1]: (ours(export(model), "--cache", "0"), ()),
        OURS[2]: (ours(model, "--cache", "0", "--precision", "auto"), ()),
        "plain, threads": (script("plain.py", model), ("thread",)),
        "plain, loop": (script("plain.py", model), ("loop",)),
    }
    if args.infinity and (command := infinity.command(model)):
        commands["infinity-emb"] = (command, ())
    found: dict[str, dict[str, list[dict]]] = {name: {what: [] for what in MEASUREMENTS} for name in commands}
    for _ in range(args.rounds):
        for name, (command, after) in commands.items():
            other = name == "infinity-emb"
            with server(command, *after, ready="/v1/models" if other else "/readyz") as (port, _):
                for what, plan in MEASUREMENTS.items():
                    plan = {**plan, "files": files, "modality": other}
                    load(port, seconds=1, **plan)  # warm
                    found[name][what].append(load(port, seconds=args.seconds, **plan))
    for what in MEASUREMENTS:
        print(f"\n{what:24}{'a second':>10}{'p50 ms':>9}{'p99 ms':>9}")
        for name in commands:
            rows = found[name][what]
            wrong = {status for row in rows for status in [*row["statuses"], *row["counts"]] if status != "200"}
            print(
                f"  {name:22}{_median(rows, 'per_second'):10.1f}{_median(rows, 'p50'):9.1f}{_median(rows, 'p99'):9.1f}"
                + (f"   also {sorted(wrong)}" if wrong else "")
            )
        plain = [name for name in commands if name.startswith("plain")]
        figure, pick = ("per_second", max) if what.endswith("32 clients") else ("p99", min)
        best = pick(_median(found[name][what], figure) for name in plain)
        for name in OURS:
            ratio = _median(found[name][what], figure) / best
            print(f"  {name}: {figure.replace('_', ' ')} x{ratio:.2f} of the better plain one")


def cache(model: Path, seconds: float) -> None:
    """The same text again and again, against new ones."""
    with server(ours(model)) as (port, _):
        rows = {
            (kind, clients): [load(port, kind=kind, clients=clients, seconds=time) for time in (1, seconds)][1]
            for kind in ("texts", "text")
            for clients in (1, 32)
        }
    print("\ncached texts against new ones")
    for clients in (1, 32):
        new, cached = rows["texts", clients], rows["text", clients]
        ratio = cached["per_second"] / new["per_second"]
        print(
            f"  {clients:2} clients: {cached['per_second']:.0f} a second against {new['per_second']:.0f}, x{ratio:.1f}; "
            f"p50 {cached['ms']['p50']:.2f} ms against {new['ms']['p50']:.1f}"
        )


def profile(model: Path, files: list[str], seconds: float, kind: str) -> None:
    """Which share of the CPU time at saturation goes neither into the model nor into decoding pictures."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "threads.jsonl"
        with server(script("profiled.py", model), str(report)) as (port, _):
            load(port, kind=kind, clients=32, seconds=1, files=files)
            before = _last(report)
            load(port, kind=kind, clients=32, seconds=seconds, files=files)
            after = _last(report)
    cpu = {name: used - before["cpu"].get(name, 0) for name, used in after["cpu"].items() if name != "account"}
    engine = {name: count - before["engine"].get(name, 0) for name, count in after["engine"].items()}
    share = engine.get("forward", 0) / max(1, engine.get("forward", 0) + engine.get("other", 0))
    model_seconds = cpu.pop("engine", 0.0)
    rest = {"batches": model_seconds * (1 - share)}
    model_seconds = model_seconds * share + cpu.pop("torch", 0.0)
    decoding = cpu.pop("pictures", 0.0)
    rest |= {{"MainThread": "HTTP", "texts": "tokens"}.get(name, name): used for name, used in cpu.items()}
    whole = model_seconds + decoding + sum(rest.values())
    shares = ", ".join(f"{name} {used / whole:.1%}" for name, used in sorted(rest.items()) if used / whole > 0.0005)
    print(
        f"\nCPU time at saturation, {kind}: model {model_seconds / whole:.1%}, decoding {decoding / whole:.1%}, "
        f"all else {sum(rest.values()) / whole:.1%} ({shares})"
    )


def _median(rows: list[dict], figure: str) -> float:
    values = [row["per_second"] if figure == "per_second" else row["ms"][figure] for row in rows]
    return statistics.median(value if value is not None else float("nan") for value in values)


def _last(report: Path) -> dict:
    return json.loads(report.read_text().splitlines()[-1])


if __name__ == "__main__":
    main()
