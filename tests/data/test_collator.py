"""Batches: short padding that changes no embedding, cuts that keep the end, ids that know equal captions."""

import subprocess
import sys

import pytest
import torch
from small_clip import letter_tokenizer
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

from hf_clip_domain.data import collator
from hf_clip_domain.data.collator import PairCollator
from hf_clip_domain.data.relations import word_id
from hf_clip_domain.errors import ClipDomainError


def items(*texts):
    return [{"pixel_values": torch.full((3, 4, 4), float(i)), "text": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("letters", "length"), [(1, 8), (6, 8), (7, 16), (30, 32), (31, 40), (70, 72), (71, 77), (75, 77), (300, 77)]
)
def test_lengths_are_multiples_of_eight_up_to_the_limit(letters, length):
    batch = PairCollator(letter_tokenizer())(items("a", "b" * letters))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, length)


def test_batch_is_what_a_clip_model_takes():
    tokenizer = letter_tokenizer()
    batch = PairCollator(tokenizer)(items("ab", "a longer one"))
    assert batch["pixel_values"].shape == (2, 3, 4, 4) and batch["pixel_values"].dtype == torch.float32
    assert {batch[name].dtype for name in ("input_ids", "attention_mask", "targets")} == {torch.int64}
    assert batch["attention_mask"].sum(1).tolist() == [4, 12]
    assert tokenizer.decode(batch["input_ids"][1], skip_special_tokens=True) == "a longer one"
    assert (batch["input_ids"][0, 3:] == tokenizer.pad_token_id).all()


def test_a_cut_caption_keeps_its_end_token():
    tokenizer = letter_tokenizer()
    batch = PairCollator(tokenizer, max_text_length=20)(items("b" * 100))
    assert batch["input_ids"].shape == (1, 20)
    assert batch["input_ids"][0, 0] == tokenizer.bos_token_id
    assert batch["input_ids"][0, -1] == tokenizer.eos_token_id


@pytest.mark.parametrize("most", [0, 2, 50_000])
def test_a_caption_met_again_has_the_same_tokens(most, monkeypatch):
    monkeypatch.setattr(collator, "_MOST_TOKENIZED", most)
    kept = PairCollator(letter_tokenizer())
    for texts in (["ab", "ab", "c"], ["c", "d" * 100], ["ab"], ["e", "c", "ab"]):
        batch, fresh = kept(items(*texts)), PairCollator(letter_tokenizer())(items(*texts))
        assert all(torch.equal(batch[name], fresh[name]) for name in ("input_ids", "attention_mask"))
        batch["input_ids"].zero_()  # a batch is the caller's own


@pytest.mark.parametrize("legacy", [True, False], ids=["eos_token_id 2", "the real end token"])
@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "!"])
def test_short_padding_gives_the_embedding_of_full_padding(legacy, pad_token):
    tokenizer = letter_tokenizer(pad_token=pad_token)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=2 if legacy else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModelWithProjection(config).eval()
    texts = ["a", "some words", "a caption of some more words", "x" * 200]

    def embed(padding, *texts):
        batch = PairCollator(tokenizer, padding=padding)(items(*texts))
        with torch.no_grad():
            return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).text_embeds

    full = embed("max_length", *texts)
    for row, text in enumerate(texts):
        assert torch.allclose(embed("longest", text)[0], full[row], atol=1e-5), text
    assert torch.allclose(embed("longest", *texts[:3]), full[:3], atol=1e-5)


def test_a_tokenizer_without_a_mask_has_its_padding_read():
    tokenizer = letter_tokenizer(model_input_names=["input_ids"], pad_token="!")
    batch = PairCollator(tokenizer, max_text_length=64, padding="max_length")(items("ab"))
    assert batch["input_ids"].shape == (1, 64)
    assert (batch["attention_mask"] == 1).all()


def test_bert(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cell"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    batch = PairCollator(tokenizer, max_text_length=5)(items("a red cell", "a red red red cell"))
    ids = [[words[i] for i in row] for row in batch["input_ids"]]
    assert ids == [["[CLS]", "a", "red", "cell", "[SEP]"], ["[CLS]", "a", "red", "red", "[SEP]"]]
    assert batch["attention_mask"].tolist() == [[1] * 5] * 2


def test_targets_are_equal_for_equal_captions_only():
    targets = PairCollator(letter_tokenizer())(items("A cell.", "a  cell.", "A cell", "Another."))["targets"].tolist()
    assert targets[0] == targets[1]
    assert len(set(targets)) == 3


def test_targets_are_the_same_in_another_process():
    code = "from hf_clip_domain.data.relations import word_id; print(word_id('A cell.'))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(output) == word_id("A cell.")


def test_mistakes_are_named():
    with pytest.raises(ClipDomainError, match="padding='short'"):
        PairCollator(letter_tokenizer(), padding="short")
    with pytest.raises(ClipDomainError, match="max_text_length=2"):
        PairCollator(letter_tokenizer(), max_text_length=2)
    tokenizer = letter_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ClipDomainError, match="no padding token"):
        PairCollator(tokenizer)
