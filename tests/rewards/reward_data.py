"""What the reward's tests share: loaders of two data sets, a detector that knows the truth, the demos' detectors."""

import copy
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, SHARED, enliven
from mmdet.apis import init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from torch import nn

from mmautodfp.graph import find_groups
from mmautodfp.rewards.subset import ImageBatches, build_dataset
from mmautodfp.surgery import GroupPlan, PruningPlan
from mmautodfp.utils.fileio import load_json

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]


@contextmanager
def warnings_told() -> Iterator[list[str]]:
    """The warnings that the log is given meanwhile."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)


def digits_loader(root, split='val') -> dict:
    cfg = Config.fromfile(REPO / 'configs/_base_/digits_detection.py')
    loader = copy.deepcopy(cfg[f'{split}_dataloader'])
    loader.dataset.data_root = str(root)
    return loader


def coco_annotations() -> Path:
    file = SHARED / 'data/coco/annotations/instances_val2017_mini.json'
    if not file.is_file():
        pytest.skip(f'{file} with annotations of real COCO images is not there')
    return file


def coco_loader() -> dict:
    file = coco_annotations()
    dataset = dict(
        type='CocoDataset',
        data_root=str(file.parents[1]),
        ann_file=str(file),
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=PIPELINE,
    )
    return dict(batch_size=4, dataset=dataset)


class Preprocessor(nn.Module):
    def forward(self, batch, training):
        self.calls = getattr(self, 'calls', 0) + 1
        inputs = [image.float() for image in batch['inputs']]
        if len({image.shape for image in inputs}) == 1:
            inputs = torch.stack(inputs)
        return dict(inputs=inputs, data_samples=batch['data_samples'])


class Oracle(nn.Module):
    """Predicts the ground truth, shaken: boxes moved, some classes wrong, some missed, some invented."""

    def __init__(self, ann_file, seed=0, shake=0.15, silent=False, masks=False):
        super().__init__()
        self.data_preprocessor = Preprocessor()
        self.silent = silent
        self.seen = []
        self.truth = COCO(str(ann_file)) if masks else None
        content = load_json(ann_file, 'annotations')
        categories = sorted(category['id'] for category in content['categories'])
        rng = np.random.default_rng(seed)
        self.found = defaultdict(list)
        for annotation in content['annotations']:
            x, y, w, h = annotation['bbox']
            x, y = x + rng.normal(0, shake * w), y + rng.normal(0, shake * h)
            label = categories.index(annotation['category_id'])
            if rng.random() < 0.2:
                label = int(rng.integers(len(categories)))
            if rng.random() < 0.9:
                move = rng.normal(0, shake * np.sqrt(w * h) / 2, 2).round().astype(int)
                self.found[annotation['image_id']].append(([x, y, x + w, y + h], rng.random(), label, annotation, move))

    def forward(self, inputs, data_samples, mode):
        assert mode == 'predict'
        self.seen += [sample.img_id for sample in data_samples]
        for sample in data_samples:
            assert 'pred_instances' not in sample  # nothing of the last episode is left in the cache
            found = [] if self.silent else self.found[sample.img_id]
            boxes, scores, labels, annotations, moves = zip(*found, strict=True) if found else ([],) * 5
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(boxes).reshape(-1, 4),
                scores=torch.tensor(scores),
                labels=torch.tensor(labels).long(),
            )
            if self.truth:
                masks = [
                    np.roll(self.truth.annToMask(annotation).astype(bool), move, (0, 1))
                    for annotation, move in zip(annotations, moves, strict=True)
                ]
                sample.pred_instances.masks = torch.from_numpy(np.array(masks).reshape(len(masks), *sample.ori_shape))
        return data_samples


DEMOS = ['faster_rcnn', 'retinanet', 'fcos', 'mask_rcnn']


def demo_detector(name: str, **overrides) -> nn.Module:
    """A demo's detector with its trained weights, on the CPU, in eval mode."""
    cfg = Config.fromfile(REPO / f'configs/demo/{name}_digits.py')
    cfg.merge_from_dict(overrides)
    return init_detector(cfg, str(REPO / f'configs/demo/{name}_digits.pth'), device='cpu')


CASCADE = {
    'base': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'test_cfg.rpn.nms_pre': 100,
    'test_cfg.rpn.max_per_img': 20,
}


def small_detector(tmp_path, base: str, **settings) -> nn.Module:
    """A detector of mmdet's own config, its backbone at a quarter of the width, with lively random weights."""
    config = tmp_path / 'small.py'
    config.write_text(f"_base_ = 'mmdet::{base}'\n")
    cfg = Config.fromfile(config)
    settings |= {'backbone.base_channels': 16, 'backbone.init_cfg': None, 'neck.in_channels': [64, 128, 256, 512]}
    cfg.merge_from_dict({f'model.{key}': value for key, value in settings.items()})
    torch.manual_seed(0)
    model = enliven(MODELS.build(cfg.model))
    for name, layer in model.named_modules():  # scores that differ, and not of one class alone
        if name.endswith(('fc_cls', 'atss_cls')):
            layer.weight.data *= 8
    return model


def digits_batches(model: nn.Module, root, num: int = 6, batch_size: int = 3) -> ImageBatches:
    """The first test images, as the model takes them."""
    loader = digits_loader(root, 'test')
    return ImageBatches(build_dataset(loader['dataset']), model.data_preprocessor, [range(num)], batch_size, 1)


def gentle_plan(module: nn.Module, seed: int, least: float = 0.8) -> PruningPlan:
    """A random plan that leaves most channels of every group, so that something is still detected."""
    generator = torch.Generator().manual_seed(seed)
    groups = {}
    for group in find_groups(module):
        share = least + (1 - least) * torch.rand((), generator=generator).item()
        width = max(1, round(share * group.num_channels))
        keep = torch.randperm(group.num_channels, generator=generator)[:width].sort().values
        groups[group.name] = GroupPlan(
            tuple(keep.tolist()), group.num_channels, torch.rand((), generator=generator).item()
        )
    return PruningPlan(groups)


def assert_same_detections(found: InstanceData, expected: InstanceData, scores=1e-4, boxes=1e-2) -> None:
    """The same ones in the same order, masks included."""
    assert len(found) == len(expected)
    if not len(expected):
        return
    assert torch.equal(found.labels, expected.labels)
    assert torch.allclose(found.scores, expected.scores, rtol=0, atol=scores)
    assert torch.allclose(found.bboxes, expected.bboxes, rtol=0, atol=boxes)
    assert ('masks' in found) == ('masks' in expected)
    if 'masks' in expected:
        assert (found.masks ^ expected.masks).float().mean() < 1e-4


def group_names(model: nn.Module) -> list[str]:
    return [f'backbone.{group.name}' for group in find_groups(model.backbone)]


@torch.no_grad()
def answers(predict, batches) -> list:
    return [sample.pred_instances for data in copy.deepcopy(list(batches)) for sample in predict(**data)]


def model_answers(model: nn.Module, batches) -> list:
    return answers(lambda **data: model(**data, mode='predict'), batches)


def assert_all_same(found: list, expected: list, **tolerances) -> int:
    """How many detections there were."""
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_detections(ours, theirs, **tolerances)
    return sum(map(len, expected))
