"""Synthetic plots: scikit-learn's real tables, and the curves of physical laws with their true parameters."""

from __future__ import annotations

import functools

import numpy as np
from sklearn import datasets as tables

from hf_clip_domain.data.samples.canvas import COLOURS, Axes, Canvas, Drawing, one_of, size_of

INK = [name for name in COLOURS if name not in ("yellow", "grey")]


@functools.cache
def _table(name: str):
    table = {
        "iris": tables.load_iris,
        "wine": tables.load_wine,
        "breast cancer": tables.load_breast_cancer,
        "diabetes": functools.partial(tables.load_diabetes, scaled=False),
    }[name]()
    features = [feature.replace("_", " ").replace(" (cm)", "") for feature in table.feature_names]
    return np.asarray(table.data), np.asarray(table.target), features, getattr(table, "target_names", None)


def _classes(name):
    names = [str(label) for label in _table(name)[3]]
    return [f"cultivar {label[-1]}" if name == "wine" else label for label in names]


def scatter(rng) -> Drawing:
    name = one_of(rng, ["iris", "wine", "breast cancer", "diabetes"])
    data, target, features, _ = _table(name)
    first, second = rng.choice(len(features), 2, replace=False)
    rows = rng.choice(len(data), min(len(data), int(rng.integers(40, 160))), replace=False)
    x, y = data[rows, first], data[rows, second]
    canvas = Canvas(*size_of(rng))
    axes = Axes(canvas, _range(x), _range(y), features[first], features[second])
    inks = rng.choice(INK, 3, replace=False)
    if name == "diabetes":
        axes.dots(x, y, COLOURS[inks[0]])
        marks = f"{inks[0]} dots"
    else:
        groups = _classes(name)
        for index in range(len(groups)):
            here = target[rows] == index
            axes.dots(x[here], y[here], COLOURS[inks[index]])
        marks = ", ".join(f"{group} in {inks[index]}" for index, group in enumerate(groups))
    correlation = float(np.corrcoef(x, y)[0, 1])
    strength = "strongly" if abs(correlation) > 0.7 else "moderately" if abs(correlation) > 0.35 else "hardly"
    sign = "" if strength == "hardly" else " positively" if correlation > 0 else " negatively"
    captions = [
        f"Scatter plot of {features[second]} against {features[first]} in the {name} data: {len(rows)} samples, {marks}.",
        f"The {features[first]} and {features[second]} of {len(rows)} {name} samples are {strength}{sign} correlated "
        f"(r = {correlation:.2f}).",
    ]
    return Drawing(canvas.done(), captions, "scatter plot", {"correlation": correlation, "rows": len(rows)})


def histogram(rng) -> Drawing:
    name = one_of(rng, ["iris", "wine", "breast cancer", "diabetes"])
    data, _, features, _ = _table(name)
    column, bins = int(rng.integers(len(features))), int(rng.integers(7, 20))
    counts, edges = np.histogram(data[:, column], bins)
    ink = one_of(rng, INK)
    canvas = Canvas(*size_of(rng))
    axes = Axes(canvas, (edges[0], edges[-1]), (0, counts.max() * 1.1), features[column], "count")
    axes.bars((edges[:-1] + edges[1:]) / 2, counts, edges[1] - edges[0], COLOURS[ink])
    mode = (edges[counts.argmax()] + edges[counts.argmax() + 1]) / 2
    skew = float(((data[:, column] - data[:, column].mean()) ** 3).mean() / data[:, column].std() ** 3)
    tail = "a long tail to high values" if skew > 0.8 else "a tail to low values" if skew < -0.8 else "no long tail"
    captions = [
        f"Histogram of {features[column]} in the {name} data with {bins} {ink} bars and {tail}.",
        f"The commonest {features[column]} in the {name} data is near {mode:.3g}; the tallest of {bins} bars counts "
        f"{counts.max()}.",
    ]
    return Drawing(canvas.done(), captions, "histogram", {"bins": bins, "highest": int(counts.max())})


def class_means(rng) -> Drawing:
    name = one_of(rng, ["iris", "wine", "breast cancer"])
    data, target, features, _ = _table(name)
    groups = _classes(name)
    column = int(rng.integers(len(features)))
    rows = rng.permutation(len(data))[: int(rng.integers(len(data) // 2, len(data) + 1))]
    means = [float(data[rows][target[rows] == index, column].mean()) for index in range(len(groups))]
    ink = one_of(rng, INK)
    canvas = Canvas(*size_of(rng))
    low = min(0.0, min(means))
    axes = Axes(canvas, (-0.6, len(groups) - 0.4), (low, max(means) * 1.15), "", features[column])
    canvas.box(axes.left, 0.835, 1, 1, (255, 255, 255))
    axes.bars(range(len(groups)), means, 0.6, COLOURS[ink])
    for index, group in enumerate(groups):
        canvas.text(axes.place(index, 0)[0], 0.88, group, 9)
    best = groups[int(np.argmax(means))]
    listed = ", ".join(f"{group} {mean:.3g}" for group, mean in zip(groups, means, strict=True))
    captions = [
        f"Bar chart of the mean {features[column]} by class in {len(rows)} samples of the {name} data ({listed}), {ink} "
        f"bars.",
        f"{best[0].upper() + best[1:]} has the highest mean {features[column]}, {max(means):.4g}, among {len(rows)} samples.",
    ]
    return Drawing(
        canvas.done(), captions, "bar chart", {"table": name, "column": column, "rows": rows, "means": means}
    )


def law(rng) -> Drawing:
    """A curve of a physical law with its true parameters."""
    kind = int(rng.integers(6))
    ink = one_of(rng, INK)
    canvas = Canvas(*size_of(rng))
    if kind == 0:
        speed, angle = float(rng.integers(10, 60)), int(rng.integers(20, 75))
        time = np.linspace(0, 2 * speed * np.sin(np.radians(angle)) / 9.81, 80)
        x = speed * np.cos(np.radians(angle)) * time
        y = speed * np.sin(np.radians(angle)) * time - 9.81 * time**2 / 2
        names, title = ("distance (m)", "height (m)"), "projectile motion"
        captions = [
            f"Trajectory of a projectile thrown at {speed:.0f} m/s and {angle} degrees: a {ink} parabola that lands "
            f"after {x[-1]:.0f} m.",
            f"The parabolic path of a projectile reaches a height of {y.max():.1f} m.",
        ]
    elif kind == 1:
        period, damping = round(float(rng.uniform(0.5, 3)), 2), round(float(rng.uniform(0.1, 0.9)), 2)
        x = np.linspace(0, 10, 240)
        y = np.exp(-damping * x) * np.cos(2 * np.pi * x / period)
        names, title = ("time (s)", "displacement"), "damped oscillation"
        captions = [
            f"Damped oscillation with a period of {period} s and a decay rate of {damping} per second, a {ink} curve.",
            f"A swinging system loses its energy: the {ink} wave shrinks with time (decay rate {damping}, period "
            f"{period} s).",
        ]
    elif kind == 2:
        half_life = round(float(rng.uniform(1, 12)), 1)
        x = np.linspace(0, 30, 100)
        y = 100 * 0.5 ** (x / half_life)
        names, title = ("time (days)", "nuclei left (%)"), "radioactive decay"
        captions = [
            f"Radioactive decay of an isotope with a half-life of {half_life} days: the {ink} curve falls exponentially.",
            f"After {half_life} days half of the nuclei are left, after {2 * half_life:.1f} days a quarter.",
        ]
    elif kind == 3:
        temperature = int(rng.integers(30, 100)) * 100
        x = np.linspace(0.1, 3, 150)
        y = x**-5 / np.expm1(14388 / (x * temperature))
        y = y / y.max()
        peak = 2897.8 / temperature
        names, title = ("wavelength (um)", "radiance"), "blackbody radiation"
        captions = [
            f"Blackbody spectrum of a star at {temperature} K, a {ink} curve with its peak at {peak:.2f} micrometres.",
            f"Radiation of a hot body of {temperature} kelvin against wavelength, as Planck's law gives it.",
        ]
    elif kind == 4:
        moles, temperature = round(float(rng.uniform(0.5, 2)), 2), int(rng.integers(250, 500))
        x = np.linspace(5, 50, 100)
        y = moles * 8.314 * temperature / x
        names, title = ("volume (L)", "pressure (kPa)"), "gas law"
        captions = [
            f"Isotherm of {moles} mol of an ideal gas at {temperature} K: pressure falls as volume grows ({ink} hyperbola).",
            f"Boyle's law: pressure against volume of a gas held at {temperature} kelvin.",
        ]
    else:
        vmax, km = int(rng.integers(20, 200)), round(float(rng.uniform(0.5, 8)), 1)
        x = np.linspace(0, 20, 100)
        y = vmax * x / (km + x)
        names, title = ("substrate (mM)", "rate (umol/min)"), "enzyme kinetics"
        captions = [
            f"Michaelis-Menten kinetics of an enzyme: the {ink} curve saturates towards {vmax} umol/min, Km = {km} mM.",
            f"The rate of an enzyme reaction rises with substrate and levels off; half of the maximum is at {km} mM.",
        ]
    axes = Axes(canvas, (float(min(x.min(), 0)), float(x.max())), _range(y), *names)
    axes.curve(x, y, COLOURS[ink], float(rng.uniform(1.5, 3)))
    return Drawing(canvas.done(), captions, title)


def _range(values) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    margin = 0.08 * (high - low or 1)
    return low - margin, high + margin
