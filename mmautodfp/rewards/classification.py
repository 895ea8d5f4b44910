"""Top-1 accuracy on a validation subset, as a reward."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import nn

from mmautodfp.rewards.fast.classifier import FastClassifier
from mmautodfp.rewards.fast.model import choose_precision, in_threads
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import DATASETS, REWARDS, build
from mmautodfp.utils.settings import Count, NotNegative, checked

from .base import Precision, Reward, Stages, kept_for_report, stage_ends


@REWARDS.register_module()
class AccuracyReward(Reward):
    """Share of correctly classified images, in [0, 1], on a choice with as many images of each class as possible.

    Held-out figures are always this share. What rewards the search may be the probability that the classifier gives to
    the right class, on average, which is less of a yes or no for each image (see docs/reproduction.md).

    Args:
        num_images (int | None): Size of the subset; None takes all images. Defaults to 1000.
        seed (int): Seed of the choice. Defaults to 0.
        metric (str): 'top1' or 'probability'. Defaults to 'top1'.
        batch_size (int | None): Images evaluated at once. Defaults to None, the data loader's.
        cache_gb (float): Memory for the preprocessed images in GB, on the model's device. Those that do not fit are
            read again each time. Defaults to 4.
        stages (Sequence[float]): Shares of the images, ascending and below 1, after which a race may stop a plan.
            Defaults to (0.25, 0.5).
        precision (str): 'float32', 'bfloat16', 'float16', or 'auto', the one of these that the device is fastest in.
            Held-out figures are always float32. Defaults to 'float32'.
        fast (bool): Evaluate a stand-in with norms folded and channels last. Defaults to True.

    Attributes:
        classifier (FastClassifier | None): The stand-in, once prepared; None if the model itself is evaluated.

    Raises:
        AutoDFPError: An argument is of another type or out of its range.
    """

    @checked('AccuracyReward')
    def __init__(
        self,
        num_images: Count | None = 1000,
        seed: int = 0,
        metric: Literal['top1', 'probability'] = 'top1',
        batch_size: Count | None = None,
        cache_gb: NotNegative = 4.0,
        stages: Stages = (0.25, 0.5),
        precision: Precision = 'float32',
        fast: bool = True,
    ):
        self.name = metric
        self.num_images = num_images
        self.seed = seed
        self.batch_size = batch_size
        self.cache_gb = cache_gb
        self.shares = (*stages, 1)
        self.precision = precision
        self.fast = fast

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
        self._taken = set(self.images)
        self._batch_size = self.batch_size or dataloader.get('batch_size', 1)
        self._ends = stage_ends(self.shares, len(self.indices))
        self._chunks: list[list[int]] = []
        self._chunks_of_stage: list[range] = []
        for first, end in pairwise([0, *self._ends]):
            stage, before = self.indices[first:end], len(self._chunks)
            self._chunks += [stage[at : at + self._batch_size] for at in range(0, len(stage), self._batch_size)]
            self._chunks_of_stage.append(range(before, len(self._chunks)))
        self._cache = self._fill_cache()
        self.classifier: FastClassifier | None = None
        if self.fast and self.indices:
            self.precision = choose_precision(self.precision, next(model.parameters(), torch.empty(0)).device)
            self.classifier = FastClassifier.instead_of(model, self.precision, self._batch(0)['inputs'])
        if self.classifier is None:
            self.precision = 'float32'

    @property
    def images(self) -> list[str]:
        return [self._dataset.names[index] for index in self.indices]

    @property
    def stages(self) -> list[int]:
        return self._ends

    @property
    def reported_name(self) -> str:
        return 'top1'

    @property
    def identity(self) -> str:
        return f'{self.name}, {self.precision}, stages {self.shares}'

    def judge(self, model: nn.Module, dataloader: dict, reported: dict | None = None) -> 'AccuracyReward | None':
        left = set(_build_dataset(dataloader['dataset']).names) - set(self.images)
        kept = kept_for_report(left, _build_dataset(reported['dataset']).names) if reported else set()
        other = self._beside(model, dataloader, len(self.indices), self.name, excluded=kept.union(self.images))
        self._taken = set(self.images).union(other.images if other else ())
        return other

    def held_out(self, model: nn.Module, dataloader: dict) -> 'AccuracyReward | None':
        return self._beside(model, dataloader, None, self.reported_name, excluded=self._taken)

    def _beside(
        self, model: nn.Module, dataloader: dict, num_images: int | None, metric: str, excluded: set[str]
    ) -> 'AccuracyReward | None':
        """A metric in float32 on images that are not excluded; None if there are none."""
        fast = self.classifier is not None  # why not has been said
        other = AccuracyReward(num_images, self.seed, metric, self._batch_size, cache_gb=0, stages=(), fast=fast)
        other._prepare(model, dataloader, excluded)
        return other if other.indices else None

    def one_batch(self) -> dict[str, Any]:
        return self._load(self.indices[:1])

    def __call__(self, model: nn.Module) -> float:
        *_, accuracy = self.evaluate(model)
        return accuracy

    def evaluate(self, model: nn.Module) -> Iterator[float]:
        """The metric after each of :attr:`stages`."""
        if self.classifier is not None:
            self.classifier.update(model)
        device = next(model.parameters(), torch.empty(0)).device
        total = 0.0
        for numbers, end in zip(self._chunks_of_stage, self._ends, strict=True):
            total += sum(in_threads(partial(self._score, model), numbers, device))
            yield total / end

    def _score(self, model: nn.Module, number: int) -> float:
        """The metric summed over the images of a batch."""
        batch = self._batch(number)
        if self.classifier is not None:
            logits = self.classifier.predict(batch['inputs'])
        else:
            # Predictions are written into the samples: the cached ones stay clean.
            samples = [sample.clone() for sample in batch['data_samples']]
            with torch.no_grad():
                logits = torch.stack([s.pred_scores for s in model(batch['inputs'], samples, mode='predict')])
        truth = torch.tensor([int(sample.gt_label) for sample in batch['data_samples']], device=logits.device)
        if self.name == 'probability':
            return logits.double().softmax(1)[torch.arange(len(truth)), truth].sum().item()
        return (logits.argmax(1) == truth).sum().item()

    def _batch(self, number: int) -> dict:
        return self._cache[number] if number < len(self._cache) else self._load(self._chunks[number])

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
