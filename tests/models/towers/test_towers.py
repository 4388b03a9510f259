"""The towers' model is saved, loaded, trained and used like any dual encoder; small random weights."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import AutoModel, AutoProcessor

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.adapters import add_adapter
from hf_clip_domain.models.dual_encoder import embedding_width, find_logit_scale, text_padding
from hf_clip_domain.models.freezing import freeze
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.models.positions import text_capacity
from hf_clip_domain.models.prefix import find_frozen_prefix
from hf_clip_domain.models.towers.vision import SameConv2d
from hf_clip_domain.training import ClipTrainer


def test_a_saved_model_comes_back_whole_by_the_auto_classes_and_by_ours(saved, towers, batch):
    expected = towers()(**batch(3))
    plain, processor = AutoModel.from_pretrained(saved).eval(), AutoProcessor.from_pretrained(saved)
    ours, _ = load_model(saved)
    assert type(plain) is type(ours) is type(towers())
    for model in (plain, ours):
        output = model(**batch(3))
        torch.testing.assert_close(output.image_embeds, expected.image_embeds)
        torch.testing.assert_close(output.text_embeds, expected.text_embeds)
    assert processor.tokenizer.model_max_length == 24
    assert json.loads((saved / "config.json").read_text())["model_type"] == "clip_domain_towers"


def test_what_the_package_asks_of_a_dual_encoder(saved):
    model, processor = load_model(saved)
    assert embedding_width(model) == 16 and text_padding(model) == "longest" and text_capacity(model) == 24
    assert find_logit_scale(model) is model.logit_scale
    inputs = processor(text=["red disc"], images=[Image.new("RGB", (50, 40))], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    output = model(**inputs)
    assert output.logits_per_image.shape == (1, 1)
    assert output.image_embeds.norm(dim=-1).item() == pytest.approx(1)


def test_missing_weights_are_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    config["projection_dim"] = 8
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ClipDomainError, match="config.json and the weights belong to different models"):
        load_model(saved)


def test_padding_does_not_change_a_text(towers, batch):
    model, inputs = towers(), batch(4)
    whole = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    short = model.get_text_features(inputs["input_ids"][:1, :6]).pooler_output  # without a mask: all tokens count
    torch.testing.assert_close(whole[:1], short)


def test_rows_do_not_see_each_other_in_training_mode_either(towers, batch):
    model, inputs = towers().train(), batch(6)
    together = model(**inputs)
    alone = [model(**{name: value[row : row + 1] for name, value in inputs.items()}) for row in range(6)]
    torch.testing.assert_close(together.image_embeds, torch.cat([one.image_embeds for one in alone]))
    torch.testing.assert_close(together.text_embeds, torch.cat([one.text_embeds for one in alone]))
    assert not [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("size", [24, 33, 64])
def test_pictures_of_any_size_are_embedded(towers, size):
    model, pixels = towers(), torch.randn(2, 3, size, size)
    assert model.get_image_features(pixels).pooler_output.shape == (2, 16)
    assert model.vision_model(pixels).last_hidden_state.shape[-1] == -(-size // 8)


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1)])
def test_the_odd_zero_of_the_padding_comes_last(size, kernel, stride):
    convolution = SameConv2d(2, 3, kernel, stride)
    pixels = torch.randn(1, 2, size, size)
    places = -(-size // stride)
    total = max((places - 1) * stride + kernel - size, 0)
    canvas = torch.zeros(1, 2, size + total, size + total)
    canvas[..., total // 2 : total // 2 + size, total // 2 : total // 2 + size] = pixels
    expected = F.conv2d(canvas, convolution.weight, convolution.bias, stride)
    assert expected.shape[-1] == places
    torch.testing.assert_close(convolution(pixels), expected)


def test_gradient_checkpointing_gives_the_same_gradients(towers, batch):
    gradients = []
    for checkpointing in (False, True):
        model = towers().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            assert all(block.gradient_checkpointing for block in model.vision_model.blocks)
        model(**batch(4)).logits_per_image.diag().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


class Rows(torch.utils.data.Dataset):
    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch["input_ids"])

    def epoch_key(self, epoch, index):
        return index

    def __getitem__(self, index):
        return {name: value[index] for name, value in self.batch.items()}


def train(model, rows, folder, **arguments):
    defaults = {"per_device_train_batch_size": 16, "max_steps": 6, "learning_rate": 2e-3, "report_to": "none"}
    arguments = ClipTrainingArguments(str(folder), use_cpu=True, save_strategy="no", **{**defaults, **arguments})
    trainer = ClipTrainer(model, arguments, train_dataset=rows)
    trainer.train()
    return trainer


@torch.no_grad()
def standardise(model, batch):
    """What `Head` is given when it is made: the spread of the features it will see."""
    pictures = model.vision_model(batch["pixel_values"]).pooler_output
    texts = model._pooled_texts(batch["input_ids"], batch["attention_mask"])
    for head, features in ((model.visual_projection, pictures), (model.text_projection, texts)):
        head.mean.copy_(features.mean(0))
        head.scale.copy_((features - features.mean(0)).std().reciprocal())


def test_micro_batches_train_the_same_model(towers, batch, tmp_path):
    models = [towers().double(), towers().double()]  # AdamW's first steps make much of what rounding leaves in float32
    rows = Rows({name: value.double() if value.is_floating_point() else value for name, value in batch(32).items()})
    for model, size in zip(models, (None, 5), strict=True):
        train(model, rows, tmp_path, micro_batch_size=size)
    first, second = (model.state_dict() for model in models)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_training_with_frozen_towers_moves_the_heads_alone_and_learns(towers, batch, tmp_path):
    model, rows = towers(), Rows(batch(32))
    standardise(model, rows.batch)
    before = copy.deepcopy(model.state_dict())
    for tower in (model.vision_model, model.text_model):
        tower.requires_grad_(False)
    trainer = train(model, rows, tmp_path, max_steps=30, learning_rate=1e-2, logging_steps=1)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    heads = [f"{side}_projection.linear.{kind}" for side in ("visual", "text") for kind in ("weight", "bias")]
    assert moved == {*heads, "logit_scale"}
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] / 2
    trainer.save_model(tmp_path / "out")
    again = AutoModel.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(again.visual_projection.linear.weight, model.visual_projection.linear.weight.cpu())


def test_several_picture_sizes_in_one_step(towers, batch, tmp_path):
    trainer = train(towers(), Rows(batch(16)), tmp_path, max_steps=1, image_sizes=[32, 48], logging_steps=1)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 1 and losses[0] > 0


def test_dropout_is_of_the_heads_and_of_training_alone(towers, batch):
    model = towers()
    model.visual_projection.dropout.p = model.text_projection.dropout.p = 0.5
    first, second = model(**batch(4)), model(**batch(4))
    torch.testing.assert_close(first.image_embeds, second.image_embeds)
    model.train()
    assert not torch.allclose(model(**batch(4)).text_embeds, model(**batch(4)).text_embeds)


def test_frozen_words_reach_every_weight_of_the_towers(towers):
    model = towers()
    freeze(model, ["vision", "text"])
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    heads = {f"{side}_projection.linear.{kind}" for side in ("visual", "text") for kind in ("weight", "bias")}
    assert trains == {*heads, "logit_scale"}
    model = towers()
    freeze(model, ["nothing"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_kept_features_give_the_embeddings_of_pixels(towers, batch):
    model, pixels = towers(), batch(3)["pixel_values"]
    model.vision_model.requires_grad_(False)
    kept = find_frozen_prefix(model)
    assert kept.length == 1 and not kept.whole
    torch.testing.assert_close(kept.suffix(kept.prefix(pixels)), model.get_image_features(pixels).pooler_output)
    model.vision_model.stem.requires_grad_(True)
    assert find_frozen_prefix(model) is None


def test_a_lora_adapter_trains_the_text_tower_and_merges(towers, batch):
    pytest.importorskip("peft")
    with pytest.raises(ClipDomainError, match="--lora_towers text"):
        add_adapter(towers(), "lora")
    model = add_adapter(towers(), "lora", towers="text")
    before = model(**batch(4)).text_embeds
    before.square().sum().backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.eval()
    changed = model(**batch(4)).text_embeds
    assert not torch.allclose(changed, before)
    merged = model.merge_and_unload().eval()
    torch.testing.assert_close(merged(**batch(4)).text_embeds, changed, atol=1e-5, rtol=1e-4)


def test_the_embedder_serves_it(saved):
    embedder = ClipEmbedder.from_pretrained(saved)
    images = [Image.new("RGB", (40, 60), "red"), Image.new("RGB", (40, 60), "green")]
    scores = embedder.similarity(images, ["red square", "green disc", "disc"])
    assert scores.shape == (2, 3) and scores.isfinite().all()
    model, processor = embedder.model, embedder.processor
    inputs = processor(text=["disc"], images=images, return_tensors="pt")
    torch.testing.assert_close(embedder.embed_images(images), model(**inputs).image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(embedder.embed_texts(["disc"]), model(**inputs).text_embeds, atol=1e-5, rtol=1e-4)
