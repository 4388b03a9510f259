"""What a server writes about its requests: whole, bounded, and no more than it says."""

import threading

import numpy as np
import pytest

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.ops.drift.windows import read_windows
from hf_clip_domain.serving.sketches import buckets, restore, sketch
from hf_clip_domain.serving.statistics import PATTERN, RequestStatistics

MODEL = {"revision": "r" * 64, "resolution": 32}


def embeds(count, seed=0, dim=96):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def test_a_sketch_keeps_angles_and_little_else():
    rows = embeds(300, dim=512)
    rows[150:] = rows[:150] + 0.5 * rows[150:]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    kept = restore(sketch(rows))
    assert sketch(rows).dtype == np.int8 and kept.shape == (300, 64)
    error = kept @ kept.T - unit @ unit.T
    assert np.abs(error).mean() < 0.12 and np.abs(error).max() < 0.6
    assert (np.diag(kept[:150] @ kept[150:].T) > 0.7).all()
    assert np.array_equal(sketch(rows), sketch(17 * rows))  # direction alone
    assert not sketch(np.array([np.zeros(8), np.full(8, np.nan)])).any()


def test_the_signs_never_change():
    """A reference made by one version is compared with windows of another."""
    first = sketch(np.eye(4, dtype=np.float32))[0, :12].tolist()
    assert first == [-16, 16, 16, -16, -16, -16, -16, 16, 16, 16, 16, -16]


def test_windows_hold_what_was_recorded_and_no_text(tmp_path):
    statistics = RequestStatistics(tmp_path, **MODEL, requests=3)
    images, texts = embeds(4), embeds(4, 1)
    ids = [[7, 7, 9], [9, 300], [5], [6]]
    for row in range(4):
        one = slice(row, row + 1)
        statistics.record(
            image_embeds=images[one],
            text_embeds=texts[one],
            pair_scores=[row / 10],
            token_ids=ids[one],
            image_sizes=[(row, 99)],
        )
    statistics.close()
    first, second = read_windows(tmp_path, **MODEL)[0]
    assert (first.requests, second.requests) == (3, 1)
    assert np.array_equal(first.series["image_sketches"], sketch(images[:3]))
    assert np.array_equal(second.series["text_sketches"], sketch(texts[3:]))
    assert first.pair_scores.tolist() == pytest.approx([0, 0.1, 0.2])
    assert first.series["text_lengths"].tolist() == [3, 2, 1] and first.texts == 3
    assert first.series["image_sizes"].tolist() == [[0, 99], [1, 99], [2, 99]]
    nine = buckets([9])[0]
    assert first.token_counts[nine] == 2 and first.token_counts.sum() == 5  # texts that have it, each once
    assert not list(tmp_path.glob(".*"))


def test_a_window_and_the_folder_are_bounded_and_the_rows_kept_are_drawn_evenly(tmp_path):
    statistics = RequestStatistics(tmp_path, **MODEL, requests=50, rows=100, keep=3)
    for window in range(8):
        for request in range(50):
            statistics.record(pair_scores=np.arange(20) + 20 * request + 1000 * window)
    windows = read_windows(tmp_path, **MODEL)[0]
    assert len(windows) == 3 and windows[-1].pair_scores.min() >= 7000
    for window in windows:
        drawn = window.pair_scores % 1000
        assert len(drawn) == 100 and abs(drawn.mean() - 500) < 120  # four deviations of a mean of 100


def test_threads_lose_no_request(tmp_path):
    statistics = RequestStatistics(tmp_path, **MODEL, requests=64)
    threads = [
        threading.Thread(target=lambda: [statistics.record(top_scores=[0.5], entropies=[1.0]) for _ in range(100)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statistics.close()
    windows = read_windows(tmp_path, **MODEL)[0]
    assert sum(window.requests for window in windows) == 800 == sum(len(w.series["entropies"]) for w in windows)


def test_a_disk_that_fails_costs_a_window_and_no_request(tmp_path, caplog):
    folder = tmp_path / "statistics"
    statistics = RequestStatistics(folder, **MODEL, requests=2)
    folder.rmdir()
    for _ in range(2):
        statistics.record(top_scores=[0.5])
    assert "2 requests are lost" in caplog.text
    folder.mkdir()
    for _ in range(2):
        statistics.record(top_scores=[0.5])
    assert len(list(folder.glob(PATTERN))) == 1


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ClipDomainError, match="cannot be written"):
        RequestStatistics(tmp_path / "file", **MODEL)
    with pytest.raises(ClipDomainError, match="keep is 0"):
        RequestStatistics(tmp_path, **MODEL, keep=0)
