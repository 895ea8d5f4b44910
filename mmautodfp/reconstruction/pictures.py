"""Pictures of one's own, read where images would be drawn."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import mmcv
import torch
import torch.nn.functional as F
from torch import Tensor

from mmautodfp.kernels import image_generator
from mmautodfp.utils import AutoDFPError

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


class Pictures:
    """Random parts of the pictures in a folder, at the scale of a data preprocessor.

    Called as :func:`mmautodfp.kernels.dead_leaves`. Which picture image number i is cut from, and where, is the same
    each time and in batches of any size. All pictures are used before one is used again.

    Args:
        folder (str): Pictures lie in it or below it.
        scale (tuple[int, int] | None): Width and height that a whole picture is made to fit in; None: as it is.
        rgb (bool): Order of the channels; otherwise blue comes first.

    Raises:
        AutoDFPError: There is no such folder, or no picture in it.
    """

    def __init__(self, folder: str, scale: tuple[int, int] | None, rgb: bool):
        self.folder = Path(folder)
        found = (file for file in self.folder.rglob('*') if file.suffix.lower() in SUFFIXES and file.is_file())
        self.files = sorted(found)
        if not self.files:
            found = 'none of them is in it or below it' if self.folder.is_dir() else 'there is no such folder'
            raise AutoDFPError(f'pictures ({", ".join(SUFFIXES)}) were to be read from {folder}, but {found}')
        self.scale, self.rgb = scale, rgb

    @property
    def digest(self) -> str:
        """SHA-256 over the names and sizes of the files."""
        files = [(file.relative_to(self.folder).as_posix(), file.stat().st_size) for file in self.files]
        return hashlib.sha256(repr(files).encode()).hexdigest()

    def __call__(
        self,
        num_images: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        first: int = 0,
    ) -> Tensor:
        """[M, C, H, W]; what a picture does not fill is 0, which is the mean.

        Raises:
            AutoDFPError: A picture cannot be read, or a model takes neither one channel nor three.
        """
        if len(mean) not in (1, 3):
            raise AutoDFPError(f'pictures of 1 or 3 channels can be read, but images of {len(mean)} were asked for')
        order = torch.randperm(len(self.files), generator=torch.Generator().manual_seed(seed)).tolist()
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        images = []
        for number in range(first, first + num_images):
            pixels = (self._read(self.files[order[number % len(order)]], len(mean)) - mean) / std
            images.append(_part(pixels, size, image_generator(seed, number)))
        return torch.stack(images)

    def _read(self, file: Path, channels: int) -> Tensor:
        """A whole picture, [C, H, W], 0 to 255."""
        try:
            image = mmcv.imread(str(file), 'color' if channels > 1 else 'grayscale')
        except (cv2.error, OSError):  # an empty file, or one that must not be read
            image = None
        if image is None:
            raise AutoDFPError(f'picture {file} was to be read, but it cannot be, or is no picture; take it out')
        if self.scale:
            image = mmcv.imrescale(image, self.scale)
        pixels = torch.from_numpy(image).reshape(*image.shape[:2], -1).permute(2, 0, 1).float()
        return pixels.flip(0) if self.rgb else pixels  # files are read with blue first


def _part(image: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A random part [C, height, width] of an image, which is filled up at the bottom and on the right."""
    draw = partial(torch.randint, size=(1,), generator=generator)
    (height, width), (rows, columns) = size, image.shape[1:]
    top, left = (int(draw(high=max(room, 0) + 1)) for room in (rows - height, columns - width))
    image = image[:, top : top + height, left : left + width]
    return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
