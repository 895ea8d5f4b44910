"""Images of a COCO-format data set: which ones, and having them ready."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmdet.registry import DATASETS
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log

from mmautodfp.utils import AutoDFPError, last_line

from .base import OtherDataset


def choose_covering(labels: dict[int, set], num: int | None, seed: int, least: int = 16) -> list[int]:
    """Choose images such that every category is on some of them, the others at random.

    mAP weighs a category that is on one image like one that is on hundreds. Simulated detections of 80 categories as
    unequal as COCO's, subsets of 300 images: the dense mAP's bootstrap deviation is 0.0042 (0.0069 for random images,
    0.0068 if one image of each category is enough), and 24 pruned models are ranked as on all images with Spearman's
    0.994 (0.979, 0.979). With few categories, as in BCCD, all these choices do alike.

    Args:
        labels (dict[int, set]): Image to the categories on it.
        num (int | None): How many to choose; None or too many: all.
        seed (int): Seed of the choice.
        least (int): On how many images a category is to be, if there are as many. Defaults to 16.

    Returns:
        list[int]: Images, in the order of choice: first, again and again, a random one with the category that is on the
        fewest so far, until all are on ``least``; then the others in random order.
    """
    order = np.random.default_rng(seed).permutation(sorted(labels)).tolist()
    waiting: dict[Any, list[int]] = {}
    for image in reversed(order):
        for category in labels[image]:
            waiting.setdefault(category, []).append(image)
    rarest = sorted(waiting, key=lambda category: (len(waiting[category]), category))
    on = dict.fromkeys(rarest, 0)
    chosen: dict[int, None] = {}
    while lacking := [category for category in rarest if on[category] < least and waiting[category]]:
        image = waiting[min(lacking, key=on.get)].pop()
        if image not in chosen:
            chosen[image] = None
            for category in labels[image]:
                on[category] += 1
    return list(chosen | dict.fromkeys(order))[:num]


class ImageBatches:
    """Batches of some images of a data set, kept in memory as far as they fit.

    Args:
        dataset: A COCO-format data set in test mode; subclasses may take others.
        preprocess: The model's data preprocessor.
        stages (Sequence[Sequence[int]]): Indices into the data set. A batch is of one stage.
        batch_size (int): Images in a batch.
        cache_gb (float): Memory for the preprocessed images in GB, on the model's device. If they do not fit, they
            are kept as uint8 in main memory, before normalisation; those that do not fit even so are read and resized
            again each time.
    """

    def __init__(self, dataset, preprocess, stages: Sequence[Sequence[int]], batch_size: int, cache_gb: float):
        self._dataset = dataset
        self._preprocess = preprocess
        self._room = cache_gb * 1e9
        self.chunks: list[list[int]] = []
        self.stages: list[range] = []
        for stage in stages:
            ordered = self._ordered(stage)
            first = len(self.chunks)
            self.chunks += [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
            self.stages.append(range(first, len(self.chunks)))
        self.cache = self._fill() if self.chunks and cache_gb else []

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> dict:
        """A batch as the model takes it; what is predicted must not stay in its samples."""
        if number < len(self.cache):
            data = self.cache[number]
        else:
            data = self._read(self.chunks[number])
        if isinstance(data['inputs'], list):  # not preprocessed yet
            data = self._prepared(data)
        return dict(inputs=data['inputs'], data_samples=data['data_samples'])

    @property
    def all_preprocessed(self) -> bool:
        """Whether nothing has to be read or normalised any more."""
        return len(self.cache) == len(self) and not isinstance(self.cache[0]['inputs'], list)

    def load(self, index: int) -> dict[str, Any]:
        """One image, through the data set's pipeline.

        Raises:
            AutoDFPError: It cannot be read.
        """
        try:
            data = self._dataset[index]
        except Exception as error:
            path = self._dataset.get_data_info(index)['img_path']
            if not isinstance(error, OSError) and mmcv.imread(path) is not None:
                raise  # the image is sound: the pipeline is not
            raise AutoDFPError(
                f'the reward needs image {path}, which cannot be read ({type(error).__name__}); check data_root and '
                'data_prefix of its data loader'
            ) from None
        for key in ('gt_instances', 'ignored_instances', 'gt_panoptic_seg', 'gt_sem_seg'):
            if key in data['data_samples']:
                delattr(data['data_samples'], key)  # the truth comes from the annotation file
        return data

    def middle_image(self) -> dict[str, Any]:
        """A batch of one image as the model takes it, though a stem has run on the others."""
        chunk = self.chunks[len(self) // 2]  # by aspect ratio: neither the narrowest nor the widest
        middle = len(chunk) // 2
        return self._prepared(self._read(chunk[middle : middle + 1]))

    def _ordered(self, stage: Sequence[int]) -> list[int]:
        """Images of a stage, side by side as they are put in batches: neighbours of one shape need no padding."""
        infos = {index: self._dataset.get_data_info(index) for index in stage}
        return sorted(stage, key=lambda i: (infos[i]['width'] / infos[i]['height'], i))

    def _prepared(self, data: dict) -> dict:
        return self._preprocess(dict(data), False)

    def _read(self, chunk: Sequence[int]) -> dict:
        return pseudo_collate([self.load(index) for index in chunk])

    def _fill(self) -> list[dict]:
        """As many batches as fit: all of them preprocessed, or else as many as possible as uint8."""
        cache: list[dict] = []
        room = self._room
        middle = self.chunks[len(self.chunks) // 2]
        first = self._prepared(self._read(middle[:1]))['inputs'][0]
        preprocessed = first.numel() * first.element_size() * sum(map(len, self.chunks)) <= room
        for number, chunk in enumerate(self.chunks):
            batch = self._read(chunk)
            if preprocessed:
                batch = self._prepared(batch)
            room -= sum(image.numel() * image.element_size() for image in batch['inputs'])
            if room < 0:
                print_log(
                    f'{number} of {len(self.chunks)} batches of reward images fit into '
                    f'cache_gb={self._room / 1e9:g}; the others are read again in each episode',
                    logger='current',
                )
                break
            cache.append(batch)
        return cache


def build_dataset(config: dict):
    """The data set of a data loader's config, with missing files named."""
    try:
        dataset = DATASETS.build(config)
    except OSError as error:
        raise AutoDFPError(
            f'the reward needs the annotations {error.filename or config.get("ann_file")}, but there is no such file; '
            'check data_root and ann_file of its data set'
        ) from None
    except Exception as error:  # mmengine fails in many ways on a wrong setting
        if 'at least one array' in str(error):  # so it says that a data set is empty
            raise AutoDFPError(
                f'the reward was to use images of {config.get("ann_file")}, but the data set has none; check its '
                'ann_file, filter_cfg and indices'
            ) from None
        reason = f'{type(error).__name__} {last_line(error)}'
        raise AutoDFPError(f'a data set of val_dataloader or test_dataloader cannot be built: {reason}') from None
    if not hasattr(dataset, 'cat_ids'):
        advice = 'use CocoDataset or a subclass of it'
        if hasattr(dataset, 'datasets'):  # each has image ids of its own, and may have other classes
            advice = (
                f'one mAP takes one annotation file, as in CocoMetric: merge those of its {len(dataset.datasets)} data '
                'sets, with image ids that differ and folders in file_name, or name one of the data sets'
            )
        raise OtherDataset(
            'CocoReward needs COCO-format data sets in val_dataloader and test_dataloader, found '
            f'{type(dataset).__name__}; {advice}'
        )
    return dataset
