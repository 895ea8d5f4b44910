"""Likeness of a pruned model's features to the dense one's on images that come from nowhere: a reward without data."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from mmautodfp.reconstruction import SyntheticImages, batch_statistics, features_of
from mmautodfp.utils.registry import REWARDS, build_settings
from mmautodfp.utils.settings import checked

from .base import Reward


@REWARDS.register_module()
class SyntheticReward(Reward):
    """Likeness of the model's features to the dense model's, at most 1, on synthetic images; it opens no file.

    Features are what the model gives before its heads: the levels of a detector's pyramid, or a classifier's logits if
    it has no ``extract_feat``. All levels count alike.

    Args:
        images (dict | None): Settings of :class:`mmautodfp.reconstruction.SyntheticImages`. The seed differs from that
            of the reconstructor, so that a plan is not judged on what it was fitted to. Defaults to None: 16
            dead-leaves images of 256 pixels.
        measure (str): 'error', 1 less the share of the features' variance that is missed, or 'cosine', the mean
            cosine similarity of the positions. Defaults to 'error'.
        statistics (str): 'batch' lets every BatchNorm use the batch's own statistics, in the dense and the pruned
            model, so that the images look to it like those of the training; 'running' leaves the norms alone. Defaults
            to 'batch'.

    Raises:
        AutoDFPError: A setting is unknown or out of its range.
    """

    needs_data = False

    @checked('SyntheticReward')
    def __init__(
        self,
        images: dict | None = None,
        measure: Literal['error', 'cosine'] = 'error',
        statistics: Literal['batch', 'running'] = 'batch',
    ):
        self._settings = build_settings(SyntheticImages, images, 'images', num_images=16, seed=1)
        self.measure = measure
        self.statistics = statistics
        self.name = 'feature_likeness'

    @torch.no_grad()
    def prepare(self, model: nn.Module, dataloader: dict | None = None, units: Sequence[str] = ()) -> None:
        settings = self._settings.normalized_as(model)
        self._batches = list(settings.batches(next(model.parameters()).device))
        self._dense = [[level.cpu() for level in levels] for levels in self._features(model)]

    @property
    def images(self) -> list[str]:
        return [f'{self._settings.kind} {self._settings.seed}:{i}' for i in range(self._settings.num_images)]

    @property
    def identity(self) -> str:
        return f'{self.name} ({self.measure}, {self.statistics}, {self._settings})'

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        compare = _missed if self.measure == 'error' else _unlike
        rows = [
            torch.stack([compare(level, dense.to(level)) for level, dense in zip(levels, known, strict=True)])
            for levels, known in zip(self._features(model), self._dense, strict=True)
        ]
        sums = torch.stack(rows).sum(0)  # [levels, 2]
        return 1 - (sums[:, 0] / sums[:, 1].clamp_min(1e-12)).mean().item()

    def _features(self, model: nn.Module) -> Iterator[list[Tensor]]:
        for images in self._batches:
            with batch_statistics(model) if self.statistics == 'batch' else nullcontext():
                found = features_of(model, images)
            yield [found] if isinstance(found, Tensor) else list(found)

    def one_batch(self) -> dict[str, Any]:
        image = self._batches[0][:1]
        shape = tuple(image.shape[-2:])
        shapes = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape)
        return dict(
            inputs=image, data_samples=[DetDataSample(metainfo=shapes | dict(img_id=0, scale_factor=(1.0, 1.0)))]
        )

    def held_out(self, model: nn.Module, dataloader: dict | None = None) -> None:
        return None


def _missed(found: Tensor, dense: Tensor) -> Tensor:
    """[2]: squared error, and what there is to miss, of one level [B, C, ...]; channels vary about their means."""
    error = (found - dense).double().pow(2).sum()
    rest = tuple(axis for axis in range(dense.ndim) if axis != 1)
    return torch.stack([error, (dense - dense.mean(rest, keepdim=True)).double().pow(2).sum()])


def _unlike(found: Tensor, dense: Tensor) -> Tensor:
    """[2]: sum of the cosine distances of all positions of one level, and their number."""
    distance = 1 - torch.cosine_similarity(found, dense, dim=1).double()
    return torch.stack([distance.sum(), distance.new_tensor(float(distance.numel()))])
