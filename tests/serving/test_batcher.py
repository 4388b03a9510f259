"""A free engine waits for nobody; a busy one gathers; nothing that was given up is run."""

import asyncio
import threading
import time

import numpy as np
import pytest

from hf_clip_domain.serving.batcher import Batcher, Item, Pace, choose
from hf_clip_domain.serving.model import IMAGE, TEXT


class Slow:
    """A model of which every batch waits until it is let go; a payload of None fails its batch."""

    def __init__(self, hold=False):
        self.batches, self.gate = [], threading.Event()
        if not hold:
            self.gate.set()

    def encode(self, kind, payloads):
        self.batches.append((kind, list(payloads)))
        assert self.gate.wait(10)
        if None in payloads:
            raise ValueError("a bad payload")
        return np.array([[float(payload)] for payload in payloads], dtype=np.float32)


def run(work, **options):
    async def main():
        options_ = {"max_batch": 8, "batch_seconds": 10.0, "linger": 0.0, "watch": lambda *_: None} | options
        batcher = Batcher(**options_)
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await asyncio.to_thread(batcher.close)

    return asyncio.run(main())


def items(model, payloads, kind=TEXT, length=8):
    loop = asyncio.get_running_loop()
    return [Item(model, kind, payload, length, loop.create_future()) for payload in payloads]


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to be")


def test_what_queues_while_a_batch_runs_is_the_next_batch():
    async def work(batcher):
        model = Slow(hold=True)
        first, later = items(model, [0]), [items(model, [number]) for number in range(1, 12)]
        batcher.submit(first)
        await until(lambda: model.batches)
        for item in later:
            batcher.submit(item)
        model.gate.set()
        found = await asyncio.gather(*(item.future for group in [first, *later] for item in group))
        assert [row[0] for row in found] == list(range(12))
        assert [len(payloads) for _, payloads in model.batches] == [1, 8, 3]  # alone at once, then max_batch

    run(work)


def test_a_lone_request_is_not_delayed_even_after_a_busy_time():
    async def work(batcher):
        model = Slow()
        batch = items(model, range(8))
        batcher.submit(batch)  # a batch of company: the engine lingers after it
        await asyncio.gather(*(item.future for item in batch))
        await asyncio.sleep(0.1)
        (single,) = items(model, [1])
        started = time.perf_counter()
        batcher.submit([single])
        await single.future
        assert time.perf_counter() - started < 1.0  # linger is 20 seconds here, of a batch of no time at all

    run(work, linger=20.0)


def test_given_up_items_are_never_run():
    async def work(batcher):
        model = Slow(hold=True)
        first, rest = items(model, [0]), items(model, [1, 2, 3])
        batcher.submit(first)
        await until(lambda: model.batches)
        batcher.submit(rest)
        rest[0].future.cancel()
        rest[2].future.cancel()
        model.gate.set()
        assert (await rest[1].future)[0] == 2
        assert [payloads for _, payloads in model.batches] == [[0], [2]]

    run(work)


def test_a_batch_that_fails_is_halved_until_the_bad_one_stands_alone():
    async def work(batcher):
        group = items(Slow(), [1, 2, None, 4, 5])
        batcher.submit(group)
        found = await asyncio.gather(*(item.future for item in group), return_exceptions=True)
        assert [isinstance(row, ValueError) for row in found] == [False, False, True, False, False]
        assert batcher.alive

    run(work)


def test_texts_and_pictures_take_turns_and_models_never_mix():
    async def work(batcher):
        model, other = Slow(hold=True), Slow()
        groups = [items(model, [0]), items(model, [1] * 16), items(model, [2] * 16, IMAGE, 1), items(other, [3] * 2)]
        batcher.submit(groups[0])
        await until(lambda: model.batches)
        for group in groups[1:]:
            batcher.submit(group)
        model.gate.set()
        await asyncio.gather(*(item.future for group in groups for item in group))
        assert [kind for kind, _ in model.batches] == [TEXT, IMAGE, TEXT, IMAGE, TEXT]
        assert other.batches == [(TEXT, [3, 3])]

    run(work)


def test_a_batch_is_led_by_the_oldest_and_padded_little():
    class Waiting(Item):
        __slots__ = ()

        def __init__(self, model, length):
            self.model, self.length, self.kind = model, length, TEXT

    waiting = [
        Waiting("m", 32),
        Waiting("m", 8),
        Waiting("m", 24),
        Waiting("n", 32),
        Waiting("m", 32),
        Waiting("m", 40),
    ]
    assert [item.length for item in choose(waiting, lambda lead: 8)] == [32, 32, 24]
    assert [item.length for item in choose(waiting, lambda lead: 2)] == [32, 32]
    assert choose(waiting, lambda lead: 1) == waiting[:1]


def test_batches_shrink_to_the_time_they_may_take():
    pace = Pace()
    assert pace.fits(IMAGE, 1, 0.5) > 1000  # nothing is known yet
    pace.learn(IMAGE, 10, 1.0)
    assert pace.fits(IMAGE, 1, 0.5) == 5 and pace.fits(IMAGE, 1, 0.01) == 1
    pace.learn(TEXT, 80, 0.8)
    assert pace.fits(TEXT, 8, 0.8) == pytest.approx(10, abs=1) and pace.fits(TEXT, 16, 0.8) == pytest.approx(5, abs=1)
