"""The interface of reconstructors, and what they return for a group."""

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
    """Compute checksums of a module's parameters and buffers, by which changes of them are noticed.

    The bits are added up as integers by row and by column, and the sums are weighted with their indices. Sums of
    integers are exact in any order. One core takes 10 to 25 ms for 25 million parameters.

    Returns:
        dict[str, tuple]: Name of each parameter and buffer, to its shape, dtype, device and sums.
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
    """A change of a consumer's outputs, made after its weights have been merged.

    Attributes:
        gain (Tensor): [M], one for each dense output; the merged weights are multiplied by it.
        shift (Tensor): [M], is then added to the outputs, in the consumer's norm or bias.
    """

    gain: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """How the consumers of a group compute their inputs from the retained channels.

    Attributes:
        delivery (Tensor): [N, K]; row n holds the weights of the retained channels whose sum replaces channel n,
            one-hot if channel n is retained. N and K count single channels, not blocks.
        constant (Tensor | None): [N], after the activation; the part of channel n that is the same for every input and
            that the delivery misses. It is moved into the consumer's norm or bias. Defaults to None: nothing is moved.
        change (OutputChange | None): Of the consumer's outputs. Defaults to None: they are not changed.
        own (Mapping[str, Reconstruction]): By :attr:`.Consumer.key`, what single consumers get in place of all this:
            they may read the channels in another state, as on a residual stream. Defaults to none.
    """

    delivery: Tensor
    constant: Tensor | None = None
    change: OutputChange | None = None
    own: Mapping[str, 'Reconstruction'] = field(default_factory=dict)

    def for_consumer(self, key: str) -> 'Reconstruction':
        """What the consumer of this :attr:`.Consumer.key` gets."""
        return self.own.get(key, self)


def _describe(value: Any) -> str:
    """Text of a setting that is the same in every process: without addresses in memory."""
    text = getattr(value, 'identity', None) or repr(value)
    return getattr(value, '__qualname__', type(value).__qualname__) if ' at 0x' in text else text


class Reconstructor(ABC):
    """Base class of compensations. The costly part is computed once from the dense module, before the episodes."""

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
        """Fit to a dense module, unless it was fitted to the same module, weights and groups before.

        Call it before the module is pruned.

        Args:
            module (nn.Module): The module that will be pruned.
            model (nn.Module | None): The model that it is a part of, which some reconstructors call with images.
                Defaults to None: the model of the last fit to this module, or the module itself if there was none.
            groups (Sequence[ChannelGroup] | None): Groups of the module, in forward order. Defaults to None: those of
                the last fit to this module, or the groups that finders know if none were given.
        """
        again = module is self._fitted
        if model is None:
            model = self._model if again else module
        if groups is None:
            groups = self._given if again else None
        values, found = fingerprint(model), find_groups(module) if groups is None else list(groups)
        if not again or values != self._values or found != self._groups:
            self._fitted = None  # until the fit is done: it may fail
            self._given, self._groups = groups, found
            self._fit(module, model)
            self._fitted, self._model, self._values = module, model, values

    @property
    def has_full_pass(self) -> bool:
        """Whether :meth:`finalize` does more than :meth:`recalibrate`, which may change the ranking of plans."""
        return type(self).finalize is not Reconstructor.finalize

    @property
    def undistilled(self) -> 'Reconstructor':
        """The same reconstructor without the distillation in :meth:`finalize`; itself if it has none.

        A distillation takes minutes, so it is done to the chosen plan alone: neither finalists nor baselines nor the
        points of a frontier are distilled.
        """
        return self

    @property
    def identity(self) -> str:
        """The settings as text; figures of two searches can be compared only if it is the same."""
        settings = sorted((name, value) for name, value in vars(self).items() if not name.startswith('_'))
        return f'{type(self).__name__}({", ".join(f"{name}={_describe(value)}" for name, value in settings)})'

    def _fit(self, module: nn.Module, model: nn.Module) -> None:
        for group in self._groups:
            self._fit_group(module, group)

    def _fit_group(self, module: nn.Module, group: ChannelGroup) -> None:  # noqa: B027, optional
        """Precompute what :meth:`reconstruct` needs for a group of the dense module."""

    @abstractmethod
    def reconstruct(self, group: ChannelGroup, keep: Tensor, lam: float) -> Reconstruction:
        """Compute how the retained channels of a group replace the pruned ones.

        Args:
            group (ChannelGroup): A group of the fitted module.
            keep (Tensor): Indices of the retained channels, ascending; of blocks, if channels are pruned in blocks
                (see :meth:`.ChannelGroup.channels`).
            lam (float): The second component of the agent's action, lambda of Eq. 16, in [0, 1].
        """

    def moves_constants(self, group: ChannelGroup) -> bool:
        """Whether pruning a group shifts its consumers' outputs; consumers without bias and norm then get a bias.

        The costs of a plan include that bias, so a needless True breaks no limit on the parameters. This is called
        before the fit. True, the default, is right for every reconstructor.
        """
        return True

    def ranking(self, group: ChannelGroup) -> Tensor | None:
        """The group's channels [N] (of blocks, these), those to keep first. None, the default: by their l2 norms."""
        return None

    def error_curve(self, group: ChannelGroup, ranking: Tensor) -> Tensor | None:
        """The error that pruning a group causes, for each number of kept channels.

        A plan that needs no search is allocated by these curves (:func:`.allocation.allocate_widths`).

        Args:
            group (ChannelGroup): A group of the fitted module.
            ranking (Tensor): [N], its channels (or blocks), those to keep first.

        Returns:
            Tensor | None: [N + 1], the error with 0 to N kept channels, never rising. None, the default: not known.
        """
        return None

    def error_curves(self, groups: Sequence[ChannelGroup], rankings: Sequence[Tensor]) -> list[Tensor] | None:
        """The error curves of all groups on a common scale; None if one is not known.

        By default these are the curves of :meth:`error_curve`.

        Args:
            groups (Sequence[ChannelGroup]): The groups, L of them.
            rankings (Sequence[Tensor]): [N] each, as for :meth:`error_curve`.
        """
        curves = [self.error_curve(*pair) for pair in zip(groups, rankings, strict=True)]
        return None if any(curve is None for curve in curves) else curves

    def recalibrate(self, module: nn.Module, plan: 'PruningPlan', restore: 'Restore') -> None:  # noqa: B027, optional
        """Correct a pruned module in an episode, after all groups are pruned. Does nothing by default.

        Args:
            module (nn.Module): Just pruned with :meth:`reconstruct`; changed in place.
            plan (PruningPlan): The plan that it was pruned with.
            restore (Restore): Call its ``remember`` with every layer before you change it.
        """

    def finalize(self, module: nn.Module, plan: 'PruningPlan', restore: 'Restore') -> None:
        """Compensate the plan that stays, in place of :meth:`recalibrate`, which this calls by default.

        This is the place for a full pass, which takes too long for an episode.

        Args:
            module (nn.Module): Just pruned with :meth:`reconstruct`; changed in place.
            plan (PruningPlan): The plan that it was pruned with.
            restore (Restore): Call its ``remember`` with every layer before you change it.
        """
        self.recalibrate(module, plan, restore)


@RECONSTRUCTORS.register_module()
class PruneOnly(Reconstructor):
    """No compensation: pruned channels are removed, and the consumers' other weights stay the same."""

    def moves_constants(self, group: ChannelGroup) -> bool:
        return False

    def reconstruct(self, group: ChannelGroup, keep: Tensor, lam: float) -> Reconstruction:
        return Reconstruction(torch.eye(group.width, device=keep.device)[:, group.channels(keep)])
