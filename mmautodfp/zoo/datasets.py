"""Data sets of labelled images for MMEngine's data loaders."""

import os
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from mmengine.dist import get_world_size
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import DATASETS

CIFAR10_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
DIGITS_SPLITS = {'train': (0, 1000), 'val': (1000, 1300), 'test': (1300, 1797)}


class ClassificationDataset(Dataset, ABC):
    """Images with one label each.

    Attributes:
        labels (list[int]): [n], the label of each image.
        names (list[str]): [n], the name of each image; it is the same in every data set that has the image.
        metainfo (dict): ``classes`` has the names of the labels.
    """

    labels: list[int]
    names: list[str]
    metainfo: dict

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """An image, uint8 [C, H, W]; three channels are RGB."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        sample = BaseDataElement(gt_label=self.labels[index], metainfo=dict(name=self.names[index]))
        return dict(inputs=self.image(index), data_samples=sample)


class _ArrayDataset(ClassificationDataset):
    """Images in memory.

    Attributes:
        pixels (np.ndarray): uint8 [n, H, W, C].
    """

    pixels: np.ndarray

    def image(self, index: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.pixels[index].transpose(2, 0, 1)))


@DATASETS.register_module()
class CIFAR10(_ArrayDataset):
    """CIFAR-10, from torchvision's folder or from an ``.npz`` file.

    Args:
        data_root (str | os.PathLike): Folder of torchvision's ``CIFAR10``, or a file ``*.npz`` with ``images`` (uint8
            [n, 32, 32, 3]), ``labels`` [n] and, if they are a part of the test set, ``official_index`` [n], their
            indices in it. Defaults to 'data/cifar10'.
        train (bool): Whether to take the folder's 50,000 images for training; of a file, whether its images are of
            these. Defaults to False: the test set.
        download (bool): Whether to download the data set (170 MB) if the folder lacks it, except in a distributed run.
            Defaults to True.

    Raises:
        AutoDFPError: The folder lacks the data set and it cannot be downloaded, or the file does not hold images and
            labels.
    """

    def __init__(self, data_root: str | os.PathLike = 'data/cifar10', train: bool = False, download: bool = True):
        path = Path(data_root)
        if path.suffix == '.npz':
            self.pixels, labels, places = _read_npz(path)
        else:
            found = _torchvision_cifar10(path, train, download and get_world_size() == 1)
            self.pixels, labels, places = found.data, found.targets, range(len(found.targets))
        self.labels = [int(label) for label in labels]
        self.names = [f'cifar10/{"train" if train else "test"}/{place}' for place in places]
        self.metainfo = dict(classes=CIFAR10_CLASSES)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not path.is_file():
        raise AutoDFPError(f'CIFAR-10 was to be read from {path}, but there is no such file; name one, or a folder')
    try:
        with np.load(path) as content:
            images, labels = content['images'], content['labels']
            places = content['official_index'] if 'official_index' in content else np.arange(len(labels))
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise AutoDFPError(
            f'CIFAR-10 was to be read from {path}, but that is no .npz file with images and labels ({error})'
        ) from None
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images) == len(labels) == len(places):
        raise AutoDFPError(
            f'{path} was expected to hold uint8 images [n, 32, 32, 3] and as many labels, found {images.dtype} '
            f'{list(images.shape)} and {len(labels)} labels'
        )
    return images, labels, places


def _torchvision_cifar10(path: Path, train: bool, download: bool) -> torchvision.datasets.CIFAR10:
    try:
        return torchvision.datasets.CIFAR10(str(path), train=train)
    except RuntimeError:  # torchvision's error if it is missing or incomplete
        reason = f'{path} does not hold it'
    if download:
        try:
            return torchvision.datasets.CIFAR10(str(path), train=train, download=True)
        except (URLError, OSError, RuntimeError) as error:
            reason += f', and fetching it failed ({error})'
    raise AutoDFPError(
        f'CIFAR-10 is needed, but {reason}; put cifar-10-python.tar.gz unpacked into {path}, or name a folder or an '
        '.npz file that holds it as data_root of the data set'
    )


@DATASETS.register_module()
class ImageFolder(ClassificationDataset):
    """Images in one folder for each class, as ImageNet's validation set is usually kept.

    The folders sorted by name are the classes 0, 1 and so on.

    Args:
        data_root (str | os.PathLike): Folder with the folders of the classes.
        resize (int): Length in pixels to which the shorter side is resized. Defaults to 256.
        size (int): Side in pixels of the square that is then cropped from the centre. Defaults to 224.

    Raises:
        AutoDFPError: There are no such folders, or one of them has no image.
    """

    def __init__(self, data_root: str | os.PathLike, resize: int = 256, size: int = 224):
        try:
            found = torchvision.datasets.ImageFolder(str(data_root))
        except FileNotFoundError as error:
            reason = error if Path(data_root).is_dir() else 'there is no such folder'
            raise AutoDFPError(
                f'images were to be read from {data_root}, one folder a class, but {reason}; put them there or set '
                'data_root of the data set'
            ) from None
        self._root = Path(data_root)
        self._prepare = Compose([Resize(resize), CenterCrop(size), PILToTensor()])
        self.names = [str(Path(path).relative_to(self._root)) for path, _ in found.samples]
        self.labels = [label for _, label in found.samples]
        self.metainfo = dict(classes=tuple(found.classes))

    def image(self, index: int) -> Tensor:
        with Image.open(self._root / self.names[index]) as picture:
            return self._prepare(picture.convert('RGB'))


@DATASETS.register_module()
class SklearnDigits(_ArrayDataset):
    """The 1,797 handwritten digits that come with scikit-learn, in grey, 8x8 pixels; nothing is downloaded.

    Args:
        split (str): 'train' (1,000 digits), 'val' (300) or 'test' (497); they are disjoint.
        shift (int): Largest random shift, in pixels along each axis, of an image each time it is read, for training.
            Defaults to 0.

    Raises:
        AutoDFPError: The split is none of the three.
    """

    def __init__(self, split: str, shift: int = 0):
        if split not in DIGITS_SPLITS:
            known = ', '.join(DIGITS_SPLITS)
            raise AutoDFPError(f'SklearnDigits was asked for split={split!r}; it must be one of {known}')
        from sklearn.datasets import load_digits  # slow to import, and only needed here

        digits = load_digits()
        chosen = np.random.default_rng(0).permutation(len(digits.target))[slice(*DIGITS_SPLITS[split])]
        self.pixels = (digits.images[chosen, ..., None] * 15.9375).round().astype(np.uint8)  # 0..16 to 0..255
        self.labels = digits.target[chosen].tolist()
        self.names = [f'digits/{index}' for index in chosen]
        self.shift = shift
        self.metainfo = dict(classes=tuple('0123456789'))

    def image(self, index: int) -> Tensor:
        image = super().image(index)
        if self.shift:
            down, right = torch.randint(-self.shift, self.shift + 1, (2,)).tolist()
            image = image.roll((down, right), (1, 2))  # what comes round is background: the margins are empty
        return image
