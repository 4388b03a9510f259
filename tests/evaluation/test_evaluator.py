import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Image

from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import RetrievalEvaluator, retrieval_metrics
from hf_clip_domain.evaluation.evaluator import unique_images, unique_texts


def test_measures_what_the_embeddings_say(clip, rows):
    model, processor = clip()
    pairs = rows(9)
    metrics = RetrievalEvaluator(pairs, processor, batch_size=4)(model)

    embedder = ClipEmbedder(model, processor)
    texts = list(dict.fromkeys(text for row in pairs for text in row["text"]))
    positives = [(i, texts.index(text)) for i, row in enumerate(pairs) for text in row["text"]]
    images = embedder.embed_images([row["image"] for row in pairs])
    assert metrics == pytest.approx(retrieval_metrics(images, embedder.embed_texts(texts), positives))
    assert metrics["candidates"] == 9
    assert metrics["image_to_text/candidates"] == 9 + 5 + 1  # every picture's own, the even ones' second, the shared


def test_a_dataset_and_a_list_agree(clip, rows):
    model, processor = clip()
    dataset = Dataset.from_list(rows(6)).cast_column("image", Image(decode=False))
    expected = RetrievalEvaluator(rows(6), processor)(model)
    assert RetrievalEvaluator(dataset, processor)(model) == pytest.approx(expected)
    decoded = dataset.cast_column("image", Image())  # PIL pictures
    assert RetrievalEvaluator(decoded, processor)(model) == pytest.approx(expected)


def test_one_row_a_caption_measures_the_same_as_one_row_a_picture(clip, rows):
    model, processor = clip()
    flat = [{"image": dict(row["image"]), "text": text} for row in rows(8) for text in row["text"]]
    expected = RetrievalEvaluator(rows(8), processor)(model)
    assert RetrievalEvaluator(flat, processor)(model) == pytest.approx(expected)


def test_the_name_is_a_prefix(clip, rows):
    model, processor = clip()
    plain = RetrievalEvaluator(rows(4), processor)(model)
    named = RetrievalEvaluator(rows(4), processor, name="general")(model)
    assert named == {f"general/{key}": value for key, value in plain.items()}


def test_training_is_the_same_with_and_without_evaluation(clip, rows):
    pairs = rows(6)

    def trained(evaluate):
        model, processor = clip()
        for tower in (model.text_model, model.vision_model):
            for layer in tower.encoder.layers:
                layer.self_attn.dropout = 0.3
        evaluator = RetrievalEvaluator(pairs, processor, batch_size=4)
        inputs = processor(text=[row["text"][0] for row in pairs], padding=True, return_tensors="pt")
        model.train()
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            pixels = torch.randn(6, 3, 32, 32) + random.random() + np.random.rand()
            model(**inputs, pixel_values=pixels, return_loss=True).loss.backward()
            optimizer.step()
            if evaluate:
                evaluator(model)
                assert model.training and model.text_model.encoder.training
        return model.state_dict()

    with_evaluation, without = trained(True), trained(False)
    assert all(torch.equal(with_evaluation[name], without[name]) for name in without)


def test_merges_equal_captions_and_pictures():
    texts, positives = unique_texts([["a", "b"], "A", ["b"]], clean=str.lower)
    assert texts == ["a", "b"] and positives == [(0, 0), (0, 1), (1, 0), (2, 1)]
    images = [{"bytes": b"1", "path": "x"}, {"bytes": None, "path": "x"}, {"bytes": b"1", "path": None}, "x"]
    assert unique_images(images) == ([0, 1], [0, 1, 0, 1])


@pytest.mark.parametrize(
    "pairs, told",
    [
        ([], "got none"),
        ((row for row in ()), "stream"),
        ([{"image": b"", "text": []}], "row 0 has no caption"),
        (Dataset.from_list([{"image": b"", "caption": "a"}]), 'no column "text"'),
    ],
)
def test_pairs_that_cannot_be_measured_are_told(clip, pairs, told):
    with pytest.raises(ClipDomainError, match=told):
        RetrievalEvaluator(pairs, clip()[1])


def test_a_diverged_model_is_told(clip, rows):
    model, processor = clip()
    torch.nn.init.constant_(model.visual_projection.weight, torch.nan)
    with pytest.raises(ClipDomainError, match="not finite"):
        RetrievalEvaluator(rows(3), processor)(model)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path, clip, rows):
    model, processor = clip()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for count in (1, 7):
            expected = RetrievalEvaluator(rows(count), processor, batch_size=2)(model)
            assert found[count] == pytest.approx(expected)
        assert "image" in found["error"]


def one_of_two_processes(folder, rank):
    """What each process of the test above runs: the same metrics and error are expected of both."""
    from conftest import make_clip, make_rows

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, processor = make_clip()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    found = {count: RetrievalEvaluator(make_rows(count), processor, batch_size=2)(parallel) for count in (1, 7)}
    broken = make_rows(7)
    broken[6]["image"] = {"bytes": b"no picture", "path": None}  # in the second process's share
    try:
        RetrievalEvaluator(broken, processor, batch_size=2)(parallel)
    except ClipDomainError as error:
        found["error"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    one_of_two_processes(sys.argv[1], int(sys.argv[2]))
