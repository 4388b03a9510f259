"""What the gallery picks is what a full table of scores would say, without ever holding one."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clip_domain.evaluation import RetrievalEvaluator
from hf_clip_domain.evaluation.embedded import EmbeddedPairs
from hf_clip_domain.evaluation.gallery import CAPTION, KINDS, Thumbnails, find_cases
from hf_clip_domain.evaluation.ranking import strongest_negatives
from hf_clip_domain.similarity import cosine


class Space:
    """Stands for an embedder where embeddings are given: only its similarity is asked for."""

    similarity_function = staticmethod(cosine)


def random_pairs(images, texts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(0, images, (texts,), generator=generator)
    own[:images] = torch.arange(images)
    pairs = torch.stack([own, torch.arange(texts)], dim=1)
    extra = torch.stack([torch.arange(0, images, 5), torch.arange(0, images, 5).flip(0)], dim=1)
    return EmbeddedPairs(
        embedder=Space(),
        pairs=[],
        rows=list(range(images)),
        texts=[f"text {number}" for number in range(texts)],
        positives=torch.cat([pairs, extra]).unique(dim=0),
        image_embeds=torch.randn(images, 6, generator=generator),
        text_embeds=torch.randn(texts, 6, generator=generator),
    )


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_strongest_negatives_are_those_of_the_full_table(chunk):
    space = random_pairs(30, 45)
    table = cosine(space.image_embeds, space.text_embeds).clone()
    table[space.positives[:, 0], space.positives[:, 1]] = -torch.inf
    args = (space.image_embeds, space.text_embeds, space.positives, cosine)
    for found, scores in zip(strongest_negatives(*args, chunk=chunk), (table, table.T), strict=True):
        assert torch.equal(found.index, scores.argmax(dim=1))
        assert torch.allclose(found.score, scores.max(dim=1).values)


def test_cases_are_the_best_the_worst_and_the_most_surely_wrong():
    space, before = random_pairs(40, 60), random_pairs(40, 60, seed=1)
    cases = find_cases(space, before.ahead, count=4)
    table = cosine(space.image_embeds, space.text_embeds)
    right = torch.zeros_like(table, dtype=torch.bool)
    right[space.positives[:, 0], space.positives[:, 1]] = True
    names = {text: number for number, text in enumerate(space.texts)}
    for direction, scores, mask in (("image_to_text", table, right), ("text_to_image", table.T, right.T)):
        best_right = scores.masked_fill(~mask, -9).max(dim=1).values
        best_wrong = scores.masked_fill(mask, -9).max(dim=1).values
        ranks = 1 + (scores.masked_fill(mask, -9) >= best_right[:, None] - 1e-6).sum(dim=1)
        own = [case for case in cases if case.direction == direction]
        assert {case.kind for case in own} == set(KINDS)
        queries = [case.row if direction == "image_to_text" else names[case.text] for case in own]
        assert len(set(queries)) == len(queries)  # each query once
        for case, query in zip(own, queries, strict=True):
            assert case.rank == ranks[query] and case.candidates == scores.shape[1]
            assert case.score == pytest.approx(float(best_right[query]), abs=1e-6)
            assert case.other_score == pytest.approx(float(best_wrong[query]), abs=1e-6)
            assert right[case.row, names[case.text]] and right[case.other_row, names[case.other_text]]
            assert (case.rank == 1) == (case.kind == "best")
        first = {kind: queries[[case.kind for case in own].index(kind)] for kind in KINDS}
        lead = best_right - best_wrong
        assert lead[first["best"]] == lead.max()
        assert ranks[first["worst"]] == ranks.max()
        # The first confused is the largest lead of a wrong one, save for those that stand among the worst already.
        worst = [query for case, query in zip(own, queries, strict=True) if case.kind == "worst"]
        rest = [query for query in range(len(lead)) if query not in worst]
        assert lead[first["confused"]] == min(float(lead[query]) for query in rest)
        for kind in KINDS:
            shown = [case for case in own if case.kind == kind]
            others = [case.other_text if direction == "image_to_text" else case.other_row for case in shown]
            assert len(set(others)) == len(others) <= 4
    assert any(case.rank_before != case.rank for case in cases)
    assert find_cases(space, space.ahead)[0].rank_before == find_cases(space)[0].rank


def test_no_table_of_all_with_all_is_held():
    sizes = []

    class Watched(Space):
        @staticmethod
        def similarity_function(images, texts):
            sizes.append(len(images) * len(texts))
            return cosine(images, texts)

    count = 5000
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(count, 8, generator=generator)
    space = EmbeddedPairs(
        embedder=Watched(),
        pairs=[],
        rows=list(range(count)),
        texts=list(map(str, range(count))),
        positives=torch.arange(count).repeat(2, 1).T,
        image_embeds=embeds,
        text_embeds=embeds + 0.8 * torch.randn(count, 8, generator=generator),
    )
    assert len(find_cases(space)) == 36
    assert max(sizes) <= 2048**2 < count**2 / 5


def test_a_model_that_is_never_wrong_has_only_best_cases():
    space = random_pairs(12, 12)
    space = EmbeddedPairs(
        embedder=Space(),
        pairs=[],
        rows=list(range(12)),
        texts=["x" * 1000 + str(number) for number in range(12)],
        positives=torch.arange(12).repeat(2, 1).T,
        image_embeds=torch.eye(12),
        text_embeds=torch.eye(12),
    )
    cases = find_cases(space)
    assert {case.kind for case in cases} == {"best"} and all(len(case.text) == CAPTION for case in cases)


def test_cases_of_a_real_model_point_at_its_rows(clip, rows):
    model, processor = clip()
    pairs = rows(14)
    cases = find_cases(RetrievalEvaluator(pairs, processor, progress=False).embed(model), count=3)
    assert cases
    for case in cases:
        assert case.text in pairs[case.row]["text"] and case.other_text in pairs[case.other_row]["text"]


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"image": {"bytes": buffer.getvalue(), "path": None}}


def test_thumbnails_are_small_whatever_the_picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 700, 3), dtype=np.uint8)
    pairs = [png(noise), png(np.zeros((3, 4000), dtype=np.uint8)), {"image": {"bytes": b"no picture", "path": None}}]
    pairs.append({"image": str(tmp_path / "gone.png")})
    thumbnail = Thumbnails(pairs)
    for row in (0, 1):
        found = thumbnail(row)
        data = base64.b64decode(found.removeprefix("data:image/jpeg;base64,"), validate=True)
        assert len(data) < 12_000 and max(Image.open(io.BytesIO(data)).size) == 160
        assert thumbnail(row) is found  # made once
    assert thumbnail(2) is None and thumbnail(3) is None
