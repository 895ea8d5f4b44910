"""A reward without annotations: similarity of the outputs of the pruned and the dense model on the same images."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmautodfp.graph import outputs_by_kind, samples_of
from mmautodfp.reconstruction import (
    SyntheticImages,
    batch_statistics,
    foreground_of,
    inputs_of,
    require_taken,
    shares_missed,
    with_channels,
)
from mmautodfp.utils.registry import REWARDS, build_settings
from mmautodfp.utils.settings import checked

from .base import Reward


@REWARDS.register_module()
class SyntheticReward(Reward):
    """Similarity of a model's outputs to those of the dense model on synthetic images, at most 1; reads no data set.

    The outputs of a detector are those of all heads before boxes are decoded; its second stage gets the regions that
    the dense first stage proposes. All kinds of outputs (classes, boxes, ...) have the same weight, and positions where
    the dense model sees an object count more (:class:`.foreground.Foreground`).

    In both models every BatchNorm uses the statistics of the batch, so that the images are scaled like those of the
    training.

    Args:
        images (dict | None): Settings of :class:`mmautodfp.reconstruction.SyntheticImages`, but ``num_images`` defaults
            to 16 and ``seed`` to 1. That is not the seed of the reconstructor, so that a plan is not judged on the
            images that it was fitted to. Defaults to None: 16 dead-leaves images of 256 x 256 pixels.
        measure (str): 'error', 1 minus the share of the outputs' variance that is missed, or 'cosine', the mean
            cosine similarity at a position. Defaults to 'error'.

    Raises:
        AutoDFPError: A setting is unknown, of another type or out of its range.
    """

    needs_data = False

    @checked('SyntheticReward')
    def __init__(self, images: dict | None = None, measure: Literal['error', 'cosine'] = 'error'):
        self._settings = build_settings(SyntheticImages, images, 'images', num_images=16, seed=1)
        self.measure = measure
        self.name = 'output_likeness'

    @torch.no_grad()
    def prepare(self, model: nn.Module, dataloader: dict | None = None, layers: Sequence[str] = ()) -> None:
        settings = self._settings.normalized_as(model)
        images = list(settings.batches(next(model.parameters()).device))
        require_taken(model, model, images[0], 'CocoReward and AccuracyReward take the images of a data set')
        self._batches = [inputs_of(model, model, batch) for batch in images]
        self._dense = [[[level.cpu() for level in kind] for kind in outputs] for outputs in self._outputs(model)]
        self._foregrounds = [foreground_of(model, outputs) for outputs in self._dense]

    @property
    def images(self) -> list[str]:
        settings = self._settings
        return [f'{settings.folder or settings.kind} {settings.seed}:{i}' for i in range(settings.num_images)]

    @property
    def identity(self) -> str:
        return f'{self.name} ({self.measure}, batch, {self._settings.identity})'  # 'batch': as in kept searches

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        compare = None if self.measure == 'error' else _unlike
        return 1 - statistics.mean(shares_missed(self._outputs(model), self._dense, self._foregrounds, compare))

    def _outputs(self, model: nn.Module) -> Iterator[list[list[Tensor]]]:
        for inputs in self._batches:
            with batch_statistics(model):
                yield outputs_by_kind(model, *inputs)

    def one_batch(self) -> dict[str, Any]:
        image = self._batches[0][0][:1]
        return dict(inputs=image, data_samples=samples_of(image))

    def judge(
        self, model: nn.Module, dataloader: dict | None = None, reported: dict | None = None
    ) -> 'SyntheticReward':
        """The same on as many images of another seed, 1000 higher, so that it is hardly the reconstructor's."""
        other = SyntheticReward(None, self.measure)
        other._settings = replace(self._settings, seed=self._settings.seed + 1000)
        other.prepare(model)
        return other

    def held_out(self, model: nn.Module, dataloader: dict | None = None) -> None:
        return None


def _unlike(found: Tensor, dense: Tensor, weights: Tensor | None = None) -> Tensor:
    """[2]: weighted sum of the cosine distances at all positions of one output, and the sum of the weights."""
    found, dense = with_channels(found), with_channels(dense)
    distance = (1 - torch.cosine_similarity(found, dense, dim=1).double()).flatten()
    weights = torch.ones_like(distance) if weights is None else weights.to(distance)
    return torch.stack([weights @ distance, weights.sum()])
