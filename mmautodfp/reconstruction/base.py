"""How the work of a pruned channel is handed on to the retained ones."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, find_groups
from mmautodfp.utils.registry import RECONSTRUCTORS

if TYPE_CHECKING:
    from mmautodfp.surgery import PruningPlan, Restore


def fingerprint(module: nn.Module) -> dict[str, tuple]:
    """What tells a module's parameters and buffers from others, whoever changed them, and in which way.

    The bits are added up as integers by row and by column, the sums weighted by their places: exact, in whatever order
    it is done. One core takes 10 to 25 ms for 25 million parameters.

    Returns:
        dict[str, tuple]: By name: shape, type, device and sums.
    """
    return {
        name: (tuple(tensor.shape), tensor.dtype, tensor.device, _sum_bits(tensor.detach()))
        for tensors in (module.named_parameters(), module.named_buffers())
        for name, tensor in tensors
    }


def _sum_bits(tensor: Tensor) -> tuple[int, ...]:
    if not tensor.numel():
        return ()
    rows = tensor.reshape(len(tensor) if tensor.ndim else 1, -1).contiguous()
    size = tensor.element_size()
    aligned = rows.shape[1] * size % 8 == rows.storage_offset() * size % 8 == 0
    bits = rows.view(
        torch.int64 if aligned else {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(size, torch.int64)
    )
    both = (bits.sum(axis, dtype=torch.int64) for axis in (0, 1))
    return tuple(int((sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum()) for sums in both)


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
    """How the inputs of a group's consumers are made up from the retained channels.

    Attributes:
        delivery (Tensor): [N, K]; row n says what stands in for channel n, one-hot for retained ones. N and K count
            single channels.
        constant (Tensor | None): [N], after the activation; what is still missing of channel n whatever the input, to
            be moved into the consumer's norm or bias. None if there is nothing to move.
        changes (Mapping[str, OutputChange]): By consumer; those that are absent stay as the delivery makes them.
        own (Mapping[str, tuple[Tensor, Tensor | None]]): Delivery and constant of consumers that read the channels in
            another state than the rest, as those of a residual stream do.

    Consumers go by their :attr:`.Consumer.key`.
    """

    delivery: Tensor
    constant: Tensor | None = None
    changes: Mapping[str, OutputChange] = field(default_factory=dict)
    own: Mapping[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def for_consumer(self, key: str) -> 'Reconstruction':
        """What holds for one consumer."""
        delivery, constant = self.own.get(key, (self.delivery, self.constant))
        return Reconstruction(delivery, constant, self.changes)


def _describe(value: Any) -> str:
    """A setting in words that are the same in another process."""
    text = getattr(value, 'identity', None) or repr(value)
    return getattr(value, '__qualname__', type(value).__qualname__) if ' at 0x' in text else text


class Reconstructor(ABC):
    """Base class. Everything is taken from the dense weights, once; an episode only indexes."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for old, new in (('adjust', 'recalibrate'), ('finish', 'finalize')):
            if old in cls.__dict__:
                warnings.warn(f'{cls.__name__}.{old} is called {new} since version 0.2', FutureWarning, stacklevel=2)
                setattr(cls, new, cls.__dict__[old])

    def __init__(self):
        self._fitted: nn.Module | None = None
        self._model: nn.Module | None = None
        self._values: dict[str, tuple] = {}
        self._given: Sequence[ChannelGroup] | None = None
        self._groups: list[ChannelGroup] = []

    def ensure_fitted(
        self,
        module: nn.Module,
        model: nn.Module | None = None,
        groups: Sequence[ChannelGroup] | None = None,
    ) -> None:
        """Fit to a dense module unless that has been done, with the weights that it has now.

        Call it before the module is pruned.

        Args:
            module (nn.Module): What is going to be pruned.
            model (nn.Module | None): What it is a part of, for those who send images through it. Defaults to None: that
                of the last time; if there was none, the module takes images itself.
            groups (Sequence[ChannelGroup] | None): Of the module, in forward order. Defaults to None: those of the last
                time; if there was none, the groups that finders know.
        """
        again = module is self._fitted
        if model is None:
            model = self._model if again else module
        if groups is None:
            groups = self._given if again else None
        values, found = fingerprint(model), find_groups(module) if groups is None else list(groups)
        if not again or values != self._values or found != self._groups:
            self._given, self._groups = groups, found
            self._fit(module, model)
            self._fitted, self._model, self._values = module, model, values

    @property
    def has_full_pass(self) -> bool:
        """Whether :meth:`finalize` does more than :meth:`recalibrate`: plans may then change places in a ranking."""
        return type(self).finalize is not Reconstructor.finalize

    @property
    def undistilled(self) -> 'Reconstructor':
        """The same, but that :meth:`finalize` ends where a distillation would begin; itself if it has none.

        A distillation takes minutes and follows when a plan has been chosen: neither finalists nor baselines nor the
        points of a frontier are distilled.
        """
        return self

    @property
    def identity(self) -> str:
        """The settings, by which two searches can be told apart."""
        settings = sorted((name, value) for name, value in vars(self).items() if not name.startswith('_'))
        return f'{type(self).__name__}({", ".join(f"{name}={_describe(value)}" for name, value in settings)})'

    def _fit(self, module: nn.Module, model: nn.Module) -> None:
        for group in self._groups:
            self._fit_group(module, group)

    def _fit_group(self, module: nn.Module, group: ChannelGroup) -> None:  # noqa: B027, not all need it
        """Precompute what :meth:`reconstruct` needs for a group of the dense module."""

    @abstractmethod
    def reconstruct(self, group: ChannelGroup, keep: Tensor, lam: float) -> Reconstruction:
        """Say how the retained channels do the work of all.

        Args:
            group (ChannelGroup): The group.
            keep (Tensor): Retained channels, ascending; of a group whose channels go in blocks, the blocks (see
                :meth:`.ChannelGroup.channels`).
            lam (float): The agent's second action, lambda of Eq. 16, in [0, 1].
        """

    def moves_constants(self, group: ChannelGroup) -> bool:
        """Whether pruning a group shifts its consumers' outputs; one that has neither bias nor norm gets a bias then.

        That bias is counted, so a limit on the parameters holds if this says True for nothing. It is asked before the
        fit. True, the default, suits every reconstructor.
        """
        return True

    def ranking(self, group: ChannelGroup) -> Tensor | None:
        """The group's channels [N] in the order in which they are kept. None, the default: by their l2 norms."""
        return None

    def error_curve(self, group: ChannelGroup, ranking: Tensor) -> Tensor | None:
        """How much is lost of what a group's channels tell, by the number of them that stay.

        A plan that needs no search follows from these curves (:func:`.allocation.allocate_widths`).

        Args:
            group (ChannelGroup): The group.
            ranking (Tensor): [N], its channels in the order in which they stay.

        Returns:
            Tensor | None: [N + 1], error where 0 to N channels stay, never rising, of one scale for all groups. None,
            the default: not known.
        """
        return None

    def error_curves(self, groups: Sequence[ChannelGroup], rankings: Sequence[Tensor]) -> list[Tensor] | None:
        """The error curves of all groups, of one scale; None if one is not known.

        Args:
            groups (Sequence[ChannelGroup]): The groups, L of them.
            rankings (Sequence[Tensor]): [N] each, as of :meth:`error_curve`, which gives each by default.
        """
        curves = [self.error_curve(*pair) for pair in zip(groups, rankings, strict=True)]
        return None if any(curve is None for curve in curves) else curves

    def recalibrate(self, module: nn.Module, plan: 'PruningPlan', restore: 'Restore') -> None:  # noqa: B027, most have no more
        """Do in an episode what can be done only when all groups are pruned. Does nothing by default.

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

    def moves_constants(self, group: ChannelGroup) -> bool:
        return False

    def reconstruct(self, group: ChannelGroup, keep: Tensor, lam: float) -> Reconstruction:
        return Reconstruction(torch.eye(group.width, device=keep.device)[:, group.channels(keep)])
