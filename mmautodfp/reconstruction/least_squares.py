"""Beyond the paper: pruned channels replaced by least squares from all retained ones, fitted on synthetic images."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, outputs_by_kind, outputs_first, phases
from mmautodfp.kernels import (
    bounded_gain,
    least_squares_delivery,
    output_variance,
    rank_by_explanation,
    unexplained_shares,
)
from mmautodfp.surgery import PruningPlan, Restore
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import RECONSTRUCTORS, build_settings, build_switched
from mmautodfp.utils.settings import NotNegative, Whole, checked

from .base import OutputChange, Reconstruction, Reconstructor
from .distillation import Distillation, distill
from .foreground import Foreground, foreground_of
from .images import SyntheticImages
from .layer_fit import Refinement
from .recalibration import Recalibration
from .refine import refine
from .sensitivity import output_errors, scaled_curve
from .synthetic import InputMoments, batch_statistics, in_eval_mode, input_moments, inputs_of, require_taken

# Default number of images on which the sensitivity of groups is measured; of small images, those with as many pixels.
SENSITIVITY = 8
SENSITIVITY_PIXELS = SENSITIVITY * 128 * 128
# Added to the seed of the images; far from the seeds that people choose and from those of rewards.
DISTILLATION_SEED = 100_000


@dataclass(frozen=True)
class _Consumer:
    """What an episode needs of a consumer that reads the N channels of a group.

    Attributes:
        weight (Tensor): [M, N, taps], dense, for these channels.
        mean (Tensor): [N], of the channels as the consumer reads them.
        covariance (Tensor): [N, N], likewise.
        taps (Tensor): [taps, taps], correlation of the inputs at the kernel's taps.
        variance (Tensor): [M], of the part of its outputs that comes from these channels.
        phases (int): Each output reads one in so many taps.
    """

    weight: Tensor
    mean: Tensor
    covariance: Tensor
    taps: Tensor
    variance: Tensor
    phases: int

    @cached_property
    def matters(self) -> Tensor:
        """[N, N], how much the product of the errors in two channels adds to the squared error of the outputs."""
        return torch.einsum('ons,oms->nm', self.weight, self.weight)


@RECONSTRUCTORS.register_module()
class SyntheticLeastSquares(Reconstructor):
    """Replaces every pruned channel by its least-squares estimate from the retained ones, fitted on synthetic images.

    The synthetic images are overlapping random ellipses; crops of the user's pictures can replace them
    (``images=dict(folder=...)``).

    Fit: The images pass through the dense module. Every BatchNorm uses the statistics of the batch, so that its
    output has the mean and deviation of the training, whatever the images are.

    Episode: The mean and covariance of the channels give the least-squares delivery for any choice of retained
    channels. The mean of what it misses moves into the consumer's norm or bias, and the consumer's outputs are scaled
    to their dense deviation. One pass of the images through the pruned module then corrects the running statistics of
    its norms (:class:`.recalibration.Recalibration`).

    Full pass: The chosen plan is refined group by group (:mod:`mmautodfp.reconstruction.refine`).

    Args:
        images (dict | None): Settings of :class:`SyntheticImages`. Defaults to None: 64 dead-leaves images of 256 x 256
            pixels, normalised as by the model's data preprocessor.
        ridge (float): Strength of the ridge: this share of the retained channels' mean variance is added to the
            variance of each. Defaults to 1e-2.
        ranking (str): By which the kept channels are chosen: 'l2', the paper's norm of the weights, or 'explanation',
            how much of the consumers' inputs they explain. Defaults to 'explanation'.
        rematch (bool): Scale the consumers' outputs to their dense deviation. Defaults to True.
        recalibration (int): Images in an episode's pass through the pruned module, rounded up to whole batches; 0
            leaves the recalibration out. Defaults to 64.
        sensitivity (int | None): Images on which each group is pruned alone, to scale its error curve by the error in
            the model's outputs, 2 at least; 0 leaves the error curves as shares of lost variance. Defaults to None: 0
            if a part of the model is pruned, as its groups are alike. If the module holds all parameters of the model:
            8 images, or of images smaller than 128 x 128 as many as have the pixels of 8 such, but no more than
            ``images`` has.
        refinement (dict | bool | None): Settings of :class:`mmautodfp.reconstruction.Refinement`, the full pass. True
            or None is for its defaults, False leaves it out. Defaults to True.
        distillation (dict | bool): Settings of :class:`mmautodfp.reconstruction.Distillation`, which follows the full
            pass on other images and takes minutes; True is for its defaults, False leaves it out. After a search or a
            frontier, only the chosen plan is distilled. Defaults to False.

    Raises:
        AutoDFPError: A setting is unknown, of another type or out of its range, or there is a distillation without
            refinement.
    """

    @checked('SyntheticLeastSquares')
    def __init__(
        self,
        images: dict | None = None,
        ridge: NotNegative = 1e-2,
        ranking: Literal['l2', 'explanation'] = 'explanation',
        rematch: bool = True,
        recalibration: Whole = 64,
        sensitivity: Whole | None = None,
        refinement: dict | bool | None = True,
        distillation: dict | bool = False,
    ):
        super().__init__()
        self.images = build_settings(SyntheticImages, images, 'images')
        self.ridge = ridge
        self.rank_by = ranking
        self.rematch = rematch
        self.recalibration = recalibration
        self.sensitivity = sensitivity
        self.refinement = build_switched(Refinement, refinement, 'refinement')
        self.distillation = build_switched(Distillation, distillation, 'distillation')
        if self.distillation and not self.refinement:
            raise AutoDFPError(
                'distillation was asked for with refinement=False, but it starts where the full pass ends; leave out '
                'refinement'
            )
        self._consumers: dict[str, dict[str, _Consumer]] = {}
        self._recalibration: Recalibration | None = None
        self._twin: nn.Module | None = None
        self._foregrounds: list[Foreground | None] = []
        self._batches: Callable[[], Iterator[tuple]] | None = None

    @property
    def has_full_pass(self) -> bool:
        return bool(self.refinement)

    @property
    def undistilled(self) -> Reconstructor:
        if self.distillation is None:
            return self
        other = copy.copy(self)  # what was fitted is shared
        other.distillation = None
        return other

    @property
    def identity(self) -> str:
        # Without distillation, which no search or frontier depends on. With `error_power`, a setting that is gone:
        # kept searches and frontiers of earlier versions name it, with the value for what is done now.
        text = super(SyntheticLeastSquares, self.undistilled).identity.replace('distillation=None, ', '')
        return text.replace('(', '(error_power=1.0, ', 1)

    def _fit(self, module: nn.Module, model: nn.Module) -> None:
        device = next(module.parameters()).device
        images = list(self.images.normalized_as(model).batches(device))  # all at once: small beside a layer's outputs
        otherwise = (
            'if it takes anything but one batch of images, use '
            "reconstructor=dict(type='SimilarityReconstructor'), which needs none"
        )
        with in_eval_mode(model):
            for part in dict.fromkeys((module, model)):  # the model too: the foreground comes from its head
                require_taken(part, model, images[0], otherwise)
            # Now, for the regions of the dense first stage.
            whole = [inputs_of(model, model, batch) for batch in images]
            # No local functions: a task can be pickled, and a copy of it runs the copy of the model.
            self._batches = partial(iter, whole) if module is model else partial(_inputs_of_all, model, module, images)
            with batch_statistics(model), torch.no_grad():
                self._foregrounds = [foreground_of(model, outputs_by_kind(model, *inputs)) for inputs in whole]
            moments, statistics = input_moments(module, self._groups, self._batches(), self._foregrounds)
            few = -(-self.recalibration // self.images.batch_size)
            if few:
                few_batches = partial(_first, few, self._batches)
                self._recalibration = Recalibration(module, self._groups, few_batches, statistics.of_first(few))
        self._consumers = {group.name: _consumers_of(module, group, moments) for group in self._groups}
        self._twin = statistics.twin(module) if self.refinement else None

    def ranking(self, group: ChannelGroup) -> Tensor | None:
        """The channels that explain most of the consumers' inputs first, consumers weighted alike; None for 'l2'."""
        if self.rank_by == 'l2':
            return None
        consumers = list(self._consumers[group.name].values())
        covariance, matters = consumers[0].covariance, consumers[0].matters
        if len(consumers) > 1:
            covariance = sum(one.covariance for one in consumers) / len(consumers)
            read = [(one.matters * one.covariance).sum().clamp_min(1e-30) for one in consumers]
            matters = sum(one.matters / scale for one, scale in zip(consumers, read, strict=True))
        return rank_by_explanation(covariance, matters, group.block)

    def error_curve(self, group: ChannelGroup, ranking: Tensor) -> Tensor:
        """Share of the consumers' inputs that the retained channels do not explain, [N + 1], mean over the consumers.

        The inputs at different taps of a kernel are taken as uncorrelated.
        """
        consumers = self._consumers[group.name].values()
        order = group.channels(ranking.to(next(iter(consumers)).mean.device))
        shares = [unexplained_shares(one.covariance, one.matters, order)[:: group.block] for one in consumers]
        return torch.stack(shares).mean(0)

    @torch.no_grad()
    def error_curves(self, groups: Sequence[ChannelGroup], rankings: Sequence[Tensor]) -> list[Tensor]:
        """The error curves of all groups, scaled by the errors in the model's outputs (see ``sensitivity``)."""
        curves = super().error_curves(groups, rankings)
        model, module = self._model, self._fitted
        count = self._sensitivity_of(module, model) if self.sensitivity is None else self.sensitivity
        if not count:
            return curves
        size = min(max(2, count), self.images.batch_size)
        images = replace(self.images, num_images=max(2, count), batch_size=size).normalized_as(model)
        device = next(module.parameters()).device
        batches = [inputs_of(model, model, batch) for batch in images.batches(device)]
        runs = [partial(outputs_by_kind, model, *inputs) for inputs in batches]
        with batch_statistics(model):
            errors = output_errors(model, module, groups, rankings, self, runs)
        return [scaled_curve(curve.cpu(), found) for curve, found in zip(curves, errors, strict=True)]

    def _sensitivity_of(self, module: nn.Module, model: nn.Module) -> int:
        """The default of ``sensitivity``. Parameters are compared: the module may be all of the model but a wrapper."""
        if len(list(module.parameters())) < len(list(model.parameters())):
            return 0
        enough = SENSITIVITY_PIXELS // math.prod(self.images.size)
        return min(max(SENSITIVITY, enough), self.images.num_images)

    def reconstruct(self, group: ChannelGroup, keep: Tensor, lam: float) -> Reconstruction:
        channels = group.channels(keep)
        own = {key: self._for_consumer(one, channels) for key, one in self._consumers[group.name].items()}
        return replace(next(iter(own.values())), own=own)

    def _for_consumer(self, consumer: _Consumer, channels: Tensor) -> Reconstruction:
        delivery, constant = least_squares_delivery(consumer.mean, consumer.covariance, channels, self.ridge)
        if not self.rematch:
            return Reconstruction(delivery, constant)
        covariance = consumer.covariance[channels][:, channels]
        merged = torch.einsum('mns,nk->mks', consumer.weight.double(), delivery)
        gain = bounded_gain(consumer.variance, output_variance(merged, covariance, consumer.taps))
        # The shift keeps the mean, which the gain would change.
        mean = merged.sum(2) @ consumer.mean[channels] / consumer.phases
        return Reconstruction(delivery, constant, OutputChange(gain, (1 - gain) * mean))

    def recalibrate(self, module: nn.Module, plan: PruningPlan, restore: Restore) -> None:
        if self._recalibration:
            with in_eval_mode(self._model):
                self._recalibration(module, plan, restore)

    def finalize(self, module: nn.Module, plan: PruningPlan, restore: Restore) -> None:
        if not self.refinement:
            self.recalibrate(module, plan, restore)
            return
        images = (self._batches, self._foregrounds)
        with in_eval_mode(self._model):  # the layers in front of the module; the copies are in it already
            slim = refine(module, self._twin, self._groups, plan, self, *images, self.refinement, restore)
            if self.distillation:
                distill(module, self._twin, slim, self._new_batches(module), self.distillation, restore)

    @torch.no_grad()
    def _new_batches(self, module: nn.Module) -> Iterator[tuple]:
        """Inputs of a pruned module for the distillation, from images that are used for nothing else."""
        size, seed = self.distillation.batch_size, self.images.seed + DISTILLATION_SEED
        images = replace(self.images, num_images=self.distillation.steps * size, batch_size=size, seed=seed)
        # A detector that is pruned as a whole gets the regions of the dense first stage.
        dense, part = (self._twin, self._twin) if module is self._model else (self._model, module)
        for batch in images.normalized_as(self._model).batches(next(module.parameters()).device):
            yield inputs_of(dense, part, batch)


def _inputs_of_all(model: nn.Module, module: nn.Module, images: Sequence[Tensor]) -> Iterator[tuple]:
    return (inputs_of(model, module, batch) for batch in images)


def _first(count: int, batches: Callable[[], Iterator[tuple]]) -> Iterator[tuple]:
    return islice(batches(), count)


def _consumers_of(
    module: nn.Module, group: ChannelGroup, moments: dict[tuple[str, str], InputMoments]
) -> dict[str, _Consumer]:
    """What episodes need of a group's consumers, by key.

    Raises:
        AutoDFPError: The weight of a consumer, or what it reads, is not finite.
    """
    consumers = {}
    for consumer in group.consumers:
        seen, layer = moments[group.name, consumer.key], module.get_submodule(consumer.name)
        weight, covariance, taps = outputs_first(layer).detach(), seen.moments.covariance, seen.taps
        if not (covariance.isfinite().all() and weight.isfinite().all()):
            raise AutoDFPError(
                f'{consumer.name} of the {type(module).__name__} was to be fitted on synthetic images, but its weight '
                'or what it reads there is not finite; look for nan and inf in the checkpoint'
            )
        weight = weight.narrow(1, seen.offset, seen.size).flatten(1).unflatten(1, (group.width, -1)).clone()
        variance = output_variance(weight, covariance, taps)
        consumers[consumer.key] = _Consumer(weight, seen.moments.mean, covariance, taps, variance, phases(layer))
    return consumers
