"""What people really bring: odd files, odd names, odd cells. Each is read, or set aside, or one sentence."""

import csv
import json
import logging

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.errors import ClipDomainError


def write_pictures(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (8, 8), (index, 0, 50)).save(folder / f"{index}.png")
    return [{"image": f"{index}.png", "text": f"number {index}"} for index in range(count)]


def write_rows(folder, rows):
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


def all_texts(splits):
    return sorted(text for rows in splits.values() for texts in rows["text"] for text in texts)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        ("a caption where the picture should be " * 10, "name too long"),
        ("\0.png", "null"),
        ("https://example.com/a.jpg", "not downloaded"),
        pytest.param("a\udc80.png", "no such file", id="a name that is no Unicode"),
        (".", "directory"),
        (3, "picture is a int"),
        (None, "no picture"),
        ("  ", "no picture"),
    ],
)
def test_a_picture_that_is_none_is_set_aside(tmp_path, picture, reason, caplog):
    # What is no Unicode cannot be passed on, as a part of the log, by a runner of several processes.
    caplog.set_level(logging.ERROR, logger="hf_clip_domain.data.quarantine")
    rows = write_pictures(tmp_path, 30)
    quarantine = tmp_path / "quarantine.jsonl"
    splits = load_pairs(write_rows(tmp_path, [*rows, {"image": picture, "text": "x"}]), quarantine_file=quarantine)
    assert len(all_texts(splits)) == 30
    (entry,) = map(json.loads, quarantine.read_text(encoding="utf-8").splitlines())
    assert entry["row"] == 30 and reason in entry["reason"].lower()


def test_reasons_are_counted_together_with_their_first_example(tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for index in range(40):
        path = tmp_path / f"{index}.jpg"
        Image.fromarray(random.integers(0, 255, (60 + index, 60, 3), np.uint8)).save(path)
        if index % 4 == 1:  # each lacks another number of bytes, and says so
            path.write_bytes(path.read_bytes()[: -500 - 7 * index])
        rows.append({"image": path.name, "text": "x"})
    with pytest.raises(ClipDomainError) as error:
        load_pairs(write_rows(tmp_path, rows), quarantine_file=tmp_path / "quarantine.jsonl")
    message = str(error.value)
    assert "10 of 40 rows cannot be used (10 x " in message and "first row 1 (" in message
    assert str(tmp_path / "quarantine.jsonl") in message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_the_encoding_of_a_table_is_found_and_told(tmp_path, caplog, encoding):
    write_pictures(tmp_path, 2)
    words = ["Größe 5 µm", 'two\nlines, "quoted"']
    with open(tmp_path / "pairs.csv", "w", newline="", encoding=encoding) as stream:
        writer = csv.writer(stream)
        writer.writerow([" image", "text "])
        writer.writerows([f"{index}.png", word] for index, word in enumerate(words))
    splits = load_pairs(tmp_path / "pairs.csv")
    assert all_texts(splits) == sorted(words)
    assert (f"is read as {encoding}" in caplog.text) == (encoding in ("cp1252", "utf-16"))


def test_lines_of_json_under_the_other_name_and_a_list_under_any_name(tmp_path):
    rows = write_pictures(tmp_path, 3)
    write_rows(tmp_path, rows).rename(tmp_path / "lines.json")
    (tmp_path / "list.txt").write_text("".join(f"{row['image']}\t{row['text']}\n" for row in rows))
    expected = [row["text"] for row in rows]
    assert all_texts(load_pairs(tmp_path / "lines.json")) == all_texts(load_pairs(tmp_path / "list.txt")) == expected


def test_several_lines_of_captions_are_several_captions(tmp_path):
    rows = write_pictures(tmp_path, 3)
    lines = [f"{row['image']}\t{word} {row['text']}\n" for word in ("one", "other") for row in rows]
    (tmp_path / "captions.txt").write_text("".join(lines))
    splits = load_pairs(tmp_path)
    assert sorted(map(len, (texts for rows in splits.values() for texts in rows["text"]))) == [2, 2, 2]


def test_folders_of_classes_are_no_splits(tmp_path):
    for place in ("test_tube", "flask"):
        rows = write_pictures(tmp_path / place, 10)
        rows = [{"file_name": row["image"], "text": f"{place} {row['text']}"} for row in rows]
        (tmp_path / place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = load_pairs(tmp_path)  # the same ten pictures in both folders: ten clusters
    assert len(all_texts(splits)) == 20 and set(splits) == {"train", "validation", "test"}


def test_a_column_that_only_later_rows_have_is_not_lost(tmp_path):
    rows = write_pictures(tmp_path, 30)
    for row in rows[20:]:
        row["split"] = "test"
    assert sorted(load_pairs(write_rows(tmp_path, rows))["test"]["text"]) == [
        [f"number {index}"] for index in range(20, 30)
    ]


def test_the_splits_of_karpathy_and_of_nobody(tmp_path):
    rows = [row | {"split": "restval"} for row in write_pictures(tmp_path, 30)]
    rows[3]["split"] = "someday"
    quarantine = tmp_path / "quarantine.jsonl"
    splits = load_pairs(write_rows(tmp_path, rows), quarantine_file=quarantine)
    assert len(all_texts(splits)) == 29 and set(splits) == {"train", "validation"}
    assert "split 'someday'" in json.loads(quarantine.read_text())["reason"]


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.1, 1), (0.5, 0.5)])
def test_shares_that_make_no_sense(tmp_path, validation, test):
    source = write_rows(tmp_path, write_pictures(tmp_path, 3))
    with pytest.raises(ClipDomainError, match="_fraction"):
        load_pairs(source, validation_fraction=validation, test_fraction=test)


def test_a_damaged_saved_dataset_and_damaged_parquet(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    Dataset.from_list(write_pictures(tmp_path, 3)).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(ClipDomainError, match="saved dataset is damaged"):
        load_pairs(tmp_path / "saved")
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ClipDomainError, match="could not be read as parquet"):
        load_pairs(tmp_path / "pairs.parquet")


def test_a_misspelt_folder_is_recognised_before_the_hub_is_blamed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "pairs").mkdir(parents=True)
    with pytest.raises(ClipDomainError, match="Did you mean data/pairs?"):
        load_pairs("data/pears")
