"""Zero-shot retrieval of the starter on image-text folders it was not trained on, against chance.

    python scripts/evaluate_starter.py --data FOLDER [--model hf_clip_domain/models/starter] \
        [--card model_cards/starter.md]

FOLDER holds one folder a set (general, scientific, medical, industrial; those absent are left out), each with
`metadata.jsonl` (file_name, text, split) and its pictures; rows with split "test" are measured. The table is
printed, and with `--card` written between the card's two `zero-shot` markers.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from starter.pairs import read_folder
from transformers import CLIPModel, CLIPProcessor

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import RetrievalEvaluator

SETS = ("general", "scientific", "medical", "industrial")
MARKERS = ("<!-- zero-shot -->", "<!-- /zero-shot -->")


def measure(model: CLIPModel, processor: CLIPProcessor, folder: Path) -> dict[str, float]:
    """The retrieval metrics of the test rows of one folder."""
    rows = [
        {"image": {"path": str(pair.image), "bytes": None}, "text": list(pair.captions)}
        for pair in read_folder(folder, "test")
    ]
    return RetrievalEvaluator(rows, processor)(model)


def table(results: dict[str, dict[str, float]]) -> str:
    """A markdown table: recall@10 both ways with chance, and the median rank, for each set."""
    lines = [
        "| test set | pictures | text to image recall@10 (chance) | median rank "
        "| image to text recall@10 (chance) | captions |",
        "|---|---|---|---|---|---|",
    ]
    for name, metrics in results.items():
        to_image, to_text = (
            f"{metrics[f'{way}/recall@10']:.1%} ({metrics[f'{way}/chance_recall@10']:.1%})"
            for way in ("text_to_image", "image_to_text")
        )
        lines.append(
            f"| {name} | {metrics['text_to_image/candidates']:.0f} | {to_image} "
            f"| {metrics['text_to_image/median_rank']:.0f} | {to_text} "
            f"| {metrics['image_to_text/candidates']:.0f} |"
        )
    return "\n".join(lines)


def write_into(card: Path, text: str) -> None:
    """Replace what stands between the card's markers.

    Raises:
        ClipDomainError: the card has no markers.
    """
    content = card.read_text(encoding="utf-8")
    pattern = re.compile(f"({re.escape(MARKERS[0])}).*({re.escape(MARKERS[1])})", re.DOTALL)
    if not pattern.search(content):
        raise ClipDomainError(f"{card} has no place for the table: add the lines {MARKERS[0]} and {MARKERS[1]}.")
    card.write_text(pattern.sub(lambda match: f"{match[1]}\n{text}\n{match[2]}", content), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder a set")
    parser.add_argument("--model", type=Path, default=Path("hf_clip_domain/models/starter"))
    parser.add_argument("--card", type=Path, help="model card to write the table into")
    arguments = parser.parse_args()
    try:
        folders = [arguments.data / name for name in SETS if (arguments.data / name).is_dir()]
        if not folders:
            raise ClipDomainError(f"{arguments.data} has none of the folders {', '.join(SETS)}.")
        model = CLIPModel.from_pretrained(arguments.model).float().eval()
        processor = CLIPProcessor.from_pretrained(arguments.model)
        text = table({folder.name: measure(model, processor, folder) for folder in folders})
        print(text)
        if arguments.card:
            write_into(arguments.card, text)
    except ClipDomainError as error:
        print(f"evaluate_starter: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
