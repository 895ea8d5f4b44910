"""The noise of a reward, on detections whose noise is known."""

import pytest
from conftest import REPO
from mmengine.config import Config

from mmautodfp.experiments.reward_noise import Bootstrap, benchmark_subset
from mmautodfp.utils import AutoDFPError

BOX = [0.0, 0.0, 10.0, 10.0]


def of_found_and_missed(found: int, missed: int) -> Bootstrap:
    """An object of the one class on each image, found on some of them."""
    images = [dict(id=number) for number in range(1, found + missed + 1)]
    entries = [dict(image_id=image['id'], category_id=7, bbox=BOX) for image in images]
    truth = [entry | dict(id=number, area=100.0, iscrowd=0) for number, entry in enumerate(entries, 1)]
    content = dict(images=images, categories=[dict(id=7)], annotations=truth)
    return Bootstrap(content, [entry | dict(score=0.5) for entry in entries[:found]])


def test_the_deviation_is_that_of_a_share():
    sample = of_found_and_missed(30, 20)
    images = list(sample.labels)
    assert sample.mean_ap(images) == pytest.approx(0.6, abs=0.01)
    assert sample.deviation(images, 400) == pytest.approx((0.6 * 0.4 / 50) ** 0.5, rel=0.15)
    assert sample.deviation(images[:30], 3) == 0  # all are found
    assert sample.rarest(images[3:10]) == 7


def test_an_image_counts_as_often_as_it_is_named():
    sample = of_found_and_missed(1, 1)
    assert sample.mean_ap([1, 1, 1, 2]) == pytest.approx(0.75, abs=0.01)
    assert sample.mean_ap([1, 2, 2, 2]) == pytest.approx(0.25, abs=0.01)


def small_config(tmp_path, digits_root, reward: dict | None = None) -> str:
    cfg = Config.fromfile(REPO / 'configs/demo/retinanet_digits_autodfp.py')
    cfg.load_from = str(REPO / cfg.load_from)
    cfg.val_dataloader.dataset.update(data_root=f'{digits_root}/', indices=24)
    cfg.val_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.autodfp.reward = reward or cfg.autodfp.reward
    cfg.dump(tmp_path / 'small.py')
    return str(tmp_path / 'small.py')


def test_both_rules_are_measured_on_the_demos_images(tmp_path, digits_root):
    result = benchmark_subset(small_config(tmp_path, digits_root), draws=5, sizes=(6, 1000), seeds=(0, 1))
    rows = {(row['images'], row['rule']): row for row in result['subsets']}
    assert set(rows) == {(images, rule) for images in (6, 24) for rule in ('random', 'covering')}
    for rule in ('random', 'covering'):
        assert rows[24, rule]['mean_ap'] == pytest.approx(result['mean_ap'], abs=1e-9)
        assert rows[6, rule]['deviation'] > 0
    assert rows[6, 'covering']['rarest'] > rows[6, 'random']['rarest']


def test_a_reward_of_another_kind_is_refused(tmp_path, digits_root):
    config = small_config(tmp_path, digits_root, dict(type='SyntheticReward'))
    with pytest.raises(AutoDFPError, match='the noise of a mAP was asked for, but the reward is a SyntheticReward'):
        benchmark_subset(config)
