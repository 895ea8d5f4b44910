"""How much of a reward is chance: the same detector on other images; ``tools/benchmark.py subset`` runs it."""

import os
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmautodfp.rewards import CocoReward, CocoTruth, choose_covering
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import REWARDS, build

from .bench import load_runner, quiet

RULES = {'random': 0, 'covering': 16}  # on how many images a class is to be


def benchmark_subset(
    config: str | os.PathLike,
    draws: int = 200,
    sizes: Sequence[int] = (64, 128, 300),
    seeds: Sequence[int] = (0, 1, 2),
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """The dense box mAP's bootstrap deviation on random validation images, and on as many that a reward chooses.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry whose reward is a mAP.
        draws (int): Resamplings of each subset, with replacement. Defaults to 200.
        sizes (Sequence[int]): Images in a subset; larger than the data set: all. Defaults to (64, 128, 300).
        seeds (Sequence[int]): Of the choices. Defaults to (0, 1, 2).
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.

    Returns:
        dict[str, Any]: The mAP on all images; and for each size and rule, means over the seeds: the mAP, its
        deviation, and on how many images the rarest class is.

    Raises:
        AutoDFPError: The reward is no :class:`mmautodfp.rewards.CocoReward`.
    """
    with tempfile.TemporaryDirectory() as scratch, quiet():
        runner = load_runner(config, scratch, checkpoint)
        model = runner.model.eval()
        settings = runner.cfg.autodfp.reward.to_dict()
        if not isinstance(reward := build(REWARDS, settings), CocoReward):
            raise AutoDFPError(f'the noise of a mAP was asked for, but the reward is a {type(reward).__name__}')
        reward = build(REWARDS, settings | dict(num_images=None, metric='bbox', stages=()))
        reward.prepare(model, runner.cfg.val_dataloader)
        detections = reward.detect(model)
    sample = Bootstrap(reward.truth.content, detections)
    rows = []
    for size in sizes:
        for rule, least in RULES.items():
            chosen = [choose_covering(sample.labels, size, seed, least) for seed in seeds]
            figures = dict(
                mean_ap=map(sample.mean_ap, chosen),
                deviation=(sample.deviation(images, draws) for images in chosen),
                rarest=map(sample.rarest, chosen),
            )
            means = {name: statistics.mean(values) for name, values in figures.items()}
            rows.append(dict(images=len(chosen[0]), rule=rule, **means))
    return dict(
        images=len(sample.labels), mean_ap=reward.score(detections), draws=draws, seeds=len(seeds), subsets=rows
    )


class Bootstrap:
    """Detections (in COCO's result format) on images, whose content is a :attr:`CocoTruth.content`, drawn at will."""

    def __init__(self, content: dict, detections: Sequence[dict]):
        self._categories = content['categories']
        self.labels: dict[int, set[int]] = {image['id']: set() for image in content['images']}
        self._truth, self._found = ({image: [] for image in self.labels} for _ in range(2))
        for known, entries in ((self._truth, content['annotations']), (self._found, detections)):
            for entry in entries:
                known[entry['image_id']].append(entry)
        for image, entries in self._truth.items():
            self.labels[image] |= {entry['category_id'] for entry in entries if not entry.get('iscrowd')}

    def rarest(self, images: Sequence[int]) -> int:
        """On how many of some images the class is that is on the fewest of them."""
        return min(sum(label in self.labels[image] for image in images) for label in set().union(*self.labels.values()))

    def mean_ap(self, images: Sequence[int]) -> float:
        """Box mAP on images, any of them as often as it is named."""
        places = range(len(images))
        truth, found = (
            [entry | dict(image_id=place) for place in places for entry in known[images[place]]]
            for known in (self._truth, self._found)
        )
        truth = [entry | dict(id=number) for number, entry in enumerate(truth, 1)]
        content = dict(images=[dict(id=i) for i in places], categories=self._categories, annotations=truth)
        return CocoTruth(content, places, [category['id'] for category in self._categories]).mean_ap(found)

    def deviation(self, images: Sequence[int], draws: int) -> float:
        """Standard deviation of the mAP over resamplings of as many images."""
        rng = np.random.default_rng(0)
        return statistics.stdev(self.mean_ap(rng.choice(images, len(images)).tolist()) for _ in range(draws))
