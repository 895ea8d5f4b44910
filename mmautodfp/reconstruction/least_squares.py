"""Beyond the paper: pruned channels made up from all retained ones, in least squares on synthetic images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmautodfp.graph import PrunableUnit, find_units
from mmautodfp.kernels import least_squares_delivery, output_variance, rank_by_explanation, unexplained_shares
from mmautodfp.surgery import PruningPlan, Restore
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import RECONSTRUCTORS, build_settings

from .base import OutputChange, Reconstruction, Reconstructor
from .recalibration import Recalibration
from .refine import Refinement, bounded_gain, refine
from .synthetic import InputMoments, SyntheticImages, batch_statistics, input_moments, inputs_of

RANKINGS = ('l2', 'explanation')


@dataclass(frozen=True)
class _Consumer:
    """A consumer as an episode needs it: dense weight [M, N, taps], [taps, taps] and the outputs' variance [M]."""

    weight: Tensor
    taps: Tensor
    variance: Tensor


@dataclass(frozen=True)
class _Unit:
    """A unit as an episode needs it: mean [N] and covariance [N, N] of its channels, as the consumers read them."""

    mean: Tensor
    covariance: Tensor
    consumers: dict[str, _Consumer]


@RECONSTRUCTORS.register_module()
class SyntheticLeastSquares(Reconstructor):
    """Every pruned channel is the best guess that the retained ones allow, learned on images that come from nowhere.

    Random overlapping ellipses pass once through the dense module, every BatchNorm using the batch's own statistics, so
    that its output has the mean and deviation of the training whatever the images are. From the channels' mean and
    covariance follows, for any retained channels, the least-squares delivery; what is left over on average moves into
    the consumer's norm or bias, and the consumer's outputs get back their deviation. One pass of the pruned module then
    tells how far the errors have moved what its norms are given (:class:`.recalibration.Recalibration`). That is what
    an episode costs. The best plan is refined once more, unit by unit (:mod:`mmautodfp.reconstruction.refine`).

    Args:
        images (dict | None): Settings of :class:`SyntheticImages`. Defaults to None: 64 dead-leaves images of 256
            pixels, at the scale of the model's data preprocessor.
        ridge (float): Share of the mean variance that is added to each retained channel's. Defaults to 1e-2.
        ranking (str): Which channels stay: 'l2', the paper's, or 'explanation', those from which the others can be
            guessed best where the consumer looks. Defaults to 'explanation'.
        rematch (bool): Give the consumers' outputs back their deviation. Defaults to True.
        recalibration (int): Images of that pass in an episode, rounded up to whole batches; 0 leaves it out. Defaults
            to 64.
        error_power (float): What a unit's share of lost variance is raised to before the units' errors are added up to
            allocate a plan; above 1, pruning is shared out more evenly. Defaults to 1; on ResNet-56 1.5 is the better
            one at most shares (see docs/results.md).
        refinement (dict | bool | None): Settings of :class:`mmautodfp.reconstruction.Refinement`; False
            leaves it out. Defaults to True, as None: its own.

    Raises:
        AutoDFPError: A setting is unknown or out of its range.
    """

    def __init__(
        self,
        images: dict | None = None,
        ridge: float = 1e-2,
        ranking: str = 'explanation',
        rematch: bool = True,
        recalibration: int = 64,
        error_power: float = 1.0,
        refinement: dict | bool | None = True,
    ):
        super().__init__()
        if not isinstance(ridge, int | float) or not 0 <= ridge < float('inf'):
            raise AutoDFPError(f'ridge must be 0 or more, got {ridge!r}')
        if ranking not in RANKINGS:
            raise AutoDFPError(f'ranking of the channels is one of {", ".join(RANKINGS)}, got {ranking!r}')
        if not isinstance(recalibration, int) or recalibration < 0:
            raise AutoDFPError(f'recalibration takes a number of images, 0 or more, got {recalibration!r}')
        if not isinstance(error_power, int | float) or not 0 < error_power < float('inf'):
            raise AutoDFPError(f'error_power must be above 0, got {error_power!r}')
        self.images = build_settings(SyntheticImages, images, 'images')
        self.ridge = ridge
        self.rank_by = ranking
        self.rematch = rematch
        self.recalibration = recalibration
        self.error_power = error_power
        settings = None if refinement is True else refinement
        self.refinement = None if refinement is False else build_settings(Refinement, settings, 'refinement')
        self._units: dict[str, _Unit] = {}
        self._recalibration: Recalibration | None = None
        self._twin: nn.Module | None = None
        self._batches: Callable[[], Iterator[tuple]] | None = None

    def _fit(self, module: nn.Module, model: nn.Module) -> None:
        device = next(module.parameters()).device
        images = list(self.images.normalized_as(model).batches(device))  # small beside a layer's outputs
        _require_taken(module, model, images[0])
        self._batches = lambda: (inputs_of(model, module, batch) for batch in images)
        units = find_units(module)
        layers = [(consumer.name, unit.num_channels) for unit in units for consumer in unit.consumers]
        modes = [(part, part.training) for part in model.modules()]
        try:
            model.eval()
            moments, statistics = input_moments(module, layers, self._batches())
            few = images[: -(-self.recalibration // self.images.batch_size)]
            if few:
                again = lambda: (inputs_of(model, module, batch) for batch in few)
                self._recalibration = Recalibration(module, units, again)
        finally:
            for part, mode in modes:
                part.training = mode
        _require_finite(module, moments)
        self._units = {unit.name: self._keep(module, unit, moments) for unit in units}
        self._twin = statistics.twin(module) if self.refinement else None

    def _keep(self, module: nn.Module, unit: PrunableUnit, moments: dict[str, InputMoments]) -> _Unit:
        own = moments[unit.consumers[0].name].moments
        consumers = {}
        for consumer in unit.consumers:
            layer = module.get_submodule(consumer.name)
            weight = layer.weight.detach().flatten(1).unflatten(1, (unit.num_channels, -1)).clone()
            taps = moments[consumer.name].taps
            consumers[consumer.name] = _Consumer(weight, taps, output_variance(weight, own.covariance, taps))
        return _Unit(own.mean, own.covariance, consumers)

    def ranking(self, unit: PrunableUnit) -> Tensor | None:
        if self.rank_by == 'l2':
            return None
        return rank_by_explanation(self._units[unit.name].covariance, self._matters(unit))

    def error_curve(self, unit: PrunableUnit, ranking: Tensor) -> Tensor:
        """Share of what the consumers read that the retained channels do not explain; taps count as unrelated."""
        shares = unexplained_shares(self._units[unit.name].covariance, self._matters(unit), ranking)
        return shares**self.error_power

    def _matters(self, unit: PrunableUnit) -> Tensor:
        """[N, N], how much errors in two channels matter together."""
        consumers = self._units[unit.name].consumers.values()
        return sum(torch.einsum('ons,oms->nm', consumer.weight, consumer.weight) for consumer in consumers)

    def reconstruct(self, unit: PrunableUnit, keep: Tensor, lam: float) -> Reconstruction:
        known = self._units[unit.name]
        delivery, constant = least_squares_delivery(known.mean, known.covariance, keep, self.ridge)
        changes = {}
        if self.rematch:
            covariance = known.covariance[keep][:, keep]
            for name, consumer in known.consumers.items():
                merged = torch.einsum('mns,nk->mks', consumer.weight.double(), delivery)
                gain = bounded_gain(consumer.variance, output_variance(merged, covariance, consumer.taps))
                # What the gain adds to the mean is taken out again.
                changes[name] = OutputChange(gain, (1 - gain) * (merged.sum(2) @ known.mean[keep]))
        return Reconstruction(delivery, constant, changes)

    def recalibrate(self, module: nn.Module, plan: PruningPlan, restore: Restore) -> None:
        if self._recalibration:
            self._recalibration(module, plan, restore)

    def finalize(self, module: nn.Module, plan: PruningPlan, restore: Restore) -> None:
        if not self.refinement:
            self.recalibrate(module, plan, restore)
        else:
            refine(module, self._twin, plan, self, self._batches, self.refinement, restore)


def _require_taken(module: nn.Module, model: nn.Module, images: Tensor) -> None:
    """Say so in a sentence if a model takes images of another kind."""
    try:
        with torch.no_grad(), batch_statistics(module):
            module(*inputs_of(model, module, images[:2]))
    except RuntimeError as error:
        raise AutoDFPError(
            f'synthetic images of shape {list(images.shape)} and type {images.dtype} were sent through the '
            f'{type(model).__name__}, which does not take them ({str(error).splitlines()[0]}); images=dict(size=..., '
            'mean=..., std=...) sets their size and, with a value for each, their channels'
        ) from error


def _require_finite(module: nn.Module, moments: dict[str, InputMoments]) -> None:
    for path, seen in moments.items():
        if not (seen.moments.covariance.isfinite().all() and module.get_submodule(path).weight.isfinite().all()):
            raise AutoDFPError(
                f'{path} of the {type(module).__name__} was to be fitted on synthetic images, but its weight or what '
                'it reads there is not finite; look for nan and inf in the checkpoint'
            )
