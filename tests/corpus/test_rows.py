"""Ranges of rows: each row once, whatever the source and however many processes take them."""

import json

import pytest
from datasets import Dataset, Image

from hf_clip_domain.corpus import Corpus
from hf_clip_domain.corpus.folder import share
from hf_clip_domain.errors import ClipDomainError


def read(corpus, size, mine=lambda number: True):
    return {number: list(rows) for number, rows in corpus.shards(size, mine)}


@pytest.fixture
def sources(corpus, tmp_path):
    """The same rows as CSV, as a lone Parquet file, and as three of them that are a split each."""
    table = corpus()
    rows = [(table.parent / f"{number}.png").read_bytes() for number in range(23)]
    content = {"image": [{"bytes": picture, "path": None} for picture in rows], "text": [f"t{n}" for n in range(23)]}
    dataset = Dataset.from_dict(content).cast_column("image", Image(decode=False))
    dataset.to_parquet(tmp_path / "rows.parquet")
    splits = tmp_path / "splits"
    splits.mkdir()
    for name, (first, last) in {"train": (0, 11), "validation": (11, 12), "test": (12, 23)}.items():
        dataset.select(range(first, last)).to_parquet(splits / f"{name}-00000-of-00001.parquet")
    return {"csv": str(table), "parquet": str(tmp_path / "rows.parquet"), "splits": str(splits)}


@pytest.mark.parametrize("kind", ["csv", "parquet", "splits"])
@pytest.mark.parametrize("streaming", [False, True])
def test_shards_are_ranges_of_rows(sources, kind, streaming):
    corpus = Corpus(sources[kind], streaming=streaming)
    shards = read(corpus, 5)
    assert [len(rows) for rows in shards.values()] == [5, 5, 5, 5, 3] and list(shards) == [0, 1, 2, 3, 4]
    assert [row.number for rows in shards.values() for row in rows] == list(range(23))
    assert corpus.count == 23 and corpus.sides == ("image", "text")
    some = read(corpus, 5, lambda number: number in (1, 4))
    assert some == {1: shards[1], 4: shards[4]}
    if kind == "splits":
        splits = [row.split for rows in shards.values() for row in rows]
        assert splits == ["test"] * 11 + ["train"] * 11 + ["validation"]  # by file name


@pytest.mark.parametrize("done", [[], [0], [1, 2, 3], [0, 4, 5, 9], list(range(10))])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_missing_shard_has_one_process(done, processes):
    taken = [
        [number for number in range(10) if share(done, process, processes)(number)] for process in range(processes)
    ]
    assert sorted(sum(taken, [])) == [number for number in range(10) if number not in done]
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_a_row_that_lacks_one_side_keeps_the_other_and_its_reason(corpus):
    rows = read(Corpus(str(corpus()), key_column="id"), 100)[0]
    assert rows[5].image is not None and rows[5].text is None and rows[5].errors == ("empty caption",)
    assert rows[3].text == "caption 3" and rows[4].key == "id-4" and rows[4].errors == ()


def test_pictures_or_texts_alone_will_do(corpus, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"title": f"t{n}"}) + "\n" for n in range(3)))
    texts = Corpus(str(tmp_path / "texts.jsonl"))
    assert texts.sides == ("text",) and [row.text for row in read(texts, 9)[0]] == ["t0", "t1", "t2"]
    pictures = Corpus(str(corpus()), only="image")
    row = read(pictures, 100)[0][5]
    assert pictures.sides == ("image",) and row.errors == () and row.key == "5.png"


@pytest.mark.parametrize(
    "wrong, told", [({"key_column": "name"}, "--key_column name"), ({"only": "text"}, "--text_column")]
)
def test_a_column_that_is_not_there_is_named(tmp_path, wrong, told):
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png"}\n')
    with pytest.raises(ClipDomainError, match=told):
        Corpus(str(tmp_path / "rows.jsonl"), **wrong)
