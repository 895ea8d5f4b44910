"""Running a module on synthetic images, and taking the statistics of what its layers and norms read."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
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
    """Raised in a hook to end a forward pass of which no more is needed."""


def inputs_of(model: nn.Module, module: nn.Module, images: Tensor) -> tuple:
    """The positional arguments with which ``model`` calls ``module`` when it is run on images.

    If they are the same, these are the images; for a two-stage detector they are followed by the regions that its first
    stage proposes now. Call this while the model is dense: the pruned second stage then gets the same regions. The
    norms in front of the module, too, use the statistics of the batch.

    Args:
        model (nn.Module): The whole model.
        module (nn.Module): A part of the model, or the model itself.
        images (Tensor): [B, C, H, W].

    Raises:
        AutoDFPError: The model does not call the module, or passes by name what the module takes by name only.
    """
    with torch.no_grad(), batch_statistics(model):
        if model is module:
            return (images, regions_of(model, images)) if has_plain_second_stage(model) else (images,)
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
    call.apply_defaults()  # so that all come by position, also those in between
    named = [name for name in kwargs if name in call.kwargs]
    if named:
        raise AutoDFPError(
            f'the {type(module).__name__} that is to be pruned is given {named[0]} by name, but it is run by itself '
            f'with its inputs by position; let its forward take {named[0]} by position, or prune the whole model'
        )
    return call.args


def first_call(model: nn.Module, part: nn.Module, *inputs: Any) -> tuple[tuple, dict] | None:
    """Run a model until it calls a part; the arguments of that call by position and by name, or None without one."""
    seen: list[tuple[tuple, dict]] = []

    def stop(_, args, kwargs):
        seen.append((args, kwargs))
        raise Stopped

    with hook_handles() as handles, suppress(Stopped):
        handles.append(part.register_forward_pre_hook(stop, with_kwargs=True))
        run_model(model, *inputs)
    return seen[0] if seen else None


def require_taken(module: nn.Module, model: nn.Module, images: Tensor, otherwise: str) -> None:
    """Refuse images that a model does not take.

    Args:
        module (nn.Module): A part of the model, or the model itself; it is run, on two of the images.
        model (nn.Module): The whole model.
        images (Tensor): [B, C, H, W].
        otherwise (str): What the user can do instead; ends the message.

    Raises:
        AutoDFPError: The module fails on them.
    """
    try:
        with torch.no_grad(), batch_statistics(module):
            run_model(module, *inputs_of(model, module, images[:2]))
    except AutoDFPError:
        raise
    except Exception as error:  # a model's own code may raise anything
        reason = first_line(error)
        raise AutoDFPError(
            f'images of shape {list(images.shape)} and type {images.dtype} were sent through the '
            f'{type(model).__name__}, which does not take them ({reason}); images=dict(size=..., mean=..., std=...) '
            'sets their size and, with a value for each, their channels; float() makes the model take their type; '
            f'{otherwise}'
        ) from error


@contextmanager
def batch_statistics(module: nn.Module, watch: Callable[[str, Tensor], None] | None = None) -> Iterator[None]:
    """For the block, let every BatchNorm, frozen or not, use the statistics of its batch; no buffer is changed.

    Norms without running statistics do so anyway and are left alone.

    Args:
        module (nn.Module): Any module.
        watch (Callable | None): Is called with the path and the input of each norm. Defaults to None.
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
            if own is not None:  # another library, such as accelerate, had replaced it
                norm.forward = own


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """For the block, put a model into eval mode; its parts may have been in different modes before."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def as_channels(x: Tensor, num_channels: int) -> Tensor:
    """A feature map [B, N, ...], or a flattened one [B, N * positions], as samples [B * positions, N]."""
    return x.flatten(1).unflatten(1, (num_channels, -1)).transpose(1, 2).flatten(0, 1)


def channels_first(layer: nn.Module, x: Tensor) -> Tensor:
    """Input or output of a layer as [B, N, ...]: a linear layer has its channels on the last axis."""
    return x.movedim(-1, 1) if isinstance(layer, nn.Linear) else x


class NormStatistics:
    """Mean and variance of the inputs of each BatchNorm of a module, collected batch by batch."""

    def __init__(self):
        self._batches: list[dict[str, list[tuple[int, Tensor, Tensor]]]] = []

    @torch.no_grad()
    def run(self, module: nn.Module, inputs: tuple) -> None:
        """Run a module on a batch, with batch statistics, and add the statistics of every norm's inputs."""
        parts: dict[str, list[tuple[int, Tensor, Tensor]]] = {}

        def watch(name: str, x: Tensor) -> None:
            variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
            parts.setdefault(name, []).append((x.numel() // x.shape[1], mean.double(), variance.double()))

        with batch_statistics(module, watch):
            run_model(module, *inputs)
        self._batches.append(parts)

    def of_first(self, count: int | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Path of each norm to mean and variance [C] over the first ``count`` batches. Defaults to None: over all."""
        pooled: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
        for parts in self._batches[:count]:
            for name, found in parts.items():
                pooled.setdefault(name, []).extend(found)
        return {name: _pool(parts) for name, parts in pooled.items()}

    def twin(self, module: nn.Module) -> nn.Module:
        """A copy of ``module`` with these statistics as running statistics, which scale the images as in training.

        Raises:
            AutoDFPError: The module cannot be copied.
        """
        try:
            twin = copy.deepcopy(module)
        except Exception as error:  # a module may have any attribute
            reason = first_line(error)
            raise AutoDFPError(
                f'the full pass works on a copy of the {type(module).__name__}, which cannot be copied ({reason}); '
                'take away what hangs on it until copy.deepcopy(model) works, or do without the full pass: '
                "reconstructor=dict(type='SyntheticLeastSquares', refinement=False)"
            ) from error
        twin.eval()  # not chained: mmdet's ResNet returns None
        for name, (mean, variance) in self.of_first().items():
            norm = twin.get_submodule(name)
            norm.running_mean, norm.running_var = mean.to(norm.running_mean), variance.to(norm.running_var)
        return twin


def _pool(parts: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of all samples, from count, mean and variance of each part."""
    counts = torch.tensor([count for count, _, _ in parts], dtype=torch.float64, device=parts[0][1].device)
    means, variances = (torch.stack([part[index] for part in parts]) for index in (1, 2))
    weights = (counts / counts.sum())[:, None]
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean) ** 2)).sum(0)


class InputMoments:
    """Moments of those inputs of a layer that belong to a group.

    Args:
        layer (nn.Module): Convolution or linear layer.
        consumer (Consumer): Says which of its inputs belong to the group.
        num_channels (int): N, single channels. A linear layer behind a flattened feature map has several inputs for
            each.
    """

    def __init__(self, layer: nn.Module, consumer: Consumer, num_channels: int):
        self.layer, self.num_channels = layer, num_channels
        self.size = consumer.num_inputs or outputs_first(layer).shape[1]
        self.offset = consumer.offset
        self.moments = Moments(num_channels, device=layer.weight.device)
        # An output of a transposed convolution reads only some of the taps; they are taken as uncorrelated.
        spatial = not isinstance(layer, nn.Linear | nn.ConvTranspose2d) and max(layer.kernel_size) > 1
        self.correlation = TapCorrelation(layer.kernel_size, layer.dilation) if spatial else None
        self.num_taps = layer.weight[0, 0].numel() * (self.size // num_channels)

    def update(self, x: Tensor, foreground: Foreground | None = None) -> None:
        """Add an input [B, C, ...] of the layer, of a linear one [B, ..., C]; the foreground counts more."""
        x = channels_first(self.layer, x).narrow(1, self.offset, self.size)
        self.moments.update(as_channels(x, self.num_channels), weights=foreground and foreground.weights(x))
        if self.correlation:
            self.correlation.update(x)

    @property
    def taps(self) -> Tensor:
        """[taps, taps], correlation of inputs at different taps; for the positions of a flattened feature map, none."""
        matrix = self.correlation.matrix if self.correlation else torch.eye(self.num_taps, dtype=torch.float64)
        return matrix.to(self.moments.mean)


def input_moments(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[tuple],
    foregrounds: Sequence[Foreground | None],
) -> tuple[dict[tuple[str, str], InputMoments], NormStatistics]:
    """Run one pass with batch statistics, and take the moments of the consumers' and the norms' inputs.

    Args:
        module (nn.Module): Dense, in eval mode.
        groups (Sequence[ChannelGroup]): Groups of the module.
        batches (Iterable[tuple]): Inputs of the module, batch by batch.
        foregrounds (Sequence[Foreground | None]): The foreground of each batch; positions in it count more.

    Returns:
        tuple[dict[tuple[str, str], InputMoments], NormStatistics]: Name of a group and key of its consumer, to moments
        over all calls of that layer; and the statistics of all norms.

    Raises:
        AutoDFPError: A layer is not called, or the dtype of its inputs is not that of its weight.
    """
    statistics = NormStatistics()
    moments: dict[tuple[str, str], InputMoments] = {}
    readers: dict[str, list[InputMoments]] = {}
    for group in groups:
        for consumer in group.consumers:
            found = InputMoments(module.get_submodule(consumer.name), consumer, group.width)
            moments[group.name, consumer.key] = found
            readers.setdefault(consumer.name, []).append(found)

    def collect(path: str, foreground: Foreground | None, layer: nn.Module, args: tuple) -> None:
        if args[0].dtype != layer.weight.dtype:  # the full pass would run its block outside of autocast
            raise AutoDFPError(
                f'{path} of the {type(module).__name__} reads {args[0].dtype} where its weight is '
                f'{layer.weight.dtype}, as under torch.autocast, which least squares cannot do with; take autocast '
                'out of the forward until the model is pruned'
            )
        for found in readers[path]:
            found.update(args[0], foreground)

    for inputs, foreground in zip(batches, foregrounds, strict=True):
        with hook_handles() as handles:
            for path in readers:
                hook = partial(collect, path, foreground)
                handles.append(module.get_submodule(path).register_forward_pre_hook(hook))
            statistics.run(module, inputs)
    require_reached([path for path in readers if not readers[path][0].moments.count], module)
    return moments, statistics


def require_reached(missing: list[str], module: nn.Module) -> None:
    """Raise an :class:`AutoDFPError` if there are layers of a module that synthetic images do not reach.

    Args:
        missing (list[str]): Their paths; the first one is named.
        module (nn.Module): The module.
    """
    if missing:
        raise AutoDFPError(
            f'{missing[0]} of the {type(module).__name__} was to be fitted on synthetic images, but they do not reach '
            'it; leave the group out or use another reconstructor'
        )
