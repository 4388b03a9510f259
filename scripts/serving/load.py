"""Load on a server, from a process of its own, on bare sockets so that it takes little of the CPU that it measures.

    python load.py < PLAN.json > RESULT.json

A plan has `port`, `clients` (each sends its next request when it has its answer), `seconds`, `kind` (`texts`: every one
new; `text`: always the same; `pictures`: those of `files` in turn; `mixed`: all of them with bad requests and
disconnects, every embedding compared), `pause`, seconds between a client's requests, and `modality`, whether pictures
are sent in infinity-emb's words.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from serving.inputs import as_input, caption

PATIENCE = 40.0  # seconds for an answer
BAD = (
    b'{"input": [',
    b'{"input": []}',
    b'{"input": {"image": "bm8gcGljdHVyZQ=="}}',
    b'{"input": 7}',
    b'{"input": "a", "dimensions": 3}',
    b'{"input": {"image": "/9j/4AAQSkZJRg=="}}',
    b"\xff\xfe",
)


class Load:
    """What one run sends and what came back."""

    def __init__(self, plan: dict) -> None:
        self.plan, self.draws = plan, random.Random(plan.get("seed", 0))
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()
        self.worst = 0.0
        self.known: list[tuple[object, np.ndarray]] = []
        if plan["kind"] == "mixed":
            stored = np.load(plan["expected"])
            pictures = [as_input(Path(file).read_bytes()) for file in plan["files"]]
            self.known = list(zip([*plan["texts"], *pictures], stored["embeds"], strict=True))
        elif plan["kind"] == "pictures":
            contents = [as_input(Path(file).read_bytes()) for file in plan["files"]]
            asked = [{"input": content} for content in contents]
            if plan.get("modality"):  # as infinity-emb takes pictures
                data = [f"data:image/jpeg;base64,{content['image']}" for content in contents]
                asked = [{"input": [uri], "modality": "image"} for uri in data]
            self.bodies = [json.dumps(body).encode() for body in asked]

    async def run(self) -> dict:
        plan, begin = self.plan, time.perf_counter()
        self.end = begin + plan["seconds"]
        await asyncio.gather(*(self._client(number) for number in range(plan["clients"])))
        seconds = time.perf_counter() - begin
        answered = self.statuses[200]
        return {
            "per_second": answered / seconds,
            "answered": answered,
            "statuses": dict(self.statuses),
            "counts": dict(self.counts),
            "largest_error": self.worst,
            "ms": {
                f"p{level}": float(np.percentile(self.latencies, level)) * 1000 if self.latencies else None
                for level in (50, 90, 99)
            },
        }

    async def _client(self, number: int) -> None:
        reader = writer = None
        sent = number
        while time.perf_counter() < self.end:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.plan["port"])
            body, expected, leave = self._next(sent)
            sent += self.plan["clients"]
            begin = time.perf_counter()
            try:
                if leave:
                    await self._leave(writer, body)
                    reader = writer = None
                    continue
                async with asyncio.timeout(PATIENCE):
                    status, answer, stays = await ask(reader, writer, body)
            except (OSError, EOFError, ValueError, TimeoutError) as error:  # EOFError: asyncio's IncompleteReadError
                self.counts["no answer" if isinstance(error, TimeoutError) else "connections lost"] += 1
                writer.close()
                reader = writer = None
                continue
            self.statuses[status] += 1
            if status == 200:
                self.latencies.append(time.perf_counter() - begin)
            self._check(status, answer, expected)
            if not stays:
                writer.close()
                reader = writer = None
            if status in (429, 503):
                await asyncio.sleep(0.1)
            if self.plan.get("pause"):
                await asyncio.sleep(self.plan["pause"])

    def _next(self, sent: int) -> tuple[bytes, np.ndarray | str | None, bool]:
        """The body, what to expect, and whether the client leaves before the answer."""
        kind = self.plan["kind"]
        if kind == "pictures":
            return self.bodies[sent % len(self.bodies)], None, False
        if kind != "mixed":
            text = caption(self.draws) if kind == "texts" else "always the same text"
            return json.dumps({"input": text}).encode(), None, False
        if self.draws.random() < 0.05:
            return self.draws.choice(BAD), "bad", False
        what, row = self.draws.choice(self.known)
        body = json.dumps({"input": what, "encoding_format": "base64"}).encode()
        return body, row, self.draws.random() < 0.02

    async def _leave(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        """Hang up in the middle of the request, or while it is being answered."""
        whole = request(body)
        writer.write(whole if self.draws.random() < 0.5 else whole[: self.draws.randrange(1, len(whole))])
        await writer.drain()
        await asyncio.sleep(self.draws.uniform(0, 0.02))
        writer.close()
        self.counts["left"] += 1

    def _check(self, status: int, answer: bytes, expected: np.ndarray | str | None) -> None:
        if isinstance(expected, str):
            self.counts["bad sent"] += 1
            self.counts["bad refused"] += 400 <= status < 500
        elif expected is not None and status == 200:
            found = np.frombuffer(base64.b64decode(json.loads(answer)["data"][0]["embedding"]), "<f4")
            self.worst = max(self.worst, float(np.abs(found - expected).max()))
            self.counts["compared"] += 1


def request(body: bytes) -> bytes:
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> tuple[int, bytes, bool]:
    """Status and body of the answer, and whether the connection stays open."""
    writer.write(request(body))
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length), b"connection: close" not in head


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Load(json.load(sys.stdin)).run())))
