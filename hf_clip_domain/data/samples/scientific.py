"""Synthetic figures of science: plots, spectra, molecules, phase diagrams, fields, orbits, galaxies."""

from __future__ import annotations

import numpy as np

from hf_clip_domain.data.samples.canvas import COLOURS, Canvas, Drawing, noise, one_of, shades, size_of
from hf_clip_domain.data.samples.plots import INK, class_means, histogram, law, scatter

# Strong visible lines of the elements, in nanometres.
LINES = {
    "hydrogen": (410, 434, 486, 656),
    "helium": (447, 471, 492, 502, 588, 668),
    "sodium": (569, 589, 616),
    "mercury": (405, 436, 546, 577, 579),
    "neon": (540, 585, 594, 603, 614, 627, 640, 650, 660, 693),
    "calcium": (423, 443, 527, 559, 616, 646),
    "lithium": (460, 497, 610, 671),
    "potassium": (404, 583, 691, 694),
}


def spectrum(rng) -> Drawing:
    element = one_of(rng, list(LINES))
    absorption = bool(rng.integers(2))
    width, height = int(rng.integers(200, 289)), int(rng.integers(60, 120))
    canvas = Canvas(width, height, (0, 0, 0))
    if absorption:
        for step in range(canvas.width):
            canvas.pen.line([(step, 0), (step, canvas.height)], fill=_light(380 + 340 * step / canvas.width))
    thickness = float(rng.uniform(1, 2.5))
    for wavelength in LINES[element]:
        x = (wavelength - 380) / 340
        canvas.line([(x, 0), (x, 1)], (0, 0, 0) if absorption else _light(wavelength), thickness)
    sort = "absorption" if absorption else "emission"
    field = "dark lines on a continuous rainbow" if absorption else "bright lines on black"
    listed = ", ".join(str(line) for line in LINES[element])
    captions = [
        f"{sort.capitalize()} spectrum of {element} ({width} x {height} strip, lines {thickness:.2f} wide): {field} at "
        f"{listed} nm.",
    ]
    return Drawing(canvas.done(), captions, f"{sort} spectrum", {"element": element})


def _light(wavelength: float) -> tuple[int, int, int]:
    """A rough colour of light of a wavelength in nanometres."""
    stops = [(380, (100, 0, 130)), (440, (0, 0, 255)), (490, (0, 230, 255)), (510, (0, 255, 0))]
    stops += [(580, (255, 255, 0)), (645, (255, 0, 0)), (720, (110, 0, 0))]
    positions = [stop for stop, _ in stops]
    return tuple(int(np.interp(wavelength, positions, [colour[c] for _, colour in stops])) for c in range(3))


ATOMS = {
    "H": ((245, 245, 245), 0.045),
    "C": ((60, 60, 60), 0.065),
    "O": ((220, 40, 40), 0.06),
    "N": ((50, 80, 220), 0.06),
    "S": ((225, 200, 50), 0.07),
    "Cl": ((60, 190, 70), 0.07),
}
# Central atom, its neighbours, the shape.
MOLECULES = {
    "water": ("O", "HH", "bent"),
    "carbon dioxide": ("C", "OO", "linear"),
    "ammonia": ("N", "HHH", "pyramidal"),
    "methane": ("C", "HHHH", "tetrahedral"),
    "sulfur dioxide": ("S", "OO", "bent"),
    "hydrogen sulfide": ("S", "HH", "bent"),
    "sulfur trioxide": ("S", "OOO", "trigonal planar"),
    "formaldehyde": ("C", "OHH", "trigonal planar"),
    "hydrogen cyanide": ("C", "HN", "linear"),
    "ozone": ("O", "OO", "bent"),
    "nitrate ion": ("N", "OOO", "trigonal planar"),
}
_NAMES = {"H": "hydrogen", "C": "carbon", "O": "oxygen", "N": "nitrogen", "S": "sulfur", "Cl": "chlorine"}


def molecule(rng) -> Drawing:
    name = one_of(rng, list(MOLECULES))
    centre, others, shape = MOLECULES[name]
    turn = int(rng.integers(0, 360))
    ground = shades(rng, (235, 235, 240), 20)
    canvas = Canvas(200, 200, ground)
    angles = {2: (0, 180) if shape == "linear" else (0, 110), 3: (0, 120, 240), 4: (0, 80, 170, 265)}[len(others)]
    reach, size = float(rng.uniform(0.24, 0.33)), float(rng.uniform(1.0, 1.7))
    spots = []
    for angle in angles:
        radians = np.radians(angle + turn)
        spots.append((0.5 + reach * np.cos(radians), 0.5 + reach * np.sin(radians)))
    for spot in spots:
        canvas.line([(0.5, 0.5), spot], (110, 110, 110), 5)
    for atom, spot in [(centre, (0.5, 0.5)), *zip(others, spots, strict=True)]:
        colour, radius = ATOMS[atom]
        canvas.disc(*spot, radius * size, colour, outline=(70, 70, 70))
        canvas.text(*spot, atom, 10, (30, 30, 30) if sum(colour) > 350 else (250, 250, 250))
    parts = ", ".join(f"{others.count(atom)} {_NAMES[atom]}" for atom in dict.fromkeys(others))
    captions = [
        f"Ball-and-stick model of {name}, a {shape} molecule turned by {turn} degrees: a central {_NAMES[centre]} atom "
        f"bonded to {parts} (bonds {reach:.3f} of the width).",
    ]
    return Drawing(canvas.done(), captions, "molecule", {"name": name, "atoms": 1 + len(others)})


def phase_diagram(rng) -> Drawing:
    substance, triple, critical = one_of(
        rng, [("water", (0.01, 0.006), (374, 218)), ("carbon dioxide", (-56.6, 5.1), (31.0, 72.8))]
    )
    width, height = size_of(rng)
    canvas = Canvas(width, height)
    inks = rng.choice(INK, 3, replace=False)
    tx, ty = float(rng.uniform(0.3, 0.42)), float(rng.uniform(0.55, 0.68))
    cx, cy = float(rng.uniform(0.75, 0.88)), float(rng.uniform(0.2, 0.3))
    canvas.line([(0.12, 0.06), (0.12, 0.86), (0.96, 0.86)], (40, 40, 40))
    lean = -0.05 if substance == "water" else 0.07
    canvas.line([(0.13, 0.84), ((0.13 + tx) / 2 + 0.04, (0.84 + ty) / 2 + 0.04), (tx, ty)], COLOURS[inks[0]], 2)
    canvas.line([(tx, ty), (tx + lean, 0.08)], COLOURS[inks[1]], 2)
    canvas.line([(tx, ty), ((tx + cx) / 2 + 0.03, (ty + cy) / 2 + 0.03), (cx, cy)], COLOURS[inks[2]], 2)
    for x, y, word in ((0.22, 0.35, "solid"), ((tx + cx) / 2, 0.18, "liquid"), (0.68, 0.68, "gas")):
        canvas.text(x, y, word, 11)
    canvas.disc(tx, ty, 0.015, (20, 20, 20))
    canvas.disc(cx, cy, 0.015, (20, 20, 20))
    canvas.text(0.55, 0.93, "temperature", 10)
    canvas.text(0.02, 0.03, "pressure", 10, anchor="lm")
    slope = "to the left" if substance == "water" else "to the right"
    captions = [
        f"Phase diagram of {substance}: solid, liquid and gas meet at the triple point ({triple[0]} C, {triple[1]} atm); "
        f"sublimation in {inks[0]}, melting in {inks[1]}, boiling in {inks[2]} ({width} x {height}, triple point at "
        f"{tx:.3f}).",
        f"In the phase diagram of {substance} the {inks[1]} melting line leans {slope} and the {inks[2]} boiling line ends "
        f"at the critical point of {critical[0]} C and {critical[1]} atm, drawn at {cx:.3f}.",
    ]
    return Drawing(canvas.done(), captions, "phase diagram", {"substance": substance})


def field_map(rng) -> Drawing:
    """Equipotential colours of two point charges."""
    signs = [int(rng.choice([-1, 1])) for _ in range(2)]
    spots = [(float(rng.uniform(0.2, 0.4)), float(rng.uniform(0.3, 0.7)))]
    spots.append((float(rng.uniform(0.6, 0.8)), float(rng.uniform(0.3, 0.7))))
    y, x = np.mgrid[0:1:96j, 0:1:128j]
    potential = sum(s / np.hypot(x - px, (y - py) * 0.75).clip(0.03) for s, (px, py) in zip(signs, spots, strict=True))
    value = np.tanh(potential / 8)
    bands = int(rng.integers(6, 18))
    value = np.round(value * bands) / bands
    warm = np.stack([255 * np.ones_like(value), 255 * (1 - value), 255 * (1 - value)], -1)
    cold = np.stack([255 * (1 + value), 255 * (1 + value), 255 * np.ones_like(value)], -1)
    canvas = Canvas(224, 168, np.where(value[:, :, None] > 0, warm, cold).clip(0, 255).astype(np.uint8))
    for sign, spot in zip(signs, spots, strict=True):
        canvas.disc(*spot, 0.035, (190, 20, 20) if sign > 0 else (20, 40, 190), outline=(0, 0, 0))
        canvas.text(*spot, "+" if sign > 0 else "-", 12, (255, 255, 255))
    words = {1: "positive", -1: "negative"}
    distance = float(np.hypot(spots[0][0] - spots[1][0], (spots[0][1] - spots[1][1]) * 0.75))
    relation = "attract" if signs[0] != signs[1] else "repel"
    captions = [
        f"Electric potential of two point charges, {words[signs[0]]} on the left and {words[signs[1]]} on the right, "
        f"{distance:.3f} widths apart, in {bands} colour levels.",
        f"Equipotential map: red where positive, blue where negative; the two charges {relation} each other "
        f"(separation {distance:.3f}).",
    ]
    return Drawing(canvas.done(), captions, "field map", {"signs": signs})


def orbits(rng) -> Drawing:
    planets = int(rng.integers(2, 6))
    canvas = Canvas(208, 208, noise(rng, 104, 104, (12, 12, 30), 6))
    for _ in range(60):
        canvas.disc(*rng.random(2), 0.003, (220, 220, 220))
    star = one_of(rng, ["yellow", "orange", "red", "blue"])
    canvas.disc(0.5, 0.5, 0.05, COLOURS[star])
    inks, words = rng.choice(["red", "orange", "green", "blue", "purple", "pink"], planets, replace=False), []
    for index in range(planets):
        radius, angle = 0.1 + 0.36 * (index + 1) / planets, float(rng.uniform(0, 2 * np.pi))
        canvas.disc(0.5, 0.5, radius, None, outline=(140, 140, 160))
        size = float(rng.uniform(0.012, 0.03))
        canvas.disc(0.5 + radius * np.cos(angle), 0.5 + radius * np.sin(angle), size, COLOURS[inks[index]])
        words.append(f"{inks[index]} at {np.degrees(angle):.0f} degrees")
    article = "an" if star == "orange" else "a"
    captions = [
        f"Diagram of a planetary system: {planets} planets on circular orbits around {article} {star} star, from the inside "
        f"{', '.join(words)}.",
    ]
    return Drawing(canvas.done(), captions, "orbits", {"planets": planets})


def galaxy(rng) -> Drawing:
    arms, turns = int(rng.integers(2, 5)), float(rng.uniform(0.7, 1.6))
    tilt = float(rng.uniform(0.35, 1.0))
    glow = one_of(rng, ["blue", "orange", "pink", "purple"])
    canvas = Canvas(208, 208, noise(rng, 104, 104, (8, 8, 16), 5))
    stars = int(rng.integers(500, 900))
    along = rng.random(stars) ** 0.7
    angle = rng.integers(arms, size=stars) * 2 * np.pi / arms + along * turns * 2 * np.pi
    scatter_ = rng.normal(scale=0.012 + 0.02 * along, size=(2, stars))
    for share, turn, dx, dy in zip(along, angle, *scatter_, strict=True):
        tint = np.asarray(COLOURS[glow]) * 0.6 + 100
        canvas.disc(
            0.5 + 0.44 * share * np.cos(turn) + dx,
            0.5 + (0.44 * share * np.sin(turn) + dy) * tilt,
            0.004,
            shades(rng, tint, 25),
        )
    canvas.disc(0.5, 0.5, 0.06, (255, 240, 205), ry=0.06 * tilt)
    view = "seen face-on" if tilt > 0.8 else "tilted to our line of sight"
    captions = [
        f"Spiral galaxy with {arms} {glow} arms around a bright core, {view}; {stars} stars are drawn.",
        f"Image of a galaxy: {arms} spiral arms wind {turns:.2f} times around the nucleus, axis ratio {tilt:.2f}.",
    ]
    return Drawing(canvas.done(blur=0.4), captions, "galaxy", {"arms": arms})


KINDS = [scatter, histogram, class_means, law, law, spectrum, molecule, phase_diagram, field_map, orbits, galaxy]
