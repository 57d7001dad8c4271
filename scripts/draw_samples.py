"""Draws the sample images: `python scripts/draw_samples.py [FOLDER]`.

Five invented newsroom scenes, made from gradients, shapes and noise alone, so that the project
owns every pixel. A scene works in linear light; `develop` turns it into a picture. The same code
draws the same pixels.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw

Array = np.ndarray
Points = Sequence[tuple[float, float]]
Shape = Callable[[ImageDraw.ImageDraw], None]
SUPERSAMPLING = 2
SAMPLES = Path(__file__).parents[1] / "vidgen_ray" / "samples"


def rgb(code: str) -> Array:
    """Linear light of a colour written as in CSS."""
    values = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array(values, np.float32) ** 2.2


class Scene:
    """A canvas, float32 [height, width, 3], and the operations that pictures are made of.

    Coordinates and sizes are pixels of the finished picture.
    """

    def __init__(self, width: int, height: int, seed: int) -> None:
        self.width, self.height = (width, height)
        self.rng = np.random.default_rng(seed)
        self.canvas = np.zeros((height, width, 3), np.float32)
        self.y, self.x = np.mgrid[0:height, 0:width].astype(np.float32)

    def noise(self, cell_x: float, cell_y: float | None = None, octaves: int = 4) -> Array:
        """Cloudy values of about 0 to 1, whose largest blobs measure `cell_x` by `cell_y`."""
        total = np.zeros((self.height, self.width), np.float32)
        weights = 0.0
        for octave in range(octaves):
            scale = 2.0**octave
            columns = max(2, round(self.width / cell_x * scale) + 1)
            rows = max(2, round(self.height / (cell_y or cell_x) * scale) + 1)
            grid = self.rng.random((rows, columns), dtype=np.float32)
            image = Image.fromarray(grid)
            total += (
                np.asarray(
                    image.resize((self.width, self.height), Image.Resampling.BICUBIC), np.float32
                )
                / scale
            )
            weights += 1 / scale
        clouds: Array = np.clip((total / weights - 0.5) * 1.6 + 0.5, 0, 1)
        return clouds

    def mask(self, *shapes: Shape, blur: float = 0) -> Array:
        """What the shapes cover together, from 0 to 1."""
        image = Image.new("L", (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING))
        draw = ImageDraw.Draw(image)
        for shape in shapes:
            shape(draw)
        covered: Array = np.asarray(image.reduce(SUPERSAMPLING), np.float32) / 255
        return soften(covered, blur) if blur else covered

    def spot(self, x: float, y: float, radius_x: float, radius_y: float | None = None) -> Array:
        """A Gaussian blob."""
        across, down = (self.x - x) / radius_x, (self.y - y) / (radius_y or radius_x)
        blob: Array = np.exp(-(across**2) - down**2)
        return blob

    def paint(self, colour: Array | str, mask: Array) -> None:
        """Cover the canvas with `colour`, a code or an array that broadcasts, where `mask` says."""
        ink, part = self._ink(colour, mask)
        canvas = self.canvas[part]
        canvas += (ink[part] - canvas) * mask[part][..., None]

    def fill(
        self, colour: Array | str, *shapes: Shape, blur: float = 0, opacity: float = 1.0
    ) -> None:
        """Paint shapes."""
        self.paint(colour, self.mask(*shapes, blur=blur) * opacity)

    def shine(self, colour: Array | str, mask: Array, power: float = 1.0) -> None:
        """Add light."""
        ink, part = self._ink(colour, mask)
        self.canvas[part] += ink[part] * (power * mask[part])[..., None]

    def _ink(self, colour: Array | str, mask: Array) -> tuple[Array, tuple[slice, slice]]:
        """The colour of every pixel, and the box outside of which `mask` covers nothing."""
        ink = rgb(colour) if isinstance(colour, str) else colour
        spans = []
        for axis in (1, 0):
            covered = np.flatnonzero(mask.any(axis=axis))
            spans.append(slice(covered[0], covered[-1] + 1) if len(covered) else slice(0, 0))
        return (np.broadcast_to(ink, self.canvas.shape), (spans[0], spans[1]))

    def gradient(self, *stops: tuple[float, str]) -> Array:
        """Colours from top to bottom, at heights given in pixels: [height, 1, 3]."""
        heights = [stop[0] for stop in stops]
        colours = np.stack([rgb(stop[1]) for stop in stops])
        rows = np.arange(self.height)
        channels = [np.interp(rows, heights, colours[:, channel]) for channel in range(3)]
        return np.stack(channels, axis=-1).astype(np.float32)[:, None]

    def reflect(
        self, line: int | Array, strength: Array, smear: float, ripple: float = 0.0
    ) -> None:
        """Mirror what stands above `line`, one row for all columns or one a column, below it."""
        rows = np.clip(2 * np.asarray(line) - 1 - self.y, 0, self.height - 1).astype(int)
        waves = (self.noise(160, 7, 3) - 0.5) * ripple * (0.15 + self.y / self.height)
        columns = np.clip(self.x + waves, 0, self.width - 1).astype(int)
        mirrored = soften(self.canvas[rows, columns], smear, axes=(0,))
        self.canvas += (mirrored - self.canvas) * (strength * (self.y >= line))[..., None]

    def develop(self, exposure: float = 1.0, vignette: float = 0.35) -> Image.Image:
        """Bloom, vignette, a film-like tone curve and grain; then 8 bits."""
        light = self.canvas * exposure
        bright = np.clip(light - 0.75, 0, 6)
        light = light + 0.35 * soften(bright, 5) + 0.28 * soften(bright, 24)
        x = (self.x / self.width - 0.5) * 2
        y = (self.y / self.height - 0.5) * 2
        light *= (1 - vignette * np.clip((x * x + y * y) / 2, 0, 1) ** 1.3)[..., None]
        # Narkowicz, "ACES Filmic Tone Mapping Curve", 2015.
        toned = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
        values = np.clip(toned, 0, 1) ** (1 / 2.2) * 255
        # Grain in clumps of two pixels and even values alone: a third of the bytes of fine grain.
        clumps = self.rng.standard_normal((self.height // 2, self.width // 2)).astype(np.float32)
        grain = np.round(clumps * 0.3).repeat(2, axis=0).repeat(2, axis=1)[..., None]
        return Image.fromarray(np.clip(np.round(values / 2 + grain) * 2, 0, 254).astype(np.uint8))


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0) -> Shape:
    """A rectangle, its corners rounded by `radius`."""
    corners = [value * SUPERSAMPLING for value in (x0, y0, x1, y1)]
    return lambda draw: draw.rounded_rectangle(corners, radius * SUPERSAMPLING, fill=255)


def ellipse(x: float, y: float, radius_x: float, radius_y: float | None = None) -> Shape:
    """An ellipse around (x, y); a circle without `radius_y`."""
    high = radius_y or radius_x
    corners = [v * SUPERSAMPLING for v in (x - radius_x, y - high, x + radius_x, y + high)]
    return lambda draw: draw.ellipse(corners, fill=255)


def polygon(points: Points) -> Shape:
    """The inside of a closed outline."""
    scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
    return lambda draw: draw.polygon(scaled, fill=255)


def stroke(points: Points, width: float) -> Shape:
    """A line through the points."""
    scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
    thick = round(width * SUPERSAMPLING)
    return lambda draw: draw.line(scaled, fill=255, width=thick, joint="curve")


def arch(x0: float, y0: float, x1: float, y1: float) -> Shape:
    """A box with a half circle for its upper end."""
    turn = np.linspace(0, np.pi, 24)
    radius = (x1 - x0) / 2
    top = [(x0 + radius + radius * np.cos(a), y0 + radius - radius * np.sin(a)) for a in turn]
    return polygon([(x1, y1), *top, (x0, y1)])


def soften(values: Array, radius: float, axes: tuple[int, ...] = (0, 1)) -> Array:
    """Three box blurs, close to a Gaussian of standard deviation `radius`."""
    size = max(1, round(radius))
    for axis in axes:
        values = np.moveaxis(values, axis, 0)
        for _ in range(3):
            rows = np.pad(values, [(size + 1, size)] + [(0, 0)] * (values.ndim - 1), mode="edge")
            sums = np.cumsum(rows, axis=0, dtype=np.float64)
            window = sums[2 * size + 1 :] - sums[: -2 * size - 1]
            values = (window / (2 * size + 1)).astype(np.float32)
        values = np.moveaxis(values, 0, axis)
    return values


def curve(*points: tuple[float, float], steps: int = 40) -> list[tuple[float, float]]:
    """A Bezier curve with these control points."""
    t = np.linspace(0, 1, steps)[:, None]
    layers = [np.array([point], float) * np.ones_like(t) for point in points]
    while len(layers) > 1:
        layers = [a + (b - a) * t for a, b in pairwise(layers)]
    return [(float(x), float(y)) for x, y in layers[0]]


def press_briefing() -> Image.Image:
    """An empty podium with microphones before a blue curtain, flags on both sides."""
    s = Scene(1080, 720, seed=1)
    sway = s.noise(220, 900, 3) * 1.5 + s.noise(90, 1400, 2) * 0.5
    phase = s.x / 52 + sway
    folds = 0.5 + 0.5 * np.sin(2 * np.pi * phase) * (0.75 + 0.25 * np.sin(s.x / 61))
    key = s.spot(540, 190, 430, 360)
    cloth = (0.1 + 0.9 * folds**1.7) * (0.07 + 1.15 * key) * (0.9 + 0.2 * s.noise(5, 3, 2))
    s.canvas[:] = rgb("#1f4a9c") * cloth[..., None] * 1.25
    s.shine("#9db8ff", folds**7 * key, 0.16)

    # A gilt seal on the curtain.
    ring = s.mask(ellipse(540, 168, 104)) - s.mask(ellipse(540, 168, 95))
    inner = s.mask(ellipse(540, 168, 78)) - s.mask(ellipse(540, 168, 75))
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    star = [
        (540 + (62 if i % 2 == 0 else 25) * np.cos(a), 168 + (62 if i % 2 == 0 else 25) * np.sin(a))
        for i, a in enumerate(angles)
    ]
    seal = np.clip(ring + inner + s.mask(polygon(star)), 0, 1)
    s.paint("#0a1533", soften(np.roll(seal, (4, 3), (0, 1)), 3) * 0.55)
    gilt = (0.35 + 0.9 * key * (0.55 + 0.45 * folds))[..., None] * rgb("#d8a94e")
    s.paint(gilt, seal * 0.92)
    for centre, lean, colours in [
        (172, 1, ["#a3202c", "#ece7da", "#a3202c", "#1b2f6b"]),
        (292, 1, ["#123f7a", "#e9c34a", "#123f7a", "#ece7da"]),
        (788, -1, ["#123f7a", "#e9c34a", "#123f7a", "#ece7da"]),
        (908, -1, ["#a3202c", "#ece7da", "#a3202c", "#1b2f6b"]),
    ]:
        _flag(s, centre, lean, colours)

    floor = s.mask(polygon([(0, 592), (1080, 592), (1080, 720), (0, 720)]))
    boards = 0.65 + 0.35 * s.noise(190, 10, 4)
    s.paint(
        boards[..., None] * rgb("#5d3d26") * (0.25 + 0.9 * s.spot(540, 600, 380, 170))[..., None],
        floor,
    )
    s.paint("#000000", s.spot(540, 668, 200, 26) * 0.75)

    _podium(s)
    _microphones(s)

    haze = s.noise(300, 240, 4)
    for top, bottom in [(330, 400), (760, 690)]:
        beam = s.mask(
            polygon([(top - 16, -10), (top + 16, -10), (bottom + 190, 640), (bottom - 190, 640)]),
            blur=24,
        )
        s.shine("#dfe8ff", beam * (1 - s.y / 760) ** 2 * (0.5 + haze), 0.085)
    _audience(s)
    return s.develop(exposure=1.35, vignette=0.5)


def _flag(s: Scene, centre: float, lean: int, colours: list[str]) -> None:
    """A draped flag on a pole with a gilt tip."""
    top, bottom = 108, 560
    pole = s.mask(box(centre - 4, 84, centre + 4, 640, 3))
    shade = np.exp(-(((s.x - centre + 1.6) / 2.6) ** 2))
    s.paint(rgb("#c9a45c") * (0.12 + 0.75 * shade)[..., None], pole)
    tip = [(centre, 46), (centre + 11, 72), (centre, 90), (centre - 11, 72)]
    s.fill(rgb("#e8c069") * (0.5 + 0.5 * (s.x < centre))[..., None], polygon(tip))
    edge = curve(
        (centre, top),
        (centre + lean * 18, 250),
        (centre + lean * 84, 400),
        (centre + lean * 74, bottom),
    )
    hem = curve(
        (centre + lean * 74, bottom),
        (centre + lean * 40, bottom + 22),
        (centre + lean * 5, bottom - 30),
        (centre - lean * 20, bottom + 6),
    )
    back = curve(
        (centre - lean * 20, bottom + 6),
        (centre - lean * 20, 400),
        (centre - lean * 5, 200),
        (centre, top),
    )
    drape = s.mask(polygon([*edge, *hem, *back]))
    down = np.clip((s.y - top) / (bottom - top), 0, 1)
    across = (s.x - centre) * lean / (16 + 74 * down**1.15)
    wave = across * 2.6 + 0.5 * np.sin(down * 4.2 + centre) + 0.25 * np.sin(down * 9)
    stripes = np.floor((across + 0.4) * 2.9 + down * 1.7 + 0.12 * np.sin(wave * 6)).astype(
        int
    ) % len(colours)
    dye = np.stack([rgb(code) for code in colours])[stripes]
    dye = soften(dye.astype(np.float32), 0.6)
    light = 0.16 + 0.84 * (0.5 + 0.5 * np.sin(wave * 2 * np.pi * 0.62)) ** 1.3
    key = 0.25 + 0.95 * s.spot(540, 260, 460, 360)
    s.paint("#00040f", soften(np.roll(drape, (6, -lean * 10), (0, 1)), 9) * 0.55)
    s.paint(dye * (light * key * (0.92 + 0.16 * s.noise(4, 4, 1)))[..., None], drape)


def _podium(s: Scene) -> None:
    front = [(424, 396), (656, 396), (634, 672), (446, 672)]
    grain = 0.55 + 0.45 * s.noise(26, 420, 5) + 0.12 * np.sin(s.x / 3.1 + 6 * s.noise(60, 500, 3))
    falloff = (1.15 - 0.55 * (s.y - 390) / 290) * (1.05 - 0.5 * np.abs(s.x - 505) / 150)
    s.fill(rgb("#7d4a25") * (grain * falloff)[..., None], polygon(front))
    for inset in (20, 24):
        panel = [(424 + inset, 424), (656 - inset, 424), (636 - inset, 650), (444 + inset, 650)]
        edge = s.mask(stroke([*panel, panel[0]], 2))
        s.paint("#2a150a" if inset == 20 else "#c58a52", edge * 0.75)
    top = [(398, 372), (682, 372), (668, 404), (412, 404)]
    s.fill(rgb("#9a6335") * (0.7 + 0.7 * grain)[..., None], polygon(top))
    s.shine("#ffe3bd", s.mask(box(400, 370, 680, 374)), 0.75)
    s.fill(
        "#120a05", polygon([(412, 404), (668, 404), (664, 416), (416, 416)]), blur=2, opacity=0.8
    )
    disc = s.mask(ellipse(540, 528, 58))
    s.paint(rgb("#10244f") * (0.6 + 0.8 * s.spot(520, 500, 60))[..., None], disc)
    rim = disc - s.mask(ellipse(540, 528, 52))
    s.paint(rgb("#d8a94e") * (0.5 + 1.2 * s.spot(505, 490, 50))[..., None], np.clip(rim, 0, 1))
    for offset in (-26, 0, 26):
        s.fill("#d8a94e", box(540 + offset - 7, 506, 540 + offset + 7, 548, 2), opacity=0.85)
    s.fill("#d8a94e", polygon([(496, 502), (540, 484), (584, 502)]), opacity=0.9)
    s.fill("#d8a94e", box(498, 551, 582, 557), opacity=0.9)


def _microphones(s: Scene) -> None:
    stands = [
        (458, 300, 492, 374, "#b3261e", -0.5),
        (496, 278, 514, 374, "#d9d9d9", -0.2),
        (540, 266, 540, 374, "#1d4fa3", 0.0),
        (586, 280, 566, 374, "#e2a21b", 0.2),
        (626, 302, 590, 374, "#2d2d2d", 0.5),
    ]
    for x, y, foot_x, foot_y, colour, lean in stands:
        neck = curve((foot_x, foot_y), (foot_x, foot_y - 50), (x - lean * 12, y + 46), (x, y + 20))
        s.fill("#050608", stroke(neck, 4.5))
        s.shine("#a9b9d6", s.mask(stroke([(a - 1.2, b) for a, b in neck], 1)), 0.35)
        block = [(x - 11, y + 16), (x + 11, y + 16), (x + 9, y + 40), (x - 9, y + 40)]
        shade = 0.35 + 0.75 * (s.x < x + 2)
        s.fill(rgb(colour) * shade[..., None], polygon(block))
        s.fill("#f2efe6", ellipse(x - 2, y + 28, 4.5), opacity=0.8)
        head = s.mask(ellipse(x, y, 13, 17))
        foam = 0.6 + 0.8 * s.noise(3, 3, 1)
        s.paint(rgb("#16181d") * foam[..., None], head)
        s.shine("#cfe0ff", head * s.spot(x - 5, y - 8, 6, 8), 0.5)


def _audience(s: Scene) -> None:
    """Heads and shoulders out of focus, and a television camera with its tally light."""
    for row, (base, size, tone) in enumerate([(652, 25, 0.01), (698, 42, 0.004)]):
        heads = []
        for i in range(13 - 3 * row):
            x = (i + 0.5 + s.rng.uniform(-0.22, 0.22)) * 1080 / (13 - 3 * row)
            if row == 0 and abs(x - 540) < 150:
                continue
            heads.append((x, base + s.rng.uniform(-10, 10), size * s.rng.uniform(0.88, 1.1)))
        crowd: list[Shape] = []
        for x, y, r in heads:
            crowd.append(ellipse(x, y - r * 0.6, r * 0.74, r * 0.95))
            crowd.append(box(x - r * 0.32, y, x + r * 0.32, y + r, 4))
            crowd.append(ellipse(x, y + r * 1.75, r * 1.75, r * 1.2))
        shape = s.mask(*crowd, blur=2 + 2 * row)
        rim = np.clip(shape - np.roll(shape, 5 + 2 * row, 0), 0, 1)
        s.paint(np.full(3, tone, np.float32), shape)
        s.shine("#7f9cff", rim * s.spot(540, 640, 520, 200), 0.28 - 0.1 * row)
    camera = [
        box(820, 548, 960, 622, 9),
        box(772, 562, 824, 604, 6),
        box(852, 524, 926, 552, 6),
        box(950, 560, 1006, 600, 5),
        box(866, 618, 914, 640, 4),
        *(stroke([(890, 632), (foot, 740)], 9) for foot in (836, 890, 944)),
    ]
    body = s.mask(*camera, blur=2)
    s.paint("#020304", body)
    s.shine("#8fa8ff", np.clip(body - np.roll(body, 4, 0), 0, 1), 0.16)
    s.shine("#8fa8ff", np.clip(body - np.roll(body, 4, 1), 0, 1), 0.1)
    s.shine("#ff2a1a", s.spot(868, 536, 5), 4.0)
    s.shine("#6f9dff", s.mask(box(958, 566, 998, 594, 2), blur=1), 0.55)


def market_desk() -> Image.Image:
    """A dark trading floor: a wall of charts, its reflection in the desk, a trader from behind."""
    s = Scene(1080, 720, seed=2)
    s.canvas[:] = s.gradient((0, "#04070e"), (420, "#0a1424"), (720, "#030508"))
    s.shine("#1c4b8a", s.noise(400, 300, 3) * s.spot(540, 250, 620, 300), 0.1)
    walls = [
        (24, 74, 262, 232),
        (278, 74, 566, 232),
        (582, 74, 806, 232),
        (822, 74, 1056, 232),
        (24, 248, 330, 424),
        (346, 248, 700, 424),
        (716, 248, 1056, 424),
    ]
    for index, frame in enumerate(walls):
        _screen(s, frame, index)
    _ticker(s, 22, 52)
    s.canvas = soften(s.canvas, 1.0)

    # The desk, polished, with the wall in it.
    edge = 482
    desk = s.mask(box(0, edge, 1080, 720))
    s.paint(s.gradient((edge, "#10151d"), (720, "#050608")) * np.ones_like(s.canvas), desk)
    fade = np.clip(1 - (s.y - edge) / 250, 0, 1) ** 1.6
    s.reflect(edge, fade * 0.42 * (0.8 + 0.4 * s.noise(400, 6, 3)), smear=11, ripple=5)
    s.shine("#7fb0e8", np.exp(-(((s.y - edge) / 1.6) ** 2)), 0.35)
    for quad, index in [
        ([(96, 372), (372, 392), (372, 566), (96, 572)], 8),
        ([(742, 392), (1010, 370), (1010, 572), (742, 566)], 9),
    ]:
        _monitor(s, quad, index)
    _trader(s)
    _keyboard(s)
    for x, y, r, colour in [
        (60, 40, 26, "#ffb45a"),
        (1022, 30, 22, "#5ac8ff"),
        (556, 20, 18, "#ff5a4a"),
        (330, 36, 14, "#7dffb0"),
    ]:
        s.shine(colour, s.mask(ellipse(x, y, r), blur=3), 0.1)
    return s.develop(exposure=1.5, vignette=0.45)


def _screen(s: Scene, frame: tuple[int, int, int, int], kind: int) -> None:
    """A lit display with one of four invented charts."""
    x0, y0, x1, y1 = frame
    width, height = x1 - x0, y1 - y0
    s.fill("#020306", box(x0 - 6, y0 - 6, x1 + 6, y1 + 6, 4))
    inside = s.mask(box(x0, y0, x1, y1, 2))
    s.paint(rgb(["#071a2e", "#0a1530", "#06201f", "#101430"][kind % 4]), inside)
    s.shine("#2d6db0", inside * (0.3 + 0.7 * (s.y - y0) / height), 0.14)
    grid: list[Shape] = []
    for i in range(1, 6):
        grid.append(stroke([(x0, y0 + height * i / 6), (x1, y0 + height * i / 6)], 0.7))
        grid.append(stroke([(x0 + width * i / 6, y0), (x0 + width * i / 6, y1)], 0.7))
    s.shine("#4a7fb8", s.mask(*grid), 0.16)
    num = max(18, width // 9)
    walk = np.cumsum(s.rng.normal(0.04 if kind % 3 else -0.05, 0.5, num))
    level = (walk - walk.min()) / (np.ptp(walk) + 1e-06)
    ys = y1 - 16 - level * (height - 42)
    xs = x0 + 8 + np.arange(num) * (width - 16) / (num - 1)
    if kind % 4 in (0, 3):
        for colour, sign in [("#27e08c", 1), ("#ff4436", -1)]:
            candles: list[Shape] = []
            for i in range(1, num):
                if (ys[i - 1] - ys[i]) * sign > 0:
                    low, high = sorted((ys[i - 1], ys[i]))
                    candles.append(box(xs[i] - 2.4, low, xs[i] + 2.4, max(high, low + 2)))
                    candles.append(stroke([(xs[i], low - 5), (xs[i], high + 6)], 1))
            s.shine(colour, s.mask(*candles), 0.95)
        average = list(zip(xs, soften(ys[None].astype(np.float32), 4, axes=(1,))[0], strict=True))
        s.shine("#ffc44d", s.mask(stroke(average, 1.6)), 0.9)
    elif kind % 4 == 1:
        line = list(zip(xs, ys, strict=True))
        colour = "#4fd0ff" if kind != 5 else "#ff5648"
        area = s.mask(polygon([*line, (xs[-1], y1), (xs[0], y1)]))
        s.shine(colour, area * np.clip((y1 - s.y) / height, 0, 1), 0.3)
        s.shine(colour, s.mask(stroke(line, 2.2)), 1.6)
        s.shine("#ffffff", s.spot(xs[-1], ys[-1], 4), 2.2)
    else:
        for row in range(int(height // 13)):
            y = y0 + 9 + row * 13
            up = s.rng.random() < 0.55
            s.shine(
                "#c9d8ea", s.mask(box(x0 + 10, y, x0 + 10 + s.rng.uniform(20, 46), y + 5)), 0.42
            )
            s.shine(
                "#8aa4c4",
                s.mask(box(x0 + width * 0.42, y, x0 + width * 0.42 + s.rng.uniform(24, 44), y + 5)),
                0.3,
            )
            length = s.rng.uniform(8, width * 0.26)
            s.shine(
                "#27e08c" if up else "#ff4436",
                s.mask(box(x0 + width * 0.68, y, x0 + width * 0.68 + length, y + 6)),
                0.8,
            )
    s.shine("#dbe8f7", s.mask(box(x0 + 9, y0 + 7, x0 + 9 + width * 0.2, y0 + 12)), 0.55)


def _ticker(s: Scene, y0: int, y1: int) -> None:
    """A band of lamps that reads as running prices."""
    s.fill("#05070b", box(0, y0 - 6, 1080, y1 + 6))
    x = 8.0
    while x < 1080:
        colour = ["#ffb02e", "#27e08c", "#ff4436"][int(s.rng.integers(3))]
        letters = int(s.rng.integers(3, 8))
        cells = s.rng.random((letters, 5, 3)) < 0.58
        lamps: list[Shape] = []
        for letter, row, column in zip(*np.nonzero(cells), strict=True):
            lamps.append(ellipse(x + letter * 17 + column * 4.6, y0 + 4 + row * 5.4, 1.7))
        s.shine(colour, s.mask(*lamps), 1.0)
        x += letters * 17 + 24


def _monitor(s: Scene, quad: Points, kind: int) -> None:
    """A desk display seen at an angle: a flat screen, drawn apart and laid into `quad`."""
    flat = Scene(320, 200, seed=20 + kind)
    _screen(flat, (6, 6, 314, 194), kind)
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = quad
    s.fill(
        "#010203", polygon([(ax - 7, ay - 7), (bx + 7, by - 7), (cx + 7, cy + 9), (dx - 7, dy + 9)])
    )
    middle = (ax + bx) / 2
    s.fill(
        "#030405",
        polygon([(middle - 14, dy), (middle + 14, dy), (middle + 22, 612), (middle - 22, 612)]),
    )
    s.fill("#030405", ellipse(middle, 614, 74, 11))
    across = np.clip((s.x - ax) / (bx - ax), 0, 1)
    top, bottom = ay + (by - ay) * across, dy + (cy - dy) * across
    down = np.clip((s.y - top) / (bottom - top), 0, 1)
    picture = flat.canvas[(down * 199).astype(int), (across * 319).astype(int)]
    s.fill(picture * 1.5, polygon(quad))
    s.shine("#4f8fd8", s.spot(middle, 640, 150, 34), 0.1)


def _trader(s: Scene) -> None:
    """Head and shoulders against the wall of light, with a headset, and the back of a chair."""
    body: list[Shape] = []
    body.append(ellipse(540, 402, 41, 51))
    body.append(box(519, 430, 561, 486, 8))
    left = curve((522, 462), (470, 478), (428, 490), (412, 560), (404, 730))
    right = [(1080 - x, y) for x, y in reversed(left)]
    body.append(polygon([*left, *right]))
    shape = s.mask(*body, blur=1)
    s.paint("#04060a", shape)
    fabric = 0.6 + 0.8 * s.noise(60, 120, 3)
    s.shine("#16304f", shape * s.spot(540, 560, 120, 160) * fabric, 0.2)
    for dx, colour, power in [(5, "#6fc3ff", 0.75), (-5, "#ff9c5c", 0.5)]:
        s.shine(colour, np.clip(shape - np.roll(shape, dx, 1), 0, 1), power)
    s.shine("#9fd8ff", np.clip(shape - np.roll(shape, 4, 0), 0, 1), 0.6)
    band = s.mask(stroke(curve((496, 406), (494, 336), (586, 336), (584, 406)), 6))
    s.paint("#0b0d11", band)
    s.shine("#9fd8ff", np.clip(band - np.roll(band, 3, 0), 0, 1), 0.9)
    for x in (496, 584):
        cup = s.mask(box(x - 10, 390, x + 10, 430, 8))
        s.paint("#0a0b0e", cup)
        s.shine("#7fc3ff", np.clip(cup - np.roll(cup, 2, 0), 0, 1), 0.8)
    chair = s.mask(box(436, 592, 644, 760, 34), blur=1)
    mesh = 0.5 + 0.5 * np.sin(s.x * 1.3) * np.sin(s.y * 1.3)
    s.paint(rgb("#0b1017") * (0.6 + 0.8 * mesh)[..., None], chair)
    s.shine("#5aa6e8", np.clip(chair - np.roll(chair, 3, 0), 0, 1), 0.7)


def _keyboard(s: Scene) -> None:
    mug = s.mask(box(676, 566, 722, 626, 6))
    shade = 0.15 + 0.9 * np.exp(-(((s.x - 684) / 9) ** 2)) + 0.5 * np.exp(-(((s.x - 718) / 4) ** 2))
    s.paint("#000000", s.spot(700, 630, 44, 9) * 0.8)
    s.paint(rgb("#a5402a") * shade[..., None], mug)
    handle = s.mask(ellipse(728, 594, 17, 19)) - s.mask(ellipse(728, 594, 11, 13))
    s.paint(rgb("#a5402a") * shade[..., None] * 0.8, np.clip(handle, 0, 1) * (s.x > 722))
    s.fill("#1a0d08", ellipse(699, 567, 22, 5))
    paper = [(180, 632), (330, 622), (362, 690), (196, 704)]
    s.fill("#2b3138", polygon(paper))
    print_lines: list[Shape] = []
    for i in range(7):
        y = 638 + i * 8.4
        print_lines.append(stroke([(196 + i * 2, y), (316 + i * 4 - i % 3 * 26, y - 8)], 1.6))
    s.fill("#0c0e11", *print_lines, opacity=0.8)


def city_hall() -> Image.Image:
    """A town hall with a clock tower after sunset, mirrored in a wet square."""
    s = Scene(1080, 720, seed=3)
    ground = 560
    s.canvas[:] = s.gradient(
        (0, "#0c1b3d"), (190, "#2a3c73"), (350, "#7d5a86"), (470, "#e0805c"), (560, "#ffc27a")
    )
    clouds = np.clip(s.noise(560, 90, 6) * 1.9 - 0.75, 0, 1) * np.clip(1.15 - s.y / 560, 0, 1)
    s.paint(s.gradient((0, "#1a2748"), (250, "#7a4d74"), (480, "#ff9f6b")) * 1.1, clouds * 0.75)
    s.shine("#ffb070", s.spot(250, 560, 420, 120), 0.35)
    skyline = 530 - 46 * np.floor(s.noise(60, 2000, 2) * 5) / 5 * (np.abs(s.x - 540) > 200)
    s.paint("#3b2c47", soften((s.y > skyline).astype(np.float32), 0.7) * 0.8)
    _clock_tower(s)
    _town_hall(s, ground)
    for x, y, size in [(60, 470, 150), (1030, 480, 140), (168, 520, 74), (930, 524, 66)]:
        crown = s.spot(x, y, size * 0.8, size * 0.62) * 2.3 + s.noise(26, 22, 4) * 0.9 - 1.25
        leaves = np.clip(crown * 7, 0, 1) * (s.y < ground)
        s.fill("#000000", box(x - 5, 500, x + 5, ground))
        s.paint(rgb("#0d1118") + rgb("#5a3d2c") * (s.noise(9, 7, 2) * 0.25)[..., None], leaves)
    for x, height in [(30, 190), (196, 128), (322, 96), (758, 96), (884, 128), (1050, 190)]:
        _lamp(s, x, ground + height * 0.1, height)
    for x, size in [(470, 21), (484, 20), (596, 22), (648, 19), (706, 23), (365, 22)]:
        s.fill("#08080c", *_person(x, 566, size))

    slabs = 0.75 + 0.25 * s.noise(90, 14, 4)
    square = s.mask(box(0, ground + 6, 1080, 720))
    s.paint(s.gradient((ground, "#3a2f3d"), (720, "#0d0f18")) * slabs[..., None], square)
    wet = np.clip(0.3 + 0.75 * s.noise(240, 26, 4), 0, 0.86) * square
    s.reflect(ground + 6, wet, smear=5, ripple=9)
    joints: list[Shape] = []
    for i in range(-16, 17):
        joints.append(stroke([(540 + i * 44, ground + 6), (540 + i * 190, 720)], 1))
    for i in range(1, 9):
        joints.append(stroke([(0, ground + 6 + i * i * 2.3), (1080, ground + 6 + i * i * 2.3)], 1))
    s.fill("#050509", *joints, opacity=0.28)
    return s.develop(exposure=1.05, vignette=0.4)


def _clock_tower(s: Scene) -> None:
    stone = rgb("#8b7f86") * (0.5 + 0.4 * s.noise(7, 7, 3) + 0.25 * (s.x < 534))[..., None]
    warm = np.exp(-np.clip(330 - s.y, 0, None) / 95)
    lit = stone * 0.34 + rgb("#ffb45f") * (0.62 * warm * (0.75 + 0.4 * s.noise(9, 9, 2)))[..., None]
    shaft = [
        box(494, 150, 586, 340),
        box(486, 142, 594, 152),
        box(486, 232, 594, 240),
        box(504, 104, 576, 144),
        box(498, 98, 582, 106),
    ]
    s.fill(lit, *shaft)
    s.fill(
        rgb("#2d4a52") * (0.25 + 0.35 * (s.x < 540))[..., None],
        polygon([(502, 98), (540, 22), (578, 98)]),
    )
    s.fill("#0a0d14", stroke([(540, 26), (540, 2)], 2))
    for x in (520, 540, 560):
        s.fill(rgb("#ffca7a") * 0.9, arch(x - 6, 114, x + 6, 142))
    face = s.mask(ellipse(540, 192, 31))
    s.fill("#2b2320", ellipse(540, 192, 36))
    s.paint(rgb("#fff0cc") * 1.5, face)
    hands: list[Shape] = []
    hands.append(stroke([(540, 192), (540, 170)], 3))
    hands.append(stroke([(540, 192), (556, 200)], 4))
    for hour in range(12):
        a = hour * np.pi / 6
        hands.append(
            stroke(
                [
                    (540 + 25 * np.cos(a), 192 + 25 * np.sin(a)),
                    (540 + 29 * np.cos(a), 192 + 29 * np.sin(a)),
                ],
                2,
            )
        )
    s.fill("#17110c", *hands)


def _town_hall(s: Scene, ground: int) -> None:
    grain = 0.8 + 0.35 * s.noise(8, 5, 3) + 0.06 * (np.floor(s.y / 9) % 2)
    uplight = np.exp(-np.clip(ground - s.y, 0, None) / 105) * (
        0.55 + 0.45 * np.cos(s.x * 2 * np.pi / 56.0 + 0.4) ** 2
    )
    stone = (rgb("#7f7480") * 0.3 + rgb("#ffae57") * (0.72 * uplight)[..., None]) * grain[..., None]
    wings = [box(146, 384, 934, ground), box(138, 376, 942, 386)]
    s.fill(stone, *wings)
    s.fill(rgb("#241f33"), polygon([(138, 377), (172, 346), (908, 346), (942, 377)]))
    s.fill("#000000", box(146, 386, 934, 391), opacity=0.5)
    s.shine("#ffcf94", s.mask(box(138, 376, 942, 378)), 0.1)
    s.fill(stone * 1.2, box(146, 470, 934, 477))
    for x in [*range(174, 376, 42), *range(738, 932, 42)]:
        for top, bottom, arched in [(404, 452, False), (488, 544, True)]:
            _window(s, x, top, bottom, arched)
    front = s.mask(box(388, 326, 692, ground))
    s.paint(stone * 1.05, front)
    recess = s.mask(box(404, 352, 676, 522))
    inside = rgb("#ffb257") * (0.18 + 0.75 * np.exp(-np.clip(524 - s.y, 0, None) / 120))[..., None]
    s.paint(inside * grain[..., None], recess)
    for x in (432, 486, 594, 648):
        s.fill(rgb("#7a4a1c"), arch(x - 13, 402, x + 13, 504))
        s.fill(rgb("#ffdf9e") * 1.1, arch(x - 10, 406, x + 10, 500))
        s.fill("#5a3312", box(x - 0.8, 406, x + 0.8, 500), box(x - 10, 446, x + 10, 448))
    s.fill(rgb("#5a2c12"), arch(514, 404, 566, 522))
    s.fill(rgb("#ffd795") * 1.2, arch(520, 410, 560, 444))
    s.fill(rgb("#ffcf85") * 0.9, box(531, 448, 549, 522))
    s.fill("#3a1a0b", box(539, 408, 541, 448), box(518, 444, 562, 448))
    for x in (412, 463, 514, 566, 617, 668):
        round_ = np.sqrt(np.clip(1 - ((s.x - x) / 10.5) ** 2, 0, 1))
        side = 0.25 + 0.75 * np.clip((x - s.x) / 14 + 0.5, 0, 1)
        flutes = 0.86 + 0.14 * np.cos((s.x - x) * 2.4)
        foot = np.exp(-np.clip(524 - s.y, 0, None) / 85)
        shade = (round_ * side * flutes * (0.2 + 1.05 * foot))[..., None]
        s.fill(rgb("#ffcb8a") * shade, box(x - 10, 358, x + 10, 522))
        s.fill(rgb("#d9a871") * 0.45, box(x - 13, 350, x + 13, 359), box(x - 13, 515, x + 13, 523))
    s.fill(stone * 1.15, box(384, 326, 696, 352), polygon([(376, 328), (540, 262), (704, 328)]))
    s.fill(stone * 0.45, polygon([(420, 322), (540, 276), (660, 322)]))
    s.fill(rgb("#ffca82") * 0.5, ellipse(540, 306, 13))
    s.shine(
        "#ffd6a0",
        s.mask(stroke([(376, 328), (540, 262), (704, 328)], 2), box(384, 350, 696, 352)),
        0.25,
    )
    for i in range(6):
        step = s.mask(box(392 - i * 9, 522 + i * 7, 688 + i * 9, 530 + i * 7))
        s.paint(rgb("#ffb86b") * ((0.62 - 0.07 * i) * grain)[..., None], step)
        s.fill("#1a0f0a", box(392 - i * 9, 528 + i * 7, 688 + i * 9, 530 + i * 7), opacity=0.55)


def _window(s: Scene, x: float, top: float, bottom: float, arched: bool) -> None:
    lamp = s.rng.choice([0.02, 0.25, 0.8, 1.25, 1.7])
    opening = arch if arched else box
    s.fill("#2b2530", opening(x - 14, top - 4, x + 14, bottom + 4), opacity=0.7)
    glass = s.mask(opening(x - 10, top, x + 10, bottom))
    s.paint(rgb("#33406a") * 0.5, glass)
    falloff = 0.55 + 0.6 * s.spot(x + s.rng.uniform(-5, 5), top + 10, 16, 26)
    s.shine("#ffb95e", glass * falloff, lamp)
    s.fill(
        "#120d10",
        box(x - 0.8, top, x + 0.8, bottom),
        box(x - 10, top + 17, x + 10, top + 18.5),
        opacity=0.8,
    )


def _lamp(s: Scene, x: float, foot: float, height: float) -> None:
    top = foot - height
    s.fill(
        "#07070b",
        box(x - height / 55, top, x + height / 55, foot),
        box(x - height / 22, foot - height / 9, x + height / 22, foot, 2),
    )
    s.shine("#ffd9a0", s.mask(ellipse(x, top, height / 17)), 3.5)
    s.shine("#ff9d4a", s.spot(x, top, height * 0.42), 0.24)


def _person(x: float, foot: float, height: float) -> list[Shape]:
    h = height
    waist = foot - h * 0.45
    legs = [(x - h * 0.12, waist), (x + h * 0.12, waist), (x + h * 0.1, foot), (x + h * 0.02, foot)]
    return [
        ellipse(x, foot - h * 0.9, h * 0.085),
        box(x - h * 0.14, foot - h * 0.8, x + h * 0.14, foot - h * 0.42, h * 0.07),
        polygon([*legs, (x, foot - h * 0.3), (x - h * 0.04, foot), (x - h * 0.11, foot)]),
    ]


def rainy_street() -> Image.Image:
    """A reporter from behind under a red umbrella, in a wet street at night. Portrait format."""
    s = Scene(720, 1080, seed=4)
    vx, vy = 392.0, 452.0
    s.canvas[:] = s.gradient((0, "#0b1020"), (300, "#22304d"), (460, "#8a7f86"), (1080, "#0b0d14"))
    s.shine("#ffb37a", s.spot(vx, vy, 170, 210), 0.5)
    contact = np.where(s.x < vx, vy + (vx - s.x) * 0.62, vy + (s.x - vx) * 0.7)
    _facade(s, vx - s.x, s.y - vy, vx, contact, shift=0.0)
    _facade(s, s.x - vx, s.y - vy, 720 - vx, contact, shift=3.37)
    for x, y, w, h, colour, power in [
        (86, 330, 26, 170, "#ff2f63", 2.4),
        (612, 300, 30, 190, "#25d0ff", 2.2),
        (212, 408, 15, 78, "#ffb52e", 2.2),
        (520, 404, 17, 84, "#66ff9e", 1.5),
        (668, 520, 60, 14, "#ffd27a", 2.0),
    ]:
        s.fill("#05060a", box(x - w / 2 - 4, y - h / 2 - 4, x + w / 2 + 4, y + h / 2 + 4, 5))
        tube = s.mask(box(x - w / 2, y - h / 2, x + w / 2, y + h / 2, 4))
        dots = 0.35 + 0.65 * (np.sin(s.y * 2 * np.pi / max(18, h / 6)) > -0.2)
        s.shine(colour, tube * dots, power)
        s.shine(colour, s.spot(x, y, w * 3 + 30, h * 0.8 + 30), 0.1)
    for x, y, r, colour, power in [
        (352, 486, 5, "#fff1d8", 7),
        (370, 486, 5, "#fff1d8", 7),
        (414, 480, 3.5, "#ff3b2a", 4),
        (426, 480, 3.5, "#ff3b2a", 4),
        (300, 420, 4, "#ff4a2f", 4),
        (470, 424, 4, "#46ffa0", 3),
        (388, 470, 2.5, "#fff1d8", 5),
        (397, 470, 2.5, "#fff1d8", 5),
    ]:
        s.shine(colour, s.mask(ellipse(x, y, r), blur=1), power)
        s.shine(colour, s.spot(x, y, r * 7), 0.22)

    road = soften((s.y > contact + 1).astype(np.float32), 0.6)
    asphalt = 0.5 + 0.7 * s.noise(5, 3, 2) * s.noise(60, 30, 3)
    s.paint(rgb("#171b26") * asphalt[..., None], road)
    wet = np.clip(0.45 + 0.6 * s.noise(190, 60, 4), 0, 0.9) * road
    s.reflect(np.round(contact[0]).astype(int), wet, smear=15, ripple=16)
    pale = np.clip(s.y - 470, 0, None) / 600
    stripe = s.mask(
        *[
            polygon(
                [
                    (vx - 3 - d * 0.16, vy + d),
                    (vx + 3 - d * 0.1, vy + d),
                    (vx + 3 - d * 1.3 * 0.1, vy + d * 1.3),
                    (vx - 3 - d * 1.3 * 0.16, vy + d * 1.3),
                ]
            )
            for d in (40, 80, 160, 320)
        ]
    )
    s.paint("#b9b3a6", stripe * 0.2 * (0.4 + s.noise(20, 20, 3)) * (0.4 + pale))
    _reporter(s)
    _rain(s)
    return s.develop(exposure=1.25, vignette=0.45)


def _facade(s: Scene, out: Array, down: Array, reach: float, contact: Array, shift: float) -> None:
    """One side of the street: a wall that runs to the vanishing point. `out` is the distance from
    it in pixels, so `reach / out` is the depth and `down / out` the height on the wall."""
    side = out > 26
    near = np.clip(out, 1, None)
    depth = reach / near
    height = -down / near
    along = np.log2(depth) * 5.2 + shift
    storey = (height + 0.66) * 3.4
    column, row = np.floor(along).astype(int), np.floor(storey).astype(int)
    table = s.rng.random((64, 64)).astype(np.float32)
    chance = table[column % 64, row % 64]
    hue = table[(column + 17) % 64, (row + 5) % 64]
    u, v = along - column, storey - row
    pane = (np.abs(u - 0.5) < 0.29) & (np.abs(v - 0.52) < 0.31)
    mullion = (np.abs(u - 0.5) < 0.025) | (np.abs(v - 0.6) < 0.02)
    block = table[column // 5 % 64, 3]
    roof = storey < 4.4 + 4 * block
    wall = side & (down < contact - s.y + down) & roof
    wall &= s.y < contact
    haze = np.clip((depth - 1) / 9, 0, 0.82)
    brick = 0.6 + 0.5 * s.noise(14, 9, 3) + 0.1 * (np.floor(storey * 9) % 2)
    tone = rgb("#2c2a3a") * (0.3 + 0.7 * block)[..., None] * brick[..., None]
    tone = tone + rgb("#d06a3a") * (0.35 * np.exp(-np.clip(storey, 0, None) / 0.8))[..., None]
    warm = np.where((hue > 0.7)[..., None], rgb("#9fc4ff"), rgb("#ffb45a"))
    glow = np.where(chance > 0.56, (chance - 0.4) * 2.2, 0.05)
    window = (warm * glow[..., None] + rgb("#141c30") * 0.5) * (0.55 + 0.45 * v)[..., None]
    front = np.where((pane & ~mullion & (row > 0))[..., None], window, tone)
    shop = (row == 0) & (np.abs(u - 0.5) < 0.44) & (v < 0.74) & (v > 0.06)
    goods = 0.35 + 0.9 * s.noise(12, 30, 3)
    shop_light = (
        np.where((hue > 0.75)[..., None], rgb("#7fd6ff"), rgb("#ffc777")) * goods[..., None]
    )
    front = np.where(shop[..., None], shop_light * (0.55 + 1.5 * chance)[..., None], front)
    awning = (row == 0) & (v >= 0.74) & (v < 0.95)
    front = np.where(awning[..., None], rgb("#5a1f2a") * (0.25 + 0.5 * hue)[..., None], front)
    front = front + (rgb("#6f7690") * 0.55 - front) * haze[..., None]
    coverage = soften(wall.astype(np.float32), 0.6)
    s.paint(soften(front.astype(np.float32), 0.6), coverage)


def _reporter(s: Scene) -> None:
    x, foot = 372.0, 990.0
    coat = [
        polygon(
            [
                *curve((x - 34, 690), (x - 74, 700), (x - 72, 790), (x - 66, 850)),
                *curve((x - 66, 850), (x - 80, 900), (x - 84, 915), (x - 82, 928)),
                (x + 78, 928),
                *curve((x + 78, 915), (x + 74, 890), (x + 60, 850)),
                *curve((x + 62, 850), (x + 76, 790), (x + 74, 702), (x + 32, 690)),
            ]
        ),
        box(x - 15, 668, x + 15, 704, 6),
    ]
    legs = [
        polygon([(x - 48, 920), (x - 8, 920), (x - 14, foot), (x - 40, foot)]),
        polygon([(x + 8, 920), (x + 50, 920), (x + 42, foot - 6), (x + 16, foot - 6)]),
        ellipse(x - 28, foot, 20, 8),
        ellipse(x + 30, foot - 6, 20, 8),
    ]
    canopy: list[Shape] = []
    hem = []
    for i in range(6):
        a, b = x - 206 + i * 206 / 3, x - 206 + (i + 1) * 206 / 3
        dip = 22 if i in (0, 5) else 30
        hem += curve((a, 668 - 5 * abs(i - 3)), ((a + b) / 2, 668 - dip), (b, 668 - 5 * abs(i - 2)))
    dome = curve((x + 206, 658), (x + 190, 520), (x + 70, 480), (x + 4, 480))
    canopy.append(
        polygon([*hem, *dome, *curve((x + 4, 480), (x - 70, 480), (x - 190, 520), (x - 206, 653))])
    )
    shadow = s.mask(ellipse(x + 2, foot + 4, 96, 15), blur=7)
    s.paint("#020204", shadow * 0.8)
    figure = s.mask(*coat, *legs)
    mirrored = np.zeros_like(figure)
    rows = np.arange(int(foot) + 2, s.height)
    mirrored[rows] = figure[2 * int(foot) + 3 - rows]
    s.paint("#04050a", soften(mirrored, 3) * 0.75)
    cloth = rgb("#4a4038") * (0.1 + 0.28 * s.noise(30, 90, 4))[..., None]
    s.fill(np.broadcast_to(rgb("#05060a"), s.canvas.shape), *legs)
    body = s.mask(*coat)
    s.paint(cloth, body)
    s.fill("#0b0a0c", stroke([(x - 1, 720), (x + 2, 926)], 2), opacity=0.6)
    s.fill("#0b0a0c", box(x - 66, 838, x + 62, 850, 3), opacity=0.6)
    for shift, colour, power in [(3, "#ff9a5a", 0.5), (-3, "#4fc9ff", 0.45)]:
        rim = np.clip(figure - soften(np.roll(figure, shift, 1), 1), 0, 1)
        s.shine(colour, rim, power)
    s.fill("#0a0808", ellipse(x, 664, 25, 31), box(x - 25, 660, x + 25, 690, 10))
    s.shine("#ff9a5a", s.mask(stroke(curve((x - 25, 650), (x - 27, 672), (x - 22, 690)), 2.5)), 0.6)
    s.fill("#0c0c10", stroke([(x + 34, 600), (x + 40, 770)], 4))
    hand = s.mask(ellipse(x + 42, 764, 9, 12))
    s.paint(rgb("#8a5a42") * 0.3, hand)
    top = s.mask(*canopy)
    through = 0.12 + 0.9 * s.spot(x + 40, 600, 220, 120) * (0.8 + 0.3 * s.noise(70, 50, 2))
    sheen = 0.75 + 0.45 * s.spot(x - 80, 530, 110, 70) + 0.1 * np.sin((s.x - x) / 20)
    s.paint(rgb("#c01524") * (through * sheen)[..., None], top)
    ribs: list[Shape] = []
    for i in range(7):
        end = (x - 206 + i * 206 / 3, 668 - 5 * abs(i - 3))
        ribs.append(stroke(curve((x + 4, 481), (x + (end[0] - x) * 0.85, 500), end), 1.6))
    s.paint("#2a0207", s.mask(*ribs) * top * 0.75)
    s.fill("#101014", box(x + 2, 462, x + 6, 484, 2))
    lip = np.clip(top - np.roll(top, 3, 0), 0, 1)
    s.shine("#ffd0b0", lip * (0.4 + s.noise(8, 8, 1)), 0.55)
    beads = (s.rng.random(top.shape) > 0.994).astype(np.float32)
    s.shine("#ffd8c8", beads * top * s.noise(60, 60, 2), 0.55)


def _rain(s: Scene) -> None:
    for count, length, width, power in [
        (420, 26, 0.5, 0.1),
        (190, 48, 0.8, 0.1),
        (46, 96, 1.5, 0.07),
    ]:
        starts = s.rng.random((count, 2)) * (s.width + 60, s.height)
        reach = length * s.rng.uniform(0.6, 1.2, count)
        streaks: list[Shape] = []
        for (x, y), n in zip(starts, reach, strict=True):
            streaks.append(stroke([(x, y), (x - n * 0.16, y + n)], width))
        s.shine("#c9dcff", s.mask(*streaks), power * 1.6)
    drops = s.rng.random((240, 2))
    ys = 620 + 450 * drops[:, 1]
    splashes: list[Shape] = []
    for x, y in zip(drops[:, 0] * s.width, ys, strict=True):
        r = 2 + 6 * (y - 600) / 480
        splashes.append(
            stroke(
                curve((x - r, y), (x - r, y + r * 0.4), (x + r, y + r * 0.4), (x + r, y), steps=7),
                0.7,
            )
        )
    s.shine("#dbe8ff", s.mask(*splashes), 0.11)


def harbour() -> Image.Image:
    """A container ship in golden fog, cranes behind it, a quay with bollards in front."""
    s = Scene(1080, 720, seed=5)
    water = 432
    s.canvas[:] = s.gradient((0, "#7f94ad"), (200, "#d9b79a"), (400, "#ffdca6"), (720, "#b98d6a"))
    s.canvas *= (0.86 + 0.28 * s.noise(620, 120, 5))[..., None]
    s.shine("#ffd38a", s.spot(792, 236, 300, 220), 0.45)
    s.shine("#fff3d6", s.mask(ellipse(792, 236, 30), blur=2), 2.2)
    for base, height, tone in [(418, 90, "#c7a58d"), (428, 52, "#a88a7c")]:
        ridge = base - height * s.noise(330, 4000, 4)[0]
        s.paint(tone, soften((s.y > ridge[None]).astype(np.float32), 1) * (s.y < water) * 0.75)
    for x, size, depth in [
        (690, 0.62, 0.72),
        (940, 0.75, 0.6),
        (1010, 0.7, 0.66),
        (84, 1.15, 0.28),
        (236, 0.95, 0.42),
    ]:
        shape = s.mask(*_crane(x, 438, size))
        s.paint(rgb("#2a2a33") * (1 - depth) + rgb("#d8b48f") * depth, shape * 0.95)
    _ship(s)
    fog = np.clip(s.noise(520, 60, 5) * 1.5 - 0.35, 0, 1) * np.exp(-(((s.y - 428) / 60) ** 2))
    s.paint("#f3cf9f", fog * 0.62)

    sea = s.mask(box(0, water, 1080, 720))
    s.paint(s.gradient((water, "#c79a72"), (720, "#1f2a36")) * np.ones_like(s.canvas), sea)
    s.reflect(water, sea * np.clip(0.92 - (s.y - water) / 420, 0.25, 1), smear=6, ripple=46)
    nearness = np.clip((s.y - water) / 288, 0, 1)
    chop = s.noise(70, 5, 4) * (1 - nearness) + s.noise(150, 15, 4) * nearness
    s.canvas *= (1 + (chop - 0.5) * sea * (0.35 + 0.75 * nearness))[..., None]
    glitter = np.clip(chop * 3.4 - 1.95, 0, 1) * np.exp(
        -(((s.x - 792) / (26 + 150 * nearness)) ** 2)
    )
    s.shine("#ffe2ac", glitter * sea, 1.6)
    _tug(s)
    _quay(s)
    gulls: list[Shape] = []
    for x, y, r in [
        (420, 128, 13),
        (462, 104, 9),
        (512, 142, 11),
        (604, 84, 7),
        (300, 190, 8),
        (940, 120, 10),
    ]:
        gulls.append(
            stroke(
                [
                    *curve((x - r, y - r * 0.25), (x - r * 0.45, y - r * 0.62), (x, y)),
                    *curve((x, y), (x + r * 0.45, y - r * 0.7), (x + r, y - r * 0.3)),
                ],
                1.7,
            )
        )
    s.fill("#3a3538", *gulls, opacity=0.85)
    return s.develop(exposure=0.92, vignette=0.4)


def _crane(x: float, foot: float, scale: float) -> list[Shape]:
    """A gantry crane: beams as (left, up, left, up, thickness) from the middle of its foot."""
    beams = [
        (-36, 0, -36, 190, 7), (36, 0, 36, 190, 7), (-36, 60, 36, 60, 6), (-36, 190, 36, 190, 8),
        (-36, 60, 36, 190, 3), (36, 60, -36, 190, 3), (-96, 196, 176, 196, 9), (0, 196, 6, 292, 7),
        (6, 292, 172, 200, 2.6), (6, 292, 84, 200, 2.6), (6, 292, -92, 200, 2.6),
        (72, 176, 72, 120, 1.6), (60, 184, 84, 184, 16), (56, 115, 90, 115, 14),
    ]  # fmt: skip
    beams += [(i * 10, 192, i * 10 + 5, 204, 1.6) for i in range(-9, 17)]
    return [
        stroke([(x + a * scale, foot - b * scale), (x + c * scale, foot - d * scale)], w * scale)
        for a, b, c, d, w in beams
    ]


def _ship(s: Scene) -> None:
    light = 0.55 + 0.5 * np.clip((s.x - 250) / 640, 0, 1)
    hull = [
        (276, 366),
        (846, 366),
        (930, 346),
        *curve((930, 346), (900, 400), (872, 440)),
        (300, 440),
        *curve((300, 440), (282, 420), (276, 366)),
    ]
    plates = 0.85 + 0.2 * s.noise(70, 300, 4) - 0.1 * (np.abs(s.x % 58 - 29) < 1)
    body = s.mask(polygon(hull))
    s.paint(rgb("#22364d") * (light * plates * (0.7 + 0.5 * (440 - s.y) / 80))[..., None], body)
    s.paint(rgb("#9a3524") * (light * plates * 0.8)[..., None], body * (s.y > 420))
    s.paint(rgb("#e8dcc6") * light[..., None], body * (np.abs(s.y - 419) < 1.4) * 0.8)
    rust = np.clip(s.noise(10, 120, 3) * 2 - 1.25, 0, 1) * body
    s.paint("#5b3a28", rust * 0.5)
    colours = [
        "#a8402c",
        "#2f5d7c",
        "#c98a32",
        "#5c6b50",
        "#8d8f92",
        "#33465e",
        "#b9b09c",
        "#7d2f32",
    ]
    for bay in range(15):
        x = 362 + bay * 33.5 + bay // 3 * 3
        tiers = int(s.rng.integers(3, 6)) if bay < 12 else 5 - (bay - 11)
        for tier in range(tiers):
            y = 366 - (tier + 1) * 15.5
            crate = s.mask(box(x, y, x + 32, y + 14.6))
            ribs = 0.86 + 0.14 * np.sin(s.x * 2.1)
            edge = 1 - 0.45 * (s.y > y + 13) + 0.25 * (s.y < y + 1.3)
            colour = colours[int(s.rng.integers(len(colours)))]
            s.paint(rgb(colour) * (light * ribs * edge * 0.95)[..., None], crate)
    bridge = [(290, 366), (352, 366), (352, 262), (344, 262), (344, 240), (290, 240)]
    s.fill(rgb("#efe6d6") * (light * (0.75 + 0.35 * (s.x > 330)))[..., None], polygon(bridge))
    for y in (276, 294, 312, 330, 348):
        s.fill("#2d3a46", *[box(296 + i * 9, y, 301 + i * 9, y + 6) for i in range(6)])
    s.fill("#1a2530", box(284, 246, 360, 257, 2))
    s.fill(
        rgb("#b24a2a") * light[..., None], polygon([(296, 240), (322, 240), (320, 204), (300, 204)])
    )
    s.fill(
        "#1a1a1e",
        box(299, 202, 321, 211),
        stroke([(336, 240), (336, 190)], 2),
        stroke([(326, 204), (346, 204)], 1.6),
    )
    smoke = np.clip(s.noise(70, 50, 4) * 1.6 - 0.4, 0, 1) * (
        s.spot(268, 176, 54, 26) + 0.8 * s.spot(206, 152, 76, 30)
    )
    s.paint("#8b7f7c", smoke * 0.45)
    s.shine("#fff0cf", s.mask(stroke([(276, 366), (846, 366), (930, 346)], 1.6)), 0.5)


def _tug(s: Scene) -> None:
    hull = [
        (560, 498),
        (690, 494),
        (704, 484),
        *curve((704, 484), (698, 510), (676, 524)),
        (572, 524),
        *curve((572, 524), (562, 514), (560, 498)),
    ]
    s.fill("#0e1015", ellipse(630, 532, 80, 9), blur=3, opacity=0.6)
    s.fill(rgb("#3a1714") * (0.5 + 0.7 * (s.x > 660))[..., None], polygon(hull))
    s.fill("#101318", box(562, 494, 700, 501, 3))
    s.fill(
        rgb("#d8cbb6") * (0.3 + 0.5 * (s.x > 628))[..., None],
        box(596, 462, 660, 496, 3),
        box(606, 438, 650, 464, 4),
    )
    s.fill(rgb("#ffca7a") * 0.7, *[box(610 + i * 13, 444, 619 + i * 13, 455, 1) for i in range(3)])
    s.fill("#16181d", box(586, 446, 598, 480, 2), stroke([(628, 438), (628, 408)], 2))
    for i in range(3):
        s.fill("#08090b", ellipse(590 + i * 36, 510, 7), opacity=0.8)
    foam = np.clip(s.noise(18, 4, 3) * 2.2 - 0.9, 0, 1) * (
        s.spot(700, 527, 30, 5) + s.spot(520, 528, 90, 6)
    )
    s.shine("#fff3dc", foam, 0.8)


def _quay(s: Scene) -> None:
    edge = curve((0, 596), (260, 604), (420, 640), (560, 730))
    stone = s.mask(polygon([*edge, (0, 730)]))
    shade = 0.35 + 0.5 * s.noise(26, 12, 5) + 0.25 * s.noise(240, 60, 3)
    s.paint(rgb("#54483f") * shade[..., None], stone)
    s.shine(
        "#ffd49a", np.clip(stone - np.roll(stone, 3, 0), 0, 1) * (0.4 + s.noise(12, 12, 2)), 0.45
    )
    rope = curve((88, 628), (190, 700), (330, 640), (470, 566), steps=90)
    for x, y, k in [(90, 640, 1.0), (318, 668, 1.1)]:
        bollard = [
            box(x - 17 * k, y - 44 * k, x + 17 * k, y, 6),
            ellipse(x, y - 46 * k, 29 * k, 11 * k),
            ellipse(x, y, 25 * k, 8 * k),
        ]
        s.fill("#000000", ellipse(x - 30, y + 5, 64, 10), blur=5, opacity=0.55)
        iron = s.mask(*bollard)
        s.paint(rgb("#1b1a1c") * (0.6 + 0.9 * s.noise(9, 9, 2))[..., None], iron)
        s.shine("#ffcf90", np.clip(iron - np.roll(iron, -3, 1), 0, 1), 0.7)
        s.shine("#ffcf90", np.clip(iron - np.roll(iron, 2, 0), 0, 1), 0.4)
    s.fill("#2a1d12", stroke([(x, y + 4) for x, y in rope], 7), opacity=0.7)
    twist = 0.5 + 0.5 * np.sin(s.x * 1.3 + s.y * 0.8)
    s.fill(rgb("#b08a58") * (0.35 + 0.6 * twist)[..., None], stroke(rope, 5))


SCENES: dict[str, Callable[[], Image.Image]] = {
    "sample_image_1.png": press_briefing,
    "sample_image_2.png": market_desk,
    "sample_image_3.png": city_hall,
    "sample_image_4.png": rainy_street,
    "sample_image_5.jpg": harbour,
}


def main(folder: Path) -> None:
    """Draw every scene into `folder`."""
    for name, draw in SCENES.items():
        save(draw(), folder / name)


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG; or a JPEG as from a camera held upright, stored lying with an EXIF tag."""
    if path.suffix == ".png":
        picture.save(path, optimize=True)
        return
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # whoever shows it turns it a quarter to the right
    stored = picture.transpose(Image.Transpose.ROTATE_90)
    stored.save(path, quality=90, optimize=True, exif=exif)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLES)
