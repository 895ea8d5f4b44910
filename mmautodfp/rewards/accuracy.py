"""Top-1 accuracy on a validation subset, as a reward."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import nn

from mmautodfp.errors import AutoDFPError
from mmautodfp.registry import DATASETS, REWARDS, build

from .base import Reward


@REWARDS.register_module()
class AccuracyReward(Reward):
    """Share of correctly classified images, in [0, 1], on a choice with as many images of each class as possible.

    Args:
        num_images (int | None): Size of the subset; None takes all images. Defaults to 1000.
        seed (int): Seed of the choice. Defaults to 0.
        batch_size (int | None): Images evaluated at once. Defaults to None, the data loader's.
        cache_gb (float): Memory for the preprocessed images in GB, on the model's device. Those that do not fit are
            read again each time. Defaults to 4.
        stages (Sequence[float]): Shares of the images, ascending and below 1, after which a race may stop a plan.
            Defaults to (0.25, 0.5).

    Raises:
        AutoDFPError: ``num_images`` or ``batch_size`` is below 1, or ``stages`` do not ascend.
    """

    name = 'top1'

    def __init__(
        self,
        num_images: int | None = 1000,
        seed: int = 0,
        batch_size: int | None = None,
        cache_gb: float = 4.0,
        stages: Sequence[float] = (0.25, 0.5),
    ):
        for setting, value in (('num_images', num_images), ('batch_size', batch_size)):
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise AutoDFPError(f'AccuracyReward was asked for {setting}={value}; it must be 1 or more')
        if any(low >= high for low, high in pairwise([0, *stages, 1])):
            raise AutoDFPError(f'AccuracyReward was asked for stages={stages}; they must ascend, between 0 and 1')
        self.num_images = num_images
        self.seed = seed
        self.batch_size = batch_size
        self.cache_gb = cache_gb
        self.shares = (*stages, 1)

    def prepare(self, model: nn.Module, dataloader: dict, units: Sequence[str] = ()) -> None:
        self._prepare(model, dataloader, excluded=set())
        if not self.indices:
            raise AutoDFPError('accuracy was to be measured, but the data set of val_dataloader has no image')

    def _prepare(self, model: nn.Module, dataloader: dict, excluded: set[str]) -> None:
        self._dataset = _build_dataset(dataloader['dataset'])
        self._preprocess = model.data_preprocessor
        labels = {
            index: self._dataset.labels[index] for index, name in enumerate(self._dataset.names) if name not in excluded
        }
        self.indices = choose_balanced(labels, self.num_images, self.seed)
        self._batch_size = self.batch_size or dataloader.get('batch_size', 1)
        self._ends = sorted({max(1, round(share * len(self.indices))) for share in self.shares}) if self.indices else []
        self._chunks = [  # none is of two stages
            self.indices[start : min(start + self._batch_size, end)]
            for first, end in pairwise([0, *self._ends])
            for start in range(first, end, self._batch_size)
        ]
        self._cache = self._fill_cache()

    @property
    def images(self) -> list[str]:
        return [self._dataset.names[index] for index in self.indices]

    @property
    def stages(self) -> list[int]:
        return self._ends

    def held_out(self, model: nn.Module, dataloader: dict) -> 'AccuracyReward | None':
        other = AccuracyReward(None, self.seed, self._batch_size, cache_gb=0)
        other._prepare(model, dataloader, excluded=set(self.images))
        return other if other.indices else None

    def one_batch(self) -> dict[str, Any]:
        return self._load(self.indices[:1])

    def __call__(self, model: nn.Module) -> float:
        *_, accuracy = self.evaluate(model)
        return accuracy

    def evaluate(self, model: nn.Module) -> Iterator[float]:
        """Accuracy after each of :attr:`stages`."""
        seen = correct = 0
        for batch in self.batches():
            with torch.no_grad():  # not around the yield, where the caller's code runs
                samples = model(**batch, mode='predict')
            seen += len(samples)
            correct += sum(int(sample.pred_label) == int(sample.gt_label) for sample in samples)
            if seen in self._ends:
                yield correct / seen

    def batches(self) -> Iterator[dict]:
        """The images as the model takes them, cached ones first."""
        for number, chunk in enumerate(self._chunks):
            batch = self._cache[number] if number < len(self._cache) else self._load(chunk)
            # Predictions are written into the samples: the cached ones stay clean.
            yield dict(inputs=batch['inputs'], data_samples=[sample.clone() for sample in batch['data_samples']])

    def _fill_cache(self) -> list[dict]:
        cache: list[dict] = []
        room = self.cache_gb * 1e9
        for chunk in self._chunks if room else []:
            batch = self._load(chunk)
            room -= batch['inputs'].numel() * batch['inputs'].element_size()
            if room < 0:
                break
            cache.append(batch)
        return cache

    def _load(self, chunk: list[int]) -> dict:
        try:
            batch = self._preprocess(pseudo_collate([self._dataset[index] for index in chunk]), False)
        except OSError as error:
            raise AutoDFPError(
                f'the reward needs images which cannot be read ({error}); check data_root of its data loader'
            ) from None
        # Convolutions on a CPU take a fifth to a third less time so.
        return dict(batch, inputs=batch['inputs'].contiguous(memory_format=torch.channels_last))


def choose_balanced(labels: dict[int, int], num: int | None, seed: int) -> list[int]:
    """Choose images in random order such that the classes' counts differ by one at most, as far as they reach.

    Args:
        labels (dict[int, int]): Image to its class.
        num (int | None): How many to choose; None or too many: all.
        seed (int): Seed of the choice.

    Returns:
        list[int]: Images: one of each class in random order of the classes, then a second one of each, and so on.
    """
    rng = np.random.default_rng(seed)
    members: dict[int, list[int]] = {}
    for image in rng.permutation(sorted(labels)).tolist():
        members.setdefault(labels[image], []).append(image)
    rounds = [(place, rng.random(), image) for images in members.values() for place, image in enumerate(images)]
    return [image for *_, image in sorted(rounds)][:num]


def _build_dataset(config: dict):
    dataset = build(DATASETS, config)
    if not hasattr(dataset, 'labels') or not hasattr(dataset, 'names'):
        raise AutoDFPError(
            f'AccuracyReward needs labelled images in val_dataloader, found a {type(dataset).__name__}; use CIFAR10, '
            'ImageFolder, SklearnDigits or another subclass of ClassificationDataset'
        )
    return dataset
