from collections import Counter

import numpy as np
import pytest
import torch
from reward_data import Preprocessor, coco_loader, digits_loader
from torch import nn

from mmautodfp.rewards import CocoReward
from mmautodfp.rewards.subset import ImageBatches, build_dataset, choose_covering
from mmautodfp.utils import AutoDFPError


def test_the_choice_covers_the_categories_and_depends_on_the_seed_alone():
    labels = {image: {image % 7} if image < 90 else {7 + image - 90} for image in range(100)}
    for seed in range(5):
        chosen = choose_covering(labels, 17, seed)
        assert len(set(chosen)) == 17
        assert set().union(*(labels[image] for image in chosen)) == set(range(17))
        assert chosen == choose_covering(dict(reversed(labels.items())), 17, seed)
    assert choose_covering(labels, 17, 0) != choose_covering(labels, 17, 1)
    assert sorted(choose_covering(labels, None, 0)) == list(range(100))
    assert sorted(choose_covering(labels, 1000, 0)) == list(range(100))


def test_smaller_choices_are_the_beginning_of_larger_ones_and_never_lack_objects():
    labels = {image: {image % 3} if image % 10 == 0 else set() for image in range(100)}
    for seed in range(20):
        order = choose_covering(labels, None, seed)
        assert all(choose_covering(labels, num, seed) == order[:num] for num in (1, 2, 5, 50))
        assert labels[order[0]]


def test_each_category_is_on_as_many_images_as_asked_for_before_the_rest_is_drawn_at_random():
    rng = np.random.default_rng(0)
    shares = np.geomspace(0.5, 0.005, 12)
    labels = {image: {*np.flatnonzero(rng.random(12) < shares).tolist()} for image in range(1000)}
    there = Counter(category for found in labels.values() for category in found)
    assert min(there.values()) < 8
    for seed in range(3):
        order = choose_covering(labels, None, seed, least=8)
        on, needed = Counter(), 0
        while any(on[category] < min(8, count) for category, count in there.items()):
            on.update(labels[order[needed]])
            needed += 1
        assert needed < 8 * 12
        # Each of these images brings a category that was on the fewest of those chosen before.
        on = dict.fromkeys(there, 0)
        left = dict(there)
        for image in order[:needed]:
            fewest = min(on[category] for category in there if left[category])
            assert any(on[category] == fewest for category in labels[image])
            for category in labels[image]:
                on[category] += 1
                left[category] -= 1
        rest = [
            image for image in np.random.default_rng(seed).permutation(1000).tolist() if image not in order[:needed]
        ]
        assert order[needed:] == rest
    assert choose_covering(labels, 50, 0, least=0) == np.random.default_rng(0).permutation(1000)[:50].tolist()


@pytest.fixture(scope='module')
def digits(digits_root):
    return build_dataset(digits_loader(digits_root)['dataset'])


def test_batches_never_cross_a_stage_and_hold_each_image_once(digits):
    stages = [[5, 3, 8], [1, 0, 12, 7, 9], [20, 21]]
    batches = ImageBatches(digits, Preprocessor(), stages, 2, 1)
    assert len(batches) == 2 + 3 + 1
    assert [len(numbers) for numbers in batches.stages] == [2, 3, 1]
    assert [number for numbers in batches.stages for number in numbers] == list(range(6))
    for stage, numbers in zip(stages, batches.stages, strict=True):
        assert sorted(index for number in numbers for index in batches.chunks[number]) == sorted(stage)
    for batch, chunk in zip(batches, batches.chunks, strict=True):
        assert [sample.img_id for sample in batch['data_samples']] == [
            digits.get_data_info(index)['img_id'] for index in chunk
        ]


def test_neighbours_in_a_stage_have_like_shapes():
    dataset = build_dataset(coco_loader()['dataset'])
    batches = ImageBatches(dataset, Preprocessor(), [range(40), range(40, 60)], 4, 0)

    def ratio(index):
        info = dataset.get_data_info(index)
        return info['width'] / info['height']

    for numbers in batches.stages:
        ratios = [ratio(index) for number in numbers for index in batches.chunks[number]]
        assert ratios == sorted(ratios)
        assert ratios[0] < ratios[-1]


# 20 images of 3 x 128 x 128 are 3.9 MB as float32, 1 MB as uint8.
@pytest.mark.parametrize(
    ('cache_gb', 'kept', 'preprocessed'), [(4, 5, True), (0.0015, 5, False), (0.0004, 2, False), (0, 0, False)]
)
def test_as_much_is_kept_as_fits_and_it_is_the_same_images(digits, cache_gb, kept, preprocessed):
    fresh = ImageBatches(digits, Preprocessor(), [range(20)], 4, 0)
    preprocess = Preprocessor()
    batches = ImageBatches(digits, preprocess, [range(20)], 4, cache_gb)
    assert len(batches.cache) == kept
    assert bool(batches.cache and batches.all_preprocessed) == preprocessed
    before = getattr(preprocess, 'calls', 0)
    assert len(batches) == len(fresh) == 5
    for ours, expected in ((batches[number], fresh[number]) for number in range(5)):
        assert torch.equal(ours['inputs'], expected['inputs'])
        assert 'gt_instances' not in ours['data_samples'][0]
    assert preprocess.calls - before == (0 if preprocessed else 5)


def test_images_that_fit_only_without_their_padding_are_kept_as_uint8(digits):
    class Padding(Preprocessor):
        def forward(self, batch, training):
            data = super().forward(batch, training)
            width = data['inputs'].shape[-1] * (len(data['inputs']) > 1)  # as in batches of unlike images
            return data | dict(inputs=torch.nn.functional.pad(data['inputs'], (0, width)))

    batches = ImageBatches(digits, Padding(), [range(20)], 4, 0.005)  # 7.8 MB with padding
    assert len(batches.cache) == 5
    assert not batches.all_preprocessed


def test_what_does_not_fit_is_read_again_and_what_does_is_not(digits, monkeypatch):
    batches = ImageBatches(digits, Preprocessor(), [range(20)], 4, 0.0004)
    read = []
    monkeypatch.setattr(batches, 'load', lambda index, load=batches.load: read.append(index) or load(index))
    list(batches)
    assert sorted(read) == sorted(index for chunk in batches.chunks[2:] for index in chunk)


def test_batches_without_a_stage_are_none(digits):
    assert len(ImageBatches(digits, Preprocessor(), [], 4, 1)) == 0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(ann_file='annotations/absent.json'), r'annotations .*absent\.json, but there is no such file'),
        (dict(data_prefix=dict(img='absent/')), r'image .*absent/.*\.png, which cannot be read'),
        (dict(indices=0), 'the data set has none'),
    ],
)
def test_data_that_cannot_be_had_is_told_in_one_sentence(digits_root, change, message):
    loader = digits_loader(digits_root)
    loader['dataset'].update(change)
    with pytest.raises(AutoDFPError, match=message):
        ImageBatches(build_dataset(loader['dataset']), Preprocessor(), [range(5)], 4, 1)


def test_a_pipeline_that_is_at_fault_is_not_taken_for_a_missing_image(digits_root):
    loader = digits_loader(digits_root)
    loader['dataset']['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(0, 0))]
    with pytest.raises(Exception, match=r'resize|scale|size') as caught:
        ImageBatches(build_dataset(loader['dataset']), Preprocessor(), [range(5)], 4, 1)
    assert not isinstance(caught.value, AutoDFPError)


def test_several_data_sets_in_one_are_refused_with_what_to_do(digits_root):
    parts = [digits_loader(digits_root, split)['dataset'] for split in ('val', 'test')]
    loader = dict(dataset=dict(type='ConcatDataset', datasets=parts))
    with pytest.raises(AutoDFPError, match=r'found ConcatDataset; one mAP takes .* of its 2 data sets, with image ids'):
        CocoReward(5).prepare(nn.Module(), loader)


def test_another_format_than_cocos_is_refused():
    class Nameless:
        pass

    with pytest.raises(AutoDFPError, match='data sets in val_dataloader and test_dataloader, found Nameless'):
        CocoReward(5).prepare(nn.Module(), dict(dataset=dict(type=Nameless)))
