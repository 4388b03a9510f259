import math
import random

import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.retrieval import chance_recall, retrieval_metrics
from hf_clip_domain.memory import Peak
from hf_clip_domain.similarity import cosine, dot, euclidean


def reference(scores, positives, direction):
    """Slow and obvious: one query at a time, in Python."""
    if direction == "text_to_image":
        scores, positives = (
            [list(column) for column in zip(*scores, strict=True)],
            [(t, i) for i, t in positives],
        )
    ranks, chances, precisions, gains = [], [], [], []
    for query, row in enumerate(scores):
        right = {candidate for asked, candidate in positives if asked == query}
        if not right:
            continue
        best = max(row[candidate] for candidate in right)
        ranks.append(1 + sum(score >= best for candidate, score in enumerate(row) if candidate not in right))
        wrong = [score for candidate, score in enumerate(row) if candidate not in right]
        # Positions of the right ones when wrong ones of the same score stand before them.
        places = [
            nth + sum(score >= own for score in wrong)
            for nth, own in enumerate(sorted((row[candidate] for candidate in right), reverse=True), start=1)
        ]
        precisions.append(sum(nth / place for nth, place in enumerate(places, start=1)) / len(places))
        ideal = sum(1 / math.log2(1 + nth) for nth in range(1, min(len(places), 10) + 1))
        gains.append(sum(1 / math.log2(1 + place) for place in places if place <= 10) / ideal)
        others, all_of_them = len(row) - len(right), len(row)
        chances.append(
            [
                1 - math.comb(others, min(k, all_of_them)) / math.comb(all_of_them, min(k, all_of_them))
                for k in (1, 5, 10)
            ]
        )
    ordered = sorted(ranks)
    middle = len(ordered) // 2
    expected = {f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    expected |= {f"chance_recall@{k}": sum(c[n] for c in chances) / len(chances) for n, k in enumerate((1, 5, 10))}
    expected["mean_rank"] = sum(ranks) / len(ranks)
    expected["median_rank"] = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    expected["mrr"] = sum(1 / rank for rank in ranks) / len(ranks)
    expected["map"] = sum(precisions) / len(precisions)
    expected["ndcg@10"] = sum(gains) / len(gains)
    expected["candidates"], expected["queries"] = len(scores[0]), len(ranks)
    return {f"{direction}/{name}": value for name, value in expected.items()}


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_the_slow_reference(seed):
    draw = random.Random(seed)
    images, texts = draw.randint(1, 40), draw.randint(1, 40)
    positives = [(draw.randrange(images), draw.randrange(texts)) for _ in range(draw.randint(1, 60))]
    # Few small integers: many exact ties, and scores without rounding.
    image_embeds = torch.tensor([[draw.randint(-2, 2) for _ in range(3)] for _ in range(images)]).float()
    text_embeds = torch.tensor([[draw.randint(-2, 2) for _ in range(3)] for _ in range(texts)]).float()
    similarity = draw.choice([dot, euclidean])
    metrics = retrieval_metrics(image_embeds, text_embeds, positives, similarity=similarity, chunk=draw.randint(1, 50))

    scores = similarity(image_embeds, text_embeds).tolist()
    expected = reference(scores, positives, "image_to_text") | reference(scores, positives, "text_to_image")
    assert metrics == pytest.approx(expected | {"candidates": images})


def test_chunks_do_not_change_the_result():
    torch.manual_seed(0)
    images, texts = torch.randn(60, 16), torch.randn(90, 16)
    positives = [(text % 60, text) for text in range(90)]
    whole = retrieval_metrics(images, texts, positives)
    for chunk in (1, 7, 64):
        assert retrieval_metrics(images, texts, positives, chunk=chunk) == whole


def test_a_perfect_model_finds_everything():
    metrics = retrieval_metrics(torch.eye(12), torch.eye(12))
    assert metrics["image_to_text/recall@1"] == metrics["text_to_image/recall@1"] == 1
    assert metrics["image_to_text/mean_rank"] == metrics["text_to_image/mrr"] == 1


@pytest.mark.parametrize("noise", [0, 1e-8])
def test_a_collapsed_model_finds_nothing(noise):
    torch.manual_seed(0)
    constant = torch.nn.functional.normalize(torch.ones(40, 32), dim=-1)
    metrics = retrieval_metrics(constant + noise * torch.randn(40, 32), constant + noise * torch.randn(40, 32))
    assert metrics["image_to_text/recall@10"] == metrics["text_to_image/recall@10"] == 0
    assert metrics["image_to_text/median_rank"] == 40


def test_a_second_right_answer_is_no_competitor():
    # Both captions are right for the picture, and both outrank the wrong one.
    images, texts = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    metrics = retrieval_metrics(images, texts, [(0, 0), (0, 1)])
    assert metrics["image_to_text/mean_rank"] == 1
    assert metrics["image_to_text/queries"] == 1 and metrics["text_to_image/queries"] == 2  # the third is not asked
    assert metrics["image_to_text/candidates"] == 3


def test_a_pair_given_twice_counts_once():
    once = retrieval_metrics(torch.eye(4), torch.eye(4), [(i, i) for i in range(4)])
    assert retrieval_metrics(torch.eye(4), torch.eye(4), [(i, i) for i in range(4)] * 2) == once


def test_chance_is_what_random_rankings_give():
    torch.manual_seed(0)
    hits = [bool((torch.randperm(20)[:5] < 3).any()) for _ in range(20_000)]
    assert chance_recall(3, 20, 5) == pytest.approx(sum(hits) / len(hits), abs=0.015)
    assert chance_recall(1, 200, 10) == pytest.approx(0.05)
    assert chance_recall(2, 4, 10) == 1


@pytest.mark.parametrize("most", [1, 3, 30])  # few right answers are compared one by one, many looked up
def test_precision_and_gain_are_scikit_learns(most):
    torch.manual_seed(most)
    images, texts = torch.randn(50, 8), torch.randn(80, 8)
    relevant = torch.zeros(50, 80, dtype=torch.bool)
    for image in range(50):
        relevant[image, torch.randperm(80)[: 1 + image % most]] = True
    metrics = retrieval_metrics(images, texts, relevant.nonzero(), chunk=33)
    scores = cosine(images, texts)
    for direction, rows, right in (
        ("image_to_text", scores, relevant),
        ("text_to_image", scores.T, relevant.T),
    ):
        asked = right.any(dim=1)
        rows, right = rows[asked].numpy(), right[asked].numpy()
        precision = [average_precision_score(a, b) for a, b in zip(right, rows, strict=True)]
        assert metrics[f"{direction}/map"] == pytest.approx(sum(precision) / len(precision), abs=1e-6)
        assert metrics[f"{direction}/ndcg@10"] == pytest.approx(ndcg_score(right, rows, k=10), abs=1e-6)


def test_a_wrong_candidate_of_the_same_score_stands_first():
    # Two right texts and one wrong, all alike: the right ones stand second and third.
    metrics = retrieval_metrics(torch.ones(1, 2), torch.ones(3, 2), [(0, 0), (0, 1)])
    assert metrics["image_to_text/mean_rank"] == 2
    assert metrics["image_to_text/map"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    gain, ideal = 1 / math.log2(3) + 1 / math.log2(4), 1 + 1 / math.log2(3)
    assert metrics["image_to_text/ndcg@10"] == pytest.approx(gain / ideal)


@pytest.mark.slow
def test_memory_is_bounded_by_the_block_not_by_the_matrix():
    torch.manual_seed(0)
    peaks = {}
    for rows in (1000, 16_000):
        images, texts = torch.randn(rows, 16), torch.randn(rows, 16)
        with Peak(torch.device("cpu")) as peak:
            retrieval_metrics(images, texts, chunk=512)
        peaks[rows] = peak.above
    # The matrix of 16,000 x 16,000 scores would take 1 GB; twelve arrays of a number a pair take 1.5 MB.
    assert peaks[16_000] < peaks[1000] + 40 * 2**20 < 200 * 2**20


@pytest.mark.parametrize(
    "images, texts, positives, told",
    [
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), None, "not finite"),
        (torch.ones(2, 3), torch.tensor([[1.0, torch.inf, 0.0]] * 2), None, "2 of 2 text embeddings"),
        (torch.ones(3), torch.ones(2, 3), None, "shape"),
        (torch.ones(2, 3), torch.ones(3, 3), None, "positives"),
        (torch.ones(2, 3), torch.ones(3, 4), [(0, 0)], "dimensions"),
        (torch.ones(2, 3), torch.ones(2, 3), [], "no positive pair"),
        (torch.ones(2, 3), torch.ones(2, 3), [(0, 2)], "outside"),
    ],
)
def test_wrong_input_is_told(images, texts, positives, told):
    with pytest.raises(ClipDomainError, match=told):
        retrieval_metrics(images, texts, positives)
