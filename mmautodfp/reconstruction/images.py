"""The images that a model is fitted and rewarded on: synthetic ones, or random crops of the user's pictures."""

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
OF_PICTURES = ('folder', 'scale', 'keep_ratio', 'rgb')  # settings that synthetic images do not use
# Mean and deviation of pixels: about those of most data preprocessors, and those of one that does not normalise.
USUAL = dict(mean=(127.5,) * 3, std=(58.0,) * 3)
RAW = dict(mean=(0.0,) * 3, std=(1.0,) * 3)


class Pictures:
    """Random crops of the pictures in a folder, normalised as by a data preprocessor.

    Image number i is always the same crop of the same picture, in batches of any size. All pictures are used before one
    is used again.

    Args:
        folder (str): Folder with the pictures, which may be in subfolders. Hidden files and folders are left out.
        scale (tuple[int, int] | None): As of :class:`SyntheticImages`.
        rgb (bool): Whether red is the first channel; if not, blue is.
        keep_ratio (bool): As of :class:`SyntheticImages`.

    Raises:
        AutoDFPError: There is no such folder, or no picture in it.
    """

    def __init__(self, folder: str, scale: tuple[int, int] | None, rgb: bool, keep_ratio: bool):
        self.folder = Path(folder)
        found = (file for file in self.folder.rglob('*') if file.suffix.lower() in SUFFIXES and file.is_file())
        # Hidden ones are no pictures (macOS: ._a.jpg beside a.jpg) or thumbnails of others.
        hidden = lambda file: any(part.startswith('.') for part in file.relative_to(self.folder).parts)
        self.files = sorted(file for file in found if not hidden(file))
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
        self, num_images: int, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], seed: int, first: int
    ) -> Tensor:
        """Images [M, C, H, W]; where a picture is too small, the rest is 0, the mean.

        Arguments as of :func:`mmautodfp.kernels.dead_leaves`; ``seed`` is that of the choice of pictures and crops.

        Raises:
            AutoDFPError: A picture cannot be read, or C is neither 1 nor 3.
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
        except (cv2.error, OSError):  # an empty file, or no permission
            image = None
        if image is None:
            raise AutoDFPError(f'picture {file} was to be read, but it cannot be, or is no picture; take it out')
        height, width = image.shape[:2]
        try:
            image = self._resize(image, self.scale) if self.scale else image
        except cv2.error:
            raise AutoDFPError(
                f'picture {file} of {width}x{height} pixels was to be made to fit in {"x".join(map(str, self.scale))}, '
                'but is too thin: nothing would be left of it; take it out'
            ) from None
        pixels = torch.from_numpy(image).reshape(*image.shape[:2], -1).permute(2, 0, 1).float()
        return pixels.flip(0) if self.rgb else pixels  # mmcv reads blue first


def _part(image: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A random crop [C, height, width] of an image; a smaller image is padded with 0 at the bottom and on the right."""
    draw = partial(torch.randint, size=(1,), generator=generator)
    (height, width), (rows, columns) = size, image.shape[1:]
    top, left = (int(draw(high=max(room, 0) + 1)) for room in (rows - height, columns - width))
    image = image[:, top : top + height, left : left + width]
    return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))


def _both_sides(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size


@settings('a set of images')
class SyntheticImages:
    """Synthetic images, or crops of the pictures in a folder, in batches; every pass gives the same ones.

    Attributes:
        num_images (int): 2 or more. Defaults to 64.
        size (tuple[int, int]): Height and width in pixels, 8 or more; one number stands for both. Defaults to 256.
        batch_size (int): Images in a batch, at least 2; the last one may be larger by 1. Defaults to 8.
        kind (str): 'dead_leaves' (overlapping random ellipses) or 'noise'. Defaults to 'dead_leaves'.
        seed (int): Defaults to 0.
        mean (tuple[float, ...]): [C], subtracted from pixels of 0 to 255. A model's data preprocessor with a mean and
            std of its own overrides both. Defaults to 127.5 for 3 channels; to 0 if the model's data preprocessor does
            not normalise, as YOLOX's.
        std (tuple[float, ...]): [C], by which pixels are then divided. Defaults to 58; to 1 if the model's data
            preprocessor does not normalise.
        folder (str | None): Folder of pictures, of which random crops replace the synthetic images; no annotations are
            needed. Defaults to None.
        scale (tuple[int, int] | None): Width and height that a picture is resized to before it is cropped; for a
            detector, those of ``Resize`` in the test pipeline. Defaults to None: pictures are not resized.
        keep_ratio (bool): Whether a picture keeps its ratio: its long side is then at most the longer one of ``scale``,
            its short side at most the shorter one; if not, it is stretched to ``scale``. Defaults to True.
        rgb (bool | None): Whether red is the first channel of a picture, as the model expects. Defaults to None: for
            detectors of MMDetection as their data preprocessor converts images, for others True.

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

    def __post_init__(self):
        if len(self.mean) != len(self.std):
            raise AutoDFPError(
                f'a set of images was asked for mean={list(self.mean)} and std={list(self.std)}; give both a value '
                'for each channel'
            )

    @property
    def identity(self) -> str:
        """The settings as text, to compare those of two searches; pictures are compared by name and size in bytes."""
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
        """The same images, normalised as by a model's data preprocessor if it has a mean and std."""
        preprocessor, rgb = getattr(model, 'data_preprocessor', None), self.rgb
        if rgb is None and is_detector(model):  # MMDetection reads files with blue first
            rgb = getattr(preprocessor, '_channel_conversion', True)
        if is_torchvision_detector(model):  # its mean and std are for pixels in [0, 1]
            scale = (model.transform.image_mean, model.transform.image_std)
            mean, std = (255 * torch.tensor(values) for values in scale)
        else:
            mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
        if mean is None or std is None:
            # Keep a mean and std that the user set: the pipeline, or the preprocessor's own code, may normalise.
            raw = getattr(preprocessor, '_enable_normalize', None) is False
            untold = raw and dict(mean=self.mean, std=self.std) == USUAL
            return replace(self, rgb=rgb, **(RAW if untold else {}))
        mean, std = (tuple(torch.as_tensor(values).flatten().tolist()) for values in (mean, std))
        return replace(self, mean=mean, std=std, rgb=rgb)

    def batches(self, device: torch.device | str = 'cpu') -> Iterator[Tensor]:
        """Give the images in batches [B, C, H, W].

        A single image would make a last batch without batch statistics; it is put into the batch before.

        Args:
            device (torch.device | str): Where the images are to be. Defaults to 'cpu'.

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
