"""What statistics of requests cost a server: its CPU time a request without and with `--statistics`, in turns.

    python scripts/bench_statistics.py                  # the starter, a small model
    python scripts/bench_statistics.py --size vit-b32   # ViT-B/32's shape, random weights
    python scripts/bench_statistics.py --requests 50 --rounds 2    # to try the script

Two servers of one model run, with one thread of torch each; one client sends the same requests, one after another, to the one and the
other in turns. The processes' own CPU time is read before and after (all threads, so that the thread that keeps the
statistics counts), and so is how long the answers took. Printed are medians over the rounds, and the share of the requests
that were taken into statistics, which on a busy server is the less the quicker it answers. Texts and pictures are new
in every request but for the cached ones. Linux only.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from serving.inputs import as_input, caption, pictures
from serving.model import make_model
from serving.processes import ours, server

WHAT = ("text", "text, cached", "picture", "picture and text")
Request = tuple[str, dict]


def asked(what: str, count: int, seed: int) -> Iterator[Request]:
    """So many requests of a kind; another seed gives other texts and pictures."""
    seed += 1000 * WHAT.index(what)
    draws = random.Random(seed)
    images = iter(pictures(count, seed=seed) if what.startswith("picture") else ())
    for _ in range(count):
        text = caption(draws)
        if what == "text":
            yield "/v1/embeddings", {"input": text}
        elif what == "text, cached":
            yield "/v1/embeddings", {"input": "a photo of the left wrist"}
        elif what == "picture":
            yield "/v1/embeddings", {"input": as_input(next(images))}
        else:
            yield "/pairs", {"pairs": [{**as_input(next(images)), "text": text}]}


def taken(port: int) -> int:
    """Requests in statistics so far."""
    return httpx.get(f"http://127.0.0.1:{port}/stats", timeout=60).json()["statistics"]["recorded"]


def on_cpu(process: int) -> float:
    """Seconds that all threads of a process have run, to the nanosecond; the usual figures come in steps of 10 ms."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{process}/task").glob("*/schedstat")) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", choices=["starter", "vit-b32", "tiny"], default="starter", help="Of the model.")
    parser.add_argument("--requests", type=int, default=200, help="Of each turn. Default: 200.")
    parser.add_argument("--rounds", type=int, default=5, help="Turns of each server. Default: 5.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = "starter" if args.size == "starter" else make_model(Path(folder) / "clip", args.size)
        plain = ours(model, "--threads", "1")
        keeping = ours(model, "--threads", "1", "--statistics", str(Path(folder) / "statistics"))
        with server(plain) as one, server(keeping) as other:
            print(f"{args.size:16}{'CPU ms':>9}{'with':>9}{'share':>8}{'p50 ms':>9}{'with':>9}{'taken':>8}")
            for what in WHAT:
                compare(what, (one, other), args)


def compare(what: str, servers: tuple, args: argparse.Namespace) -> None:
    """Print a line."""
    spent, waited, before = ([], []), ([], []), taken(servers[1][0])
    for turn in range(args.rounds + 1):  # the first warms up
        requests = list(asked(what, args.requests, turn))
        for place, (port, process) in enumerate(servers):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                began, times = on_cpu(process.pid), []
                for path, body in requests:
                    start = time.perf_counter()
                    client.post(path, json=body).raise_for_status()
                    times.append(time.perf_counter() - start)
                time.sleep(0.2)  # what was handed over is worked off
                if turn:
                    spent[place].append((on_cpu(process.pid) - began) / args.requests)
                    waited[place].append(statistics.median(times))
    cpu, median = ([1000 * statistics.median(rows) for rows in both] for both in (spent, waited))
    share_taken = (taken(servers[1][0]) - before) / (args.requests * (args.rounds + 1))
    share = statistics.median(b / a for a, b in zip(*spent, strict=True)) - 1
    print(
        f"{what:16}{cpu[0]:9.3f}{cpu[1]:9.3f}{share:8.1%}{median[0]:9.2f}{median[1]:9.2f}{share_taken:8.1%}", flush=True
    )


if __name__ == "__main__":
    main()
