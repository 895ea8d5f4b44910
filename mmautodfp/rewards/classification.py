"""Top-1 accuracy on a validation subset, as a reward."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from mmautodfp.rewards.fast.classifier import FastClassifier
from mmautodfp.rewards.fast.model import in_threads
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import DATASETS, REWARDS, build
from mmautodfp.utils.settings import Count, NotNegative, Whole, checked

from .base import OtherDataset
from .dataset import DatasetReward, Precision, Stages
from .subset import ImageBatches


class LabelledBatches(ImageBatches):
    """Batches of labelled images, in the order in which they were chosen."""

    def load(self, index: int) -> dict[str, Any]:
        try:
            return self._dataset[index]
        except OSError as error:
            raise AutoDFPError(
                f'the reward needs images which cannot be read ({error}); check data_root of its data loader'
            ) from None

    def _ordered(self, stage: Sequence[int]) -> list[int]:
        return list(stage)  # images must be of one size anyway: they are not padded

    def _prepared(self, data: dict) -> dict:
        data = super()._prepared(data)
        # Channels last: convolutions on a CPU take a fifth to a third less time.
        return dict(data, inputs=data['inputs'].contiguous(memory_format=torch.channels_last))


@REWARDS.register_module()
class AccuracyReward(DatasetReward):
    """Share of correctly classified images, in [0, 1], on a subset with as many images of each class as possible.

    Held-out figures are always this share. The reward of the search can instead be the mean probability of the right
    class, which changes more smoothly (see docs/reproduction.md).

    Args:
        num_images (int | None): Size of the subset; None takes all images. Defaults to 1000.
        seed (int): Seed of the choice, 0 or more. Defaults to 0.
        metric (str): 'top1' or 'probability'. Defaults to 'top1'.
        batch_size (int | None): Images in a batch. Defaults to None: the data loader's.
        cache_gb (float): Memory for the preprocessed images in GB, on the model's device, see :class:`ImageBatches`.
            Defaults to 4.
        stages (Sequence[float]): Shares of the images, ascending and below 1, after which a race may stop a plan.
            Defaults to (0.25, 0.5).
        precision (str): 'float32', 'bfloat16', 'float16', or 'auto' for the fastest of these on the device. It needs
            ``fast``. Held-out figures are always float32. Defaults to 'float32'.
        fast (bool): Evaluate a copy of the model, with folded norms and channels last, which is faster. Defaults to
            True.

    Attributes:
        stand_in (FastClassifier | None): That copy, set by :meth:`prepare`; None if the model itself is evaluated.

    Raises:
        AutoDFPError: An argument is of another type or out of its range.
    """

    batches_type = LabelledBatches
    stand_in_type = FastClassifier

    @checked('AccuracyReward')
    def __init__(
        self,
        num_images: Count | None = 1000,
        seed: Whole = 0,
        metric: Literal['top1', 'probability'] = 'top1',
        batch_size: Count | None = None,
        cache_gb: NotNegative = 4.0,
        stages: Stages = (0.25, 0.5),
        precision: Precision = 'float32',
        fast: bool = True,
    ):
        super().__init__(num_images, seed, batch_size, cache_gb, stages, precision, fast)
        self.name = metric

    def _open(self, config: dict) -> tuple[Any, list[str]]:
        dataset = build(DATASETS, config)
        if not hasattr(dataset, 'labels') or not hasattr(dataset, 'names'):
            raise OtherDataset(
                'AccuracyReward needs labelled images in val_dataloader and test_dataloader, found a '
                f'{type(dataset).__name__}; use CIFAR10, ImageFolder, SklearnDigits or another subclass of '
                'ClassificationDataset'
            )
        return dataset, dataset.names

    def _choose(self, indices: Sequence[int]) -> list[int]:
        return choose_balanced({index: self._dataset.labels[index] for index in indices}, self.num_images, self.seed)

    @property
    def reported_name(self) -> str:
        return 'top1'

    def __call__(self, model: nn.Module) -> float:
        *_, accuracy = self.evaluate(model)
        return accuracy

    def evaluate(self, model: nn.Module) -> Iterator[float]:
        """The metric after each of :attr:`stages`."""
        if self.stand_in is not None:
            self.stand_in.update(model)
        total = 0.0
        for numbers, end in zip(self._batches.stages, self._ends, strict=True):
            total += sum(in_threads(partial(self._score, model), numbers, self._device))
            yield total / end

    def _score(self, model: nn.Module, number: int) -> float:
        """The metric summed over the images of a batch."""
        batch = self._batches[number]
        if self.stand_in is not None:
            logits = self.stand_in.predict(batch['inputs'])
        else:
            # The model writes its predictions into the samples, and the cached ones must stay without.
            samples = [sample.clone() for sample in batch['data_samples']]
            with torch.no_grad():
                logits = torch.stack([s.pred_scores for s in model(batch['inputs'], samples, mode='predict')])
        truth = torch.tensor([int(sample.gt_label) for sample in batch['data_samples']], device=logits.device)
        if self.name == 'probability':
            return logits.double().softmax(1)[torch.arange(len(truth)), truth].sum().item()
        return (logits.argmax(1) == truth).sum().item()


def choose_balanced(labels: dict[int, int], num: int | None, seed: int) -> list[int]:
    """Choose images at random, the same number of each class (or one more), as long as a class has enough images.

    Args:
        labels (dict[int, int]): Index of each image to its class.
        num (int | None): Number of images to choose; None, or more than there are, for all.
        seed (int): Seed of the choice.

    Returns:
        list[int]: Indices of images: one of each class in random order of the classes, then another one of each, and so
        on.
    """
    rng = np.random.default_rng(seed)
    members: dict[int, list[int]] = {}
    for image in rng.permutation(sorted(labels)).tolist():
        members.setdefault(labels[image], []).append(image)
    rounds = [(place, rng.random(), image) for images in members.values() for place, image in enumerate(images)]
    return [image for *_, image in sorted(rounds)][:num]
