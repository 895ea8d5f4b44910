"""COCO mAP on a validation subset, as a reward."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmengine.dataset import pseudo_collate
from mmengine.dist import all_gather_object, get_dist_info
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import encode
from torch import nn

from mmautodfp.errors import AutoDFPError
from mmautodfp.registry import REWARDS

from .base import Reward

IOU_TYPES = {'bbox': ['bbox'], 'segm': ['segm'], 'mean': ['bbox', 'segm']}


@REWARDS.register_module()
class CocoReward(Reward):
    """Box or mask mAP (IoU 0.50:0.95) of a detector on some images of a COCO-format data set.

    It is the raw ``COCOeval.stats[0]``; mmdet's ``CocoMetric`` rounds it to three decimals. No detections at all are
    worth 0.

    Args:
        num_images (int | None): Size of the subset; None takes all images. Defaults to 500.
        seed (int): Seed of the choice. Defaults to 0.
        metric (str): 'bbox', 'segm' or 'mean', the mean of the two. Defaults to 'bbox'.
        batch_size (int | None): Images evaluated at once. Defaults to None, the data loader's.
        cache_gb (float): Memory for the preprocessed images in GB, on the model's device. If they do not fit, they
            are kept as uint8 in main memory, before normalisation; those that do not fit even so are read and resized
            again each time. Defaults to 4.

    Raises:
        AutoDFPError: ``num_images`` or ``batch_size`` is below 1, or ``metric`` is none of the three.
    """

    def __init__(
        self,
        num_images: int | None = 500,
        seed: int = 0,
        metric: str = 'bbox',
        batch_size: int | None = None,
        cache_gb: float = 4.0,
    ):
        if metric not in IOU_TYPES:
            raise AutoDFPError(f'CocoReward was asked for metric={metric!r}; it must be one of {", ".join(IOU_TYPES)}')
        for setting, value in (('num_images', num_images), ('batch_size', batch_size)):
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise AutoDFPError(f'CocoReward was asked for {setting}={value}; it must be 1 or more')
        self.num_images = num_images
        self.seed = seed
        self.metric = metric
        self.name = f'{metric}_mAP'
        self.batch_size = batch_size
        self.cache_gb = cache_gb

    def prepare(self, model: nn.Module, dataloader: dict) -> None:
        self._prepare(model, dataloader, excluded=set())

    def _prepare(self, model: nn.Module, dataloader: dict, excluded: set[str]) -> None:
        self._dataset = _build_dataset(dataloader['dataset'])
        self._preprocess = model.data_preprocessor
        self._truth = _load_annotations(self._dataset.ann_file)
        infos = [self._dataset.get_data_info(index) for index in range(len(self._dataset))]
        left = [index for index, info in enumerate(infos) if os.path.realpath(info['img_path']) not in excluded]
        labels = {index: {box['bbox_label'] for box in infos[index]['instances']} for index in left}
        chosen = choose_covering(labels, self.num_images, self.seed)
        # Neighbours of one shape need no padding.
        self.indices = sorted(chosen, key=lambda i: (infos[i]['width'] / infos[i]['height'], i))
        self._paths = [os.path.realpath(infos[index]['img_path']) for index in self.indices]
        self._image_ids = [infos[index]['img_id'] for index in self.indices]
        self._batch_size = self.batch_size or dataloader.get('batch_size', 1)
        size = self._batch_size
        self._chunks = [self.indices[start : start + size] for start in range(0, len(self.indices), size)]
        self._cache = self._fill_cache() if self.indices else []

    @property
    def images(self) -> list[str]:
        return self._paths

    @property
    def annotation_file(self) -> str:
        """The data set's COCO file."""
        return self._dataset.ann_file

    def held_out(self, model: nn.Module, dataloader: dict) -> 'CocoReward | None':
        other = CocoReward(None, self.seed, self.metric, self._batch_size, cache_gb=0)
        other._prepare(model, dataloader, excluded=set(self._paths))
        if not other.indices or not other.has_objects():
            return None
        other.one_batch()  # an image that is missing is better missed now than after the search
        return other

    def has_objects(self) -> bool:
        """Whether any object of the classes is annotated on the images, without which there is no mAP."""
        return bool(self._truth.getAnnIds(imgIds=self._image_ids, catIds=self._dataset.cat_ids, iscrowd=False))

    def one_batch(self) -> dict[str, Any]:
        middle = self.indices[len(self.indices) // 2]  # by aspect ratio: neither the narrowest nor the widest
        return self._preprocess(pseudo_collate([self._load(middle)]), False)

    def __call__(self, model: nn.Module) -> float:
        return self.score(self.detect(model))

    @torch.no_grad()
    def detect(self, model: nn.Module) -> list[dict]:
        """Run a model on the images; detections in COCO's result format.

        Ranks of a distributed run share the batches out. All get all detections, in the order of a single process.
        """
        found = []
        for data in self.batches():
            samples = model(**data, mode='predict')
            found.append([detection for sample in samples for detection in self._to_coco(sample)])
        ranks = all_gather_object(found)
        in_order = (ranks[number % len(ranks)][number // len(ranks)] for number in range(len(self._chunks)))
        return [detection for batch in in_order for detection in batch]

    def score(self, detections: list[dict]) -> float:
        """The metric of detections that :meth:`detect` gave."""
        values = [
            coco_map(self._truth, detections, self._image_ids, self._dataset.cat_ids, iou_type)
            for iou_type in IOU_TYPES[self.metric]
        ]
        return sum(values) / len(values)

    def _to_coco(self, sample) -> Iterator[dict]:
        found = sample.pred_instances
        masks = self._encode_masks(found) if 'segm' in IOU_TYPES[self.metric] else [{}] * len(found)
        boxes = found.bboxes.cpu().numpy().astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        scores, labels = found.scores.tolist(), found.labels.tolist()
        for box, score, label, mask in zip(boxes.tolist(), scores, labels, masks, strict=True):
            category = self._dataset.cat_ids[label]
            yield dict(image_id=sample.img_id, bbox=box, score=score, category_id=category) | mask

    @staticmethod
    def _encode_masks(found: InstanceData) -> list[dict]:
        if 'masks' not in found:
            raise AutoDFPError("mask mAP was asked for, but the detector predicts no masks; use metric='bbox'")
        if not len(found):
            return []
        masks = found.masks.cpu().numpy().astype(np.uint8)
        return [dict(segmentation=code) for code in encode(np.asfortranarray(masks.transpose(1, 2, 0)))]

    def batches(self) -> Iterator[dict]:
        """This rank's images as the model takes them, cached ones first."""
        for number, chunk in enumerate(self._own_chunks()):
            if number < len(self._cache):
                data = self._cache[number]
            else:
                data = pseudo_collate([self._load(index) for index in chunk])
            if isinstance(data['inputs'], list):  # not preprocessed yet
                data = self._preprocess(data, False)
            # Predictions are written into the samples: the cached ones stay clean.
            yield dict(inputs=data['inputs'], data_samples=[sample.clone() for sample in data['data_samples']])

    def _own_chunks(self) -> list[list[int]]:
        rank, world_size = get_dist_info()
        return self._chunks[rank::world_size]

    def _fill_cache(self) -> list[dict]:
        """As many batches as fit: all of them preprocessed, or else as many as possible as uint8."""
        chunks = self._own_chunks()
        cache: list[dict] = []
        room = self.cache_gb * 1e9
        if not room:
            return cache
        first = self.one_batch()['inputs']
        preprocessed = first.numel() * first.element_size() * sum(map(len, chunks)) <= room
        for number, chunk in enumerate(chunks):
            batch = pseudo_collate([self._load(index) for index in chunk])
            if preprocessed:
                batch = self._preprocess(batch, False)
            room -= sum(image.numel() * image.element_size() for image in batch['inputs'])
            if room < 0:
                print_log(
                    f'{number} of {len(chunks)} batches of reward images fit into cache_gb={self.cache_gb:g}; the '
                    'others are read again in each episode',
                    logger='current',
                )
                break
            cache.append(batch)
        return cache

    def _load(self, index: int) -> dict:
        try:
            return self._dataset[index]
        except OSError as error:
            path = self._dataset.get_data_info(index)['img_path']
            raise AutoDFPError(
                f'the reward needs image {path}, which cannot be read ({type(error).__name__}); check data_root and '
                'data_prefix of its data loader'
            ) from None


def choose_covering(labels: dict[int, set], num: int | None, seed: int) -> list[int]:
    """Choose images in random order, first of all those that bring a category which was missing so far.

    Args:
        labels (dict[int, set]): Image to the categories on it.
        num (int | None): How many to choose; None or too many: all.
        seed (int): Seed of the choice.

    Returns:
        list[int]: Images, in the order of choice: each of the first ones brings a category that was missing, the
        others are drawn at random.
    """
    order = np.random.default_rng(seed).permutation(sorted(labels)).tolist()
    covered: set = set()
    first, rest = [], []
    for image in order:
        (rest if labels[image] <= covered else first).append(image)
        covered |= labels[image]
    return (first + rest)[:num]


def coco_map(
    truth: COCO,
    detections: list[dict],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    iou_type: str = 'bbox',
) -> float:
    """mAP over IoU 0.50:0.95, unrounded and without a word on the console.

    Args:
        truth (COCO): Ground truth; may hold more images.
        detections (list[dict]): In COCO's result format.
        image_ids (Sequence[int]): The images to evaluate on.
        category_ids (Sequence[int]): The categories to evaluate on.
        iou_type (str): 'bbox' or 'segm'. Defaults to 'bbox'.

    Returns:
        float: In [0, 1]; 0 if there are no detections.

    Raises:
        AutoDFPError: No object of these categories is on these images, so that there is no mAP.
    """
    if not truth.getAnnIds(imgIds=list(image_ids), catIds=list(category_ids), iscrowd=False):
        raise AutoDFPError(
            f'mAP was to be measured on {len(image_ids)} images, but no object of the classes is annotated on them; '
            'choose more images or check the classes in metainfo'
        )
    if not detections:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(detections), iou_type)
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def _build_dataset(config: dict):
    """The data set of a data loader's config, with missing files named."""
    try:
        dataset = DATASETS.build(config)
    except OSError as error:
        raise AutoDFPError(
            f'the reward needs the annotations {error.filename or config.get("ann_file")}, but there is no such file; '
            'check data_root and ann_file of val_dataloader.dataset'
        ) from None
    except ValueError as error:
        if 'at least one array' not in str(error):  # so mmengine says that a data set is empty
            raise
        raise AutoDFPError(
            f'the reward was to use images of {config.get("ann_file")}, but the data set has none; check ann_file, '
            'filter_cfg and indices of val_dataloader.dataset'
        ) from None
    if not hasattr(dataset, 'cat_ids'):
        raise AutoDFPError(
            f'CocoReward needs a COCO-format data set in val_dataloader, found {type(dataset).__name__}; use '
            'CocoDataset or a subclass of it'
        )
    return dataset


def _load_annotations(path: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)
