"""What of a folder is published: files that are known to belong to a model, without this machine's paths and secrets."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_clip_domain.errors import ClipDomainError

CARD = "README.md"
# Whatever else lies in the folder stays there: checkpoints, optimizer states, logs, caches, quarantined rows.
_PUBLISHED = (
    *(CARD, "LICENSE*", "NOTICE*", "config.json", "generation_config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors"),
    *("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
    *("domain.yaml", "similarity.json", "similarity.safetensors", "calibration.json"),
    *("evaluation.json", "report.html", "run.yaml", "run.html", "wise_ft.json"),
    *("resolutions.png", "recall.png", "forgetting.png", "training_curve.png", "retrieval_sample.png"),
    *("export.json", "onnx/*.onnx", "onnx/*.onnx.data", "mlx/*.safetensors"),
)
# Written by this package, and about the run: what may tell of the machine it ran on.
_OWN_TEXTS = (CARD, "adapter_config.json", "domain.yaml", "evaluation.json", "run.yaml", "wise_ft.json")
_OWN_TEXTS += ("report.html", "run.html")
_SECRET_NAMES = (
    *(".env", ".env.*", "*.env", ".netrc", ".npmrc", ".pypirc", ".git-credentials", "*.pem", "*.key", "*.p12", "*.pfx"),
    *(
        "id_rsa*",
        "id_ed25519*",
        "id_ecdsa*",
        "*credential*",
        "*secret*",
        "*password*",
        "*api_key*",
        "token",
        "token.txt",
    ),
)
_SECRETS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{24,}|AKIA[0-9A-Z]{16}|gh[opsu]_[A-Za-z0-9]{36}|xox[abprs]-[A-Za-z0-9-]{10,}"
    rb"|hooks\.slack\.com/services/\w|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_PATH = re.compile(r"(?<![\w/:.<])~?/[^\s\"'<>|,;:()\[\]{}\\&]+")


@dataclass(frozen=True)
class Publication:
    """What goes out of a folder.

    Attributes:
        folder: where it lies.
        files: name in the repository -> the file, or its contents where these differ from the file's.
        left_out: top-level names that stay on this machine.
    """

    folder: Path
    files: dict[str, Path | bytes]
    left_out: list[str]

    @classmethod
    def of(cls, folder: str | Path, exclude: Sequence[str] = ()) -> Publication:
        """Choose the files.

        Args:
            exclude: patterns of names to leave out besides, such as `retrieval_sample.png`.

        Raises:
            ClipDomainError: no such folder, no model in it, a pattern that matches nothing, or something that looks like
                a secret.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ClipDomainError(f"{folder}: no such folder. Give the output folder of a run, or of export.")
        found = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
        _refuse_secret_names(folder, found)
        chosen = {name: path for name, path in found.items() if _matches(name, _PUBLISHED) and path.is_file()}
        for pattern in exclude:
            if not any(fnmatch.fnmatch(name, pattern) for name in chosen):
                raise ClipDomainError(f"--exclude {pattern} matches none of the files: {', '.join(chosen)}.")
        chosen = {name: path for name, path in chosen.items() if not _matches(name, exclude)}
        if not any(name.endswith((".safetensors", ".onnx")) and name != "similarity.safetensors" for name in chosen):
            raise ClipDomainError(
                f"{folder} holds no model to publish: expected the output folder of a run or of export."
            )
        if CARD not in chosen:
            raise ClipDomainError(f"{folder} has no {CARD}: a model is not published without its card.")
        files: dict[str, Path | bytes] = {}
        for name, path in sorted(chosen.items()):
            files[name] = path
            if path.suffix in (".json", ".yaml", ".md", ".html", ".txt"):
                contents = path.read_bytes()
                if secret := _SECRETS.search(contents):
                    raise ClipDomainError(
                        f"{path} holds what looks like a secret ({secret.group()[:4].decode()}...): take it out first."
                    )
                if name in _OWN_TEXTS:
                    cleaned = without_local_paths(contents.decode("utf-8"))
                    if name == CARD:
                        cleaned = _without_missing_pictures(cleaned, chosen)
                    if cleaned.encode() != contents:
                        files[name] = cleaned.encode()
        left_out = sorted(
            {path.relative_to(folder).parts[0] for path in folder.iterdir()} - {n.split("/")[0] for n in files}
        )
        return cls(folder, files, left_out)

    def card(self) -> str:
        """The card as it is published."""
        card = self.files[CARD]
        return (card if isinstance(card, bytes) else card.read_bytes()).decode("utf-8")

    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()
        }

    def stale(self, remote: Sequence[str]) -> list[str]:
        """Files of an earlier push that belong to nothing now, such as an adapter where a plain model stands."""
        ours = [name for name in remote if _matches(name, _PUBLISHED) and not name.startswith(("LICENSE", "NOTICE"))]
        return [name for name in ours if name not in self.files]


def without_local_paths(text: str) -> str:
    """`text` with `(local) NAME` for every absolute path that is one of this machine, or below the user's home."""
    home = str(Path.home())

    def replaced(match: re.Match[str]) -> str:
        path = Path(match.group().rstrip("."))
        if len(path.parts) < 3 and not str(path).startswith("~"):
            return match.group()
        try:
            local = str(path).startswith(("~", home + "/")) or path.exists() or path.parent.exists()
        except OSError:  # too long to be one
            local = False
        return f"(local) {path.name}" if local and path.parent != Path("/") else match.group()

    return _PATH.sub(replaced, text)


def _without_missing_pictures(card: str, files: dict[str, Path]) -> str:
    return re.sub(r"!\[[^\]]*\]\(([^)/:]+)\)\n*", lambda match: match.group() if match.group(1) in files else "", card)


def _walk(folder: Path) -> list[Path]:
    """Files of the folder and of its folders of towers; links that lead out of it are none."""
    root, found = folder.resolve(), []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(("checkpoint-", "trial-", "__pycache__", ".git"))]
        for name in names:
            path = Path(place) / name
            if path.resolve().is_relative_to(root):
                found.append(path)
    return sorted(found)


def _refuse_secret_names(folder: Path, found: dict[str, Path]) -> None:
    for name in found:
        if _matches(Path(name).name.lower(), _SECRET_NAMES):
            raise ClipDomainError(
                f"{folder / name} looks like a secret: move it out of the folder before it is published."
            )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    # A star stands for no folder: `*.png` is of the folder itself.
    return any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
