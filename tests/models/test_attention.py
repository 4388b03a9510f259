"""Slices are chosen where the plain way would not fit; models compute the same either way and save the same."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from hf_clip_domain import memory
from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models import attention
from hf_clip_domain.models.attention import check_slicing, scores_of_tower, use_sliced_attention
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.training import ClipTrainer

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SIZE, "vocab_size": 99, "max_position_embeddings": 48, "pad_token_id": 0}
VISION = {**SIZE, "image_size": 32, "patch_size": 8}


def make_model(kind, dropout=0.0):
    torch.manual_seed(0)
    if kind == "dual":
        probability = {"attention_probs_dropout_prob": dropout, "hidden_dropout_prob": 0.0}
        vision, text = ViTModel(ViTConfig(**VISION, **probability)), BertModel(BertConfig(**TEXT, **probability))
        return VisionTextDualEncoderModel(vision_model=vision, text_model=text)
    text, vision = {**TEXT, "attention_dropout": dropout}, {**VISION, "attention_dropout": dropout}
    if kind == "siglip":
        return SiglipModel(SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision))
    text |= {"eos_token_id": 98, "bos_token_id": 97}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


def make_batch(n=5, length=44, pixels=32):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 97, (n, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(n):  # captions of several lengths, each with its end token, padded
        ids[row, length - 1 - 7 * row] = 98
        ids[row, length - 7 * row :], mask[row, length - 7 * row :] = 0, 0
    return {
        "pixel_values": torch.randn(n, 3, pixels, pixels, generator=generator),
        "input_ids": ids,
        "attention_mask": mask,
        "interpolate_pos_encoding": pixels != 32,
    }


@pytest.fixture
def count(monkeypatch):
    """Makes budgets of a few kilobytes possible, and counts the calls that go in slices by their number of tokens."""
    calls = []

    def counted(query, *args, **kwargs):
        calls.append(query.shape[2])
        return sliced(query, *args, **kwargs)

    sliced = attention.sliced_attention
    monkeypatch.setattr(attention, "sliced_attention", counted)
    monkeypatch.setattr(memory, "MIB", 1)
    return calls


def without_fused_kernels(monkeypatch):
    monkeypatch.setattr(attention, "_holds_scores", lambda *_: True)


def gradients(model, batch):
    model.train()
    model.zero_grad()
    output = model(**batch)
    (output.image_embeds @ output.text_embeds.T).square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.image_embeds.detach(), output.text_embeds.detach(), grads


@pytest.mark.parametrize(
    ("kind", "pixels"),
    [("clip", 32), ("clip", 72), ("siglip", 32), ("siglip", 72), ("dual", 32)],  # a dual encoder's size is its own
)
def test_a_model_computes_the_same(kind, pixels, monkeypatch, count):
    model, batch = make_model(kind), make_batch(pixels=pixels)
    expected = gradients(model, batch)
    use_sliced_attention(model, 7_000)
    assert gradients(model, batch)[0].equal(expected[0]) and not count, "a CPU without dropout holds no scores"
    without_fused_kernels(monkeypatch)
    found = gradients(model, batch)
    assert len(count) == 4 and set(count) == {44, (pixels // 8) ** 2 + (kind != "siglip")}
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-5, atol=1e-5)
    assert found[2].keys() == expected[2].keys()
    largest = max(grad.abs().max() for grad in expected[2].values())
    for name, grad in found[2].items():
        torch.testing.assert_close(grad / largest, expected[2][name] / largest, rtol=0, atol=1e-5, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).image_embeds, expected[0], rtol=1e-5, atol=1e-5)
    assert len(count) == 8


@pytest.mark.parametrize("reentrant", [False, True])
def test_dropout_is_repeated_under_activation_checkpointing(reentrant, count):
    model, batch = make_model("clip", dropout=0.3), make_batch()
    use_sliced_attention(model, 7_000)
    model.train()
    pixels = batch["pixel_values"].requires_grad_()

    def embed(pixels):
        return model.get_image_features(pixel_values=pixels).pooler_output

    torch.manual_seed(0)
    expected = torch.autograd.grad(embed(pixels).square().sum(), pixels)[0]
    torch.manual_seed(0)
    checkpoint(embed, pixels, use_reentrant=reentrant).square().sum().backward()
    assert len(count) == 6
    torch.testing.assert_close(pixels.grad, expected)
    torch.manual_seed(1)
    other = torch.autograd.grad(embed(pixels).square().sum(), pixels)[0]
    assert not torch.allclose(other, expected), "dropout was not active"


def test_micro_batches_of_a_training_step_are_sliced(monkeypatch, count, tmp_path):
    batch = make_batch()
    grads = {}
    for size in (None, 2):
        model = make_model("clip")
        if size is not None:
            use_sliced_attention(model, 7_000)
            without_fused_kernels(monkeypatch)
        arguments = ClipTrainingArguments(str(tmp_path), use_cpu=True, micro_batch_size=size)
        trainer = ClipTrainer(model, arguments)
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(model, {name: rows for name, rows in batch.items() if torch.is_tensor(rows)})
        grads[size] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    # Micro-batches of 2, 2 and 1 rows, captions by their length; two layers; all but the last computed twice.
    assert count.count(17) == (2 + 2 + 1) * 2
    assert [count.count(tokens) for tokens in (24, 40, 44)] == [2 * 2, 2 * 2, 1 * 2]
    assert (grads[2] - grads[None]).norm() / grads[None].norm() < 1e-5


def test_long_captions_are_sliced(clip_folder, monkeypatch, count):
    model, processor = load_model(clip_folder(), max_text_length=248, attention_slicing=100_000)
    words = processor.tokenizer(["a b " * 200, "a b"], truncation=True, padding=True, return_tensors="pt")
    assert words["input_ids"].shape == (2, 248)
    expected = model.get_text_features(**words).pooler_output
    assert not count
    without_fused_kernels(monkeypatch)
    torch.testing.assert_close(model.get_text_features(**words).pooler_output, expected, rtol=1e-5, atol=1e-5)
    assert count == [248] * 2


def test_a_model_with_adapters_is_sliced(count):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model, batch = peft.get_peft_model(make_model("clip", dropout=0.3), settings), make_batch()
    use_sliced_attention(model, 7_000)
    *_, grads = gradients(model, batch)
    assert len(count) == 4 and grads and all("lora_" in name and grad.isfinite().all() for name, grad in grads.items())


def test_only_what_takes_more_than_the_budget_is_sliced(count):
    model, batch = make_model("clip", dropout=0.3), make_batch()
    # (b, h, q, k) scores of 4 bytes: with dropout five copies at once, and three kept for each other layer.
    text, image = 5 * 2 * 44 * 44 * 4 * (5 + 3), 5 * 2 * 17 * 17 * 4 * (5 + 3)
    for budget, expected in ((text, []), (text - 1, [44] * 2), (image, [44] * 2), (image - 1, [44] * 2 + [17] * 2)):
        count.clear()
        use_sliced_attention(model, budget)
        gradients(model, batch)
        assert sorted(count, reverse=True) == expected


def test_inference_holds_one_layer_and_training_all():
    query = torch.empty(2, 3, 10, 8)
    layers = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=12))
    scores = 2 * 3 * 10 * 10 * 4
    assert scores_of_tower(layers, query, query, 0.0) == 4 * scores
    assert scores_of_tower(layers, query.requires_grad_(), query, 0.0) == (4 + 11) * scores
    with torch.no_grad():
        assert scores_of_tower(layers, query, query, 0.0) == 4 * scores
        # A reentrant checkpoint's first pass must go the way of its second, or dropout would differ.
        assert scores_of_tower(layers, query, query, 0.1) == (5 + 11 * 3) * scores


def test_whether_scores_are_held_is_torchs_own_choice():
    query = torch.randn(2, 3, 10, 8)
    mask = torch.ones(2, 1, 10, 10, dtype=torch.bool)
    assert not attention._holds_scores(query, query, query, None, 0.0, True)
    assert not attention._holds_scores(query, query, query, mask, 0.0, False)
    assert attention._holds_scores(query, query, query, mask, 0.1, False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention._holds_scores(query, query, query, None, 0.0, False)
    apple = SimpleNamespace(device=torch.device("mps"))
    assert attention._holds_scores(apple, apple, apple, None, 0.0, False)


def test_automatic_is_a_quarter_of_the_room_at_first_use(monkeypatch, count):
    model, batch = make_model("clip", dropout=0.3), make_batch()
    use_sliced_attention(model)
    attention._automatic.cache_clear()
    try:
        monkeypatch.setattr(memory, "room", lambda device: 10**9)
        gradients(model, batch)
        assert not count
        monkeypatch.setattr(memory, "room", lambda device: 4 * 7_000)
        gradients(model, batch)
        assert not count, "decided anew within a run, a call repeated by checkpointing might go another way"
        attention._automatic.cache_clear()
        gradients(model, batch)
        assert len(count) == 4
    finally:
        attention._automatic.cache_clear()


def test_off_and_other_implementations(count):
    model, batch = make_model("clip", dropout=0.3), make_batch()
    use_sliced_attention(model, 7_000)
    use_sliced_attention(model, "off")
    gradients(model, batch)
    assert model.config.text_config._attn_implementation == "sdpa" and not count
    model.set_attn_implementation("eager")
    use_sliced_attention(model, 7_000)
    assert model(**batch, output_attentions=True).vision_model_output.attentions[0].shape == (5, 2, 17, 17)


def test_a_traced_model_is_the_plain_one(monkeypatch, count):
    model, batch = make_model("clip").eval(), make_batch()
    use_sliced_attention(model, 1)
    without_fused_kernels(monkeypatch)
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(model.vision_model, (batch["pixel_values"],), dynamic_shapes=({0: rows},))
    assert not count
    pixels = make_batch(3)["pixel_values"]
    torch.testing.assert_close(
        program.module()(pixels).pooler_output, model.vision_model(pixels).pooler_output, rtol=1e-4, atol=1e-5
    )
    assert count


def test_the_saved_model_loads_without_the_package(clip_folder, tmp_path):
    model, processor = load_model(clip_folder(), attention_slicing=64)
    assert model.config.vision_config._attn_implementation == "sliced_64"
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    assert not any("sliced" in file.read_text() for file in (tmp_path / "saved").glob("*.json"))
    program = """
import sys
from transformers import CLIPModel
model = CLIPModel.from_pretrained(sys.argv[1])
assert not any(name.startswith("hf_clip_domain") for name in sys.modules)
print(model.config.vision_config._attn_implementation)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sdpa"]


def test_the_embedder_takes_the_option(clip_folder):
    folder = clip_folder()
    for slicing, name in (("auto", "sliced_auto"), (32, "sliced_32"), ("off", "sdpa")):
        embedder = ClipEmbedder.from_pretrained(folder, attention_slicing=slicing)
        assert embedder.model.config.vision_config._attn_implementation == name
    assert ClipEmbedder.from_pretrained(folder).model.config.text_config._attn_implementation == "sliced_auto"


def test_what_the_option_takes():
    assert [check_slicing(value) for value in ("auto", "AUTO", "off", False, 256, "256")] == [
        *("auto", "auto", "off", "off", "256", "256")
    ]
    for wrong in (0, -1, "0", "much", 1.5, True, ""):
        with pytest.raises(ClipDomainError, match="attention_slicing .*expected auto, off, or the MiB"):
            check_slicing(wrong)
