"""MMDetection's post-processing of boxes for a whole batch at once, not image by image and level by level.

The results are those of MMDetection's methods (tested). Only the suppression still takes one image at a time. Heads
that override these methods are left alone.
"""

from collections.abc import Sequence
from types import MethodType

import torch
from mmcv.ops import batched_nms
from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.ops import nms

_SINGLE = ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')


def use_batched_post_processing(model: nn.Module) -> list[str]:
    """Give the heads of a detector the methods of this module, if these do the same as the heads' own.

    Args:
        model (nn.Module): A detector; changed in place.

    Returns:
        list[str]: Paths of the heads that were changed.
    """
    changed = []
    for name, head in model.named_modules():
        method = _batched_method(head)
        if method is not None:
            head.predict_by_feat = MethodType(method, head)
            changed.append(name)
    return changed


def _batched_method(head: nn.Module):
    """The replacement of a head's ``predict_by_feat``; None if it, or a method that it calls, is not MMDetection's."""
    if isinstance(head, BBoxHead):
        same = _inherits(head, BBoxHead, _SINGLE[:2]) and not head.custom_cls_channels
        return predict_rois if same and head.with_reg and _is_known(head.bbox_coder) else None
    if not isinstance(head, BaseDenseHead) or not hasattr(head, 'loss_cls') or not hasattr(head, 'bbox_coder'):
        return None
    if getattr(head.loss_cls, 'custom_cls_channels', False) or not _is_known(head.bbox_coder):
        return None
    if isinstance(head, RPNHead):
        same = _inherits(head, RPNHead, _SINGLE[1:]) and _inherits(head, BaseDenseHead, _SINGLE[:1])
        return predict_proposals if same and head.use_sigmoid_cls else None
    return predict_dense if _inherits(head, BaseDenseHead, _SINGLE) else None


def _is_known(coder) -> bool:
    return type(coder) in (DeltaXYWHBBoxCoder, DistancePointBBoxCoder) and not coder.use_box_type


def _inherits(head: nn.Module, base: type, methods: Sequence[str]) -> bool:
    return all(getattr(type(head), name, None) is getattr(base, name, None) for name in methods)


def predict_dense(
    self, cls_scores, bbox_preds, score_factors=None, batch_img_metas=None, cfg=None, rescale=False, with_nms=True
):
    """``BaseDenseHead.predict_by_feat`` (RetinaNet, FCOS, ATSS)."""
    cfg = self.test_cfg if cfg is None else cfg
    if not with_nms or cfg.get('nms_pre', -1) <= 0 or cfg.max_per_img <= 0:  # for -1, mmdet slices [:-1]
        return type(self).predict_by_feat(
            self, cls_scores, bbox_preds, score_factors, batch_img_metas, cfg, rescale, with_nms
        )
    priors = _priors(self, cls_scores)
    parts = []
    for level, (scores, deltas) in enumerate(zip(cls_scores, bbox_preds, strict=True)):
        scores = _per_prior(scores, self.cls_out_channels)  # [B, P, C]
        scores = scores.sigmoid() if self.use_sigmoid_cls else scores.softmax(-1)[..., :-1]
        image, prior, label = (scores > cfg.get('score_thr', 0)).nonzero(as_tuple=True)
        found = scores[image, prior, label]
        best = _first_of_each(image, found, cfg.nms_pre)
        image, prior, label, found = image[best], prior[best], label[best], found[best]
        if score_factors is not None:
            found = found * _per_prior(score_factors[level], 1)[image, prior, 0].sigmoid()
        chosen = _per_prior(deltas, self.bbox_coder.encode_size)[image, prior]
        parts.append((image, priors[level][prior], chosen, found, label, label))
    return _join_levels(self, parts, batch_img_metas, cfg, rescale)


def predict_proposals(
    self, cls_scores, bbox_preds, score_factors=None, batch_img_metas=None, cfg=None, rescale=False, with_nms=True
):
    """``RPNHead.predict_by_feat``: without classes, and with suppression in each level."""
    cfg = self.test_cfg if cfg is None else cfg
    if cfg.max_per_img <= 0:
        return type(self).predict_by_feat(
            self, cls_scores, bbox_preds, score_factors, batch_img_metas, cfg, rescale, with_nms
        )
    priors = _priors(self, cls_scores)
    parts = []
    for level, (scores, deltas) in enumerate(zip(cls_scores, bbox_preds, strict=True)):
        scores = _per_prior(scores, 1)[..., 0].sigmoid()  # [B, P]
        count = scores.shape[1]
        if 0 < cfg.get('nms_pre', -1) < count:
            count = cfg.nms_pre
            scores, prior = scores.sort(descending=True, stable=True)
            scores, prior = scores[:, :count], prior[:, :count]
        else:
            prior = torch.arange(count, device=scores.device).expand(len(scores), count)
        image = torch.arange(len(scores), device=scores.device)[:, None].expand(-1, count).flatten()
        prior = prior.flatten()
        chosen = _per_prior(deltas, self.bbox_coder.encode_size)[image, prior]
        group, label = torch.full_like(image, level), torch.zeros_like(image)
        parts.append((image, priors[level][prior], chosen, scores.flatten(), group, label))
    return _join_levels(self, parts, batch_img_metas, cfg, rescale)


def predict_rois(self, rois, cls_scores, bbox_preds, batch_img_metas, rcnn_test_cfg=None, rescale=False):
    """``BBoxHead.predict_by_feat``: the second stage."""
    if rcnn_test_cfg is None or not isinstance(bbox_preds[0], Tensor):
        return type(self).predict_by_feat(self, rois, cls_scores, bbox_preds, batch_img_metas, rcnn_test_cfg, rescale)
    roi = torch.cat(tuple(rois))
    scores = torch.cat(tuple(cls_scores)).softmax(-1)[:, :-1]
    deltas = torch.cat(tuple(bbox_preds))
    index, label = (scores > rcnn_test_cfg.score_thr).nonzero(as_tuple=True)
    image = roi[index, 0].long()
    deltas = deltas.unflatten(1, (-1, self.bbox_coder.encode_size))
    deltas = deltas[index, torch.zeros_like(label) if self.reg_class_agnostic else label]
    boxes = _decode(self.bbox_coder, roi[index, 1:], deltas, image, batch_img_metas, rescale)
    return _suppress(image, boxes, scores[index, label], label, label, len(batch_img_metas), rcnn_test_cfg)


def _join_levels(
    head: nn.Module, parts: Sequence[Sequence[Tensor]], metas: Sequence[dict], cfg, rescale: bool
) -> list[InstanceData]:
    """The best boxes of each image, from the images, priors, deltas, scores, groups and labels of each level."""
    image, priors, deltas, scores, groups, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    boxes = _decode(head.bbox_coder, priors, deltas, image, metas, rescale)
    columns = _drop_small((image, boxes, scores, groups, labels), cfg.get('min_bbox_size', -1))
    return _suppress(*columns, len(metas), cfg)


def _priors(head: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """Anchors [P, 4] or points [P, 2] of each level."""
    sizes = [level.shape[-2:] for level in maps]
    return head.prior_generator.grid_priors(sizes, dtype=maps[0].dtype, device=maps[0].device)


def _per_prior(maps: Tensor, width: int) -> Tensor:
    """Outputs [B, A * width, H, W] of a head, as [B, H * W * A, width]."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, width)


def _first_of_each(group: Tensor, scores: Tensor, count: int) -> Tensor:
    """Indices sorted by group and falling score; of each group at most ``count``, or all if that is not above 0."""
    order = scores.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    if count <= 0 or not len(order):
        return order
    grouped = group[order]
    starts = torch.searchsorted(grouped, torch.arange(int(grouped[-1]) + 1, device=group.device))
    rank = torch.arange(len(order), device=group.device) - starts[grouped]
    return order[rank < count]


def _decode(coder, priors: Tensor, deltas: Tensor, image: Tensor, metas: Sequence[dict], rescale: bool) -> Tensor:
    """Boxes [n, 4], clipped to their images; with ``rescale``, in pixels of the files and not of the inputs."""
    if not len(priors):
        return priors.new_zeros(0, 4)
    boxes = coder.decode(priors, deltas)
    if coder.clip_border:
        heights, widths = (boxes.new_tensor([meta['img_shape'][side] for meta in metas])[image] for side in (0, 1))
        limits = torch.stack([widths, heights, widths, heights], dim=1)
        boxes = torch.minimum(boxes, limits).clamp_(min=0)
    if rescale:
        factors = boxes.new_tensor([[1 / side for side in meta['scale_factor']] for meta in metas])
        boxes = boxes * factors[image].repeat(1, 2)
    return boxes


def _drop_small(columns: Sequence[Tensor], least: float) -> Sequence[Tensor]:
    """Drop the boxes (second column) that are not both wider and higher than ``least``; none if that is below 0."""
    if least < 0:
        return columns
    boxes = columns[1]
    wide = (boxes[:, 2:] - boxes[:, :2] > least).all(1)
    return [column[wide] for column in columns]


def _suppress(
    image: Tensor, boxes: Tensor, scores: Tensor, groups: Tensor, labels: Tensor, num_images: int, cfg
) -> list[InstanceData]:
    """Non-maximum suppression within the groups of each image, and then the best ``max_per_img`` of each image."""
    plain = set(cfg.nms) <= {'type', 'iou_threshold'} and cfg.nms.get('type', 'nms') == 'nms' and cfg.max_per_img > 0
    order = _first_of_each(image, scores, -1)
    sizes = torch.bincount(image, minlength=num_images).tolist()
    boxes, scores, groups, labels = (column[order] for column in (boxes, scores, groups, labels))
    columns = (column.split(sizes) for column in (boxes, scores, groups, labels))
    results = []
    for own_boxes, own_scores, own_groups, own_labels in zip(*columns, strict=True):
        if plain and len(own_boxes):
            # Groups are moved apart so that they do not overlap; by as much as in mmcv, for the same rounding.
            apart = own_boxes + (own_groups * (own_boxes.max() + 1))[:, None]
            keep = _best_survivors(apart, own_scores, cfg.nms.iou_threshold, cfg.max_per_img)
            own_scores = own_scores[keep]
        elif len(own_boxes):  # scores from its result: soft-NMS changes them
            kept, keep = batched_nms(own_boxes, own_scores, own_groups, cfg.nms)
            keep = keep[: cfg.max_per_img] if cfg.max_per_img > 0 else keep
            own_scores = kept[: len(keep), -1]
        else:
            keep = own_labels
        results.append(InstanceData(bboxes=own_boxes[keep], scores=own_scores, labels=own_labels[keep]))
    return results


def _best_survivors(boxes: Tensor, scores: Tensor, threshold: float, count: int) -> Tensor:
    """Indices of the first ``count`` boxes that non-maximum suppression keeps; boxes come by falling score.

    Whether a box is kept depends only on the boxes before it. So the beginning of the list is tried first, which is
    faster: the cost grows with the square of the number of boxes.
    """
    tried = 4 * count
    while True:
        keep = nms(boxes[:tried], scores[:tried], threshold)
        if len(keep) >= count or tried >= len(boxes):
            return keep[:count]
        tried *= 4
