"""Streams: the same rows at every pass, nothing lost, nothing counted twice."""

import json
import pickle

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image

from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.errors import ClipDomainError


def write_pairs(folder, count, **columns):
    """`pairs.jsonl` of so many distinct pictures; each column is a function of the row's number."""
    lines = []
    for index in range(count):
        Image.new("RGB", (8, 8), (index % 256, index // 256, 50)).save(folder / f"{index}.png")
        row = {"image": f"{index}.png", "text": f"number {index}"}
        lines.append(row | {name: value(index) for name, value in columns.items()})
    return write_rows(folder, lines)


def write_rows(folder, rows):
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(rows):
    return [row["text"][0] for row in rows]


def test_a_second_epoch_counts_anew_and_lists_nothing_twice(tmp_path):
    source, quarantine = write_pairs(tmp_path, 600), tmp_path / "quarantine.jsonl"
    rows = read_rows(source)
    for index in range(0, 600, 30):  # in a second epoch 20 more would be more than a twentieth of its first rows
        rows[index]["image"] = "none.png"
    write_rows(tmp_path, rows)
    stream = load_pairs(source, streaming=True, validation_fraction=0, test_fraction=0, quarantine_file=quarantine)
    first = texts(stream["train"])
    assert len(first) == 580 and texts(stream["train"]) == first
    again = pickle.loads(pickle.dumps(stream["train"]))  # as a worker of another process has it
    assert texts(again) == first
    assert [row["row"] for row in read_rows(quarantine)] == list(range(0, 600, 30))


def test_evaluation_within_an_epoch_does_not_disturb_it(tmp_path):
    source, quarantine = write_pairs(tmp_path, 300), tmp_path / "quarantine.jsonl"
    rows = read_rows(source)
    rows[280]["image"] = "none.png"
    write_rows(tmp_path, rows)
    stream = load_pairs(source, streaming=True, quarantine_file=quarantine)
    alone = {name: texts(rows) for name, rows in stream.items()}
    quarantine.unlink()
    training = iter(stream["train"])
    found = texts([next(training)])
    assert texts(stream["validation"]) == alone["validation"] and texts(stream["test"]) == alone["test"]
    assert found + texts(training) == alone["train"]
    assert [row["row"] for row in read_rows(quarantine)] == [280]
    assert sorted(text for split in alone.values() for text in split) == sorted(
        f"number {index}" for index in range(300) if index != 280
    )


def test_a_given_split_is_found_however_late_and_validation_is_carved(tmp_path):
    source = write_pairs(tmp_path, 1300, split=lambda index: "train" if index < 1200 else "test")
    stream = load_pairs(source, streaming=True)
    assert texts(stream["test"]) == [f"number {index}" for index in range(1200, 1300)]
    sizes = {name: len(texts(rows)) for name, rows in stream.items()}
    assert sizes["train"] + sizes["validation"] == 1200 and 80 < sizes["validation"] < 160
    assert set(load_pairs(source, streaming=True, validation_fraction=0)) == {"train", "test"}


def test_groups_stay_together_and_the_splits_follow_the_seed(tmp_path):
    source = write_pairs(tmp_path, 400, group=lambda index: f"g{index // 4}")
    groups = [{row["group"] for row in rows} for rows in load_pairs(source, streaming=True).values()]
    assert len(groups) == 3 and sum(map(len, groups)) == len(set.union(*groups)) == 100
    same, other = load_pairs(source, streaming=True), load_pairs(source, streaming=True, seed=1)
    assert [{row["group"] for row in rows} for rows in same.values()] == groups
    assert [{row["group"] for row in rows} for rows in other.values()] != groups


def test_a_short_stream_of_nothing_but_bad_rows_stops(tmp_path):
    source = write_rows(tmp_path, [{"image": "none.png", "text": "x"}] * 50)
    with pytest.raises(ClipDomainError, match="50 of 50 rows cannot be used"):
        list(load_pairs(source, streaming=True)["train"])


def saved(folder, **sizes):
    """A saved dataset with embedded pictures and classes; each split starts at another picture."""
    tables, start = {}, 0
    for name, size in sizes.items():
        path = folder / name
        path.mkdir(parents=True)
        rows = [row | {"label": index % 2} for index, row in enumerate(read_rows(write_pairs(path, start + size)))]
        pictures = [{"bytes": (path / row["image"]).read_bytes(), "path": None} for row in rows]
        table = Dataset.from_list([row | {"image": picture} for row, picture in zip(rows, pictures, strict=True)])
        table = table.cast_column("image", ImageFeature()).cast_column("label", ClassLabel(names=["cat", "dog"]))
        tables[name] = table.select(range(start, start + size))
        start += size
    return DatasetDict(tables)


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_named_otherwise_are_training_and_labels_are_words(tmp_path, streaming, caplog):
    saved(tmp_path / "raw", train=20, extra=10, test=10).save_to_disk(tmp_path / "saved")
    splits = load_pairs(tmp_path / "saved", streaming=streaming)
    assert texts(splits["test"]) == [f"number {index}" for index in range(30, 40)]
    assert len(texts(splits["train"])) + len(texts(splits["validation"])) == 30
    assert "'extra' is taken for training" in caplog.text
    assert {row["label"] for row in splits["test"]} == {"cat", "dog"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("names", ["{}-00000-of-00001.parquet", "{}/0000.parquet"])
def test_a_folder_of_parquet_keeps_the_splits_of_its_file_names(tmp_path, monkeypatch, names, streaming):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for name, table in saved(tmp_path / "raw", train=40, test=10).items():
        path = tmp_path / "table" / "data" / names.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
    splits = load_pairs(tmp_path / "table", streaming=streaming)
    assert texts(splits["test"]) == [f"number {index}" for index in range(40, 50)]
    assert len(texts(splits["train"])) + len(texts(splits["validation"])) == 40


def test_one_table_called_train_gives_no_split(tmp_path):
    saved(tmp_path / "raw", train=60).save_to_disk(tmp_path / "saved")
    assert set(load_pairs(tmp_path / "saved")) == {"train", "validation", "test"}


def test_rows_kept_on_disk_are_todays(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = write_pairs(tmp_path, 40)
    for word in ("old", "new"):
        write_rows(tmp_path, [row | {"text": word} for row in read_rows(source)])
        stream = load_pairs(source, streaming=True)["train"]
        assert set(texts(Dataset.from_generator(stream.__iter__, features=stream.features))) == {word}
