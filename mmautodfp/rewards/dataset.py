"""A metric on some images of a data set, as a reward."""

import copy
import os
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator
from torch import nn

from mmautodfp.rewards.fast.model import FastModel, choose_precision
from mmautodfp.utils import AutoDFPError

from .base import OtherDataset, Reward
from .subset import ImageBatches


def _ascending(shares: Sequence[float]) -> Sequence[float]:
    if any(low >= high for low, high in pairwise([0, *shares, 1])):
        raise ValueError('shares of the images must ascend and lie between 0 and 1')
    return shares


# Types of the arguments that the rewards on a data set have in common.
Stages = Annotated[Sequence[float], AfterValidator(_ascending)]
Precision = Literal['auto', 'float32', 'bfloat16', 'float16']


class DatasetReward(Reward):
    """Base class of rewards on a data set. Subclasses say how to open it, how to choose images, and what to measure.

    The subclasses describe and check the arguments.

    Attributes:
        indices (list[int]): Indices of the chosen images in the data set, set by :meth:`prepare`.
        stand_in (FastModel | None): The faster copy of the model that is evaluated, set by :meth:`prepare`; None if the
            model itself is evaluated.
        batches_type (type[ImageBatches]): Class that loads and caches the images.
        stand_in_type (type[FastModel]): Class of ``stand_in``.
    """

    batches_type: ClassVar[type[ImageBatches]]
    stand_in_type: ClassVar[type[FastModel]]

    def __init__(self, num_images, seed, batch_size, cache_gb, stages, precision, fast):
        self.num_images = num_images
        self.seed = seed
        self.batch_size = batch_size
        self.cache_gb = cache_gb
        self.shares = (*stages, 1)
        self.precision = precision
        self.fast = fast

    @abstractmethod
    def _open(self, config: dict) -> tuple[Any, list[str]]:
        """Open a data set from its config; the data set, and the names of its images.

        An image must have the same name in every data set: by it, images in two data sets are found.
        """

    @abstractmethod
    def _choose(self, indices: Sequence[int]) -> list[int]:
        """Choose :attr:`num_images` of these images, in the order in which the stages of a race take them."""

    @property
    def _has_truth(self) -> bool:
        """Whether the metric can be measured on the chosen images; False if none was chosen."""
        return bool(self.indices)

    def prepare(self, model: nn.Module, dataloader: dict, layers: Sequence[str] = ()) -> None:
        self._prepare(model, dataloader, excluded=set())
        if not self.indices:
            raise AutoDFPError(f'{self.name} was to be measured, but the data set of val_dataloader has no image')

    def _prepare(self, model: nn.Module, dataloader: dict, excluded: set[str]) -> None:
        self._dataset, names = self._open(dataloader['dataset'])
        self.indices = self._choose([index for index, name in enumerate(names) if name not in excluded])
        self._images = [names[index] for index in self.indices]
        self._taken = set(self._images)
        self._batch_size = self.batch_size or dataloader.get('batch_size', 1)
        num = len(self.indices)
        self._ends = sorted({max(1, round(share * num)) for share in self.shares}) if num else []
        stages = [self.indices[start:end] for start, end in pairwise([0, *self._ends])]
        preprocess = model.data_preprocessor
        self._batches = self.batches_type(self._dataset, preprocess, stages, self._batch_size, self.cache_gb)
        self._device = next(model.parameters(), torch.empty(0)).device
        self.stand_in = None
        if self.fast and self.indices:
            self.precision = choose_precision(self.precision, self._device)
            batch = self._batches[0]
            inputs = (batch['inputs'], batch['data_samples'])
            self.stand_in = self.stand_in_type.instead_of(model, self.precision, *inputs)
        if self.stand_in is None:
            self.precision = 'float32'

    @property
    def images(self) -> list[str]:
        return self._images

    @property
    def stages(self) -> list[int]:
        return self._ends

    @property
    def identity(self) -> str:
        return f'{self.name}, {self.precision}, stages {self.shares}'

    def one_batch(self) -> dict[str, Any]:
        return self._batches.middle_image()

    def judge(self, model: nn.Module, dataloader: dict, reported: dict | None = None) -> 'DatasetReward | None':
        kept: set[str] = set()
        if reported:
            # Every other one of the images that both could use is left for the held-out metric.
            left = {*self._open(dataloader['dataset'])[1]}.difference(self._images)
            with suppress(OtherDataset):  # then there is no held-out metric
                kept = set(sorted(left.intersection(self._open(reported['dataset'])[1]))[::2])
        other = self._beside(model, dataloader, len(self.indices), self.name, kept.union(self._images))
        self._taken = set(self._images).union(other.images if other else ())
        return other

    def held_out(self, model: nn.Module, dataloader: dict) -> 'DatasetReward | None':
        return self._beside(model, dataloader, None, self.reported_name, self._taken)

    def _beside(
        self, model: nn.Module, dataloader: dict, num_images: int | None, name: str, excluded: set[str]
    ) -> 'DatasetReward | None':
        """The reward on other images, prepared, in float32 and without cache.

        Args:
            model (nn.Module): The dense model.
            dataloader (dict): Config of the data loader of these images.
            num_images (int | None): Number of images; None for all.
            name (str): Name of the metric.
            excluded (set[str]): Names of images that are left out.

        Returns:
            DatasetReward | None: None if the metric cannot be measured on the images.
        """
        other = copy.copy(self)
        other.name, other.num_images, other.batch_size = name, num_images, self._batch_size
        other.cache_gb, other.shares, other.precision = 0, (1,), 'float32'
        other.fast = self.stand_in is not None  # do not try again, with the same warning
        other._prepare(model, dataloader, excluded)
        if not other._has_truth:
            return None
        # Raise the error for a missing image now, not after the search; without one, try to read the first image.
        missing = (index for index, path in zip(other.indices, other.images, strict=True) if not os.path.exists(path))
        other._batches.load(next(missing, other.indices[0]))
        return other
