"""One detector of each of MMDetection's families is pruned as a whole, and docs/detectors.md says what was measured."""

import re
from pathlib import Path

import pytest
from conftest import REPO
from mmengine.config import ConfigDict

from mmautodfp.experiments.families import (
    FAMILIES,
    FURTHER,
    MMDET_CONFIGS,
    OTHERS,
    SAME,
    all_configs,
    build_model,
    measure_families,
    prune_half,
    settings_of,
    table_row,
)
from mmautodfp.utils.fileio import load_json

#: What people deploy, and two that sort or compare scores on their way; the others are measured by
#: `tools/benchmark.py families`, which takes an hour.
TESTED = [
    'atss/atss_r50_fpn_1x_coco',
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    'detr/detr_r50_8xb2-150e_coco',
    'dino/dino-4scale_r50_8xb2-12e_coco',
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'faster_rcnn/faster-rcnn_x101-32x4d_fpn_1x_coco',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'gfl/gfl_r50_fpn_1x_coco',
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'regnet/faster-rcnn_regnetx-3.2GF_fpn_1x_coco',
    'res2net/faster-rcnn_res2net-101_fpn_2x_coco',
    'retinanet/retinanet_r50_fpn_1x_coco',
    'rtmdet/rtmdet_tiny_8xb32-300e_coco',
    'solo/solo_r50_fpn_1x_coco',
    'tood/tood_r50_fpn_1x_coco',
    'vfnet/vfnet_r50_fpn_1x_coco',
    'yolo/yolov3_d53_8xb8-320-273e_coco',
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco',
    'yolox/yolox_tiny_8xb8-300e_coco',
]
RESULTS = REPO / 'configs/demo/results/families.json'
PAGE = REPO / 'docs/detectors.md'


def results() -> dict[str, dict]:
    return {found['config']: found for found in load_json(RESULTS, 'the families')['results']}


def make_narrow(model: ConfigDict) -> None:
    """A quarter of a ResNet's width, where it alone decides about what the neck reads."""
    neck = model.get('neck')
    if model.backbone.type != 'ResNet' or 'base_channels' in model.backbone or not isinstance(neck, dict):
        return
    channels = neck.get('in_channels')
    if isinstance(channels, list | tuple):
        neck.in_channels = [count // 4 for count in channels]
        model.backbone.base_channels = 16


@pytest.mark.slow
@pytest.mark.parametrize('config', TESTED)
def test_a_detector_predicts_with_half_of_its_channels_and_comes_back(config):
    model = settings_of(config)
    make_narrow(model)
    found = prune_half(build_model(model), size=128)
    assert found['groups'] > 10
    assert not any('does not come out the same' in line for line in found['left'])
    assert found['predicts'] is not False
    assert found['restored']


@pytest.mark.slow
@pytest.mark.parametrize('family', ['dynamic_rcnn', 'free_anchor', 'pisa'])
def test_families_that_are_said_to_have_the_network_of_another_have_it(family):
    name, other = SAME[family]

    def layers(config: str) -> list[tuple[str, str]]:
        modules = build_model(settings_of(config)).named_modules()
        return [(path, type(layer).__name__) for path, layer in modules if list(layer.parameters(recurse=False))]

    assert layers(f'{family}/{name}') == layers(f'{other}/{FAMILIES[other]}')


def test_every_folder_of_mmdetection_is_accounted_for():
    folders = {path.name for path in MMDET_CONFIGS.iterdir() if path.is_dir()}
    assert folders | {'clrnet'} == set(FAMILIES) | set(SAME) | set(OTHERS)  # which the second stack alone has
    names = [*all_configs(), *(f'{family}/{name}' for family, (name, _) in SAME.items())]
    assert all((MMDET_CONFIGS / f'{name}.py').is_file() for name in names)
    assert {name.partition('/')[0] for name in FURTHER} <= set(FAMILIES)
    assert {other for _, other in SAME.values()} <= set(FAMILIES)


def test_a_detector_that_cannot_be_built_is_named_with_the_reason():
    told = []
    content = measure_families(['nothing/there'], tell=told.append)
    (found,) = content['results']
    assert found['failed'].startswith('cannot be built: FileNotFoundError')
    assert told == [table_row(found)]


def test_in_the_recorded_results_nothing_broke():
    found = results()
    assert list(found) == [config for config in all_configs() if config in found]
    worked = [one for one in found.values() if 'failed' not in one]
    assert all(one['predicts'] is not False and one['restored'] and one['groups'] for one in worked)
    assert all(0 < one['flops_at_half'] < 1 for one in worked)
    assert len(worked) >= 0.85 * len(found)


def test_the_page_says_what_was_measured():
    content = load_json(RESULTS, 'the families')
    text = PAGE.read_text()
    rows = [line for line in text.splitlines() if re.match(r'\| `[\w+]+/', line)]
    assert rows == [table_row(found) for found in content['results']]
    worked = [found for found in content['results'] if 'failed' not in found]
    assert f'{len(worked)} of {len(content["results"])}' in text
    recorded = {found['config'] for found in content['results']}
    for config in set(all_configs()) - recorded:  # not yet
        assert f'`{config}`' in text, config
    for family in (*content['same'], *content['others']):
        assert f'`{family}`' in text, family


def test_the_page_names_only_configs_that_are_there():
    for name in re.findall(r'`([\w+-]+/[\w.+-]+)`', PAGE.read_text()):
        assert (MMDET_CONFIGS / f'{name}.py').is_file() or (REPO / Path(name)).exists(), name
