"""`scripts/bench_data.py` in its smallest form: every way reads every kind, and all time is accounted for."""

import runpy
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    threads = torch.get_num_threads()
    yield runpy.run_path(str(ROOT / "scripts" / "bench_data.py"))
    torch.set_num_threads(threads)


def tables(printed):
    """Each table as a list of `{column: cell}`, by the line above it."""
    found, lines = {}, printed.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("| :--"):
            names = lines[number - 1].strip("| ").split(" | ")
            rows = [row.strip("| ").split(" | ") for row in lines[number + 1 : (lines + [""]).index("", number)]]
            found[lines[number - 3]] = [dict(zip(names, cells, strict=True)) for cells in rows]
    return list(found.values())


def test_synthetic_pictures_beside_the_plain_processor_and_an_older_checkout(bench, capsys):
    bench["main"](["--scale", "0.04", "--pictures", "1", "--rounds", "1", "--size", "32", "--before", str(ROOT)])
    speeds, differences, stages = tables(capsys.readouterr().out)
    kinds = [row["pictures"] for row in speeds]
    assert len(kinds) == 9 and [row["pictures"] for row in differences] == kinds
    for row in speeds:
        for way in ("evaluation", "training", "Pillow processor", "before"):
            assert float(row[way]) > 0
        ratio = float(row["evaluation"]) / float(row["Pillow processor"])
        assert float(row["to Pillow processor"].split()[0]) == pytest.approx(ratio, rel=0.05)
    assert all(float(row["mean"]) < 2 for row in differences)
    assert {row["way"] for row in stages} == {"evaluation", "Pillow processor"} and len(stages) == 2 * len(kinds)
    assert all(float(row["resize, crop, pad"]) > 0 and float(row["open"]) > 0 for row in stages)


def test_a_folder_of_real_pictures_is_told_by_kind_and_size(bench, tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (1200, 900), (200, 10, 10)).save(tmp_path / "deep" / "large.JPG", format="JPEG")
    for side in (40, 60, 80):
        Image.new("L", (side, 30), side).save(tmp_path / f"{side}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    bench["main"](["--data", str(tmp_path), "--pictures", "2", "--rounds", "1", "--size", "32"])
    printed = capsys.readouterr().out
    assert "JPEG, above 1 megapixel: 1 files, 1200 x 900 to 1200 x 900." in printed
    assert "grey PNG, up to 1 megapixel: 3 files, 40 x 30 to 80 x 30." in printed
    assert {row["pictures"] for row in tables(printed)[0]} == {
        "JPEG, above 1 megapixel",
        "grey PNG, up to 1 megapixel",
    }


def test_the_stages_are_all_of_the_time(bench, tmp_path):
    file = tmp_path / "photograph.jpg"
    Image.effect_noise((3000, 2000), 60).convert("RGB").save(file)
    ways = bench["make_ways"](SimpleNamespace(domain="general", size=224, before=None))
    for name in ("evaluation", "Pillow processor"):
        start = time.process_time()
        stages = bench["stages_of"](lambda way=ways[name]: way([file]))
        assert sum(stages.values()) == pytest.approx(time.process_time() - start, abs=0.02)
        assert stages["decode"] > 0.01 and stages["open"] < 0.01
