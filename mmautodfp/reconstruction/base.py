"""How the work of a pruned channel is handed on to the retained ones."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmautodfp.graph import PrunableUnit, find_units
from mmautodfp.utils.registry import RECONSTRUCTORS

if TYPE_CHECKING:
    from mmautodfp.surgery import PruningPlan, Restore


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

    @property
    def identity(self) -> str:
        """The settings, by which two searches can be told apart."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith('_')}
        return f'{type(self).__name__}({", ".join(f"{name}={value!r}" for name, value in sorted(settings.items()))})'

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

    def recalibrate(self, module: nn.Module, plan: 'PruningPlan', restore: 'Restore') -> None:  # noqa: B027, most have no more
        """Do in an episode what can be done only when all units are pruned. Does nothing by default.

        Args:
            module (nn.Module): Just pruned with :meth:`reconstruct`; changed in place.
            plan (PruningPlan): What it was pruned with.
            restore (Restore): Is to remember every layer that is changed.
        """

    def finalize(self, module: nn.Module, plan: 'PruningPlan', restore: 'Restore') -> None:
        """Do what is too dear for an episode, on the plan that stays. By default what :meth:`recalibrate` does.

        Args:
            module (nn.Module): Just pruned with :meth:`reconstruct`; changed in place.
            plan (PruningPlan): What it was pruned with.
            restore (Restore): Is to remember every layer that is changed.
        """
        self.recalibrate(module, plan, restore)


@RECONSTRUCTORS.register_module()
class PruneOnly(Reconstructor):
    """No compensation: what is pruned is gone."""

    def reconstruct(self, unit: PrunableUnit, keep: Tensor, lam: float) -> Reconstruction:
        return Reconstruction(torch.eye(unit.num_channels, device=keep.device)[:, keep])
