"""The server with an account of its threads: which CPU time went where.

    python profiled.py MODEL PORT FILE

Every half second a line of JSON is added to FILE: CPU seconds so far by name of the thread (torch's own, which Python
does not know, together as "torch"), and in how many of the samples of the engine's thread it was in a forward pass, at
other work, or waiting.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter

import psutil

from hf_clip_domain.serving.app import create_app
from hf_clip_domain.serving.run import run
from hf_clip_domain.serving.settings import Settings


def account(file: str) -> None:
    samples: Counter[str] = Counter()
    process, last = psutil.Process(), 0.0
    with open(file, "w", encoding="utf-8") as stream:
        while True:
            time.sleep(0.005)
            threads = {thread.native_id: thread for thread in threading.enumerate()}
            engine = next((thread for thread in threads.values() if thread.name == "engine"), None)
            if engine is not None:
                samples[_doing(sys._current_frames().get(engine.ident))] += 1
            if time.monotonic() - last > 0.5:
                last, seconds = time.monotonic(), Counter()
                for found in process.threads():
                    name = threads[found.id].name.split("_")[0] if found.id in threads else "torch"
                    seconds[name] += found.user_time + found.system_time
                print(json.dumps({"cpu": seconds, "engine": samples}), file=stream, flush=True)


def _doing(frame) -> str:
    leaf = True
    while frame is not None:
        if leaf and frame.f_code.co_name in ("wait", "acquire", "get"):
            return "waiting"
        if frame.f_code.co_name in ("encode_texts", "encode_images"):
            return "forward"
        frame, leaf = frame.f_back, False
    return "other"


if __name__ == "__main__":
    settings = Settings(model=sys.argv[1], port=int(sys.argv[2]), cache=0)
    threading.Thread(target=account, args=(sys.argv[3],), name="account", daemon=True).start()
    run(create_app(settings), settings)
