"""Files from a server that crashed, or from somebody else, are named and left out; they never decide anything."""

import json
import re
import zipfile

import numpy as np
import pytest

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.ops.drift.reference import Reference
from hf_clip_domain.ops.drift.windows import read_windows
from hf_clip_domain.serving.sketches import sketch
from hf_clip_domain.serving.statistics import PATTERN, RequestStatistics

MODEL = {"revision": "a" * 64, "resolution": 32}


def write(folder, **model):
    statistics = RequestStatistics(folder, **(MODEL | model), requests=10)
    for row in range(10):
        rows = np.random.default_rng(row).normal(size=(1, 24))
        statistics.record(image_embeds=rows, pair_scores=[row / 10], token_ids=[[row]])
    return sorted(folder.glob(PATTERN))[-1]


def rewritten(file, **changes):
    """The same window with arrays, or parts of its meta data, replaced."""
    arrays = dict(np.load(file))
    meta = json.loads(str(arrays["meta"])) | {name: changes.pop(name) for name in list(changes) if name not in arrays}
    np.savez(file, **(arrays | {"meta": np.array(json.dumps(meta))} | changes))


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-200]), "damaged or cut short"),
        (lambda file: file.write_bytes(file.read_bytes()[:1000]), "damaged or cut short"),
        (lambda file: file.write_bytes(b""), "damaged or cut short"),
        (lambda file: rewritten(file, format=99), "of format 99"),
        (lambda file: rewritten(file, resolution=64), "at 64 px"),
        (lambda file: rewritten(file, revision="b" * 64), "of another model"),
        (lambda file: rewritten(file, pair_scores=np.full(10, np.nan, np.float32)), "pair_scores is not finite"),
        (lambda file: rewritten(file, image_sketches=np.zeros((3, 65), np.int8)), r"of shape \(3, 65\)"),
        (lambda file: rewritten(file, token_buckets=np.full(10, 1 << 16, np.uint32)), "do not fit"),
        (lambda file: rewritten(file, meta=np.array([{"any": "object"}], dtype=object)), "damaged"),
        (lambda file: pack(file, 70 << 20), "larger than any window"),
    ],
)
def test_a_bad_file_is_named_and_the_others_are_used(tmp_path, spoil, reason):
    good = write(tmp_path)
    bad = write(tmp_path)
    bad = bad.rename(tmp_path / "window-99999999999999-1-000000.npz")
    spoil(bad)
    windows, skipped = read_windows(tmp_path, **MODEL)
    assert [window.name for window in windows] == [good.name] and list(skipped) == [bad.name]
    assert re.search(reason, skipped[bad.name])


def pack(file, size):
    """A small file that would unpack to a large array."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image_sketches.npy", bytes(size))


def test_nothing_to_read_says_so(tmp_path):
    with pytest.raises(ClipDomainError, match="no such folder"):
        read_windows(tmp_path / "nowhere", **MODEL)
    with pytest.raises(ClipDomainError, match="has written none yet"):
        read_windows(tmp_path, **MODEL)
    write(tmp_path, revision="b" * 64)
    with pytest.raises(ClipDomainError, match="none of 1 files can be used; window-.*of another model"):
        read_windows(tmp_path, **MODEL)


def test_only_the_newest_are_read(tmp_path):
    names = [write(tmp_path).name for _ in range(4)]
    assert [window.name for window in read_windows(tmp_path, **MODEL, newest=2)[0]] == names[-2:]


def test_a_reference_is_read_as_it_was_written_and_a_damaged_one_is_refused(tmp_path):
    draw, file = np.random.default_rng(0), tmp_path / "reference.npz"
    arrays = {"image_sketches": sketch(draw.normal(size=(80, 9))), "image_others": sketch(draw.normal(size=(60, 9)))}
    reference = Reference({"model": "m"}, {**arrays, "pair_scores": draw.normal(size=80)}, resamples=99)
    reference.save(file)
    again = Reference.load(file)
    assert list(again.tests) == ["image", "alignment"] and again.meta["model"] == "m"
    assert np.array_equal(again.null, reference.null) and not list(tmp_path.glob(".*"))

    whole = file.read_bytes()
    for spoilt in (whole[:-100], whole[:500], b"no archive"):
        file.write_bytes(spoilt)
        with pytest.raises(ClipDomainError, match="is damaged"):
            Reference.load(file)
    with pytest.raises(ClipDomainError, match="--make_reference"):
        Reference.load(tmp_path / "none.npz")
    with pytest.raises(ClipDomainError, match="at least 50 held-out rows; there are 9"):
        Reference({}, {"pair_scores": np.arange(9.0)}).save(file)
