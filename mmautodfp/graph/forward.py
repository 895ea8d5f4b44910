"""Running a whole model on images, heads included, without a ground truth and without post-processing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from mmengine.utils import apply_to
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from mmautodfp.utils import AutoDFPError, in_one_line

# Regions of each image for second stages.
NUM_REGIONS = 48
# One in so many of them gets masks or keypoints: at most a quarter of the regions that detectors are trained on hold
# objects.
REGIONS_PER_MASK = 4
PLAIN = (
    Tensor | np.ndarray | np.generic | str | bytes | bool | int | float | complex | torch.dtype | torch.device | None
)


def outputs_of(model: nn.Module, *inputs: Any) -> list[Tensor]:
    """The floating-point outputs of a model; of a detector those of all heads, before post-processing.

    Args:
        model (nn.Module): As of :func:`run_model`.
        *inputs (Any): Likewise.

    Returns:
        list[Tensor]: In a fixed order.
    """
    return flat_tensors(run_model(model, *inputs))


def outputs_by_kind(model: nn.Module, *inputs: Any) -> list[list[Tensor]]:
    """The floating-point outputs of :func:`run_model`, in lists of those that differ in the pyramid level alone.

    Returns:
        list[list[Tensor]]: For each head, a list for classes, one for boxes and so on, with a tensor for each level.
    """
    return list(_kinds(run_model(model, *inputs)))


def _kinds(value: Any) -> Iterator[list[Tensor]]:
    value = _fields(value)
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield [value]
    elif isinstance(value, list | tuple) and _are_levels(value):
        yield list(value)
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _kinds(item)


def _are_levels(values: list | tuple) -> bool:
    """Whether these are the levels of a pyramid; a tuple may also hold several kinds, such as classes and boxes."""
    if not values or not all(isinstance(value, Tensor) and value.is_floating_point() for value in values):
        return False
    sizes = {value.shape[2:] for value in values}
    alike = len({value.shape[:2] for value in values}) == 1 and all(value.ndim == 4 for value in values)
    return isinstance(values, list) or (alike and len(sizes) == len(values))


def run_model(model: nn.Module, *inputs: Any) -> Any:
    """Run a model; of a detector also the heads, but without post-processing.

    Args:
        model (nn.Module): A detector of MMDetection or torchvision; a model with ``extract_feat``, of which only the
            features are computed; or any other model, which is called with the inputs.
        *inputs (Any): Of a detector, preprocessed images [B, C, H, W]. If it is one of MMDetection's with a plain
            second stage (:func:`has_plain_second_stage`), regions [n, 5] as of :func:`regions_of` can follow; otherwise
            they are random.

    Returns:
        Any: The outputs, tensors in lists, tuples, dicts and other containers. Channels are on the second axis, also
        where a head of torchvision or a detector with queries has them on the last one.

    Raises:
        AutoDFPError: A model that takes images was given none, or a head of a torchvision detector takes other inputs
            than torchvision's own.
    """
    if not inputs and (is_torchvision_detector(model) or hasattr(model, 'extract_feat')):
        raise AutoDFPError(f'the {type(model).__name__} was to be run without images; give it a batch [B, C, H, W]')
    if is_torchvision_detector(model):
        return _run_torchvision(model, *inputs)
    if not hasattr(model, 'extract_feat') or not isinstance(inputs[0], Tensor):
        return model(*inputs)
    images = inputs[0]
    if not is_detector(model):
        return model.extract_feat(images)
    if has_plain_second_stage(model):
        features = model.extract_feat(images)
        first = model.rpn_head(features) if getattr(model, 'rpn_head', None) is not None else []
        regions = inputs[1] if len(inputs) > 1 else random_regions(images)
        second = second_stage_of(model.roi_head, features, regions)
        if getattr(model, 'semantic_head', None) is not None:  # of panoptic detectors; it reads the same features
            second['semantic'] = model.semantic_head(features)
        return first, second
    if _is_plain_single_stage(model):
        return model.bbox_head(model.extract_feat(images))
    if _makes_masks_of_instances(model):
        features = model.extract_feat(images)
        return model.bbox_head(features), _instance_free_part(model.mask_head, features)
    said = model(images, samples_of(images), mode='tensor')
    return _channels_second(said) if hasattr(model, 'num_queries') else said


def _channels_second(said: Any) -> Any:
    return apply_to(said, torch.is_tensor, lambda x: x.movedim(-1, 1))


def _run_torchvision(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """The outputs of a torchvision detector's heads, by head; unlike in its own forward, images are not rescaled."""
    features = model.backbone(images)
    features = features if isinstance(features, Mapping) else {'0': features}
    levels, said = list(features.values()), {}
    if hasattr(model, 'head'):
        said['head'] = _channels_second(_ask(model, 'head', levels))
    if hasattr(model, 'rpn'):
        said['rpn'] = _ask(model, 'rpn.head', levels)
    if hasattr(model, 'roi_heads'):
        regions = random_regions(images)
        boxes = [regions[regions[:, 0] == index, 1:] for index in range(len(images))]
        sizes = [tuple(images.shape[-2:])] * len(images)
        for kind in ('box', 'mask', 'keypoint'):
            if getattr(model.roi_heads, f'{kind}_roi_pool', None) is not None:
                shown = boxes if kind == 'box' else [own[: NUM_REGIONS // REGIONS_PER_MASK] for own in boxes]
                found = _ask(model, f'roi_heads.{kind}_roi_pool', features, shown, sizes)
                for part in ('head', 'predictor'):
                    found = _ask(model, f'roi_heads.{kind}_{part}', found)
                said[kind] = found
    return said or features


def _ask(model: nn.Module, path: str, *inputs: Any) -> Any:
    """Call a head of a torchvision detector as torchvision calls its own; the error for other heads names the head."""
    head = attrgetter(path)(model)
    try:
        return head(*inputs)
    except AutoDFPError:
        raise
    except (TypeError, AttributeError, LookupError, ValueError) as error:
        raise AutoDFPError(
            f"{path} of the {type(model).__name__} was called as torchvision's own heads are, but this "
            f'{type(head).__name__} takes something else ({in_one_line(error)}); let its forward take what theirs do, '
            "or prune the backbone with reconstructor=dict(type='SimilarityReconstructor'), which asks no head"
        ) from error


@contextmanager
def hook_handles() -> Iterator[list]:
    """A list for hook handles, which are removed at the end of the block."""
    handles: list = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def is_detector(model: nn.Module) -> bool:
    """Whether a model is called as MMDetection's detectors are."""
    return hasattr(model, 'extract_feat') and any(
        hasattr(model, name) for name in ('roi_head', 'bbox_head', 'mask_head', 'panoptic_head')
    )


def is_torchvision_detector(model: nn.Module) -> bool:
    """Whether a model is one of torchvision's detectors, which rescale images themselves."""
    return isinstance(getattr(model, 'transform', None), GeneralizedRCNNTransform)


def samples_of(images: Tensor) -> list:
    """A data sample for each image, with its size but without annotations."""
    from mmdet.structures import DetDataSample  # imported here: a backbone alone needs no MMDetection

    shape = tuple(images.shape[-2:])
    sizes = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape)
    sizes['border'] = (0, shape[0], 0, shape[1])  # where the image is in the padding: CenterNet and CornerNet need it
    return [DetDataSample(metainfo=sizes | dict(img_id=i, scale_factor=(1.0, 1.0))) for i in range(len(images))]


def regions_of(model: nn.Module, images: Tensor) -> Tensor:
    """The proposals of a detector's first stage for the second, filled up with random boxes.

    Args:
        model (nn.Module): A detector with two stages.
        images (Tensor): [B, C, H, W], preprocessed.

    Returns:
        Tensor: [48 * B, 5], index of the image, left, top, right, bottom; the images take turns.
    """
    filled = random_regions(images).view(NUM_REGIONS, len(images), 5)
    if getattr(model, 'rpn_head', None) is not None:
        found = model.rpn_head.predict(model.extract_feat(images), samples_of(images), rescale=False)
        for index, proposals in enumerate(found):
            boxes = proposals.bboxes[:NUM_REGIONS]
            filled[: len(boxes), index, 1:] = boxes
    return filled.flatten(0, 1)


def random_regions(images: Tensor) -> Tensor:
    """Random boxes of all sizes, always the same for images of one shape [B, C, H, W]; as of :func:`regions_of`."""
    random = np.random.RandomState(0)
    batch, (height, width) = len(images), images.shape[-2:]
    number = NUM_REGIONS * batch
    # Sides from a sixteenth of the image's to its whole, evenly distributed on a logarithmic scale.
    sides = np.stack([width, height], 0)[:, None] * 2.0 ** -random.uniform(0, 4, (2, number))
    corner = random.uniform(0, 1, (2, number)) * (np.array([[width], [height]]) - sides)
    boxes = np.concatenate([np.tile(np.arange(batch), NUM_REGIONS)[None], corner, corner + sides])
    # mmcv's RoIAlign reads memory row by row whatever the strides are, so the tensor must be contiguous.
    return images.new_tensor(boxes.T).contiguous()


def second_stage_of(head: nn.Module, features: Any, regions: Tensor) -> dict[str, Tensor]:
    """The outputs of a RoI head of MMDetection's usual kind for regions [n, 5].

    Returns:
        dict[str, Tensor]: ``cls_score`` and ``bbox_pred``, and of the first quarter of the regions ``mask_preds``; in a
        cascade with the stage behind these names, such as ``cls_score of stage 0``. Also ``grid`` of Grid R-CNN and
        ``mask_iou`` of Mask Scoring R-CNN.
    """
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    outputs: dict[str, Any] = {}
    for kind in ('bbox', 'mask'):
        method = f'_{kind}_forward'
        own = getattr(type(head), method, None)
        if not getattr(head, f'with_{kind}', False):
            continue
        shown = regions if kind == 'bbox' else regions[: -(-len(regions) // REGIONS_PER_MASK)]
        if own is getattr(StandardRoIHead, method):
            found = {'': getattr(head, method)(features, shown)}
        elif own is getattr(CascadeRoIHead, method):
            found = {f' of stage {i}': getattr(head, method)(i, features, shown) for i in range(head.num_stages)}
        else:
            continue
        names = ('cls_score', 'bbox_pred', 'mask_preds')
        outputs |= {name + stage: out[name] for stage, out in found.items() for name in names if name in out}
        if kind == 'mask' and hasattr(head, 'mask_iou_head'):
            # The head reads, for each box, the mask of its predicted class; here the classes take turns.
            masks = found['']['mask_preds']
            rows = torch.arange(len(masks), device=masks.device)
            outputs['mask_iou'] = head.mask_iou_head(found['']['mask_feats'], masks[rows, rows % masks.shape[1]])
    if hasattr(head, 'grid_head') and not head.with_shared_head:
        levels = features[: head.grid_roi_extractor.num_inputs]
        outputs['grid'] = head.grid_head(head.grid_roi_extractor(levels, regions))['fused']
    return outputs


def flat_tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors in nested lists, tuples, dicts and dataclasses."""
    return [leaf for leaf in _leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def opaque_parts(value: Any) -> Iterator[Any]:
    """Leaves of nested lists, tuples, dicts and dataclasses that may hold tensors: neither tensors nor plain data."""
    return (leaf for leaf in _leaves(value) if not isinstance(leaf, PLAIN))


def _leaves(value: Any) -> Iterator[Any]:
    """The leaves of nested lists, tuples, dicts and dataclasses: the values that are none of these."""
    value = _fields(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _fields(value: Any) -> Any:
    """A dataclass as a dict of its fields; any other value unchanged."""
    if not is_dataclass(value) or isinstance(value, Mapping):  # transformers' outputs are both
        return value
    return {field.name: getattr(value, field.name) for field in fields(value)}


def has_plain_second_stage(model: nn.Module) -> bool:
    """Whether a model's second stage takes features and regions, and its first one features alone."""
    if not hasattr(model, 'roi_head'):
        return False
    from mmdet.models.dense_heads import AnchorHead
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    first, head = getattr(model, 'rpn_head', None), type(model.roi_head)
    usual = {getattr(kind, '_bbox_forward', None) for kind in (CascadeRoIHead, StandardRoIHead)}
    return getattr(head, '_bbox_forward', None) in usual and (first is None or isinstance(first, AnchorHead))


def _is_plain_single_stage(model: nn.Module) -> bool:
    """Whether ``_forward`` of a model only runs ``bbox_head`` on the features, as it does without the head's hooks."""
    from mmdet.models.detectors import SingleStageDetector

    return getattr(type(model), '_forward', None) is SingleStageDetector._forward and hasattr(model, 'bbox_head')


def _makes_masks_of_instances(model: nn.Module) -> bool:
    """Whether a single-stage model's mask head needs instances, which its forward takes from a ground truth."""
    head = getattr(model, 'mask_head', None)
    known = any(hasattr(head, part) for part in ('mask_feature_head', 'protonet'))
    return known and getattr(model, 'bbox_head', None) is not None


def _instance_free_part(head: nn.Module, features: Any) -> Any:
    """The outputs of CondInst's or YOLACT's mask head that need no instances; all its weights are used for these.

    YOLACT's segmentation branch runs too, though only a training needs it: it reads the same features.
    """
    if hasattr(head, 'mask_feature_head'):
        return head.mask_feature_head(features)
    branches = (head.protonet, getattr(head, 'segm_branch', None))
    return tuple(branch(features[0]) for branch in branches if branch is not None)
