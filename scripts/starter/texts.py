"""The texts: what the tokenizer is trained on, and what the text tower learns its teacher's space from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

VOCABULARY = 5000
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
# What CLIP's tokenizer splits by, so that merges never cross what it would keep apart.
_SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
TEMPLATES = (
    "a photo of {a}", "a photograph shows {a}", "a photograph of {a} and {b}", "an illustration of {a}",
    "a diagram of {a} and {b}", "this diagram shows {a}", "a micrograph of {a}", "an image of {a} {b}",
    "a graph of {a} against {b}", "the {a} of the {b}", "a {a} with a {b}", "a map of {a}", "{a} {b}",
    "{a}, {b}, and {c}", "a drawing of {a} in {b}", "{a} is a kind of {b}", "the structure of {a}",
    "a painting of {a}", "{a} and {b} are shown", "this table lists {a} and {b}",
)  # fmt: skip


def sentences(text: str) -> list[str]:
    """The text cut at sentence ends; pieces of fewer than three words stay with nobody."""
    return [part for part in re.split(r"(?<=[.!?;])\s+", text) if len(part.split()) >= 3]


def transfer_set(captions: Sequence[str], words: Sequence[str], seed: int) -> list[str]:
    """Unlabelled texts to hand one text encoder's space to another.

    Captions, their sentences, sentences with words exchanged, every word alone, and words in templates. The words
    are the text teacher's own vocabulary: so the student hears of words that no caption of its pairs has.
    """
    rng = np.random.default_rng(seed)
    # More frequent words more often, but each of them sometimes: the vocabulary is sorted by frequency.
    weights = 1 / np.sqrt(np.arange(len(words)) + 200)
    weights /= weights.sum()

    def draw(number: int) -> list[str]:
        return [words[index] for index in rng.choice(len(words), size=number, p=weights)]

    parts = [part for caption in captions for part in sentences(caption)]
    texts = [*captions, *parts, *words]
    for a, b, c in zip(*(draw(40_000) for _ in range(3)), strict=True):
        texts.append(TEMPLATES[rng.integers(len(TEMPLATES))].format(a=a, b=b, c=c))
    if parts:
        for _ in range(20_000):
            tokens = parts[rng.integers(len(parts))].split()[:30]
            places = rng.choice(len(tokens), size=min(len(tokens), int(rng.integers(1, 4))), replace=False)
            for place, word in zip(places, draw(len(places)), strict=True):
                tokens[place] = word
            texts.append(" ".join(tokens))
    return sorted(set(texts))


def train_tokenizer(captions: Sequence[str], words: Sequence[str]) -> CLIPTokenizer:
    """A lower-case byte-level BPE in CLIP's own form, every byte in its vocabulary: no text is unknown to it."""
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    # A frequent word counts like a few captions' mention of it, so that it can become one token.
    corpus = [*captions, *(word for rank, word in enumerate(words) for _ in range(1 + 4000 // (rank + 200)))]
    backend.train_from_iterator(corpus, trainer)
    merges = _merges(backend)
    symbols = [*alphabet, *(symbol + "</w>" for symbol in alphabet)]
    merges = merges[: VOCABULARY - len(symbols) - 2]
    for left, right in merges:
        symbols.append(left + right)
    vocabulary = {symbol: index for index, symbol in enumerate(dict.fromkeys([*symbols, BEGIN, END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(merge) for merge in merges], model_max_length=77)


def _merges(backend: Tokenizer) -> list[tuple[str, str]]:
    """The learned merges, in order."""
    return [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]


class TokenTable:
    """Texts as id rows, kept once; batches are padded to their longest text."""

    def __init__(self, tokenizer: CLIPTokenizer, texts: Sequence[str], length: int = 77) -> None:
        self.pad = tokenizer.pad_token_id
        self.rows = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
        self.lengths = np.array([len(row) for row in self.rows])

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(self.rows[index]) for index in indices)
        ids = torch.full((len(indices), longest), self.pad)
        mask = torch.zeros(len(indices), longest, dtype=torch.long)
        for row, index in enumerate(indices):
            tokens = self.rows[index]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return ids, mask


def length_batches(lengths: np.ndarray, tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """All rows once, in random batches of similar length with about `tokens` tokens each."""
    order = np.lexsort((rng.random(len(lengths)), lengths))
    batches, start = [], 0
    while start < len(order):
        size = max(32, tokens // int(lengths[order[min(start + 64, len(order) - 1)]]))
        batches.append(order[start : start + size])
        start += size
    return [batches[index] for index in rng.permutation(len(batches))]
