"""A store on disk: what was put is found by every process, and nothing else ever is."""

import hashlib
import multiprocessing
import os
import pickle
import signal
import time

import pytest
import torch

from hf_clip_domain.data.feature_store import logger, open_store
from hf_clip_domain.errors import ClipDomainError

GIB = 2**30


@pytest.fixture
def heard(caplog):
    """The library's loggers do not hand on what they hear."""
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


def key(number):
    return hashlib.sha256(str(number).encode()).digest()


def row(number, shape=(3, 4), dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(dtype)


def make(root, identity="a", shape=(3, 4), dtype=torch.float32, budget=GIB, rows=100):
    return open_store(root, {"weights": identity}, shape, dtype, budget=budget, rows=rows)


def fill(store, numbers):
    numbers = list(numbers)
    store.put([key(n) for n in numbers], torch.stack([row(n, store.shape, store.dtype) for n in numbers]))


def holds(store, numbers):
    """Which of these are found; those that are must be right."""
    numbers = list(numbers)
    values, found = store.get([key(n) for n in numbers])
    for number, value, there in zip(numbers, values, found, strict=True):
        assert not there or torch.equal(value, row(number, store.shape, store.dtype)), number
    return [number for number, there in zip(numbers, found, strict=True) if there]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_rows_are_found_in_any_order_and_by_a_later_run(tmp_path, dtype, shape):
    store = make(tmp_path, shape=shape, dtype=dtype)
    fill(store, range(10))
    assert holds(store, [7, 3, 11, 0, 3]) == [7, 3, 0, 3] and len(store) == 10
    assert key(4) in store and key(12) not in store
    again = make(tmp_path, shape=shape, dtype=dtype)
    assert holds(again, reversed(range(12))) == list(reversed(range(10)))
    assert len(make(tmp_path, "b", shape, dtype)) == 0


def test_a_copy_in_another_process_sees_what_is_added(tmp_path):
    store = make(tmp_path)
    copy = pickle.loads(pickle.dumps(store))
    assert key(1) not in copy
    fill(store, [1, 2])
    assert key(1) in copy and holds(copy, [1, 2, 3]) == [1, 2]


def test_what_is_there_is_not_written_twice(tmp_path):
    one, other = make(tmp_path), make(tmp_path)
    fill(one, [1, 2])
    fill(other, [2, 3, 3])
    assert len(other) == 3 and holds(one, [1, 2, 3]) == [1, 2, 3]
    assert (one.folder / "rows").stat().st_size == 3 * 48


def test_a_torn_end_is_ignored_and_written_over(tmp_path):
    fill(make(tmp_path), range(3))
    entries = make(tmp_path).folder / "entries"
    whole = entries.read_bytes()
    for length in range(80, len(whole)):  # a kill while the third entry was written
        entries.write_bytes(whole[:length])
        store = make(tmp_path)
        assert holds(store, range(3)) == [0, 1]
    fill(store, [5])
    assert holds(make(tmp_path), [0, 1, 2, 5]) == [0, 1, 5]


def test_damage_is_noticed_and_the_row_computed_again(tmp_path):
    fill(make(tmp_path), range(4))
    rows, entries = (make(tmp_path).folder / name for name in ("rows", "entries"))
    with open(rows, "r+b") as stream:
        stream.seek(1 * 48 + 5)
        stream.write(b"\xff\x00\xff")
    content = bytearray(entries.read_bytes())
    content[2 * 40 + 3] ^= 1
    entries.write_bytes(content)
    store = make(tmp_path)
    fill(store, [9])  # a writer passes over the damaged entry
    assert holds(store, [0, 1, 2, 3, 9]) == [0, 3, 9]
    fill(store, [1, 2])
    assert holds(store, range(4)) == holds(make(tmp_path), range(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", ["version", "json", "rows", "missing"])
def test_a_store_that_cannot_be_used_is_built_anew_with_a_warning(tmp_path, damage, caplog, heard):
    store = make(tmp_path)
    fill(store, range(4))
    meta = store.folder / "meta.json"
    if damage == "version":
        meta.write_text(meta.read_text().replace('"version": 1', '"version": 0'))
    elif damage == "json":
        meta.write_text(meta.read_text()[:20])
    elif damage == "rows":
        os.truncate(store.folder / "rows", 100)
    else:
        (store.folder / "entries").unlink()
    store = make(tmp_path)
    assert "built anew" in caplog.text and holds(store, range(4)) == []
    fill(store, [1])
    assert holds(make(tmp_path), range(4)) == [1]


def test_the_budget_holds_for_the_files_and_is_told_once(tmp_path, caplog, heard):
    store = make(tmp_path, budget=5 * (48 + 40) + 20)
    fill(store, range(4))
    fill(store, range(4, 9))
    fill(store, range(9, 12))
    assert holds(store, range(12)) == [0, 1, 2, 3, 4]
    assert sum(path.stat().st_size for path in store.folder.iterdir() if path.suffix != ".json") <= store.limit
    assert len({id(record) for record in caplog.records if "is full" in record.message}) == 1
    again = make(tmp_path, budget=8 * (48 + 40))  # more room later: the same store grows on
    fill(again, range(20, 30))
    assert holds(again, range(30)) == [0, 1, 2, 3, 4, 20, 21, 22]


def test_stores_unused_the_longest_make_room(tmp_path):
    row_bytes = 48 + 40
    for number, name in enumerate("abc"):
        store = make(tmp_path, name)
        fill(store, range(10))
        os.utime(store.folder / "meta.json", (number, number))
    size = sum(path.stat().st_size for path in store.folder.iterdir())
    old = make(tmp_path, "a")  # used again: b is now the oldest
    new = make(tmp_path, "d", budget=2 * size + 11 * row_bytes, rows=10)
    assert holds(old, [1]) == [1] and len(make(tmp_path, "c")) == 10 and len(make(tmp_path, "b")) == 0
    fill(new, range(10))
    assert holds(new, range(10)) == list(range(10))


def test_a_store_removed_under_a_run_costs_time_not_correctness(tmp_path):
    store = make(tmp_path)
    fill(store, range(3))
    assert holds(store, [0]) == [0]  # mapped now
    for path in store.folder.iterdir():
        path.unlink()
    store.folder.rmdir()
    assert set(holds(store, range(3))) <= {0, 1, 2}
    fill(store, [7])
    assert holds(store, [7]) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipDomainError, match="--feature_cache .*file"):
        make(tmp_path / "file" / "store")


def write_many(root, first, step):
    torch.set_num_threads(1)
    store = make(root, shape=(512,))
    for start in range(first, first + 100 * step, step):
        fill(store, range(start, start + step))


def start_writer(*arguments):
    process = multiprocessing.get_context("fork").Process(target=write_many, args=arguments)
    process.start()
    return process


def test_writers_that_are_killed_leave_whole_rows(tmp_path):
    total, numbers = 0, [n for first in range(0, 40_000, 10_000) for n in range(first, first + 5000)]
    for turn in range(4):
        process = start_writer(tmp_path, turn * 10_000, 50)
        while not any(key(turn * 10_000 + n) in make(tmp_path, shape=(512,)) for n in (0, 60 * turn)):
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = make(tmp_path, shape=(512,))
        assert len(holds(store, [n for n in numbers if key(n) in store])) == len(store) > total
        total = len(store)


def test_two_processes_write_one_store(tmp_path):
    writers = [start_writer(tmp_path, first, 10) for first in (0, 500)]  # half of the rows are both processes'
    for writer in writers:
        writer.join()
    store = make(tmp_path, shape=(512,))
    assert len(store) == 1500 and holds(store, range(1500)) == list(range(1500))
    assert (store.folder / "rows").stat().st_size == 1500 * 2048
