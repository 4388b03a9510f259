"""Pictures for the model card: the training curve, recall before and after, and what a query finds.

matplotlib is imported when a plot is drawn, with its file backend: no display is needed.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageOps

from hf_clip_domain.data.images import decode_image
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.evaluation.evaluator import unique_images
from hf_clip_domain.evaluation.report import EvaluationReport
from hf_clip_domain.evaluation.resolution_table import Resolutions
from hf_clip_domain.evaluation.tables import DIRECTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER, ACCENT, INK = "#b8c4d0", "#2563a8", "#d1495b", "#333333"
RIGHT = "#1a9850"
# Fonts with scripts that matplotlib's own lacks, used where installed; what no font has is drawn as a box.
FALLBACK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei")
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "text.color": INK,
    "text.parse_math": False,  # a caption with two dollar signs is not a formula
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "legend.frameon": False,
    "font.size": 9,
}


def plot_training_curve(log_history: Sequence[dict[str, Any]], path: str | Path) -> Path:
    """Draw loss, held-out and general recall (when measured) and learning rate over steps, from a trainer's log.

    A run shorter than `logging_steps` has logged nothing; the picture says so: no plot fails a finished run.
    """
    loss, rate = _series(log_history, "loss"), _series(log_history, "learning_rate")
    recalls = {title: _series(log_history, f"eval_{name}/recall@1") for name, title in DIRECTIONS.items()}
    recalls = {title: points for title, points in recalls.items() if points}
    eval_loss = _series(log_history, "eval_loss")
    general = _series(log_history, "eval_general/mean_recall@10")
    panels = ["loss"] * bool(loss or eval_loss) + ["recall"] * bool(recalls)
    panels += ["general"] * bool(general) + ["rate"] * bool(rate)
    with _figure(path, (4.2 * max(len(panels), 1), 3.3)) as figure:
        if not panels:
            figure.text(0.5, 0.5, "no step was logged", ha="center")
        for number, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), number)
            axes.set_xlabel("step")
            if panel == "loss":
                axes.set_title("Loss")
                _line(axes, loss, AFTER, "training")
                _line(axes, eval_loss, ACCENT, "held out")
                _legend(axes)
            elif panel == "recall":
                axes.set_title("Held-out Recall@1 (%)")
                for color, (title, points) in zip((AFTER, ACCENT), recalls.items(), strict=False):
                    _line(axes, [(step, 100 * value) for step, value in points], color, title.replace("->", "→"))
                axes.set_ylim(bottom=0)
                _legend(axes)
            elif panel == "general":
                axes.set_title("General mean Recall@10 (%)")
                _line(axes, [(step, 100 * value) for step, value in general], AFTER, None)
                axes.set_ylim(bottom=0)
            else:
                axes.set_title("Learning rate")
                _line(axes, rate, "#777777", None)
                axes.set_ylim(bottom=0)
                axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return Path(path)


def plot_recall(report: EvaluationReport, path: str | Path) -> Path:
    """Draw recall at 1, 5 and 10 before and after, both directions, with the level of chance."""
    ks, width = (1, 5, 10), 0.38
    with _figure(path, (8, 3.6)) as figure:
        first = None
        for number, (direction, title) in enumerate(DIRECTIONS.items(), start=1):
            axes = first = figure.add_subplot(1, 2, number, sharey=first)
            for side, metrics, color, offset in (
                ("before", report.before, BEFORE, -width / 2),
                ("after", report.after, AFTER, width / 2),
            ):
                heights = [100 * _finite(metrics.get(f"{direction}/recall@{k}")) for k in ks]
                bars = axes.bar([x + offset for x in range(len(ks))], heights, width, color=color, label=side)
                axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
            for x, k in enumerate(ks):
                chance = report.after.get(f"{direction}/chance_recall@{k}")
                if chance is not None:
                    label = "chance" if x == 0 else None
                    axes.hlines(100 * chance, x - width, x + width, ACCENT, "dashed", linewidth=1.4, label=label)
            candidates = report.after.get(f"{direction}/candidates")
            count = f", {candidates:,.0f} candidates" if candidates else ""
            axes.set_title(title.replace("->", "→") + count)
            axes.set_xticks(range(len(ks)), [f"Recall@{k}" for k in ks])
            axes.set_ylim(0, 108)
            axes.set_yticks(range(0, 101, 20))
            if number == 1:
                axes.set_ylabel("%")
                figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return Path(path)


def plot_retrieval_sample(
    embedder: ClipEmbedder, pairs: Sequence[dict[str, Any]], path: str | Path, queries: int = 5, top: int = 5
) -> Path:
    """Draw what text queries find: one row a caption, its best pictures left to right, the right ones framed.

    Queries are spread evenly over the pairs. Shown beside each caption: the rank of its own best picture.

    Args:
        embedder: the model.
        pairs: rows with `image` and `text`; all pictures are candidates.
        queries: rows of the grid, at most.
        top: pictures a row, at most.
    """
    rows, image_of_row = unique_images(pairs[row]["image"] for row in range(len(pairs)))
    captions = [pairs[row]["text"] for row in range(len(pairs))]
    captions = [[own] if isinstance(own, str) else own for own in captions]
    asked = _spread(captions, queries)
    image_embeds = embedder.embed_images(pairs[row]["image"] for row in rows)  # (n, d)
    scores = embedder.similarity(image_embeds, asked).T  # (queries, n)
    top = min(top, len(rows))
    with _figure(path, (2.6 + 1.5 * top, 1.75 * len(asked))) as figure:
        grid = figure.add_gridspec(len(asked), top + 1, width_ratios=[1.7] + [1] * top)
        for line, caption in enumerate(asked):
            right = {image_of_row[row] for row, own in enumerate(captions) if caption in own}
            order = scores[line].argsort(descending=True, stable=True).tolist()
            rank = next(position for position, image in enumerate(order, start=1) if image in right)
            cell = figure.add_subplot(grid[line, 0])
            cell.axis("off")
            cell.text(0, 0.97, _wrapped(caption), va="top", fontsize=8, transform=cell.transAxes)
            found = f"right picture at rank {rank} of {len(order)}"
            color = RIGHT if rank <= top else ACCENT
            cell.text(0, 0.03, found, va="bottom", fontsize=7.5, color=color, transform=cell.transAxes)
            for column, image in enumerate(order[:top], start=1):
                axes = figure.add_subplot(grid[line, column])
                _picture(axes, pairs[rows[image]]["image"], framed=image in right)
                axes.set_xlabel(f"{scores[line, image]:.2f}", fontsize=7, labelpad=2)
    return Path(path)


def plot_trials(trials: Sequence[tuple[int, float | None]], path: str | Path) -> None:
    """The score of every trial that ended, `(number, share of hits)`, and the best so far."""
    scored = [(number, 100 * score) for number, score in trials if score is not None]
    best = [(number, max(score for other, score in scored if other <= number)) for number, _ in scored]
    with _figure(path, (6, 3.5)) as figure:
        axes = figure.add_subplot()
        axes.plot(*zip(*scored, strict=True), "o", color=AFTER, label="trial")
        axes.step(*zip(*best, strict=True), where="post", color=ACCENT, label="best so far")
        axes.set(xlabel="Trial", ylabel="Validation recall@10 (%)")
        axes.legend()


def plot_forgetting(points: Sequence[Any], chosen: Any, floor: float, path: str | Path) -> Path:
    """Draw the domain against what is kept, a dot a merged model, from the base (0) to the tuned one (1).

    Args:
        points, chosen: with `alpha`, `target` and `general` (shares), by rising alpha; one of them.
        floor: the general recall that the budget demands.
    """
    with _figure(path, (5.2, 3.8)) as figure:
        axes = figure.add_subplot()
        axes.plot(
            [100 * point.general for point in points], [100 * point.target for point in points], "o-", color=AFTER
        )
        axes.plot(100 * chosen.general, 100 * chosen.target, "o", color=ACCENT, markersize=10, label="chosen", zorder=3)
        axes.axvline(100 * floor, color="#777777", linestyle="dashed", linewidth=1.2, label="budget")
        for point in points:
            place = (100 * point.general, 100 * point.target)
            axes.annotate(f"{point.alpha:.3g}", place, textcoords="offset points", xytext=(5, 5), fontsize=7)
        axes.set(xlabel="General mean Recall@10 (%)", ylabel="Domain mean Recall@10 (%)")
        axes.legend()
    return Path(path)


def plot_resolutions(found: Resolutions, path: str | Path) -> Path:
    """Draw mean recall with its intervals over the picture size, and beside it the pictures a second."""
    sizes = [one.size for one in found.sizes]
    with _figure(path, (8, 3.3)) as figure:
        axes = figure.add_subplot(1, 2, 1)
        axes.plot(sizes, [100 * one.mean_recall for one in found.sizes], "o-", color=AFTER)
        told = [one for one in found.sizes if one.interval]
        lows, highs = ([100 * one.interval[end] for one in told] for end in (0, 1))
        axes.fill_between([one.size for one in told], lows, highs, color=AFTER, alpha=0.15, linewidth=0)
        axes.axvline(found.recommended, color=ACCENT, linestyle="dashed", linewidth=1.2, label="recommended")
        axes.set(xlabel="Pixels", title="Mean Recall@10 (%)", ylim=(0, None))
        axes.legend()
        axes = figure.add_subplot(1, 2, 2)
        axes.plot(sizes, [one.pictures_per_second for one in found.sizes], "o-", color=AFTER)
        axes.set(xlabel="Pixels", title=f"Pictures a second, {found.device}", ylim=(0, None))
    return Path(path)


@contextmanager
def _figure(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure without pyplot's global state, saved on leaving."""
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    installed = {font.name for font in font_manager.fontManager.ttflist}
    family = ["DejaVu Sans", *(font for font in FALLBACK_FONTS if font in installed)]
    with matplotlib.rc_context(STYLE | {"font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white")


def _series(log_history: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """`(step, value)` wherever the key was logged and finite; a step logged twice keeps its last value."""
    found = {
        entry["step"]: float(entry[key])
        for entry in log_history
        if "step" in entry and isinstance(entry.get(key), int | float) and math.isfinite(entry[key])
    }
    return sorted(found.items())


def _line(axes: Axes, points: list[tuple[int, float]], color: str, label: str | None) -> None:
    if points:
        marker = "o" if len(points) <= 20 else None
        axes.plot(*zip(*points, strict=True), color=color, label=label, marker=marker, markersize=3.5, linewidth=1.7)


def _legend(axes: Axes) -> None:
    if len(axes.lines) > 1:
        axes.legend()


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else 0.0


def _spread(captions: list[list[str]], queries: int) -> list[str]:
    """Different captions, one a row, evenly over the rows."""
    chosen = list(dict.fromkeys(own[0] for own in captions))
    count = min(queries, len(chosen))
    return [chosen[position * len(chosen) // count] for position in range(count)]


def _wrapped(caption: str, width: int = 34, lines: int = 7) -> str:
    # Characters outside Latin are about twice as wide, and their scripts need no spaces to break at.
    if sum(ord(character) > 0x2E80 for character in caption) > len(caption) / 3:
        width //= 2
    return "\n".join(textwrap.wrap(" ".join(caption.split()), width, max_lines=lines, placeholder=" …"))


def _picture(axes: Axes, image: Any, *, framed: bool) -> None:
    axes.imshow(ImageOps.pad(decode_image(image), (320, 320), color="#f4f4f4"))
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=RIGHT if framed else "#dddddd", linewidth=3.5 if framed else 0.8)
