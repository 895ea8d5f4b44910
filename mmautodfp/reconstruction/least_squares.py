"""Beyond the paper: pruned channels made up from all retained ones, in least squares on synthetic images."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, outputs_by_kind, outputs_first
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
from .recalibration import Recalibration
from .refine import Refinement, refine
from .sensitivity import output_errors, scaled_curve
from .synthetic import InputMoments, batch_statistics, input_moments, inputs_of, require_taken

# Images on which groups are compared by default; of small ones, as many as have so many pixels.
SENSITIVITY = 8
SENSITIVITY_PIXELS = SENSITIVITY * 128 * 128
# Far from the seeds that people choose, and from those of rewards.
DISTILLATION_SEED = 100_000


@dataclass(frozen=True)
class _Consumer:
    """What an episode needs of a consumer, N channels of which belong to a group.

    Attributes:
        weight (Tensor): [M, N, taps], dense.
        mean (Tensor): [N], of what it reads.
        covariance (Tensor): [N, N].
        taps (Tensor): [taps, taps], how alike the inputs at its taps are.
        variance (Tensor): [M], of what it makes of them.
    """

    weight: Tensor
    mean: Tensor
    covariance: Tensor
    taps: Tensor
    variance: Tensor

    @cached_property
    def matters(self) -> Tensor:
        """[N, N], how much errors in two channels matter together."""
        return torch.einsum('ons,oms->nm', self.weight, self.weight)


@RECONSTRUCTORS.register_module()
class SyntheticLeastSquares(Reconstructor):
    """Every pruned channel is the best guess that the retained ones allow, learned on images that come from nowhere.

    Pictures of one's own may take their place (``images=dict(folder=...)``).

    Random overlapping ellipses pass once through the dense module, every BatchNorm using the batch's own statistics, so
    that its output has the mean and deviation of the training whatever the images are. From the channels' mean and
    covariance follows, for any retained channels, the least-squares delivery; what is left over on average moves into
    the consumer's norm or bias, and the consumer's outputs get back their deviation. One pass of the pruned module then
    tells how far the errors have moved what its norms are given (:class:`.recalibration.Recalibration`). That is what
    an episode costs. The best plan is refined once more, group by group (:mod:`mmautodfp.reconstruction.refine`).

    Args:
        images (dict | None): Settings of :class:`SyntheticImages`. Defaults to None: 64 dead-leaves images of 256
            pixels, at the scale of the model's data preprocessor.
        ridge (float): Share of the mean variance that is added to each retained channel's. Defaults to 1e-2.
        ranking (str): Which channels stay: 'l2', the paper's, or 'explanation', those from which the others can be
            guessed best where the consumer looks. Defaults to 'explanation'.
        rematch (bool): Give the consumers' outputs back their deviation. Defaults to True.
        recalibration (int): Images of that pass in an episode, rounded up to whole batches; 0 leaves it out. Defaults
            to 64.
        sensitivity (int | None): Images on which the errors of the groups are brought to one scale, by what pruning
            each of them alone does to all that the model says; 0 compares their shares of lost variance as they are.
            Defaults to None: 0 where a part of the model is pruned, whose groups are alike. Where what is pruned holds
            all parameters of the model 8, or if images are smaller than 128 x 128, as many as have the pixels of eight
            such, at most all.
        refinement (dict | bool | None): Settings of :class:`mmautodfp.reconstruction.Refinement`; False
            leaves it out. Defaults to True, as None: its own.
        distillation (dict | bool): Settings of :class:`mmautodfp.reconstruction.Distillation`, which follows the full
            pass on images of its own and takes minutes; True: its own. Of a search or a frontier only the plan that
            is chosen at last is distilled. Defaults to False, which leaves it out.

    Raises:
        AutoDFPError: A setting is unknown, of another type or out of its range.
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
        # Nothing is distilled before a search or a frontier has ended. Kept ones name a setting that is gone, with the
        # value that stands for what is done now.
        text = super(SyntheticLeastSquares, self.undistilled).identity.replace('distillation=None, ', '')
        return text.replace('(', '(error_power=1.0, ', 1)

    def _fit(self, module: nn.Module, model: nn.Module) -> None:
        device = next(module.parameters()).device
        images = list(self.images.normalized_as(model).batches(device))  # small beside a layer's outputs
        otherwise = "reconstructor=dict(type='SimilarityReconstructor') needs no images"
        for part in dict.fromkeys((module, model)):  # heads tell where objects are
            require_taken(part, model, images[0], otherwise)
        whole = [inputs_of(model, model, batch) for batch in images]  # regions are those of a dense first stage
        if module is model:
            self._batches = lambda: iter(whole)
        else:
            self._batches = lambda: (inputs_of(model, module, batch) for batch in images)
        groups = self._groups
        modes = [(part, part.training) for part in model.modules()]
        try:
            model.eval()
            with batch_statistics(model), torch.no_grad():
                self._foregrounds = [foreground_of(model, outputs_by_kind(model, *inputs)) for inputs in whole]
            moments, statistics = input_moments(module, groups, self._batches(), self._foregrounds)
            few = -(-self.recalibration // self.images.batch_size)
            if few:
                few_batches = lambda: islice(self._batches(), few)
                self._recalibration = Recalibration(module, groups, few_batches, statistics.of_first(few))
        finally:
            for part, mode in modes:
                part.training = mode
        _require_finite(module, moments)
        self._consumers = {group.name: self._keep(module, group, moments) for group in groups}
        self._twin = statistics.twin(module) if self.refinement else None

    def _keep(
        self, module: nn.Module, group: ChannelGroup, moments: dict[tuple[str, str], InputMoments]
    ) -> dict[str, _Consumer]:
        consumers = {}
        for consumer in group.consumers:
            seen = moments[group.name, consumer.key]
            weight = outputs_first(module.get_submodule(consumer.name)).detach()
            weight = weight.narrow(1, seen.offset, seen.size).flatten(1).unflatten(1, (group.width, -1)).clone()
            own, taps = seen.moments, seen.taps
            variance = output_variance(weight, own.covariance, taps)
            consumers[consumer.key] = _Consumer(weight, own.mean, own.covariance, taps, variance)
        return consumers

    def ranking(self, group: ChannelGroup) -> Tensor | None:
        """By how much they explain of what all consumers read, each counted as a share of what it reads."""
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
        """Share of what the consumers read that the retained channels do not explain; taps count as unrelated."""
        consumers = self._consumers[group.name].values()
        order = group.channels(ranking.to(next(iter(consumers)).mean.device))
        shares = [unexplained_shares(one.covariance, one.matters, order)[:: group.block] for one in consumers]
        return torch.stack(shares).mean(0)

    @torch.no_grad()
    def error_curves(self, groups: Sequence[ChannelGroup], rankings: Sequence[Tensor]) -> list[Tensor]:
        """The curves of all groups, brought to one scale on some images (see ``sensitivity``)."""
        curves = [self.error_curve(*pair) for pair in zip(groups, rankings, strict=True)]
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
        """The default of ``sensitivity``; a classifier that a wrapper holds is the whole model."""
        if len(list(module.parameters())) < len(list(model.parameters())):
            return 0
        enough = SENSITIVITY_PIXELS // math.prod(self.images.size)
        return min(max(SENSITIVITY, enough), self.images.num_images)

    def reconstruct(self, group: ChannelGroup, keep: Tensor, lam: float) -> Reconstruction:
        channels = group.channels(keep)
        own, changes = {}, {}
        for key, consumer in self._consumers[group.name].items():
            delivery, constant = least_squares_delivery(consumer.mean, consumer.covariance, channels, self.ridge)
            own[key] = (delivery, constant)
            if self.rematch:
                covariance = consumer.covariance[channels][:, channels]
                merged = torch.einsum('mns,nk->mks', consumer.weight.double(), delivery)
                gain = bounded_gain(consumer.variance, output_variance(merged, covariance, consumer.taps))
                # What the gain adds to the mean is taken out again.
                changes[key] = OutputChange(gain, (1 - gain) * (merged.sum(2) @ consumer.mean[channels]))
        first = next(iter(own))
        return Reconstruction(*own[first], changes, own)

    def recalibrate(self, module: nn.Module, plan: PruningPlan, restore: Restore) -> None:
        if self._recalibration:
            self._recalibration(module, plan, restore)

    def finalize(self, module: nn.Module, plan: PruningPlan, restore: Restore) -> None:
        if not self.refinement:
            self.recalibrate(module, plan, restore)
        else:
            images = (self._batches, self._foregrounds)
            slim = refine(module, self._twin, self._groups, plan, self, *images, self.refinement, restore)
            if self.distillation:
                distill(module, self._twin, slim, self._new_batches(module), self.distillation, restore)

    @torch.no_grad()
    def _new_batches(self, module: nn.Module) -> Iterator[tuple]:
        """What a pruned module is called with in distillation, on images that were used for nothing else."""
        size, seed = self.distillation.batch_size, self.images.seed + DISTILLATION_SEED
        images = replace(self.images, num_images=self.distillation.steps * size, batch_size=size, seed=seed)
        # Regions are those of a dense first stage.
        dense, part = (self._twin, self._twin) if module is self._model else (self._model, module)
        for batch in images.normalized_as(self._model).batches(next(module.parameters()).device):
            yield inputs_of(dense, part, batch)


def _require_finite(module: nn.Module, moments: dict[tuple[str, str], InputMoments]) -> None:
    for (_, path), seen in moments.items():
        path = path.partition('@')[0]
        if not (seen.moments.covariance.isfinite().all() and module.get_submodule(path).weight.isfinite().all()):
            raise AutoDFPError(
                f'{path} of the {type(module).__name__} was to be fitted on synthetic images, but its weight or what '
                'it reads there is not finite; look for nan and inf in the checkpoint'
            )
