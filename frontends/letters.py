"""Letters of five alphabets for ``nv.datasets.letters``: many classes with a few pictures each, as few-shot learning
wants them.

What Omniglot (Lake et al. 2015) has from twenty people's hands comes here from the fonts that matplotlib brings along
(DejaVu, twelve styles), each picture turned, slanted, stretched and shifted at random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIZE, COPIES, LARGE = 28, 2, 56  # pixels of a picture, pictures in each style, pixels while it is drawn
ALPHABETS = {
    "Latin": [*range(0x41, 0x5B), *range(0x61, 0x7B)],
    "Greek": [*range(0x391, 0x3A2), *range(0x3A3, 0x3AA), *range(0x3B1, 0x3CA)],
    "Cyrillic": [*range(0x410, 0x450)],
    "Armenian": [*range(0x531, 0x557), *range(0x561, 0x587)],
    "Georgian": [*range(0x10D0, 0x10F1)],
}
STYLES = [
    f"DejaVu{family}{style}.ttf"
    for family, slanted in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
]


def drawn(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures uint8 [n, 28, 28], letters int32 [n], alphabets [n], class after class; ``folder`` holds the fonts."""
    from PIL import ImageFont

    fonts = [ImageFont.truetype(str(folder / name), 40) for name in STYLES]
    rng = np.random.default_rng(0)
    pictures: list[np.ndarray] = []
    alphabets: list[str] = []
    seen: set[bytes] = set()
    for alphabet, codes in ALPHABETS.items():
        for letter in map(chr, codes):
            plain = _letter(letter, fonts[0])
            if plain.tobytes() in seen:  # A is Latin and Greek and Cyrillic: it is one class, the first one
                continue
            seen.add(plain.tobytes())
            pictures += [_moved(_letter(letter, font), rng) for font in fonts for _ in range(COPIES)]
            alphabets.append(alphabet)
    each = len(fonts) * COPIES
    return np.stack(pictures), np.repeat(np.arange(len(alphabets), dtype=np.int32), each), np.repeat(alphabets, each)


def _letter(letter: str, font: Any) -> Any:
    """White on black, its box in the middle."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (LARGE, LARGE))
    ImageDraw.Draw(image).text((LARGE / 2, LARGE / 2 + 14), letter, 255, font, anchor="ms")
    return image


def _moved(image: Any, rng: np.random.Generator) -> np.ndarray:
    """Turned by up to 20 degrees, slanted by up to 0.3, stretched by up to a fifth, shifted by up to 3 pixels."""
    from PIL import Image

    angle, slant = rng.uniform(-np.pi / 9, np.pi / 9), rng.uniform(-0.3, 0.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, slant], [0, 1]]) @ np.diag(rng.uniform(0.8, 1.2, 2))
    shift = LARGE / 2 - matrix @ (LARGE / 2 + rng.uniform(-6, 6, 2))
    affine = tuple(map(float, np.column_stack([matrix, shift]).ravel()))
    moved = image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.asarray(moved.reduce(LARGE // SIZE))
