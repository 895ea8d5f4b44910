"""Images that a model is shown: drawn, or cut from pictures of one's own."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import mmcv
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from mmautodfp.graph import is_detector, is_torchvision_detector
from mmautodfp.kernels import dead_leaves, image_generator, white_noise
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.settings import Count, Positive, Several, TwoOrMore, settings

KINDS = dict(dead_leaves=dead_leaves, noise=white_noise)
Side = Annotated[int, Field(ge=8)]
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
OF_PICTURES = ('folder', 'scale', 'keep_ratio', 'rgb')  # settings that drawn images have no use for
# Scales of pixels: about what most models take, and as they are.
USUAL = dict(mean=(127.5,) * 3, std=(58.0,) * 3)
RAW = dict(mean=(0.0,) * 3, std=(1.0,) * 3)


class Pictures:
    """Random parts of the pictures in a folder, at the scale of a data preprocessor.

    Called as :func:`mmautodfp.kernels.dead_leaves`. Which picture image number i is cut from, and where, is the same
    each time and in batches of any size. All pictures are used before one is used again.

    Args:
        folder (str): Pictures lie in it or below it.
        scale (tuple[int, int] | None): Width and height that a whole picture is made to fit in; None: as it is.
        rgb (bool): Order of the channels; otherwise blue comes first.
        keep_ratio (bool): Otherwise a picture is stretched to the scale. Defaults to True.

    Raises:
        AutoDFPError: There is no such folder, or no picture in it.
    """

    def __init__(self, folder: str, scale: tuple[int, int] | None, rgb: bool, keep_ratio: bool = True):
        self.folder = Path(folder)
        found = (file for file in self.folder.rglob('*') if file.suffix.lower() in SUFFIXES and file.is_file())
        self.files = sorted(found)
        if not self.files:
            found = 'none of them is in it or below it' if self.folder.is_dir() else 'there is no such folder'
            raise AutoDFPError(f'pictures ({", ".join(SUFFIXES)}) were to be read from {folder}, but {found}')
        self.scale, self.rgb = scale, rgb
        self._resize = mmcv.imrescale if keep_ratio else mmcv.imresize

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
            if self.scale and image is not None:
                image = self._resize(image, self.scale)
        except (cv2.error, OSError):  # an empty file, one that must not be read, or a line that nothing is left of
            image = None
        if image is None:
            raise AutoDFPError(f'picture {file} was to be read, but it cannot be, or is no picture; take it out')
        pixels = torch.from_numpy(image).reshape(*image.shape[:2], -1).permute(2, 0, 1).float()
        return pixels.flip(0) if self.rgb else pixels  # files are read with blue first


def _part(image: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A random part [C, height, width] of an image, which is filled up at the bottom and on the right."""
    draw = partial(torch.randint, size=(1,), generator=generator)
    (height, width), (rows, columns) = size, image.shape[1:]
    top, left = (int(draw(high=max(room, 0) + 1)) for room in (rows - height, columns - width))
    image = image[:, top : top + height, left : left + width]
    return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))


def _both_sides(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size


@settings('a set of images')
class SyntheticImages:
    """Images that come from nowhere, or from a folder, a batch at a time; each pass gives the same ones.

    Attributes:
        num_images (int): Defaults to 64.
        size (tuple[int, int]): Height and width in pixels, 8 or more; one number stands for both. Defaults to 256.
        batch_size (int): Images held at a time, at least 2. Defaults to 8.
        kind (str): 'dead_leaves' or 'noise'. Defaults to 'dead_leaves'.
        seed (int): Defaults to 0.
        mean (tuple[float, ...]): [C], as the data preprocessor's. Defaults to 127.5 for 3 channels; 0 if the model has
            a preprocessor that hands pixels on as they are, as YOLOX has.
        std (tuple[float, ...]): [C]. Defaults to 58; 1 for such a preprocessor.
        folder (str | None): Folder of pictures, random parts of which take the place of drawn images; nothing needs to
            be known of what they show. Defaults to None.
        scale (tuple[int, int] | None): Width and height that a picture is made to fit in before a part is cut out; of a
            detector, as the test pipeline's ``Resize``. Defaults to None: pictures are taken as they are.
        keep_ratio (bool): Whether a picture keeps its ratio in that, or is stretched, likewise. Defaults to True.
        rgb (bool | None): Whether red is the first channel of a picture, as the model takes it. Defaults to None: for
            detectors of MMDetection as their data preprocessor hands images on, for others True.

    Raises:
        AutoDFPError: A setting is unknown, of another type or out of its range.
    """

    num_images: TwoOrMore = 64
    size: Annotated[tuple[Side, Side], Field(strict=False), BeforeValidator(_both_sides)] = (256, 256)
    batch_size: TwoOrMore = 8
    kind: Literal['dead_leaves', 'noise'] = 'dead_leaves'
    seed: int = 0
    mean: Several[float] = USUAL['mean']
    std: Several[Positive] = USUAL['std']
    folder: Annotated[str, Field(min_length=1)] | None = None
    scale: Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    keep_ratio: bool = True
    rgb: bool | None = None

    @property
    def identity(self) -> str:
        """The settings, by which two searches can be told apart; pictures count by name and size, wherever they are."""
        told = asdict(self)
        if self.folder is None:
            told = {name: value for name, value in told.items() if name not in OF_PICTURES}
        else:
            told['folder'] = self._pictures.digest
        return f'{type(self).__name__}({", ".join(f"{name}={value!r}" for name, value in told.items())})'

    @property
    def _pictures(self) -> Pictures:
        return Pictures(self.folder, self.scale, self.rgb is not False, self.keep_ratio)

    def normalized_as(self, model: nn.Module) -> 'SyntheticImages':
        """The same images at the scale of a model's data preprocessor, if it has one that tells it."""
        preprocessor, rgb = getattr(model, 'data_preprocessor', None), self.rgb
        if rgb is None and is_detector(model):  # its files are read with blue first
            rgb = getattr(preprocessor, '_channel_conversion', True)
        if is_torchvision_detector(model):  # it takes pixels in [0, 1]
            scale = (model.transform.image_mean, model.transform.image_std)
            mean, std = (255 * torch.tensor(values) for values in scale)
        else:
            mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
        if mean is None or std is None:
            # A scale that was asked for may be that of a pipeline that normalises, or of a preprocessor's own code.
            raw = getattr(preprocessor, '_enable_normalize', None) is False
            untold = raw and dict(mean=self.mean, std=self.std) == USUAL
            return replace(self, rgb=rgb, **(RAW if untold else {}))
        return replace(self, mean=tuple(mean.flatten().tolist()), std=tuple(std.flatten().tolist()), rgb=rgb)

    def batches(self, device: torch.device | str = 'cpu') -> Iterator[Tensor]:
        """[B, C, H, W] each; a last batch of a single image would have no statistics and joins the one before.

        Raises:
            AutoDFPError: A picture cannot be read, or there is none.
        """
        draw = KINDS[self.kind] if self.folder is None else self._pictures
        first = 0
        while first < self.num_images:
            left = self.num_images - first
            count = left if left <= self.batch_size + 1 else self.batch_size
            yield draw(count, self.size, self.mean, self.std, self.seed, first).to(device)
            first += count
