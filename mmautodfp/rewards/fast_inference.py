"""Predictions of a detector, sooner: a stand-in that answers as the model does."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.models.dense_heads import AnchorFreeHead, AnchorHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmautodfp.errors import AutoDFPError

from .post_processing import use_batched_post_processing

PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
# Relative error of the features that each precision may bring; a wrong answer is off by far more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def choose_precision(setting: str, device: torch.device) -> str:
    """Name of the precision that a setting means on a device.

    'auto' is half precision where the device computes it faster than float32: bfloat16 on a CPU with instructions for
    it, float16 on a GPU.

    Raises:
        AutoDFPError: The setting is none of 'auto', 'float32', 'bfloat16', 'float16'.
    """
    if setting != 'auto' and setting not in PRECISIONS:
        raise AutoDFPError(f'CocoReward was asked for precision={setting!r}; it must be auto, {", ".join(PRECISIONS)}')
    if setting != 'auto':
        return setting
    if device.type == 'cuda':
        return 'float16'
    try:
        flags = Path('/proc/cpuinfo').read_text()
    except OSError:
        return 'float32'
    return 'bfloat16' if 'avx512_bf16' in flags or 'amx_bf16' in flags else 'float32'


class FastDetector:
    """A copy of a detector with norms folded, channels last, in a lower precision if asked for, and with
    post-processing by the batch.

    What the heads say is float32 again before boxes and masks are made of it.

    It follows the model: :meth:`update` brings over what a plan changed, and nothing else.

    Args:
        model (nn.Module): The dense detector, in eval mode.
        precision (str): 'float32', 'bfloat16' or 'float16'. Defaults to 'float32'.
    """

    def __init__(self, model: nn.Module, precision: str = 'float32'):
        self.dtype = PRECISIONS[precision]
        self._copy = copy.deepcopy(model).eval().requires_grad_(False)
        use_batched_post_processing(self._copy)
        self._norm_of = _find_norms(self._copy)
        for norm in self._norm_of.values():
            _set(self._copy, norm, nn.Identity())
        self._seen: dict[str, list[tuple[Tensor, int]]] = {}
        self.update(model)
        self._extract_feat = self._copy.extract_feat
        self._copy.extract_feat = self._features
        self._stem: list[str] = []
        for layer in self._copy.modules():
            if isinstance(layer, BaseRoIExtractor | nn.GroupNorm):
                # mmcv's RoIAlign takes its input's memory for channels-first; torch's GroupNorm is slow on any other.
                layer.register_forward_pre_hook(_contiguous_inputs)
            if self.dtype != torch.float32:
                _lower_precision(layer, next(model.parameters()).device.type, self.dtype)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Bring over the weights that are not the same tensors as at the last call."""
        for name, layer in model.named_modules():
            norm = model.get_submodule(self._norm_of[name]) if name in self._norm_of else None
            tensors = [tensor for part in (layer, norm) if part is not None for tensor in _own_tensors(part)]
            versions = [(tensor, tensor._version) for tensor in tensors]
            seen = self._seen.get(name, [])
            if len(versions) == len(seen) and all(
                a is b and i == j for (a, i), (b, j) in zip(versions, seen, strict=True)
            ):
                continue
            self._seen[name] = versions
            if name not in self._norm_of.values():
                self._bring_over(name, layer, norm)

    def _bring_over(self, name: str, layer: nn.Module, norm: _BatchNorm | None) -> None:
        dtype = self.dtype if name.split('.')[0] in ('backbone', 'neck') else torch.float32
        state = {**layer._parameters, **layer._buffers}
        if norm is not None:
            bias = state.get('bias')
            state['weight'], state['bias'] = fuse_conv_bn_weights(
                layer.weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        own = self._copy.get_submodule(name)
        for key, tensor in state.items():
            if tensor is None:  # a bias that a plan gave may be gone again
                (own._buffers if key in own._buffers else own._parameters)[key] = None
                continue
            tensor = tensor.detach()
            if tensor.is_floating_point():
                tensor = tensor.to(dtype)
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            if key in own._buffers:
                own._buffers[key] = tensor
            else:
                own._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        if isinstance(own, nn.Conv2d):
            own.groups = layer.groups

    def _features(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        inputs = inputs.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return _map_tensors(self._extract_feat(inputs, *args, **kwargs), Tensor.float)

    @torch.inference_mode()
    def predict(self, inputs: Tensor, data_samples: list) -> list:
        """As ``model(inputs, data_samples, mode='predict')``."""
        return self._copy(inputs, data_samples, mode='predict')

    def predictors(self) -> list[nn.Module]:
        """The heads that make boxes or masks of what the network says, for a profile."""
        return [layer for layer in self._copy.modules() if hasattr(layer, 'predict_by_feat')]

    @torch.inference_mode()
    def disagrees(self, model: nn.Module, inputs: Tensor) -> str | None:
        """Compare what backbone, neck and dense heads make of a batch with the model's own.

        Second stages are not compared: the least rounding changes the order of the regions that they look at.

        Returns:
            str | None: How they differ, if by more than the precision explains.
        """
        expected, found = (_answers(part, inputs) for part in (model, self._copy))
        if not expected:
            return 'the features are neither a tensor nor a list of tensors'
        for what, answer in expected.items():
            error = ((answer - found[what]).norm() / answer.norm().clamp(min=1e-12)).item()
            if not error <= TOLERANCE[self.dtype]:
                return f'the {what} differ by {error:.1e}'
        return None

    @torch.inference_mode()
    def split_stem(self, inputs: Tensor, units: Sequence[str]) -> list[str]:
        """Find the children of the backbone that run one after the other before the first prunable unit.

        Args:
            inputs (Tensor): A batch, [B, 3, H, W].
            units (Sequence[str]): Paths of the units, from the model.

        Returns:
            list[str]: Their names; empty if there are none, or if the units are elsewhere.
        """
        backbone = getattr(self._copy, 'backbone', None)
        if backbone is None or not units or not all(unit.startswith('backbone.') for unit in units):
            return []
        changing = {unit.split('.')[1] for unit in units}
        calls: list[tuple[str, Any, Any]] = []
        handles = [
            child.register_forward_hook(lambda _, args, out, name=name: calls.append((name, args, out)))
            for name, child in backbone.named_children()
        ]
        data = inputs.to(self.dtype).contiguous(memory_format=torch.channels_last)
        backbone(data)
        for handle in handles:
            handle.remove()
        names = [name for name, _, _ in calls]
        stem = []
        for name, args, out in calls:
            if name in changing or len(args) != 1 or args[0] is not data or names.count(name) > 1:
                break
            stem.append(name)
            data = out
        return stem if any(True for name in stem for _ in backbone.get_submodule(name).parameters()) else []

    @torch.inference_mode()
    def run_stem(self, inputs: Tensor, stem: Sequence[str]) -> Tensor:
        """What the stem makes of a batch."""
        data = inputs.to(self.dtype).contiguous(memory_format=torch.channels_last)
        for name in stem:
            data = self._copy.backbone.get_submodule(name)(data)
        return data

    def drop_stem(self, stem: Sequence[str]) -> None:
        """From now on :meth:`predict` takes what :meth:`run_stem` gave in place of images."""
        self._stem = [f'backbone.{name}' for name in stem]
        for name in self._stem:
            _set(self._copy, name, nn.Identity())


def _answers(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """The features of a batch by level, and what each dense head says of them."""
    features = model.extract_feat(inputs)
    answers = {f'features of level {level}': tensor for level, tensor in enumerate(_flatten(features))}
    for name in ('rpn_head', 'bbox_head'):
        head = getattr(model, name, None)
        if isinstance(head, AnchorHead | AnchorFreeHead) and answers:  # others want more than features
            # All levels together: on a map of one pixel, a GroupNorm makes much of the least rounding.
            answers[f"{name}'s outputs"] = torch.cat([tensor.flatten() for tensor in _flatten(head(features))])
    return answers


def _find_norms(model: nn.Module) -> dict[str, str]:
    """Paths of the convs that can take a BatchNorm into their weights, with the norms' paths.

    As in mmcv's ``fuse_conv_bn``: a norm belongs to the conv before it among its parent's children. A conv or a norm
    that is used in several places is left alone.
    """
    paths: dict[nn.Module, int] = {}
    for _, layer in model.named_modules(remove_duplicate=False):
        paths[layer] = paths.get(layer, 0) + 1
    found = {}
    for path, parent in model.named_modules():
        last = None
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                last = (name, child)
            elif isinstance(child, _BatchNorm) and last is not None and child.track_running_stats:
                if paths[last[1]] == paths[child] == 1 and child.num_features == last[1].out_channels:
                    found[_join(path, last[0])] = _join(path, name)
                last = None
    return found


def _join(parent: str, name: str) -> str:
    return f'{parent}.{name}' if parent else name


def _set(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition('.')
    model.get_submodule(parent)._modules[name] = layer


def _own_tensors(layer: nn.Module) -> list[Tensor]:
    return [t for store in (layer._parameters, layer._buffers) for t in store.values() if t is not None]


def _map_tensors(value: Any, function) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


def _flatten(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _flatten(item)] if isinstance(value, list | tuple) else []


def _lower_precision(layer: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Let a head compute in another type; what it says is float32 again."""
    if isinstance(layer, BaseDenseHead | BBoxHead):
        layer.forward = _in_precision(layer.forward, device, dtype)
    elif isinstance(layer, FCNMaskHead):
        for conv in layer.convs:  # a transposed conv is slower in bfloat16
            conv.forward = _in_precision(conv.forward, device, dtype)


def _in_precision(forward: Callable, device: str, dtype: torch.dtype) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, dtype=dtype):
            answer = forward(*args, **kwargs)
        return _map_tensors(answer, Tensor.float)

    return run


def _contiguous_inputs(_: nn.Module, args: tuple) -> tuple:
    return _map_tensors(args, Tensor.contiguous)
