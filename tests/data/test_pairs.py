"""Rows to items: the same by seed, epoch and row, whatever the workers."""

import io
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture
from torch.utils.data import DataLoader

from hf_clip_domain.data import pairs as pairs_module
from hf_clip_domain.data.pairs import PairDataset, PairStream
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import load_domain
from hf_clip_domain.errors import ClipDomainError

FEATURES = Features({"image": Image(decode=False), "text": List(Value("string"))})
LONG = "The Moon is full. Its seas are dark. The rays of a crater shine brightly."


def png(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    Picture.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_pairs(count=6):
    rows = [{"image": png(i), "text": [f"Figure {i}. A first of {i}.", f"A second of {i}."]} for i in range(count)]
    return Dataset.from_list(rows, features=FEATURES)


def make(pairs, kind=PairDataset, **options):
    domain = load_domain("general")
    return kind(pairs, ImageTransform(domain, 16, (0.5,) * 3, (0.5,) * 3), domain, **options)


def as_one(item):
    return item["text"], item["pixel_values"].numpy().tobytes()


def test_evaluation_takes_the_first_caption_cleaned_and_the_same_view():
    data = make(make_pairs(), train=False)
    assert len(data) == 6
    assert data[2]["text"] == "A first of 2."
    assert data[2]["pixel_values"].shape == (3, 16, 16) and data[2]["pixel_values"].dtype == torch.float32
    assert as_one(data[2]) == as_one(data[data.epoch_key(5, 2)])


def test_training_draws_by_seed_and_epoch():
    pairs = make_pairs()
    data, same, other = (make(pairs, train=True, seed=seed) for seed in (1, 1, 2))
    keys = [data.epoch_key(epoch, 3) for epoch in range(12)]
    views = [as_one(data[key]) for key in keys]
    assert views == [as_one(same[key]) for key in keys]
    assert views != [as_one(other[key]) for key in keys]
    assert len(set(views)) == 12, "every epoch has its own view"
    assert {text for text, _ in views} == {"A first of 3.", "A second of 3."}
    assert as_one(data[3]) == views[0], "a plain index is its first epoch"


def test_workers_change_nothing():
    data = make(make_pairs(), train=True, seed=7)
    keys = [data.epoch_key(epoch, index) for epoch in (0, 4) for index in (5, 0, 3, 2)]

    def items(workers):
        return [as_one(item) for item in DataLoader(data, sampler=keys, batch_size=None, num_workers=workers)]

    assert items(2) == items(0)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_made_in_threads_is_the_items_one_by_one(threads, monkeypatch):
    data = make(make_pairs(40), train=True, seed=7)
    keys = [data.epoch_key(epoch, index) for epoch in (0, 4) for index in range(40)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    batches = DataLoader(data, sampler=keys, batch_size=20, collate_fn=list)
    assert [as_one(item) for batch in batches for item in batch] == [as_one(data[key]) for key in keys]


def test_a_damaged_picture_in_a_batch_names_its_row(monkeypatch):
    rows = [{"image": png(i), "text": ["a"]} for i in range(8)]
    rows[5]["image"] = {"bytes": b"no picture", "path": None}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ClipDomainError, match="^row 5: "):
        make(Dataset.from_list(rows, features=FEATURES), train=True).__getitems__(range(8))


def test_captions_are_cleaned_alike_whether_kept_or_not_and_in_a_copy(monkeypatch):
    pairs = make_pairs()
    first = make(pairs, train=False)
    again = [[as_one(item) for item in first] for _ in range(2)]
    copied = pickle.loads(pickle.dumps(first))
    monkeypatch.setattr(pairs_module, "_MOST_CLEANED", 2)
    few = make(pairs, train=False)
    again += [[as_one(item) for item in data] for data in (copied, few, few)]
    assert all(one == again[0] for one in again) and len(set(again[0])) == 6


def test_sentence_mode_reads_every_sentence_in_time():
    pairs = Dataset.from_list([{"image": png(0), "text": [LONG]}], features=FEATURES)
    whole, parts = (make(pairs, train=True, captions=captions) for captions in ("truncate", "sentence"))
    assert {whole[key]["text"] for key in range(20)} == {LONG}
    seen = [parts[key]["text"] for key in range(40)]
    assert " ".join(sorted(set(seen), key=LONG.index)) == LONG
    assert seen == [parts[key]["text"] for key in range(40)]
    assert make(pairs, train=False, captions="sentence")[0]["text"] == LONG


def test_iterating_ends():
    assert len(list(make(make_pairs(3), train=False))) == 3


def test_damaged_picture_names_the_row():
    rows = [{"image": png(0), "text": ["a"]}, {"image": {"bytes": b"no picture", "path": None}, "text": ["b"]}]
    data = make(Dataset.from_list(rows, features=FEATURES), train=True)
    with pytest.raises(ClipDomainError, match="^row 1: "):
        data[data.epoch_key(2, 1)]


def test_unknown_caption_mode():
    with pytest.raises(ClipDomainError, match="captions='words'"):
        make(make_pairs(), train=True, captions="words")


def stream_of(shards=2, **options):
    return make(make_pairs(8).to_iterable_dataset(num_shards=shards), PairStream, **options)


def test_stream_gives_the_same_items_whatever_the_workers():
    stream = stream_of(train=True, seed=3)

    def items(workers):
        return sorted(as_one(item) for item in DataLoader(stream, batch_size=None, num_workers=workers))

    assert len(items(0)) == 8
    assert items(2) == items(0)


def test_stream_changes_by_epoch_and_comes_back():
    stream = stream_of(train=True, seed=3)
    first = [as_one(item) for item in stream]
    stream.set_epoch(1)
    second = [as_one(item) for item in stream]
    stream.set_epoch(0)
    assert sorted(first) != sorted(second)
    assert [as_one(item) for item in stream] == first


def test_living_workers_learn_of_a_new_epoch():
    stream = stream_of(train=True, seed=3)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    first = sorted(as_one(item) for item in loader)
    stream.set_epoch(1)
    assert sorted(as_one(item) for item in loader) == sorted(as_one(item) for item in stream)
    assert sorted(as_one(item) for item in stream) != first


def test_stream_evaluates_in_order():
    assert [item["text"] for item in stream_of(train=False)] == [f"A first of {i}." for i in range(8)]
