"""Exports: the same embeddings from ONNX Runtime and MLX, and no folder from a check that failed."""

import json
import shutil
import sys
import threading

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from small_clip import LENGTH, SIZE, make_processor
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from hf_clip_domain.cli.main import main
from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.exported.onnx_model import OnnxModel
from hf_clip_domain.models.exported.record import find_record
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.sharing.export import exporter
from hf_clip_domain.sharing.export.check import Parity
from hf_clip_domain.similarity import Bilinear, save_similarity

try:
    import mlx.core  # noqa: F401

    HAS_MLX = True
except ImportError:  # not installed, or without the library that computes
    HAS_MLX = False
needs_mlx = pytest.mark.skipif(not HAS_MLX, reason="MLX is not installed")

VISION = {**SIZE, "image_size": 32, "patch_size": 16}
TEXTS = ["a", "a rather longer text", "bb", "crack in steel", "x " * 200, "rust", "no crack", "weld"]


def make_folder(folder, kind):
    processor = make_processor()
    tokenizer = processor.tokenizer
    processor.save_pretrained(folder)
    text = {**SIZE, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if kind == "old clip":  # pools at the largest id
        special["eos_token_id"] = 2
    torch.manual_seed(0)
    if kind == "siglip":
        model = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=VISION))
    elif kind == "clip and bert":
        vision, bert = CLIPVisionConfig(**VISION), BertConfig(**text, initializer_range=0.3)  # texts differ
        config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, bert, projection_dim=16)
        model = VisionTextDualEncoderModel(config, vision_model=CLIPVisionModel(vision), text_model=BertModel(bert))
    else:
        model = CLIPModel(CLIPConfig(text_config={**text, **special}, vision_config=VISION, projection_dim=16))
    for name, parameter in model.named_parameters():  # as in a trained model, nothing is nought
        if name.endswith("bias") or "class_embedding" in name or "position_embedding" in name or "probe" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def make_pairs(count=8):
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (40, 32, 3), dtype=np.uint8)) for _ in range(count)]
    return [{"image": picture, "text": [text]} for picture, text in zip(pictures, TEXTS, strict=True)]


PAIRS = make_pairs()
PICTURES = [pair["image"] for pair in PAIRS]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Source and export of every kind asked for, each made once."""
    folders = {}

    def make(kind, format, int8=False):
        if kind not in folders:
            folders[kind] = make_folder(tmp_path_factory.mktemp(kind.replace(" ", "-")), kind)
        key = kind, format, int8
        if key not in folders:
            folder = tmp_path_factory.mktemp("exports") / "out"
            with pytest.MonkeyPatch.context() as patch:
                if int8 and format == "onnx":  # writing the towers takes long, and is done already
                    whole = make(kind, format)[1]
                    patch.setattr(exporter, "write_onnx", lambda model, plain: _copy_towers(whole, plain))
                exporter.export_model(str(folders[kind]), folder, format=format, int8=int8, pairs=PAIRS)
            folders[key] = folder
        return folders[kind], folders[key]

    return make


KINDS = [
    ("clip", "onnx"),
    pytest.param("old clip", "onnx", marks=pytest.mark.slow),
    pytest.param("siglip", "onnx", marks=pytest.mark.slow),
    pytest.param("clip and bert", "onnx", marks=pytest.mark.slow),
    pytest.param("clip", "mlx", marks=needs_mlx),
    pytest.param("old clip", "mlx", marks=needs_mlx),
    pytest.param("siglip", "mlx", marks=needs_mlx),
    ("clip", "safetensors"),
]


@pytest.mark.parametrize(("kind", "format"), KINDS)
def test_an_export_embeds_as_the_original(made, kind, format):
    source, folder = made(kind, format)
    original = ClipEmbedder.from_pretrained(source, batch_size=3)
    exported = ClipEmbedder.from_pretrained(folder, batch_size=3)  # batches of 3, 3 and 2, texts of 8, 16 and 24 tokens
    for side, inputs in (("embed_images", PICTURES), ("embed_texts", TEXTS)):
        embeds = getattr(exported, side)(inputs)
        torch.testing.assert_close(embeds, getattr(original, side)(inputs), rtol=0, atol=1e-5)
        assert embeds.dtype == torch.float32 and (embeds[0] - embeds[1]).abs().max() > 1e-3
    labels = ["crack", "no crack"]
    torch.testing.assert_close(exported.classify(PICTURES, labels), original.classify(PICTURES, labels))
    raw = [ClipEmbedder.from_pretrained(name, similarity="dot").embed_images(PICTURES) for name in (source, folder)]
    torch.testing.assert_close(*raw, rtol=1e-4, atol=1e-4)  # lengths are kept for those who need them
    record = find_record(folder)
    assert (record.format, record.precision) == (format, "float32") and record.source_revision.startswith("sha256:")
    assert record.check["difference"] < 1e-5 and record.check["retrieval_delta"] == 0 and record.check["images"] == 8


@pytest.mark.parametrize("format", ["onnx", pytest.param("mlx", marks=needs_mlx)])
def test_int8_is_smaller_and_near(made, format):
    source, folder = made("clip", format, int8=True)
    record, whole = find_record(folder), find_record(made("clip", format)[1])
    assert record.precision == "int8" and record.quantization["bits"] == 8
    assert record.check["retrieval_delta"] <= 1.0 and 1e-4 < record.check["difference"]
    if format == "mlx":  # the graph of a model this small is larger than its weights
        assert sum(record.files.values()) < 0.6 * sum(whole.files.values())
    original, exported = (ClipEmbedder.from_pretrained(name).embed_images(PICTURES) for name in (source, folder))
    assert (original * exported).sum(dim=1).min() > 0.98


def test_the_folder_brings_what_serving_needs(tmp_path, made):
    source = make_folder(tmp_path / "source", "clip")
    load_domain("industrial").save(source)
    (source / "calibration.json").write_text('{"logit_scale": 12.5}')
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    bilinear = Bilinear(16)
    torch.nn.init.normal_(bilinear.weight)
    save_similarity(bilinear, source)
    exporter.export_model(str(source), tmp_path / "out", format="safetensors", pairs=PAIRS)
    exported, original = (ClipEmbedder.from_pretrained(name) for name in (tmp_path / "out", source))
    assert exported.domain == load_domain("industrial") and exported.logit_scale == 12.5
    torch.testing.assert_close(exported.similarity(PICTURES, TEXTS), original.similarity(PICTURES, TEXTS))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "least cosine" in card and "license: mit" in card
    assert str(tmp_path) not in (tmp_path / "out" / "export.json").read_text()


def test_a_failed_check_leaves_nothing_and_tells_the_figures(tmp_path, made, monkeypatch):
    source, _ = made("clip", "safetensors")
    real = exporter._reload

    def broken(folder, record):
        model = real(folder, record)
        model.visual_projection.weight.data += 0.05 * torch.randn_like(model.visual_projection.weight)
        return model

    monkeypatch.setattr(exporter, "_reload", broken)
    with pytest.raises(ClipDomainError, match=r"not as good as the original: a cosine of 0\.\d+.*embeddings differ by"):
        exporter.export_model(str(source), tmp_path / "out", format="safetensors", pairs=PAIRS)
    assert not list(tmp_path.iterdir())


def test_int8_keeps_sensitive_layers_in_float_and_gives_up_at_last(tmp_path, made, monkeypatch):
    source, _ = made("clip", "onnx")
    whole, tried, real = made("clip", "onnx")[1], [], exporter.quantize_onnx
    made("clip", "onnx", int8=True)
    monkeypatch.setattr(exporter, "quantize_onnx", lambda *args: (tried.append(args[-1]), real(*args)))
    monkeypatch.setattr(Parity, "faults", lambda self, precision: ["bad"] if len(tried) < 3 else [])
    monkeypatch.setattr(exporter, "write_onnx", lambda model, plain: _copy_towers(whole, plain))
    record = exporter.export_model(str(source), tmp_path / "out", format="onnx", int8=True, pairs=PAIRS)
    assert tried == list(exporter.KEPT_IN_FLOAT[:3]) and record.quantization["kept_in_float"] == list(tried[-1])
    all_in_int8 = find_record(made("clip", "onnx", int8=True)[1])
    assert record.check["difference"] < all_in_int8.check["difference"]
    assert sum(record.files.values()) > sum(all_in_int8.files.values())
    products = []
    for kept in ((), exporter.KEPT_IN_FLOAT[1], exporter.KEPT_IN_FLOAT[2]):
        real(whole, tmp_path / "towers", kept)
        nodes = onnx.load(tmp_path / "towers" / "onnx" / "vision_model.onnx").graph.node
        products.append(sum(node.op_type == "MatMulInteger" for node in nodes))
    assert products == [13, 12, 10]  # two layers of six and the projection, without it, without two second layers
    shutil.rmtree(tmp_path / "towers")
    monkeypatch.setattr(Parity, "faults", lambda self, precision: ["bad"])
    with pytest.raises(ClipDomainError, match="bad.*Nothing was written.*without --quantize int8"):
        exporter.export_model(str(source), tmp_path / "none", format="onnx", int8=True, pairs=PAIRS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def _copy_towers(source, folder):
    (folder / "onnx").mkdir(parents=True)
    for name in ("vision_model.onnx", "text_model.onnx"):
        (folder / "onnx" / name).write_bytes((source / "onnx" / name).read_bytes())


def test_a_parity_tells_what_is_worse_than_allowed():
    good = Parity(8, 8, 1.0, 1.0, 1.0, 1e-6, {}, 0.2)
    assert not good.faults("float32")
    assert len(Parity(8, 8, 0.97, 1.0, 1.0, 2e-4, {}, 1.2).faults("float32")) == 3
    assert len(Parity(8, 8, 0.97, 1.0, 1.0, 2e-2, {}, 1.2).faults("int8")) == 2
    assert not Parity(8, 8, 0.99, 0.99, 1.0, 2e-2, {}, 1.0).faults("int8")


def test_sessions_open_when_first_used_with_the_threads_asked_for(made):
    _, folder = made("clip", "onnx")
    embedder = ClipEmbedder.from_pretrained(folder, threads=1)
    assert isinstance(embedder.model, OnnxModel) and not {"_vision", "_text"} & set(vars(embedder.model))
    embedder.embed_texts(TEXTS)
    assert "_text" in vars(embedder.model) and "_vision" not in vars(embedder.model)
    assert embedder.model._text.get_session_options().intra_op_num_threads == 1
    with pytest.raises(ClipDomainError, match="threads is 0"):
        ClipEmbedder.from_pretrained(folder, threads=0)
    with pytest.raises(ClipDomainError, match="threads is for ONNX"):
        ClipEmbedder.from_pretrained("starter", threads=2)


@pytest.mark.parametrize("format", ["onnx", pytest.param("mlx", marks=needs_mlx)])
def test_an_export_answers_from_any_thread_and_stays_where_it_computes(made, format):
    _, folder = made("clip", format)
    embedder = ClipEmbedder.from_pretrained(folder)
    embedder.model.half().to("meta")  # a runtime of its own is neither cast nor moved
    expected, found = embedder.embed_texts(TEXTS), []
    threads = [threading.Thread(target=lambda: found.append(embedder.embed_texts(TEXTS))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(torch.equal(one, expected) for one in found)


def test_a_damaged_or_foreign_export_is_told(tmp_path, made):
    _, folder = made("clip", "onnx")
    with pytest.raises(ClipDomainError, match="export to embed with"):
        load_model(folder)
    with pytest.raises(ClipDomainError, match="is an onnx export already"):
        exporter.load_original(str(folder))
    record = json.loads((folder / "export.json").read_text())
    for change, told in (({"format": "gguf"}, "'gguf'"), ({"files": {"onnx/x.onnx": 5}}, "0 bytes of 5")):
        (tmp_path / "export.json").write_text(json.dumps(record | change))
        with pytest.raises(ClipDomainError, match=told):
            ClipEmbedder.from_pretrained(tmp_path)
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(ClipDomainError, match="damaged"):
        ClipEmbedder.from_pretrained(tmp_path)


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("mlx", "mlx.core")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, made, monkeypatch, format, package):
    source, _ = made("clip", "safetensors")
    for name in (package, "onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == package else json)
    with pytest.raises(ClipDomainError, match=rf"hf-clip-domain\[{format}\]"):
        exporter.export_model(str(source), tmp_path / "out", format=format, pairs=PAIRS)


@needs_mlx
def test_mlx_refuses_what_it_has_no_towers_for(tmp_path):
    folder = make_folder(tmp_path / "bert", "clip and bert")
    with pytest.raises(ClipDomainError, match="--format mlx takes clip and siglip.*--format onnx"):
        exporter.export_model(str(folder), tmp_path / "out", format="mlx", pairs=PAIRS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--format", "safetensors", "--quantize", "int8"], "--quantize int8 is for"),
        (["--format", "onnx", "--split", "tset"], "--split tset"),
        (["--format", "onnx", "--rows", "1"], "--rows 1"),
        (["--format", "onnx", "--output", "full"], "holds no earlier export"),
    ],
)
def test_a_mistake_is_told(tmp_path, monkeypatch, capsys, options, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    rows = [] if "--rows" in options else ["--rows", "4"]
    output = [] if "--output" in options else ["--output", "out"]
    assert main(["export", "starter", *rows, *output, *options]) == 1
    assert told in capsys.readouterr().err and (tmp_path / "full" / "mine.txt").exists()


@pytest.mark.slow
def test_the_starter_exports_and_is_scored_like_any_model(tmp_path, capsys):
    output = str(tmp_path / "out")
    command = ["export", "starter", "--domain", "scientific", "--format", "onnx", "--rows", "60", "--output", output]
    assert main(command) == 0
    record = find_record(output)
    assert record.check["difference"] < 1e-4 and record.check["retrieval_delta"] <= 0.2 and record.source == "starter"
    assert "Saved to" in capsys.readouterr().out
    pictures = PICTURES[:4]
    original, exported = (
        ClipEmbedder.from_pretrained("starter", domain="scientific"),
        ClipEmbedder.from_pretrained(output),
    )
    torch.testing.assert_close(exported.embed_images(pictures), original.embed_images(pictures), rtol=0, atol=1e-4)
    assert main(["evaluate", output, "--domain", "scientific", "--dataset", str(_csv(tmp_path))]) == 0
    assert "Recall@1" in capsys.readouterr().out


def _csv(folder):
    lines = ["image,text"]
    for number, pair in enumerate(PAIRS * 4):
        pair["image"].rotate(90 * (number % 4)).resize((40 + number, 40)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,picture number {number}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"
