"""Predictions of a detector, sooner: a stand-in that answers as the model does."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import AnchorFreeHead, AnchorHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, nn

from .model import TOLERANCE, FastModel, map_tensors, relative_error, replace_module
from .post_processing import use_batched_post_processing


class FastDetector(FastModel):
    """A detector's stand-in, whose post-processing takes a batch at once.

    What the heads say is float32 again before boxes and masks are made of it.

    Args:
        model (nn.Module): The dense detector, in eval mode.
        precision (str): 'float32', 'bfloat16' or 'float16'. Defaults to 'float32'.
    """

    def __init__(self, model: nn.Module, precision: str = 'float32'):
        super().__init__(model, precision)
        use_batched_post_processing(self._copy)
        self._extract_feat = self._copy.extract_feat
        self._copy.extract_feat = self._features
        for layer in self._copy.modules():
            if isinstance(layer, BaseRoIExtractor | nn.GroupNorm):
                # mmcv's RoIAlign takes its input's memory for channels-first; torch's GroupNorm is slow on any other.
                layer.register_forward_pre_hook(_contiguous_inputs)
            if self.dtype != torch.float32:
                _lower_precision(layer, next(model.parameters()).device.type, self.dtype)

    def _dtype_of(self, name: str, layer: nn.Module) -> torch.dtype:
        return self.dtype if name.split('.')[0] in ('backbone', 'neck') else torch.float32

    def _features(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        return map_tensors(self._extract_feat(self._lay_out(inputs), *args, **kwargs), Tensor.float)

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
            error = relative_error(answer, found[what])
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
        data = self._lay_out(inputs)
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
        data = self._lay_out(inputs)
        for name in stem:
            data = self._copy.backbone.get_submodule(name)(data)
        return data

    def drop_stem(self, stem: Sequence[str]) -> None:
        """From now on :meth:`predict` takes what :meth:`run_stem` gave in place of images."""
        for name in stem:
            replace_module(self._copy, f'backbone.{name}', nn.Identity())
        self._dropped = tuple(f'backbone.{name}.' for name in stem)


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
        return map_tensors(answer, Tensor.float)

    return run


def _contiguous_inputs(_: nn.Module, args: tuple) -> tuple:
    return map_tensors(args, Tensor.contiguous)
