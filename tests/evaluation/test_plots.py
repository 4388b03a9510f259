import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.evaluation import (
    EvaluationReport,
    RetrievalEvaluator,
    plot_recall,
    plot_retrieval_sample,
    plot_training_curve,
)

RIGHT = (26, 152, 80)


def pixels(path):
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.std() > 5, "an empty picture"
    return picture


def test_training_curve_shows_what_was_logged(tmp_path):
    history = [{"step": step, "loss": 2 - step / 10, "learning_rate": 1e-5} for step in range(1, 8)]
    history += [{"step": step, "eval_loss": 1.0, "eval_image_to_text/recall@1": step / 10} for step in (3, 6)]
    history += [{"step": 7, "train_loss": 1.0, "train_runtime": 3.0}, {"step": 8, "loss": float("nan")}]
    with_recall = pixels(plot_training_curve(history, tmp_path / "deeper" / "curve.png"))
    without = pixels(plot_training_curve(history[:7], tmp_path / "plain.png"))
    assert with_recall.shape[1] > without.shape[1]  # one panel more


def test_a_run_too_short_to_log_still_has_a_picture(tmp_path):
    assert plot_training_curve([], tmp_path / "curve.png").exists()


def test_recall(tmp_path, clip, rows):
    model, processor = clip()
    before = RetrievalEvaluator(rows(12), processor)(model)
    report = EvaluationReport(before, {**before, "text_to_image/recall@10": float("nan")})
    pixels(plot_recall(report, tmp_path / "recall.png"))
    pixels(plot_recall(EvaluationReport({}, {}), tmp_path / "nothing.png"))


def test_retrieval_sample_frames_the_right_pictures(tmp_path, clip, rows):
    pairs = rows(6)
    pairs[0]["text"] = ["显微镜下的细胞图像，显示了有丝分裂的不同阶段🔬"]
    pairs[1]["text"] = ["costs $5 and $6 \\alpha_{ % long " * 20]
    embedder = ClipEmbedder(*clip())
    # With every candidate shown, each query's right picture is among them.
    picture = pixels(plot_retrieval_sample(embedder, pairs, tmp_path / "sample.png", queries=3, top=6))
    assert (np.abs(picture.astype(int) - RIGHT).max(axis=-1) < 8).sum() > 1000


@pytest.mark.filterwarnings("error")
def test_fewer_pairs_than_asked_for(tmp_path, clip, rows):
    pixels(plot_retrieval_sample(ClipEmbedder(*clip()), rows(2), tmp_path / "sample.png", queries=5, top=5))


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, hf_clip_domain.evaluation as e; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
