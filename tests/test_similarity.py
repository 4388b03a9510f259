import pytest
import torch

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.similarity import (
    Bilinear,
    blend_similarities,
    build_similarity,
    cosine,
    dot,
    euclidean,
    load_similarity,
    save_similarity,
    wants_normalised,
)


class Halved:
    """A similarity that is a class: built without arguments, then called."""

    def __call__(self, image_embeds, text_embeds):
        return image_embeds @ text_embeds.T / 2


def test_values_agree_with_their_definitions():
    torch.manual_seed(0)
    images, texts = torch.randn(4, 8), torch.randn(6, 8)
    torch.testing.assert_close(
        cosine(images, texts), torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    )
    torch.testing.assert_close(dot(images, texts), (images[:, None] * texts[None]).sum(-1))
    torch.testing.assert_close(euclidean(images, texts), -(images[:, None] - texts[None]).square().sum(-1))


def test_euclidean_of_equal_points_is_never_positive():
    points = torch.full((1, 512), 1 / 3)
    assert euclidean(points, points).item() == pytest.approx(0, abs=1e-4)
    assert euclidean(points, points).item() <= 0


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean"])
def test_gradients_reach_both_sides(name):
    images, texts = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    build_similarity(name)(images, texts).sum().backward()
    assert images.grad.isfinite().all() and texts.grad.isfinite().all()


def test_resolves_names_paths_and_functions():
    assert build_similarity("cosine") is cosine
    assert build_similarity("torch.nn.functional:cosine_similarity") is torch.nn.functional.cosine_similarity
    assert build_similarity(dot) is dot
    assert isinstance(build_similarity(Halved), Halved)


@pytest.mark.parametrize(
    "wrong, told",
    [
        ("cosin", '"cosine", "dot", "euclidean"'),
        ("no_such_package:f", "cannot be imported"),
        ("math:no_such_name", "cannot be imported"),
        ("math:pi", "is a float"),
        (3, "give a name"),
    ],
)
def test_what_cannot_be_resolved_is_told_with_the_valid_names(wrong, told):
    with pytest.raises(ClipDomainError, match="similarity") as error:
        build_similarity(wrong)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_only_cosine_like_similarities_see_normalised_embeddings():
    assert wants_normalised(cosine) and wants_normalised(Halved())
    assert not wants_normalised(dot) and not wants_normalised(euclidean)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "bilinear", "home_made_similarity:tanh"])
def test_a_saved_similarity_compares_as_before(tmp_path, monkeypatch, name):
    (tmp_path / "home_made_similarity.py").write_text("def tanh(image, text):\n    return (image @ text.T).tanh()\n")
    monkeypatch.syspath_prepend(tmp_path)
    similarity = build_similarity(name)
    if name == "bilinear":
        similarity.fit(5)
        torch.nn.init.normal_(similarity.weight, generator=torch.Generator().manual_seed(0))
    save_similarity(similarity, tmp_path)
    assert (tmp_path / "similarity.json").exists() == (name != "cosine")
    if name == "cosine":
        return
    again = load_similarity(tmp_path / "similarity.json", tmp_path / "similarity.safetensors")
    image, text = torch.randn(3, 5), torch.randn(4, 5)
    assert torch.equal(again(image, text), similarity(image, text))
    assert wants_normalised(again) == wants_normalised(similarity)


def test_a_similarity_nobody_could_load_again_is_refused(tmp_path):
    with pytest.raises(ClipDomainError, match="importable name"):
        save_similarity(lambda image, text: image @ text.T, tmp_path)
    (tmp_path / "similarity.json").write_text('{"name": "bilinear"}')
    with pytest.raises(ClipDomainError, match="similarity.safetensors is missing"):
        load_similarity(tmp_path / "similarity.json")


def test_between_two_models_a_learned_similarity_is_interpolated_and_others_have_to_be_equal():
    tuned = Bilinear(4)
    tuned.weight.data = torch.randn(4, 4)
    half = blend_similarities("cosine", tuned, 0.5)
    torch.testing.assert_close(half.weight, (torch.eye(4) + tuned.weight) / 2)
    quarter = blend_similarities(half, tuned, 0.5)
    torch.testing.assert_close(quarter.weight, 0.25 * torch.eye(4) + 0.75 * tuned.weight)
    assert blend_similarities("dot", "dot", 0.3) is build_similarity("dot")
    with pytest.raises(ClipDomainError, match="by dot and the tuned one by Bilinear"):
        blend_similarities("dot", tuned, 0.5)
