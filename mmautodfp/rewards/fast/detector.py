"""The stand-in of a detector."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import AnchorFreeHead, AnchorHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmengine.utils import apply_to
from torch import Tensor, nn

from mmautodfp.graph import hook_handles, second_stage_of
from mmautodfp.graph.numbering import tensors_in

from .model import FastModel, replace_module
from .post_processing import use_batched_post_processing


class FastDetector(FastModel):
    """A faster copy of a detector, whose post-processing takes a batch at once.

    In lower precisions, the outputs of the heads are converted to float32 before boxes and masks are made of them.

    Args:
        model (nn.Module): The dense detector, in eval mode.
        precision (str): 'float32', 'bfloat16' or 'float16'. Defaults to 'float32'.
    """

    def __init__(self, model: nn.Module, precision: str = 'float32'):
        parameters = inspect.signature(model.extract_feat).parameters.values()
        self._needed = [p.name for p in parameters if p.default is p.empty and not str(p).startswith('*')]
        super().__init__(model, precision)
        use_batched_post_processing(self._copy)
        self._extract_feat = self._copy.extract_feat
        self._copy.extract_feat = self._features
        for layer in self._copy.modules():
            if isinstance(layer, BaseRoIExtractor | nn.GroupNorm):
                # mmcv's RoIAlign assumes that channels come first in memory; torch's GroupNorm is slow if they do not.
                layer.register_forward_pre_hook(_contiguous_inputs)
            if self.dtype != torch.float32:
                _lower_precision(layer, next(model.parameters()).device.type, self.dtype)

    def _dtype_of(self, name: str, layer: nn.Module) -> torch.dtype:
        return self.dtype if name.split('.')[0] in ('backbone', 'neck') else torch.float32

    def _features(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        return apply_to(self._extract_feat(self._lay_out(inputs), *args, **kwargs), torch.is_tensor, Tensor.float)

    @torch.inference_mode()
    def predict(self, inputs: Tensor, data_samples: list) -> list:
        """As ``model(inputs, data_samples, mode='predict')``."""
        return self._copy(inputs, data_samples, mode='predict')

    def predictors(self) -> list[nn.Module]:
        """The heads with post-processing, whose share of the time a benchmark measures."""
        return [layer for layer in self._copy.modules() if hasattr(layer, 'predict_by_feat')]

    @torch.inference_mode()
    def disagrees(self, model: nn.Module, inputs: Tensor, data_samples: Sequence = ()) -> str | None:
        """Compare features and outputs of heads for a batch with the model's, and try a prediction.

        Both second stages get the same fixed regions: the smallest rounding error changes the order of proposals. Heads
        that take more than features and regions are not compared.

        Args:
            model (nn.Module): The model that this is a copy of.
            inputs (Tensor): A batch, [B, 3, H, W].
            data_samples (Sequence): Its data samples, which are not changed. Defaults to none: nothing is predicted.

        Returns:
            str | None: How they differ, if by more than the precision explains.
        """
        if not isinstance(inputs, Tensor) or inputs.ndim != 4:
            return 'the images are no tensor [B, C, H, W]'
        if len(self._needed) > 1:
            return f'extract_feat asks for {", ".join(self._needed)}, more than images'
        expected, found = (_answers(part, inputs) for part in (model, self._copy))
        if not expected:
            return 'the features are neither a tensor nor a list of tensors'
        reason = self._differing(expected, found)
        if reason is None and data_samples:
            self.predict(inputs, copy.deepcopy(data_samples))
        return reason

    @torch.inference_mode()
    def split_stem(self, inputs: Tensor, layers: Sequence[str]) -> list[str]:
        """Find the stem: children of the backbone that run in a row before the first one that plans change.

        Nothing but the next one reads their outputs, except for the last one's: it is given in place of images.

        Args:
            inputs (Tensor): A batch, [B, 3, H, W].
            layers (Sequence[str]): Paths in the model of the layers that plans will change.

        Returns:
            list[str]: Names of the children; empty if there is no such stem, if it has no parameters, or if none of the
            layers is in the backbone.
        """
        backbone = getattr(self._copy, 'backbone', None)
        changing = {layer.split('.')[1] for layer in layers if layer.startswith('backbone.')}
        if backbone is None or not changing:
            return []
        calls: list[tuple[str, Any, Any]] = []
        data = self._lay_out(inputs)
        with hook_handles() as handles:
            handles += [
                child.register_forward_hook(lambda _, args, out, name=name: calls.append((name, args, out)))
                for name, child in backbone.named_children()
            ]
            features = self._extract_feat(data)
        names = [name for name, _, _ in calls]
        stem = []
        for name, args, out in calls:
            once = names.count(name) == 1 and len(args) == 1 and args[0] is data
            if name in changing or not once or not isinstance(out, Tensor):
                break
            stem.append(name)
            data = out
        while stem and self._loses(stem, inputs, features):
            stem.pop()
        return stem if any(True for name in stem for _ in backbone.get_submodule(name).parameters()) else []

    def _loses(self, stem: Sequence[str], inputs: Tensor, features: Any) -> bool:
        """Whether a batch gets other features if the stem is dropped, as when some of its outputs are features."""
        output = self.run_stem(inputs, stem)
        children = {name: self._copy.backbone.get_submodule(name) for name in stem}
        self.drop_stem(stem)
        try:
            both = [dict(enumerate(tensors_in(one))) for one in (features, self._extract_feat(output))]
            return both[0].keys() != both[1].keys() or self._differing(*both) is not None
        except Exception:  # a later layer was given the output of another one, and may say so in any way
            return True
        finally:
            for name, child in children.items():
                replace_module(self._copy, f'backbone.{name}', child)
            self._dropped = ()

    @torch.inference_mode()
    def run_stem(self, inputs: Tensor, stem: Sequence[str]) -> Tensor:
        """The output of the stem for a batch."""
        data = self._lay_out(inputs)
        for name in stem:
            data = self._copy.backbone.get_submodule(name)(data)
        return data

    def drop_stem(self, stem: Sequence[str]) -> None:
        """Remove the stem: :meth:`predict` then takes outputs of :meth:`run_stem` in place of images."""
        for name in stem:
            replace_module(self._copy, f'backbone.{name}', nn.Identity())
        self._dropped = tuple(f'backbone.{name}.' for name in stem)

    def lacks_stem_of(self, model: nn.Module) -> bool:
        """Whether :meth:`drop_stem` removed layers that have other weights in this model.

        It has after a distillation or a training. Episodes renew the statistics of norms, but not with other values in
        the stem.
        """
        for name, layer in model.named_modules():
            if f'{name}.'.startswith(self._dropped):
                (seen, _), _ = self._seen[name]
                if not {(id(weight), weight._version) for weight in layer.parameters(recurse=False)} <= set(seen):
                    return True
        return False


def _answers(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Outputs for a batch, by name: the features of each level, and what dense heads and RoI heads make of them."""
    features = model.extract_feat(inputs)
    answers = {f'features of level {level}': tensor for level, tensor in enumerate(tensors_in(features))}
    for name in ('rpn_head', 'bbox_head'):
        head = getattr(model, name, None)
        if isinstance(head, AnchorHead | AnchorFreeHead) and answers:  # others take more than features
            # All levels together: on a feature map of one pixel, a GroupNorm enlarges the smallest rounding errors.
            answers[f"{name}'s outputs"] = torch.cat([tensor.flatten() for tensor in tensors_in(head(features))])
    if answers and hasattr(model, 'roi_head'):
        for name, value in second_stage_of(model.roi_head, features, _regions(inputs)).items():
            if found := tensors_in(value):
                answers[f"roi_head's {name}"] = torch.cat([tensor.flatten() for tensor in found])
    return answers


def _regions(inputs: Tensor) -> Tensor:
    """Fixed regions of several sizes, [85, 5] as RoI heads take them: cells of 1 x 1 to 8 x 8 grids, first image."""
    height, width = inputs.shape[-2:]
    cells = [(x / n, y / n, (x + 1) / n, (y + 1) / n) for n in (1, 2, 4, 8) for y in range(n) for x in range(n)]
    boxes = inputs.new_tensor(cells) * inputs.new_tensor([width, height, width, height])
    return torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)


def _lower_precision(layer: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Let a layer, if it is a head, compute in another dtype, with outputs in float32."""
    if isinstance(layer, BaseDenseHead | BBoxHead):
        layer.forward = _in_precision(layer.forward, device, dtype)
    elif isinstance(layer, FCNMaskHead):
        for conv in layer.convs:  # a transposed conv is slower in bfloat16
            conv.forward = _in_precision(conv.forward, device, dtype)


def _in_precision(forward: Callable, device: str, dtype: torch.dtype) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, dtype=dtype):
            answer = forward(*args, **kwargs)
        return apply_to(answer, torch.is_tensor, Tensor.float)

    return run


def _contiguous_inputs(_: nn.Module, args: tuple) -> tuple:
    return apply_to(args, torch.is_tensor, Tensor.contiguous)
