"""Training from kept features of frozen layers is training from pixels, and opens every picture once."""

import copy
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig, get_peft_model
from PIL import Image as Picture
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel, TrainerCallback

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.cli.main import main
from hf_clip_domain.data import cached_rows, transforms
from hf_clip_domain.data.collator import PairCollator
from hf_clip_domain.data.pairs import PairDataset, PairStream
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import load_domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.prefix import vision_stages
from hf_clip_domain.training import ClipTrainer

FEATURES = Features({"image": Image(decode=False), "text": List(Value("string"))})
ROWS = 12
EXACT = 1e-5  # of a weight; rows are computed in batches of other sizes, and Adam enlarges rounding


def make_tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])


def make_model(kind="clip", frozen=None, seed=0, dropout=0.0):
    """A small model of which the first `frozen` stages of the vision tower (None: all) are frozen."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**size, "image_size": 16, "patch_size": 8, "attention_dropout": dropout}
    ids = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    if kind == "siglip":
        text = {**size, **ids, "max_position_embeddings": 16, "projection_size": 32}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    else:
        text = {**size, **ids, "max_position_embeddings": 16}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    for stage in vision_stages(model)[:frozen]:
        for module in stage.modules:
            module.requires_grad_(False)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=r"text_model.*q_proj", init_lora_weights=False))
    return model


def write_pictures(folder, count=ROWS, settled=True):
    """Files of noise and their rows; `settled` files look as if written a minute ago."""
    folder.mkdir(exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(folder / f"{number}.png")
    return Dataset.from_list(
        [
            {
                "image": {"bytes": None, "path": str(folder / f"{number}.png")},
                "text": [f"{letters[number % 26]} one", f"two {letters[number % 26]}"],
            }
            for number in range(count)
        ],
        features=FEATURES,
    )


def make_rows(pairs, domain=None, size=16, **options):
    domain = domain or load_domain("general")
    transform = ImageTransform(domain, size, (0.5,) * 3, (0.25,) * 3)
    return PairDataset(pairs, transform, domain, train=True, seed=1, augment=False, **options)


def train(folder, pairs, model, cache=None, rows=None, resume=None, callbacks=(), **settings):
    """A trained model's weights; with `cache`, a folder, by the feature cache."""
    siglip = model.config.model_type == "siglip"
    defaults = {"num_train_epochs": 3, "learning_rate": 1e-3, "save_strategy": "no", "seed": 1, "logging_steps": 1}
    defaults |= {"per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}
    defaults |= {"adam_epsilon": 1e-6}  # a gradient of nothing but rounding shall not become a whole step
    trainer = ClipTrainer(
        model,
        ClipTrainingArguments(str(folder), feature_cache=cache and str(cache), **{**defaults, **settings}),
        train_dataset=rows or make_rows(pairs),
        data_collator=PairCollator(make_tokenizer(), max_text_length=16, padding="max_length" if siglip else "longest"),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    train.last = trainer
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.fixture
def opened(monkeypatch):
    """Every picture that was decoded, by its bytes; and every file that was read, by its path."""
    seen = {"decoded": [], "read": []}
    decode, identify = transforms.decode_draft, cached_rows.identify

    def decoding(image, draft_size):
        seen["decoded"].append(image["bytes"])
        return decode(image, draft_size)

    def identifying(image):
        seen["read"].append(image["path"])
        return identify(image)

    monkeypatch.setattr(transforms, "decode_draft", decoding)
    monkeypatch.setattr(cached_rows, "identify", identifying)
    monkeypatch.setattr(cached_rows, "_SETTLED_NS", 0)  # files of a test are young
    return seen


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [("clip", None), ("clip", 4), ("clip", 2), ("clip", 1), ("siglip", None), ("siglip", 3), ("lora", None)],
)
def test_weights_are_those_of_training_from_pixels_and_pictures_are_opened_once(tmp_path, opened, kind, frozen):
    pairs = write_pictures(tmp_path / "pictures")
    plain = train(tmp_path / "plain", pairs, make_model(kind, frozen))
    assert len(opened["decoded"]) == 3 * ROWS
    for name in opened:
        opened[name].clear()
    start = {name: value.clone() for name, value in make_model(kind, frozen).state_dict().items()}
    cached = train(tmp_path / "cached", pairs, make_model(kind, frozen), tmp_path / "cache")
    assert len(opened["decoded"]) == len(set(opened["decoded"])) == ROWS and len(opened["read"]) == ROWS
    assert difference(plain, cached) < EXACT < 1e-3 < difference(start, cached)
    if frozen is not None:  # what follows the prefix has learned
        changed = [
            name
            for name in cached
            if "vision" in name or "visual" in name
            if not torch.equal(start[name], cached[name])
        ]
        assert changed


@pytest.mark.parametrize("inline", [True, False])
def test_micro_batches_accumulation_workers_and_relations(tmp_path, opened, inline):
    pairs = write_pictures(tmp_path / "pictures")
    if inline:
        pairs = pairs.map(lambda row: {"image": {"bytes": Path(row["image"]["path"]).read_bytes(), "path": None}})
    settings = {"gradient_accumulation_steps": 3, "micro_batch_size": 3}
    plain = train(tmp_path / "plain", pairs, make_model(), **settings)
    for number, more in enumerate(({}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True})):
        cached = train(tmp_path / "cached", pairs, make_model(), tmp_path / str(number), **settings, **more)
        assert difference(plain, cached) < EXACT
    opened["decoded"].clear()
    rows = make_rows(pairs, relations=["image"])
    train(tmp_path / "cached", pairs, make_model(), tmp_path / "0", rows=rows, **settings)
    assert opened["decoded"] == []
    plain = make_rows(pairs, relations=["image"])
    assert "pixel_values" in plain[0] and "pixel_values" not in rows[0]
    assert [row["relations"] for row in plain] == [row["relations"] for row in rows]


def test_workers_leave_out_the_pixels_of_stored_pictures(tmp_path):
    pairs = write_pictures(tmp_path / "pictures")
    shown = []

    class Collator(PairCollator):
        def __call__(self, items):
            batch = super().__call__(items)
            shown.extend(batch["pictures"].shown)
            return batch

    rows = make_rows(pairs)
    train(tmp_path / "run", pairs, make_model(), tmp_path / "cache", rows=rows)
    loader = torch.utils.data.DataLoader(
        rows, 4, collate_fn=Collator(make_tokenizer(), max_text_length=16), num_workers=2
    )
    assert all("pixel_values" not in batch and batch["pictures"].shown == [] for batch in loader)


def test_captions_are_drawn_alike_with_and_without_the_cache(tmp_path):
    pairs = write_pictures(tmp_path / "pictures")
    plain, cached = make_rows(pairs), make_rows(pairs)
    cached.use_features(None)
    keys = [plain.epoch_key(epoch, index) for epoch in range(3) for index in range(ROWS)]
    assert [plain[key]["text"] for key in keys] == [cached[key]["text"] for key in keys]
    assert torch.equal(plain[3]["pixel_values"], cached[3]["pixel_values"])
    assert len({plain[plain.epoch_key(epoch, 0)]["text"] for epoch in range(8)}) == 2


# What is stale is never used


def test_a_changed_pixel_is_seen_by_the_next_run_and_within_a_run(tmp_path, opened):
    pairs = write_pictures(tmp_path / "pictures")
    train(tmp_path / "run", pairs, make_model(), tmp_path / "cache")
    file = tmp_path / "pictures" / "5.png"

    def change(value):
        picture = Picture.open(file).convert("RGB")
        picture.putpixel((10, 10), (value, 0, 0))
        picture.save(file)

    change(1)
    opened["decoded"].clear()
    cached = train(tmp_path / "run", pairs, make_model(), tmp_path / "cache")
    assert opened["decoded"] == [file.read_bytes()]
    assert difference(train(tmp_path / "plain", pairs, make_model()), cached) < EXACT

    class Change(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            change(2 + round(state.epoch))

    opened["decoded"].clear()
    cached = train(tmp_path / "run", pairs, make_model(), tmp_path / "cache", callbacks=[Change()])
    assert len(set(opened["decoded"])) == len(opened["decoded"]) == 3
    assert difference(train(tmp_path / "plain", pairs, make_model(), callbacks=[Change()]), cached) < EXACT


def test_a_file_read_within_a_tick_of_its_change_is_read_again(tmp_path):
    rows, file = make_rows(write_pictures(tmp_path / "pictures")), tmp_path / "pictures" / "0.png"
    rows.use_features(None)
    keys = []
    for colour in ("red", "blue"):  # as long as each other, and with one time
        Picture.new("RGB", (20, 24), colour).save(file, compress_level=0)
        os.utime(file, ns=(10**18, 10**18))
        keys.append(rows[0]["picture"])
    assert keys[0] != keys[1]


@pytest.mark.parametrize("change", ["grey", "mean", "weight", "layers"])
def test_other_preprocessing_or_weights_are_computed_anew(tmp_path, opened, change):
    pairs, cache = write_pictures(tmp_path / "pictures"), tmp_path / "cache"
    train(tmp_path / "run", pairs, make_model(), cache, num_train_epochs=1)
    opened["decoded"].clear()
    train(tmp_path / "run", pairs, make_model(), cache, num_train_epochs=1)
    assert opened["decoded"] == []
    domain, model = load_domain("general"), make_model(frozen=4 if change == "layers" else None)
    if change == "grey":
        domain = dataclasses.replace(domain, image=dataclasses.replace(domain.image, grey=True))
    if change == "weight":
        model.vision_model.encoder.layers[1].mlp.fc1.weight.data[2, 3] += 1e-5
    if change == "mean":
        transform = ImageTransform(domain, 16, (0.4,) * 3, (0.25,) * 3)
        build = lambda: PairDataset(pairs, transform, domain, train=True, seed=1, augment=False)  # noqa: E731
    else:
        build = lambda: make_rows(pairs, domain)  # noqa: E731
    other = copy.deepcopy(model)
    cached = train(tmp_path / "run", pairs, model, cache, rows=build(), num_train_epochs=1)
    assert len(opened["decoded"]) == ROWS
    assert difference(train(tmp_path / "plain", pairs, other, rows=build(), num_train_epochs=1), cached) < EXACT


def test_another_precision_is_computed_anew_and_kept_as_it_is(tmp_path, opened):
    pairs, cache = write_pictures(tmp_path / "pictures"), tmp_path / "cache"
    train(tmp_path / "run", pairs, make_model(), cache, num_train_epochs=1)
    opened["decoded"].clear()
    first = train(tmp_path / "run", pairs, make_model(), cache, bf16=True)
    assert len(opened["decoded"]) == ROWS
    again = train(tmp_path / "run", pairs, make_model(), cache, bf16=True)
    assert len(opened["decoded"]) == ROWS and all(torch.equal(first[name], again[name]) for name in first)
    assert sorted(path.stat().st_size for path in cache.glob("*/rows")) == [ROWS * 24 * 2, ROWS * 24 * 4]


def test_a_frozen_weight_that_changes_during_the_run_is_followed(tmp_path):
    class Write(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model=None, **kwargs):
            if round(state.epoch) == 1:
                with torch.no_grad():
                    model.vision_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5)

    class Thaw(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model=None, **kwargs):
            if round(state.epoch) == 1:
                model.vision_model.requires_grad_(True)

    pairs = write_pictures(tmp_path / "pictures")
    still = train(tmp_path / "still", pairs, make_model())
    for number, callback in enumerate((Write, Thaw)):
        settings = {"callbacks": [callback()], "max_grad_norm": 0.1}  # what thaws counts in the norm
        plain = train(tmp_path / "plain", pairs, make_model(), **settings)
        cached = train(tmp_path / "cached", pairs, make_model(), tmp_path / f"cache{number}", **settings)
        assert difference(plain, cached) < EXACT < 1e-3 < difference(plain, still)


# The store within a run


def test_a_small_budget_is_kept_and_changes_no_weight(tmp_path, opened):
    pairs, cache = write_pictures(tmp_path / "pictures", 40), tmp_path / "cache"
    plain = train(tmp_path / "plain", pairs, make_model(frozen=2))
    opened["decoded"].clear()
    row = 5 * 32 * 4 + 40  # hidden states of five places
    cached = train(tmp_path / "cached", pairs, make_model(frozen=2), cache, feature_cache_gib=15.5 * row / 2**30)
    assert difference(plain, cached) < EXACT
    assert len(opened["decoded"]) == 40 + 2 * (40 - 15)
    files = [path for path in cache.rglob("*") if path.name in ("rows", "entries")]
    assert len(files) == 2 and sum(path.stat().st_size for path in files) == 15 * row


def test_another_order_of_the_dataset_finds_the_same_features(tmp_path, opened):
    pairs = write_pictures(tmp_path / "pictures")
    train(tmp_path / "run", pairs, make_model(), tmp_path / "cache")
    opened["decoded"].clear()
    shuffled = pairs.shuffle(seed=3).select([*range(8), 2, 3, 0, 1])  # and some pictures twice
    cached = train(tmp_path / "run", shuffled, make_model(), tmp_path / "cache")
    assert opened["decoded"] == []
    assert difference(train(tmp_path / "plain", shuffled, make_model()), cached) < EXACT


def test_rows_damaged_or_lost_during_a_run_are_computed_again(tmp_path):
    pairs = write_pictures(tmp_path / "pictures")
    plain = train(tmp_path / "plain", pairs, make_model())
    train(tmp_path / "run", pairs, make_model(), tmp_path / "cache")

    class Damage(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            for rows in (tmp_path / "cache").glob("*/rows"):
                if round(state.epoch) == 0:
                    with open(rows, "r+b") as stream:
                        stream.write(os.urandom(200))
                if round(state.epoch) == 2:
                    rows.unlink()

    again = train(tmp_path / "again", pairs, make_model(), tmp_path / "cache", callbacks=[Damage()])
    assert difference(plain, again) < EXACT


def test_resume_gives_bitwise_the_same_weights(tmp_path):
    pairs = write_pictures(tmp_path / "pictures", 24)
    settings = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2}  # within the first epoch of six steps
    whole = train(tmp_path / "whole", pairs, make_model(), tmp_path / "one", **settings)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5  # a step beyond the checkpoint is stored already

    train(tmp_path / "run", pairs, make_model(), tmp_path / "two", callbacks=[Stop()], **settings)
    resumed = train(
        tmp_path / "run", pairs, make_model(), tmp_path / "two", resume=str(tmp_path / "run/checkpoint-4"), **settings
    )
    assert train.last.state.global_step == 12
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_evaluation_of_the_validation_split_reads_pixels(tmp_path):
    pairs = write_pictures(tmp_path / "pictures")
    train(tmp_path / "run", pairs, make_model(), tmp_path / "cache")
    trainer, domain = train.last, load_domain("general")
    transform = ImageTransform(domain, 16, (0.5,) * 3, (0.25,) * 3)
    loss = trainer.evaluate(PairDataset(pairs, transform, domain, train=False))["eval_loss"]
    assert 0 < loss < 20


# What is refused


def test_what_cannot_be_cached_is_refused_in_one_sentence(tmp_path):
    pairs = write_pictures(tmp_path / "pictures")
    thawed = make_model(frozen=0)
    with pytest.raises(ClipDomainError, match="does not begin with any .*freeze"):
        train(tmp_path, pairs, thawed, tmp_path / "cache")
    dropping = make_model(dropout=0.1)
    dropping.vision_model.embeddings.requires_grad_(True)
    with pytest.raises(ClipDomainError, match="without dropout"):
        train(tmp_path, pairs, dropping, tmp_path / "cache")
    domain = load_domain("general")
    transform = ImageTransform(domain, 16, (0.5,) * 3, (0.25,) * 3)
    stream = PairStream(pairs.to_iterable_dataset(), transform, domain, train=True)
    with pytest.raises(ClipDomainError, match="--streaming"):
        train(tmp_path, pairs, make_model(), tmp_path / "cache", rows=stream, max_steps=1)
    with pytest.raises(ClipDomainError, match="--image_sizes"):
        ClipTrainingArguments(str(tmp_path), use_cpu=True, feature_cache="auto", image_sizes=[16, 32])
    with pytest.raises(ClipDomainError, match="--feature_cache_gib 0.*above 0"):
        ClipTrainingArguments(str(tmp_path), use_cpu=True, feature_cache_gib=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipDomainError, match="--feature_cache .*file"):
        train(tmp_path, pairs, make_model(), tmp_path / "file")


def test_auto_is_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    train(tmp_path / "run", write_pictures(tmp_path / "pictures"), make_model(), "auto", num_train_epochs=1)
    assert len(list((tmp_path / "caches/hf-clip-domain/features").glob("*/rows"))) == 1


def test_the_command_says_that_nothing_is_frozen(tmp_path, capsys):
    status = main(
        ["train", "--smoke", "--output_dir", str(tmp_path / "run"), "--feature_cache", str(tmp_path / "cache")]
    )
    assert status == 1 and "--feature_cache keeps what frozen layers give" in capsys.readouterr().err


# Several processes

PROGRAM = """
import sys
from pathlib import Path
import torch
from hf_clip_domain.cli.processes import start_promised_processes

start_promised_processes()
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_feature_cache as shared

folder, batch, cache = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None
weights = shared.train(
    folder / "run", shared.Dataset.load_from_disk(str(folder / "pairs")), shared.make_model(frozen=3), cache,
    per_device_train_batch_size=batch,
)
trainer = shared.train.last
if trainer.is_world_process_zero():
    torch.save(weights, folder / f"weights{batch}.pt")
    print("processes:", trainer.args.world_size)
if trainer.args.world_size > 1:
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
"""


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_share_a_cache_and_equal_one_without(tmp_path):
    pairs = write_pictures(tmp_path / "pictures")
    pairs.save_to_disk(tmp_path / "pairs")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_machines",
        "1",
        "--num_processes",
        "2",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    command += [str(tmp_path / "program.py"), str(Path(__file__).parent), str(tmp_path), "2", str(tmp_path / "cache")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=700, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "processes: 2" in done.stdout
    one = train(tmp_path / "one", pairs, make_model(frozen=3))
    assert difference(one, torch.load(tmp_path / "weights2.pt", weights_only=True)) < EXACT
    (rows,) = (tmp_path / "cache").glob("*/rows")
    assert rows.stat().st_size == ROWS * 5 * 32 * 4  # every picture once, whichever process met it


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_a_cache_that_is_right(tmp_path):
    pairs = write_pictures(tmp_path / "pictures")
    pairs.save_to_disk(tmp_path / "pairs")
    (tmp_path / "program.py").write_text(PROGRAM)
    cache = tmp_path / "cache"
    command = [sys.executable, str(tmp_path / "program.py"), str(Path(__file__).parent), str(tmp_path), "2", str(cache)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(path.stat().st_size for path in cache.glob("*/entries")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert any(path.stat().st_size for path in cache.glob("*/entries"))
    plain = train(tmp_path / "plain", pairs, make_model(frozen=3))
    assert difference(plain, train(tmp_path / "again", pairs, make_model(frozen=3), cache)) < EXACT
