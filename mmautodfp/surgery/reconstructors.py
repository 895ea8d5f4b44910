"""How the work of a pruned channel is handed on to the retained ones."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmautodfp.errors import AutoDFPError
from mmautodfp.kernels import ChannelSimilarity, neuron_merging_delivery
from mmautodfp.registry import RECONSTRUCTORS

from .units import PrunableUnit, find_units, path_statistics, unit_statistics

if TYPE_CHECKING:
    from .plan import PruningPlan
    from .slim import Restore


@dataclass(frozen=True)
class OutputChange:
    """How a consumer's outputs are changed once its inputs have been merged.

    Attributes:
        gain (Tensor): [M], what its weights are multiplied by.
        shift (Tensor): [M], what is added then, in its norm or bias.
    """

    gain: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """How the inputs of a unit's consumers are made up from the retained channels.

    Attributes:
        delivery (Tensor): [N, K]; row n says what stands in for channel n, one-hot for retained ones.
        constant (Tensor | None): [N], after the activation; what is still missing of channel n whatever the input, to
            be moved into the consumer's norm or bias. None if there is nothing to move.
        changes (Mapping[str, OutputChange]): By consumer; those that are absent stay as the delivery makes them.
    """

    delivery: Tensor
    constant: Tensor | None = None
    changes: Mapping[str, OutputChange] = field(default_factory=dict)


class Reconstructor(ABC):
    """Base class. Everything is taken from the dense weights, once; an episode only indexes."""

    def __init__(self):
        self._fitted: nn.Module | None = None

    def ensure_fitted(self, module: nn.Module, model: nn.Module | None = None) -> None:
        """Fit to a dense module unless that has been done. Call it before the module is pruned for the first time.

        Args:
            module (nn.Module): What is going to be pruned.
            model (nn.Module | None): What it is a part of, for those who send images through it. Defaults to None: the
                module takes images itself.
        """
        if self._fitted is not module:
            self._fit(module, model)
            self._fitted = module

    def _fit(self, module: nn.Module, model: nn.Module | None) -> None:
        for unit in find_units(module):
            self._fit_unit(module, unit)

    def _fit_unit(self, module: nn.Module, unit: PrunableUnit) -> None:  # noqa: B027, not all need it
        """Precompute what :meth:`reconstruct` needs for a unit of the dense module."""

    @abstractmethod
    def reconstruct(self, unit: PrunableUnit, keep: Tensor, lam: float) -> Reconstruction:
        """Say how the retained channels do the work of all.

        Args:
            unit (PrunableUnit): The unit.
            keep (Tensor): [K], retained channels, ascending.
            lam (float): The agent's second action, lambda of Eq. 16, in [0, 1].
        """

    def ranking(self, unit: PrunableUnit) -> Tensor | None:
        """The unit's channels [N] in the order in which they are kept. None, the default: by their l2 norms."""
        return None

    def error_curve(self, unit: PrunableUnit, ranking: Tensor) -> Tensor | None:
        """How much is lost of what a unit's channels tell, by the number of them that stay.

        A plan that needs no search follows from these curves (:func:`.allocation.allocate_widths`).

        Args:
            unit (PrunableUnit): The unit.
            ranking (Tensor): [N], its channels in the order in which they stay.

        Returns:
            Tensor | None: [N + 1], error where 0 to N channels stay, never rising, of one scale for all units. None,
            the default: not known.
        """
        return None

    def adjust(self, module: nn.Module, plan: 'PruningPlan', restore: 'Restore') -> None:  # noqa: B027, most have no more
        """Do in an episode what can be done only when all units are pruned. Does nothing by default.

        Args:
            module (nn.Module): Just pruned with :meth:`reconstruct`; changed in place.
            plan (PruningPlan): What it was pruned with.
            restore (Restore): Is to remember every layer that is changed.
        """

    def finish(self, module: nn.Module, plan: 'PruningPlan', restore: 'Restore') -> None:
        """Do what is too dear for an episode, on the plan that stays. By default what :meth:`adjust` does.

        Args:
            module (nn.Module): Just pruned with :meth:`reconstruct`; changed in place.
            plan (PruningPlan): What it was pruned with.
            restore (Restore): Is to remember every layer that is changed.
        """
        self.adjust(module, plan, restore)


@RECONSTRUCTORS.register_module()
class PruneOnly(Reconstructor):
    """No compensation: what is pruned is gone."""

    def reconstruct(self, unit: PrunableUnit, keep: Tensor, lam: float) -> Reconstruction:
        return Reconstruction(torch.eye(unit.num_channels, device=keep.device)[:, keep])


@RECONSTRUCTORS.register_module()
class SimilarityReconstructor(Reconstructor):
    """The paper's: each pruned channel is replaced by the retained one that Eq. 16 chooses, scaled by Eq. 12.

    Where a depthwise layer lies between producer and consumer, both equations look at the two together; the paper does
    not say what it does there.

    Args:
        normalization (str): How |B| of Eq. 16 is brought into [0, 1] over the candidates of each pruned channel,
            'max' or 'minmax'. Defaults to 'minmax', which is the better on ResNet-56 at all ratios.
        min_cosine (float | None): Pruned channels whose stand-in is less similar than this are dropped without
            replacement. Defaults to None, the paper's: always replaced.

    Raises:
        AutoDFPError: ``normalization`` is neither.
    """

    def __init__(self, normalization: str = 'minmax', min_cosine: float | None = None):
        super().__init__()
        if normalization not in ('max', 'minmax'):
            raise AutoDFPError(f"normalization of |B| is 'max' or 'minmax', got {normalization!r}")
        self.normalization = normalization
        self.min_cosine = min_cosine
        self._similarity: dict[str, ChannelSimilarity] = {}
        self._constant: dict[str, Tensor] = {}

    def _fit_unit(self, module: nn.Module, unit: PrunableUnit) -> None:
        similarity = ChannelSimilarity.from_weight(*path_statistics(module, unit))
        self._similarity[unit.name] = similarity
        # Channels that give the same value for every input need no stand-in: the value itself is moved.
        constant = unit.activation(unit_statistics(module, unit)[1].shift.clone())
        self._constant[unit.name] = torch.where(similarity.alive, 0, constant)

    def reconstruct(self, unit: PrunableUnit, keep: Tensor, lam: float) -> Reconstruction:
        similarity = self._similarity[unit.name]
        delivery = similarity.delivery(keep, lam, self.normalization, self.min_cosine)
        constant = self._constant[unit.name].clone()
        constant[keep] = 0  # a retained channel still delivers its constant itself
        return Reconstruction(delivery, constant if constant.any() else None)


@RECONSTRUCTORS.register_module()
class NeuronMerging(Reconstructor):
    """Neuron Merging (Kim et al., NeurIPS 2020) in the form that its authors released, as a baseline.

    Args:
        lam (float): Weight of the cosine distance against the bias; the agent's lambda is not used. Defaults to 0.85.
        min_cosine (float): Below this cosine similarity a channel is dropped without replacement. Defaults to 0.1.
    """

    def __init__(self, lam: float = 0.85, min_cosine: float = 0.1):
        super().__init__()
        self.lam = lam
        self.min_cosine = min_cosine
        self._statistics: dict[str, tuple] = {}

    def _fit_unit(self, module: nn.Module, unit: PrunableUnit) -> None:
        self._statistics[unit.name] = unit_statistics(module, unit)

    def reconstruct(self, unit: PrunableUnit, keep: Tensor, lam: float) -> Reconstruction:
        weight, bn = self._statistics[unit.name]
        return Reconstruction(neuron_merging_delivery(weight, bn, keep, self.lam, self.min_cosine))
