"""A COCO-format detection data set drawn from scikit-learn's handwritten digits.

With it, a detector can be trained, pruned and evaluated without any download. The 1,797 digits of 8x8 pixels that come
with scikit-learn are enlarged, coloured and placed on textured backgrounds. The three splits use different digits. The
same version of this file always draws the same pixels.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import require_folder

DIGIT_CLASSES = tuple(str(digit) for digit in range(10))
IMAGE_SIZE = 128
VERSION = 1
STAMP = '.mmautodfp-digits'  # file with the version, in a folder that may be replaced


@dataclass(frozen=True)
class Split:
    """How one split is drawn.

    Attributes:
        num_images (int): Number of pictures.
        digits (tuple[int, int]): First and last (exclusive) index of the shuffled digits that it uses.
        seed (int): Seed of all random choices in its pictures.
    """

    num_images: int
    digits: tuple[int, int]
    seed: int


SPLITS = {
    'train': Split(2400, (0, 1100), 11),
    'val': Split(300, (1100, 1400), 12),
    'test': Split(800, (1400, 1797), 13),
}


def make_digits(root: str | os.PathLike) -> Path:
    """Write the data set, unless ``root`` already holds this version of it; another version is replaced.

    It is drawn in a temporary folder beside ``root`` and renamed at the end, so that ``root`` is never incomplete.

    Args:
        root (str | os.PathLike): Folder to make, for ``annotations/instances_{train,val,test}.json`` (COCO format,
            boxes and polygons, 10 classes) and PNG images of 128x128 pixels in ``{train,val,test}/``.

    Returns:
        Path: ``root``.

    Raises:
        AutoDFPError: ``root`` is a file or in one, or holds something else.
    """
    root = Path(root)
    require_folder(root, 'the digits data set')
    stamp = root / STAMP
    if stamp.is_file() and stamp.read_text().strip() == str(VERSION):
        return root
    if root.exists() and not stamp.is_file() and any(root.iterdir()):
        raise AutoDFPError(f'{root} was to receive the digits data set, but it holds other files; name another folder')
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f'.{root.name}.', dir=root.parent))
    try:
        from sklearn.datasets import load_digits  # slow to import, and only needed here

        glyphs = load_digits()
        order = np.random.default_rng(0).permutation(len(glyphs.images))
        (scratch / 'annotations').mkdir()
        for name, split in SPLITS.items():
            chosen = order[slice(*split.digits)]
            _draw_split(scratch, name, split, glyphs.images[chosen], glyphs.target[chosen])
        (scratch / STAMP).write_text(f'{VERSION}\n')
        scratch.chmod(0o755)  # mkdtemp allows nobody else to read it
        shutil.rmtree(root, ignore_errors=True)
        scratch.rename(root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def _draw_split(root: Path, name: str, split: Split, glyphs: np.ndarray, labels: np.ndarray) -> None:
    rng = np.random.default_rng(split.seed)
    (root / name).mkdir()
    images, annotations = [], []
    for image_id in range(1, split.num_images + 1):
        picture, objects = draw_picture(rng, glyphs, labels)
        file_name = f'{image_id:05d}.png'
        cv2.imwrite(str(root / name / file_name), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        images.append(dict(id=image_id, file_name=file_name, width=IMAGE_SIZE, height=IMAGE_SIZE))
        for label, mask in objects:
            annotation = dict(id=len(annotations) + 1, image_id=image_id, category_id=label + 1, iscrowd=0)
            annotations.append(annotation | outline(mask))
    categories = [dict(id=label + 1, name=name) for label, name in enumerate(DIGIT_CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'annotations' / f'instances_{name}.json').write_text(json.dumps(content))


def draw_picture(rng: np.random.Generator, glyphs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, list]:
    """Draw one picture with up to five digits that hardly overlap.

    Args:
        rng (np.random.Generator): Source of all random choices.
        glyphs (np.ndarray): [n, 8, 8], images of digits with values from 0 to 16.
        labels (np.ndarray): [n], their classes.

    Returns:
        tuple[np.ndarray, list]: The picture, uint8 [128, 128, 3]; and for each digit its label and mask, bool
        [128, 128].
    """
    canvas = _background(rng)
    objects, taken = [], np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    for _ in range(rng.integers(1, 6)):
        index = rng.integers(len(glyphs))
        for _ in range(20):  # tries to find a free place; then the digit is left out
            size = int(rng.integers(20, 57))
            y, x = rng.integers(0, IMAGE_SIZE - size + 1, 2)
            window = (slice(y, y + size), slice(x, x + size))
            opacity = np.clip((_resize(glyphs[index], size) - 4) / 6, 0, 1)
            ink = opacity > 0.5
            if ink.sum() < 40 or (taken[window] & ink).any():
                continue
            backdrop = canvas[window].mean((0, 1))
            colour = rng.uniform(0, 255, 3)
            while np.abs(colour - backdrop).mean() < 50:
                colour = rng.uniform(0, 255, 3)
            shade = colour + rng.normal(0, 10, (size, size, 1))
            canvas[window] += (shade - canvas[window]) * opacity[..., None]
            mask = np.zeros_like(taken)
            mask[window] = ink
            taken[window] |= opacity > 0
            objects.append((int(labels[index]), mask))
            break
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), objects


def outline(mask: np.ndarray) -> dict:
    """COCO's ``bbox`` (x, y, width, height), ``area`` (in pixels) and ``segmentation`` (polygons) of a mask [h, w]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    # Doubled, so that the polygon follows the outer edges of pixels and not their centres.
    doubled = mask.repeat(2, 0).repeat(2, 1).astype(np.uint8)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = [((contour.reshape(-1) + 0.5) / 2).tolist() for contour in contours if len(contour) >= 3]
    return dict(
        bbox=[x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y], area=int(mask.sum()), segmentation=polygons
    )


def _background(rng: np.random.Generator) -> np.ndarray:
    """A smooth random gradient with stripes and grain, float [128, 128, 3]."""
    cells = int(rng.integers(2, 7))
    smooth = _resize(rng.uniform(20, 235, (cells, cells, 3)), IMAGE_SIZE)
    angle, frequency = rng.uniform(0, np.pi), 2 * np.pi / rng.uniform(4, 24)
    x = np.arange(IMAGE_SIZE) * np.cos(angle) * frequency
    y = np.arange(IMAGE_SIZE)[:, None] * np.sin(angle) * frequency
    stripes = np.sin(x) * np.cos(y) + np.cos(x) * np.sin(y)  # sin(x + y) for all pixels, with O(size) calls of sin
    grain = rng.normal(0, rng.uniform(2, 14), smooth.shape)
    return smooth * rng.uniform(0.5, 1) + stripes[..., None] * rng.uniform(0, 30, 3) + grain


def _resize(grid: np.ndarray, size: int) -> np.ndarray:
    """Resize [n, n, ...] to [size, size, ...], bilinear. Not with cv2.resize: its rounding depends on the processor."""
    at = np.linspace(0, len(grid) - 1, size)
    left = np.minimum(at.astype(int), len(grid) - 2)
    weight = (at - left).reshape(-1, *[1] * (grid.ndim - 1))
    for _ in range(2):  # rows, then (transposed) columns
        grid = (grid[left] * (1 - weight) + grid[left + 1] * weight).swapaxes(0, 1)
    return grid
