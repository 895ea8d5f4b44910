"""Validation images, and what a dense and a pruned model find in them."""

import base64
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from torch import nn

NUM_SCENES, NUM_OBJECTS = 4, 12  # images that are shown, for a detector and for a classifier
NUM_CLASSIFIED = 256  # images that a classifier's are chosen from
MIN_SCORE, MAX_BOXES = 0.3, 40
LONGEST_SIDE = 640  # pixels


@dataclass(frozen=True)
class Finding:
    """What a model says of an image, or of a part of it.

    Attributes:
        label (str): Name of the class.
        score (float | None): The detector's, 0 to 1; None for a classifier.
        box (list[float] | None): x1, y1, x2, y2 as shares of the image's width and height; None for a classifier.
    """

    label: str
    score: float | None = None
    box: list[float] | None = None


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        name (str): File name, or place in the data set.
        jpeg (str): The image itself, at most 640 pixels wide and high, base64.
        width (int): In pixels, as kept here.
        height (int): In pixels, as kept here.
        truth (str | None): Annotated class; None for a detector.
        dense (list[Finding]): Of the dense model.
        pruned (list[Finding]): Of the pruned model.
    """

    name: str
    jpeg: str
    width: int
    height: int
    truth: str | None
    dense: list[Finding]
    pruned: list[Finding]


def compare_on_images(model: nn.Module, swap: Callable[[], None], config: dict) -> list[Picture]:
    """Let the dense and the pruned model look at the same images.

    Args:
        model (nn.Module): Dense at the moment, and again in the end.
        swap (Callable): Makes it pruned, and dense again.
        config (dict): Of the data set: detector's or classifier's.

    Returns:
        list[Picture]: For a detector evenly spread over the annotated images; for a classifier those first that the
        two models do not agree on.
    """
    dataset = DATASETS.build(config)
    is_detector = hasattr(dataset, 'cat_ids')
    indices = _choose(dataset, NUM_SCENES if is_detector else NUM_CLASSIFIED, is_detector)
    dense = _predict(model, dataset, indices)
    swap()
    try:
        pruned = _predict(model, dataset, indices)
    finally:
        swap()
    classes = dataset.metainfo.get('classes', ())
    if is_detector:
        return [_scene(*pair, classes) for pair in zip(dense, pruned, strict=True)]
    agreed = [int(old.pred_label == new.pred_label) for old, new in zip(dense, pruned, strict=True)]
    order = sorted(range(len(indices)), key=lambda i: (agreed[i], i))[:NUM_OBJECTS]
    return [_object(dataset, indices[i], dense[i], pruned[i], classes) for i in order]


def _choose(dataset: Sequence, count: int, annotated: bool) -> list[int]:
    """Evenly spread indices."""
    able = list(range(len(dataset)))
    if annotated:
        able = [index for index in able if dataset.get_data_info(index).get('instances')] or able
    places = np.linspace(0, len(able) - 1, min(count, len(able))).round().astype(int)
    return [able[place] for place in places]


@torch.inference_mode()
def _predict(model: nn.Module, dataset: Sequence, indices: Sequence[int]) -> list[BaseDataElement]:
    # One at a time: padding to a common size may change what is found.
    return [model.test_step(pseudo_collate([dataset[index]]))[0].cpu() for index in indices]


def _scene(dense: BaseDataElement, pruned: BaseDataElement, classes: Sequence[str]) -> Picture:
    image = mmcv.imread(dense.img_path)
    found = [_boxes(sample, image.shape[:2], classes) for sample in (dense, pruned)]
    return Picture(os.path.basename(dense.img_path), *_shrink(image), None, *found)


def _boxes(sample: BaseDataElement, shape: tuple[int, int], classes: Sequence[str]) -> list[Finding]:
    instances = sample.pred_instances
    instances = instances[instances.scores >= MIN_SCORE]
    instances = instances[instances.scores.argsort(descending=True)[:MAX_BOXES]]
    size = torch.tensor([shape[1], shape[0]] * 2)
    boxes = (instances.bboxes / size).clamp(0, 1)
    return [
        Finding(_class_name(label, classes), score, [round(value, 4) for value in box])
        for label, score, box in zip(instances.labels.tolist(), instances.scores.tolist(), boxes.tolist(), strict=True)
    ]


def _object(
    dataset: Sequence, index: int, dense: BaseDataElement, pruned: BaseDataElement, classes: Sequence[str]
) -> Picture:
    image = dataset[index]['inputs']
    image = image.expand(3, -1, -1).flip(0).permute(1, 2, 0)  # RGB or grey, as OpenCV wants it
    names = [_class_name(int(label), classes) for label in (dense.gt_label, dense.pred_label, pruned.pred_label)]
    found = [[Finding(name)] for name in names[1:]]
    name = os.path.basename(str(dense.get('name', f'image {index}')))
    return Picture(name, *_shrink(image.numpy()), names[0], *found)


def _class_name(label: int, classes: Sequence[str]) -> str:
    return str(classes[label]) if label < len(classes) else f'class {label}'


def _shrink(image: np.ndarray) -> tuple[str, int, int]:
    """An image [H, W, 3] as a JPEG in base64, its width and its height."""
    height, width = image.shape[:2]
    scale = min(1, LONGEST_SIDE / max(height, width))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return base64.b64encode(content.tobytes()).decode(), width, height
