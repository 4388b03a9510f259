"""Every kind of source gives the same pairs."""

import csv
import json
import tarfile

import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_clip_domain.data.images import decode_image
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.errors import ClipDomainError

COUNT = 30


def write_pictures(folder, count=COUNT):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (40, 30), (index * 8 % 256, index * 3 % 256, 90)).save(folder / f"{index:02}.jpg")
    return [f"{index:02}.jpg" for index in range(count)]


def caption(index):
    return f"picture number {index}"


def everything(splits):
    """(colour, captions) of every pair of every split, sorted: independent of order and of how pictures are kept."""
    found = []
    for rows in splits.values():
        for row in rows:
            found.append((decode_image(row["image"]).getpixel((5, 5)), tuple(row["text"]), row["label"], row["group"]))
    return sorted(found, key=str)


def expected(folder, names, texts=None, label=None):
    return sorted(
        (
            (
                Image.open(folder / name).convert("RGB").getpixel((5, 5)),
                tuple(texts[index] if texts else (caption(index),)),
                label,
                None,
            )
            for index, name in enumerate(names)
        ),
        key=str,
    )


def as_csv(folder, names):
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_path", "caption"])
        writer.writerows([name, caption(index)] for index, name in enumerate(names))
    return folder / "pairs.csv"


def as_tsv(folder, names):
    lines = ["filepath\ttext", *(f"{name}\t{caption(index)}" for index, name in enumerate(names))]
    (folder / "pairs.tsv").write_text("\n".join(lines))
    return folder / "pairs.tsv"


def as_json_list(folder, names):
    rows = [{"image": name, "captions": [caption(index)]} for index, name in enumerate(names)]
    (folder / "pairs.json").write_text(json.dumps(rows))
    return folder / "pairs.json"


def as_json_data(folder, names):
    rows = [{"img": name, "caption": caption(index)} for index, name in enumerate(names)]
    (folder / "wrapped.json").write_text(json.dumps({"version": 1, "data": rows}))
    return folder / "wrapped.json"


def as_jsonl(folder, names):
    rows = [json.dumps({"file_name": name, "text": caption(index)}) for index, name in enumerate(names)]
    (folder / "pairs.jsonl").write_text("\n\n".join(rows))
    return folder / "pairs.jsonl"


def as_parquet_paths(folder, names):
    rows = {"image_path": [str(folder / name) for name in names], "text": [caption(i) for i in range(len(names))]}
    Dataset.from_dict(rows).to_parquet(folder / "paths.parquet")
    return folder / "paths.parquet"


def as_parquet_pictures(folder, names):
    rows = {"image": [str(folder / name) for name in names], "text": [caption(i) for i in range(len(names))]}
    place = folder / "table"
    place.mkdir()
    embedded = Dataset.from_dict(rows).cast_column("image", ImageFeature())
    embedded.map(lambda row: row).to_parquet(place / "pictures.parquet")
    return place


def as_saved_dataset(folder, names):
    rows = {"image": [str(folder / name) for name in names], "text": [caption(i) for i in range(len(names))]}
    Dataset.from_dict(rows).cast_column("image", ImageFeature()).save_to_disk(folder / "saved")
    return folder / "saved"


def as_captions_file(folder, names):
    lines = [f"{name}\t{caption(index)}" for index, name in enumerate(names)]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    return folder


def as_side_by_side(folder, names):
    for index, name in enumerate(names):
        (folder / name).with_suffix(".txt").write_text(caption(index))
    return folder


def as_imagefolder_jsonl(folder, names):
    rows = [json.dumps({"file_name": name, "text": caption(index)}) for index, name in enumerate(names)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def as_imagefolder_csv(folder, names):
    lines = ["file_name,text", *(f"{name},{caption(index)}" for index, name in enumerate(names))]
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def as_webdataset(folder, names):
    place = folder / "shards"
    place.mkdir()
    for shard in range(3):
        with tarfile.open(place / f"{shard:03}.tar", "w") as tar:
            for index in range(shard * 10, shard * 10 + 10):
                (folder / f"{index:02}.txt").write_text(caption(index))
                tar.add(folder / f"{index:02}.jpg", f"{index:02}.jpg")
                tar.add(folder / f"{index:02}.txt", f"{index:02}.txt")
                (folder / f"{index:02}.txt").unlink()
    return str(place / "{000..002}.tar")


SOURCES = [
    as_csv,
    as_tsv,
    as_json_list,
    as_json_data,
    as_jsonl,
    as_parquet_paths,
    as_parquet_pictures,
    as_saved_dataset,
    as_captions_file,
    as_side_by_side,
    as_imagefolder_jsonl,
    as_imagefolder_csv,
    as_webdataset,
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", SOURCES)
def test_every_source_gives_the_same_pairs(tmp_path, monkeypatch, write, streaming):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    names = write_pictures(tmp_path / "data")
    splits = load_pairs(write(tmp_path / "data", names), streaming=streaming)
    assert everything(splits) == expected(tmp_path / "data", names)
    assert set(splits) == {"train", "validation", "test"}


def test_a_list_of_captions_and_labels_and_given_columns(tmp_path):
    names = write_pictures(tmp_path)
    rows = [
        {"bild": name, "worte": json.dumps([caption(i), f"another {i}"]), "art": "kind", "quelle": f"g{i // 3}"}
        for i, name in enumerate(names)
    ]
    with open(tmp_path / "pairs.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    splits = load_pairs(
        tmp_path / "pairs.csv",
        image_column="bild",
        text_column="worte",
        label_column="art",
        group_column="quelle",
    )
    row = splits["train"][0]
    assert len(row["text"]) == 2 and row["text"][1].startswith("another") and row["label"] == "kind"
    groups = [set(rows["group"]) for rows in splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10


def test_given_splits_are_kept_and_validation_is_carved_from_training(tmp_path):
    names = write_pictures(tmp_path)
    rows = [
        {"file_name": name, "text": caption(i), "split": "testing" if i % 3 == 0 else "train"}
        for i, name in enumerate(names)
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = load_pairs(tmp_path, validation_fraction=0.2)
    assert sorted(text for texts in splits["test"]["text"] for text in texts) == sorted(
        caption(i) for i in range(0, COUNT, 3)
    )
    assert len(splits["validation"]) > 0 and len(splits["train"]) + len(splits["validation"]) == 20


def test_sub_folders_are_splits(tmp_path):
    for split in ("train", "test"):
        names = write_pictures(tmp_path / split, 6 if split == "test" else 20)
        rows = [json.dumps({"file_name": name, "text": f"{split} {i}"}) for i, name in enumerate(names)]
        if split == "test":  # other colours, so that no picture is on both sides
            for name in names:
                Image.new("RGB", (40, 30), (1, 2, int(name[:2]))).save(tmp_path / split / name)
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(rows))
    splits = load_pairs(tmp_path)
    assert len(splits["test"]) == 6 and all(text[0].startswith("test") for text in splits["test"]["text"])
    assert len(splits["train"]) + len(splits["validation"]) == 20


def test_encodings_and_quoted_newlines(tmp_path):
    write_pictures(tmp_path, 3)
    words = ["Größe 5 µm", 'two\nlines, "quoted"', "ça va"]
    rows = "image,text\n" + "".join(f'{i:02}.jpg,"{w.replace(chr(34), chr(34) * 2)}"\n' for i, w in enumerate(words))
    for encoding in ("utf-8", "utf-8-sig", "cp1252"):
        (tmp_path / "pairs.csv").write_text(rows, encoding=encoding)
        splits = load_pairs(tmp_path / "pairs.csv", validation_fraction=0, test_fraction=0)
        assert [texts[0] for texts in splits["train"]["text"]] == words


def test_emoji_and_chinese_survive(tmp_path):
    write_pictures(tmp_path, 2)
    words = ["细胞 under the microscope 🔬", "naïve 🧬"]
    rows = [json.dumps({"image": f"{i:02}.jpg", "text": word}) for i, word in enumerate(words)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
    splits = load_pairs(tmp_path / "pairs.jsonl", validation_fraction=0, test_fraction=0)
    assert [texts[0] for texts in splits["train"]["text"]] == words


def test_bad_rows_are_set_aside_with_row_file_and_reason(tmp_path):
    names = write_pictures(tmp_path)
    (tmp_path / "03.jpg").unlink()
    content = (tmp_path / "04.jpg").read_bytes()
    (tmp_path / "04.jpg").write_bytes(content[: len(content) // 2])
    rows = [{"file_name": name, "text": caption(i)} for i, name in enumerate(names)]
    rows[5]["text"] = "   "
    rows[6]["text"] = 17
    rows[7]["text"] = None
    lines = [json.dumps(row) for row in rows]
    lines[8] = lines[8][:-4]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    splits = load_pairs(tmp_path, max_bad_fraction=0.3, quarantine_file=quarantine)
    assert sum(map(len, splits.values())) == COUNT - 6
    found = {entry["row"]: entry for entry in map(json.loads, quarantine.read_text().splitlines())}
    assert sorted(found) == [3, 4, 5, 6, 7, 8]
    assert "no such file" in found[3]["reason"] and found[3]["file"].endswith("03.jpg")
    assert "truncated" in found[4]["reason"] and found[4]["file"].endswith("04.jpg")
    assert "empty caption" in found[5]["reason"] and found[5]["file"] == "05.jpg"
    assert "int" in found[6]["reason"] and "no caption" in found[7]["reason"] and "JSON" in found[8]["reason"]


def test_a_tenth_of_truncated_pictures_stops_unless_allowed(tmp_path):
    names = write_pictures(tmp_path)
    for name in names[::10]:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-200])
    source, quarantine = as_csv(tmp_path, names), tmp_path / "quarantine.jsonl"
    with pytest.raises(ClipDomainError, match="3 of 30 rows cannot be used .*truncated.*max_bad_fraction 0.05"):
        load_pairs(source, quarantine_file=quarantine)
    assert len(quarantine.read_text().splitlines()) == 3
    assert sum(map(len, load_pairs(source, max_bad_fraction=0.2).values())) == 27


def test_a_stream_sets_bad_rows_aside_and_stops_when_there_are_too_many(tmp_path):
    rows = [json.dumps({"image": "00.jpg", "text": caption(i)}) for i in range(900)]
    write_pictures(tmp_path, 1)
    rows[10] = json.dumps({"image": "none.jpg", "text": "x"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    quarantine = tmp_path / "quarantine.jsonl"
    stream = load_pairs(
        tmp_path / "pairs.jsonl", streaming=True, quarantine_file=quarantine, test_fraction=0, validation_fraction=0
    )
    assert sum(1 for _ in stream["train"]) == 899
    assert json.loads(quarantine.read_text())["row"] == 10
    rows[100:400] = [json.dumps({"image": "none.jpg", "text": "x"})] * 300
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    stream = load_pairs(tmp_path / "pairs.jsonl", streaming=True, test_fraction=0, validation_fraction=0)
    with pytest.raises(ClipDomainError, match="max_bad_fraction"):
        sum(1 for _ in stream["train"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "is empty"),
        ("header.csv", "image,text\n", "has no rows"),
        ("columns.csv", "photo,words\n1.jpg,a\n", "no image column among photo, words; name it with --image_column"),
        ("broken.json", "[{", "not valid JSON"),
        ("shape.json", '{"rows": []}', "list under `data`"),
        ("pairs.xlsx", "?", "unknown format '.xlsx'"),
    ],
)
def test_unusable_files_are_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ClipDomainError, match=message) as error:
        load_pairs(tmp_path / name)
    assert name in str(error.value)


def test_missing_sources_are_named(tmp_path):
    as_csv(tmp_path, write_pictures(tmp_path, 2))
    with pytest.raises(ClipDomainError, match="Did you mean .*pairs.csv"):
        load_pairs(tmp_path / "pears.csv")
    with pytest.raises(ClipDomainError, match="no such column; there are image_path, caption"):
        load_pairs(tmp_path / "pairs.csv", text_column="words")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ClipDomainError, match="holds none of"):
        load_pairs(tmp_path / "nothing")
    with pytest.raises(ClipDomainError, match="no file matches"):
        load_pairs(str(tmp_path / "*.tar"))


def test_a_hub_id_out_of_reach_says_how_to_use_a_local_copy():
    with pytest.raises(ClipDomainError, match="hf download someone/pairs"):
        load_pairs("someone/pairs")
