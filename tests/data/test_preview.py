"""The contact sheet, and the command that draws it."""

import argparse
import io

import numpy as np
import pytest
from PIL import Image

from hf_clip_domain.cli.data import add_parser
from hf_clip_domain.data.contact_sheet import draw_contact_sheet
from hf_clip_domain.domains import load_domain
from hf_clip_domain.errors import ClipDomainError


def make_rows(count):
    rows = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(np.full((40, 60, 3), 20 * i, dtype=np.uint8)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "text": [f"Figure {i}. A plain field. " * 9]})
    return rows


def run(*argv):
    parser = argparse.ArgumentParser(prog="hf-clip-domain")
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["data", "preview", *map(str, argv)])
    return args.run(args)


def test_sheet_has_three_views_a_pair_and_repeats():
    domain = load_domain("general")
    sheet = draw_contact_sheet(make_rows(3), domain, size=64, columns=2)
    assert sheet.width == 2 * (3 * 64 + 30) + 10
    assert sheet.height > 2 * 64
    assert np.array_equal(sheet, draw_contact_sheet(make_rows(3), domain, size=64, columns=2))
    assert not np.array_equal(sheet, draw_contact_sheet(make_rows(3), domain, size=64, columns=2, seed=1))


def test_preview_of_a_dataset(tmp_path, capsys):
    for i in range(12):
        Image.fromarray(np.full((20, 30, 3), 20 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    lines = [f"{i}.png,A field of brightness {20 * i}" for i in range(12)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *lines]))
    output = tmp_path / "new" / "sheet.png"
    assert run("--domain", "industrial", "--dataset", tmp_path / "pairs.csv", "--output", output, "--count", 4) == 0
    assert Image.open(output).format == "PNG"
    told = capsys.readouterr().out.strip()
    assert "\n" not in told and str(output) in told and "4 pairs" in told


def test_preview_of_the_samples(tmp_path):
    output = tmp_path / "sheet.png"
    assert run("--domain", "scientific", "--output", output, "--count", 3) == 0
    assert Image.open(output).width > 600


def test_mistakes_are_named(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\n")
    with pytest.raises(ClipDomainError, match="'mine' has no embedded samples.*--dataset"):
        run("--domain", mine)
    with pytest.raises(SystemExit) as caught:
        run("--count", 0)
    assert caught.value.code == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipDomainError, match="--output .* cannot be written"):
        run("--domain", "scientific", "--count", 1, "--output", tmp_path / "file" / "sheet.png")
