"""Load a folder of photos as one tensor of equal crops, and make collages of them."""

import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recipes.nano.config import RecipeConfig

MAX_ENLARGEMENT = 1.25  # of a crop's pixels
_LEAVES = 24
_SMALLEST_LEAF, _LARGEST_LEAF = 0.06, 0.6  # half widths, of half the picture's width
_COLLAGES_AT_ONCE = 64


def load_crops(
    folder: Path, size: tuple[int, int], crops_per_photo: int, seed: int = 0, workers: int = 16
) -> Tensor:
    """Crops of every JPEG of `folder`, uint8 [num_crops, 3, height, width], in the files' order.

    The first crop of a photo is the largest centred one; the others are random parts that need
    little upscaling. Raises FileNotFoundError if the folder has no JPEG.
    """
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise FileNotFoundError(f"{folder}: has no .jpg; make it with recipes.nano.images")
    with ThreadPoolExecutor(workers) as pool:
        crops = pool.map(lambda path: _crops(path, size, crops_per_photo, seed), paths)
        return torch.from_numpy(np.stack([crop for group in crops for crop in group]))


def training_crops(folder: Path, recipe: RecipeConfig, device: torch.device) -> Tensor:
    """Crops of the training photos and collages of them on `device`, per the recipe."""
    config = recipe.photos
    size = (config.height, config.width)
    crops = load_crops(folder / "train", size, config.crops_per_photo, recipe.seed).to(device)
    count = round(config.collages_per_crop * len(crops))
    return torch.cat([crops, collages(crops, count, recipe.seed)])


def collages(crops: Tensor, count: int, seed: int = 0) -> Tensor:
    """Images composed of pieces of other images, uint8 [count, 3, height, width].

    Occluding leaves of all sizes have the statistics of natural images (Lee, Mumford, Huang 2001),
    and their content is real texture: many images from few.
    """
    generator = torch.Generator(crops.device).manual_seed(seed)
    made = [
        _collage(crops, min(_COLLAGES_AT_ONCE, count - start), generator)
        for start in range(0, count, _COLLAGES_AT_ONCE)
    ]
    return torch.cat(made) if made else crops[:0]


def _collage(crops: Tensor, count: int, generator: torch.Generator) -> Tensor:
    device, (height, width) = crops.device, crops.shape[2:]

    def draw(low: float, high: float) -> Tensor:
        uniform = torch.rand(count, 1, 1, generator=generator, device=device)
        return low + (high - low) * uniform

    def picture() -> Tensor:
        chosen = torch.randint(len(crops), (count,), generator=generator, device=device)
        shifts = torch.randint(height, (2,), generator=generator, device=device).tolist()
        return crops[chosen].roll(shifts, dims=(2, 3)).float()

    y = torch.linspace(-height / width, height / width, height, device=device)[:, None]
    x = torch.linspace(-1, 1, width, device=device)
    collage = picture()
    for _ in range(_LEAVES):
        radius = _SMALLEST_LEAF / draw(_SMALLEST_LEAF / _LARGEST_LEAF, 1.0)
        angle, stretch = draw(0, math.pi), draw(1, 3)
        across, down = x - draw(-1, 1), y - draw(-0.7, 0.7)
        along = (across * angle.cos() + down * angle.sin()).abs()
        aside = (down * angle.cos() - across * angle.sin()).abs() * stretch
        round_leaf = (along**2 + aside**2) < radius**2
        leaf = torch.where(draw(0, 1) < 0.5, round_leaf, torch.maximum(along, aside) < radius)
        lit = picture() * draw(0.5, 1.3)[..., None] + draw(-40, 40)[..., None]
        collage = torch.where(leaf[:, None], lit, collage)
    return collage.clamp(0, 255).to(torch.uint8)


def _crops(path: Path, size: tuple[int, int], count: int, seed: int) -> list[np.ndarray]:
    rng = random.Random(f"{seed}/{path.name}")
    with Image.open(path) as opened:
        photo = opened.convert("RGB")
    boxes = [_largest_box(photo.size, size), *_boxes(photo.size, size, count - 1, rng)]
    return [_cut(photo, box, size) for box in boxes]


def _largest_box(photo: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float]:
    """Left, top and width of the largest centred box with the aspect of `size`."""
    width = min(photo[0], photo[1] * size[1] / size[0])
    return (photo[0] - width) / 2, (photo[1] - width * size[0] / size[1]) / 2, width


def _boxes(
    photo: tuple[int, int], size: tuple[int, int], count: int, rng: random.Random
) -> list[tuple[float, float, float]]:
    """Random boxes; fewer distinct ones for a photo hardly larger than `size`."""
    largest = _largest_box(photo, size)[2]
    smallest = min(size[1] / MAX_ENLARGEMENT, largest)
    different = max(1, min(count, round(4 * largest / size[1])))
    boxes = []
    for _ in range(min(count, different)):
        width = rng.uniform(smallest, largest)
        height = width * size[0] / size[1]
        boxes.append((rng.uniform(0, photo[0] - width), rng.uniform(0, photo[1] - height), width))
    return boxes


def _cut(photo: Image.Image, box: tuple[float, float, float], size: tuple[int, int]) -> np.ndarray:
    left, top, width = box
    height = width * size[0] / size[1]
    edges = (left, top, min(left + width, photo.width), min(top + height, photo.height))
    cut = photo.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=edges, reducing_gap=3.0)
    return np.asarray(cut).transpose(2, 0, 1)
