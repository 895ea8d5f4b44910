"""Running a module on synthetic images, and watching what its layers read and give."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmautodfp.graph import (
    ChannelGroup,
    Consumer,
    has_plain_second_stage,
    hook_handles,
    is_batch_norm,
    outputs_first,
    regions_of,
    run_model,
)
from mmautodfp.kernels import Moments, TapCorrelation
from mmautodfp.utils import AutoDFPError, first_line

from .foreground import Foreground


class Stopped(Exception):
    """Ends a forward pass of which no more is needed."""


def inputs_of(model: nn.Module, module: nn.Module, images: Tensor) -> tuple:
    """What ``module`` is called with when ``model`` sees images: the images themselves if it is the first part.

    With the images of a whole detector of two stages go the regions that its first stage proposes while it is dense:
    pruned or not, its second stage is asked about the same ones.

    Raises:
        AutoDFPError: The model does not call this module, or names inputs that it does not take by position.
    """
    if model is module:
        if not has_plain_second_stage(model):
            return (images,)
        with torch.no_grad(), batch_statistics(model):
            return images, regions_of(model, images)
    found = first_call(model, module, images)
    if found is None:
        raise AutoDFPError(
            f'synthetic images were sent through the {type(model).__name__}, but they do not reach the '
            f'{type(module).__name__} that is to be pruned; prune a part that is called for them'
        )
    args, kwargs = found
    if not kwargs:
        return args
    call = inspect.signature(module.forward).bind(*args, **kwargs)
    call.apply_defaults()  # of those between two that are given
    named = [name for name in kwargs if name in call.kwargs]
    if named:
        raise AutoDFPError(
            f'the {type(module).__name__} that is to be pruned is given {named[0]} by name, but it is run by itself '
            f'with its inputs by position; let its forward take {named[0]} by position, or prune the whole model'
        )
    return call.args


def first_call(model: nn.Module, part: nn.Module, *inputs: Any) -> tuple[tuple, dict] | None:
    """Arguments of the first call of a part when a model runs, which is stopped there; None if there is no call."""
    seen: list[tuple[tuple, dict]] = []

    def stop(_, args, kwargs):
        seen.append((args, kwargs))
        raise Stopped

    with hook_handles() as handles, suppress(Stopped):
        handles.append(part.register_forward_pre_hook(stop, with_kwargs=True))
        run_model(model, *inputs)
    return seen[0] if seen else None


def require_taken(module: nn.Module, model: nn.Module, images: Tensor, otherwise: str) -> None:
    """Raise an :class:`AutoDFPError` that ends with ``otherwise`` if a model does not take the images."""
    try:
        with torch.no_grad(), batch_statistics(module):
            run_model(module, *inputs_of(model, module, images[:2]))
    except AutoDFPError:
        raise
    except Exception as error:  # a model's own code may end with anything
        reason = first_line(error)
        raise AutoDFPError(
            f'images of shape {list(images.shape)} and type {images.dtype} were sent through the '
            f'{type(model).__name__}, which does not take them ({reason}); images=dict(size=..., mean=..., std=...) '
            'sets their size and, with a value for each, their channels; float() makes the model take their type; '
            f'{otherwise}'
        ) from error


@contextmanager
def batch_statistics(module: nn.Module, watch: Callable[[str, Tensor], None] | None = None) -> Iterator[None]:
    """Let every BatchNorm use the statistics of its own batch, frozen ones too; no buffer is touched.

    Those that keep no statistics do so by themselves and are left alone.

    Args:
        module (nn.Module): Any module.
        watch (Callable | None): Told each norm's name and input. Defaults to None.
    """
    norms = [(name, norm, vars(norm).get('forward')) for name, norm in module.named_modules() if is_batch_norm(norm)]

    def forward_of(name: str, norm: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if watch:
                watch(name, x)
            return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

        return forward

    try:
        for name, norm, _ in norms:
            norm.forward = forward_of(name, norm)
        yield
    finally:
        for _, norm, own in norms:
            vars(norm).pop('forward', None)
            if own is not None:  # somebody else's, as accelerate's
                norm.forward = own


def as_channels(x: Tensor, num_channels: int) -> Tensor:
    """[B, N, ...] or flattened [B, N * positions] as samples of channels, [B * positions, N]."""
    return x.flatten(1).unflatten(1, (num_channels, -1)).transpose(1, 2).flatten(0, 1)


def channels_first(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer reads or gives as [B, N, ...]; linear layers have their channels on the last axis."""
    return x.movedim(-1, 1) if isinstance(layer, nn.Linear) else x


class NormStatistics:
    """Mean and variance of what each BatchNorm of a module is given, batch by batch of images."""

    def __init__(self):
        self._batches: list[dict[str, list[tuple[int, Tensor, Tensor]]]] = []

    @torch.no_grad()
    def run(self, module: nn.Module, inputs: tuple) -> None:
        """Run a module on a batch, each norm with the statistics of its own inputs, and take in what they are."""
        parts: dict[str, list[tuple[int, Tensor, Tensor]]] = {}

        def watch(name: str, x: Tensor) -> None:
            variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
            parts.setdefault(name, []).append((x.numel() // x.shape[1], mean.double(), variance.double()))

        with batch_statistics(module, watch):
            run_model(module, *inputs)
        self._batches.append(parts)

    def of_first(self, count: int | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and variance [C] by path of the norm, over the first ``count`` batches; None for all."""
        pooled: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
        for parts in self._batches[:count]:
            for name, found in parts.items():
                pooled.setdefault(name, []).extend(found)
        return {name: _pool(parts) for name, parts in pooled.items()}

    def twin(self, module: nn.Module) -> nn.Module:
        """A copy of ``module`` whose norms hold these statistics: on the images it works as it did when trained.

        Raises:
            AutoDFPError: The module cannot be copied.
        """
        try:
            twin = copy.deepcopy(module)
        except Exception as error:  # anything may hang on a module
            reason = first_line(error)
            raise AutoDFPError(
                f'the full pass works on a copy of the {type(module).__name__}, which cannot be copied ({reason}); '
                'take away what hangs on it until copy.deepcopy(model) works, or do without the full pass: '
                "reconstructor=dict(type='SyntheticLeastSquares', refinement=False)"
            ) from error
        twin.eval()  # mmdet's ResNet returns nothing here
        for name, (mean, variance) in self.of_first().items():
            norm = twin.get_submodule(name)
            norm.running_mean, norm.running_var = mean.to(norm.running_mean), variance.to(norm.running_var)
        return twin


def _pool(parts: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of all samples, from counts, means and variances of some."""
    counts = torch.tensor([count for count, _, _ in parts], dtype=torch.float64, device=parts[0][1].device)
    means, variances = (torch.stack([part[index] for part in parts]) for index in (1, 2))
    weights = (counts / counts.sum())[:, None]
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean) ** 2)).sum(0)


class InputMoments:
    """Moments of what a layer reads of a group.

    Args:
        layer (nn.Module): Convolution or linear layer.
        consumer (Consumer): Which of its inputs belong to the group.
        num_channels (int): N, single channels; a linear layer has as many columns for each.
    """

    def __init__(self, layer: nn.Module, consumer: Consumer, num_channels: int):
        self.layer, self.num_channels = layer, num_channels
        self.size = consumer.num_inputs or outputs_first(layer).shape[1]
        self.offset = consumer.offset
        self.moments = Moments(num_channels, device=layer.weight.device)
        # Of a transposed convolution, each output sees the taps of one step: they do not meet.
        spatial = not isinstance(layer, nn.Linear | nn.ConvTranspose2d) and max(layer.kernel_size) > 1
        self.correlation = TapCorrelation(layer.kernel_size, layer.dilation) if spatial else None
        self.num_taps = layer.weight.numel() // outputs_first(layer).shape[0] // outputs_first(layer).shape[1]
        self.num_taps *= self.size // num_channels

    def update(self, x: Tensor, foreground: Foreground | None = None) -> None:
        """Take in an input [B, C, ...], of a linear layer [B, ..., C]."""
        x = channels_first(self.layer, x).narrow(1, self.offset, self.size)
        self.moments.update(as_channels(x, self.num_channels), weights=foreground and foreground.weights(x))
        if self.correlation:
            self.correlation.update(x)

    @property
    def taps(self) -> Tensor:
        """[taps, taps]; the columns of a flattened map count as unrelated."""
        matrix = self.correlation.matrix if self.correlation else torch.eye(self.num_taps, dtype=torch.float64)
        return matrix.to(self.moments.mean)


def input_moments(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[tuple],
    foregrounds: Sequence[Foreground | None],
) -> tuple[dict[tuple[str, str], InputMoments], NormStatistics]:
    """One pass with batch statistics: moments of what consumers read, and of what the norms are given.

    Args:
        module (nn.Module): Dense, in eval mode.
        groups (Sequence[ChannelGroup]): Whose consumers.
        batches (Iterable[tuple]): What the module is called with, batch by batch.
        foregrounds (Sequence[Foreground | None]): Which places of each batch count more.

    Returns:
        tuple[dict[tuple[str, str], InputMoments], NormStatistics]: By the names of group and consumer (its key), over
        all calls of each layer; and for all norms.

    Raises:
        AutoDFPError: A layer is not reached, or reads another type of numbers than its weight's.
    """
    statistics = NormStatistics()
    moments: dict[tuple[str, str], InputMoments] = {}
    readers: dict[str, list[InputMoments]] = {}
    current: list[Foreground | None] = [None]
    for group in groups:
        for consumer in group.consumers:
            found = InputMoments(module.get_submodule(consumer.name), consumer, group.width)
            moments[group.name, consumer.key] = found
            readers.setdefault(consumer.name, []).append(found)

    def collect(path):
        def watch(layer, args):
            if args[0].dtype != layer.weight.dtype:  # the full pass runs blocks by themselves, outside of it
                raise AutoDFPError(
                    f'{path} of the {type(module).__name__} reads {args[0].dtype} where its weight is '
                    f'{layer.weight.dtype}, as under torch.autocast, which least squares cannot do with; take autocast '
                    'out of the forward until the model is pruned'
                )
            for found in readers[path]:
                found.update(args[0], current[0])

        return watch

    with hook_handles() as handles:
        for path in readers:
            handles.append(module.get_submodule(path).register_forward_pre_hook(collect(path)))
        for inputs, current[0] in zip(batches, foregrounds, strict=True):
            statistics.run(module, inputs)
    require_reached([path for path in readers if not readers[path][0].moments.count], module)
    return moments, statistics


def require_reached(missing: list[str], module: nn.Module) -> None:
    """Say which layer of a module synthetic images do not reach, if there is one."""
    if missing:
        raise AutoDFPError(
            f'{missing[0]} of the {type(module).__name__} was to be fitted on synthetic images, but they do not reach '
            'it; leave the group out or use another reconstructor'
        )
