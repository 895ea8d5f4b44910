"""The config of a pruned model, and what is known of its data set."""

from types import SimpleNamespace

import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config

from mmautodfp.outputs import read_metainfo, slim_config

COCO_CLASSES = CocoDataset.METAINFO['classes']


def test_the_written_config_forgets_the_search_and_stale_weights():
    cfg = Config(
        dict(
            model=dict(type='D', backbone=dict(type='ResNet', init_cfg=dict(type='Pretrained', checkpoint='x'))),
            custom_hooks=[dict(type='mmautodfp.AutoDFPHook'), dict(type='EMAHook')],
            autodfp=dict(num_episodes=3),
            work_dir='somewhere',
        )
    )
    layers = {'layer1.0.conv1': dict(out_channels=3)}
    slim = slim_config(cfg, 'backbone', layers, 'pruned.pth')
    assert slim.model.backbone.type == 'mmautodfp.Slim'
    assert slim.model.backbone.layers == layers
    assert slim.model.backbone.module == dict(type='ResNet', init_cfg=None)
    assert slim.custom_hooks == [dict(type='EMAHook')]
    assert not {'autodfp', 'work_dir'} & set(slim)
    assert cfg.model.backbone.type == 'ResNet'  # the run's own config is untouched


def test_a_config_may_say_that_it_has_no_hooks_of_its_own():
    cfg = Config(dict(model=dict(type='D', backbone=dict(type='ResNet')), custom_hooks=None))
    assert slim_config(cfg, 'backbone', {}, None).custom_hooks == []


def test_what_was_pruned_as_a_whole_can_be_pruned_again():
    cfg = Config(dict(model=dict(type='D', backbone=dict(type='ResNet'))))
    first = {'backbone.conv1': dict(out_channels=6), 'neck': dict(in_channels=6, bias=True)}
    once = slim_config(cfg, '', first, 'pruned.pth')
    twice = slim_config(once, '', {'backbone.conv1': dict(out_channels=4), 'neck': dict(in_channels=4)}, 'pruned.pth')
    again = slim_config(twice, 'backbone', {'conv1': dict(out_channels=3), 'conv2': dict(in_channels=3)}, 'pruned.pth')
    for slim in (once, twice, again):
        assert (slim.model.type, slim.model.slim_type) == ('mmautodfp.SlimModel', 'D')
        assert slim.model.backbone == dict(type='ResNet')
    assert again.model.layers == [
        first,
        {'backbone.conv1': dict(out_channels=4), 'neck': dict(in_channels=4)},
        {'backbone.conv1': dict(out_channels=3), 'backbone.conv2': dict(in_channels=3)},
    ]


@pytest.mark.parametrize(
    ('own', 'classes'), [(dict(), COCO_CLASSES), (dict(metainfo=dict(classes=('cell',))), ('cell',))]
)
def test_classes_are_known_where_no_data_set_may_be_opened(own, classes):
    dataset = dict(type='CocoDataset', **own)
    for one in (dataset, dict(type='RepeatDataset', times=1, dataset=dataset)):
        cfg = Config(dict(test_dataloader=dict(dataset=one)))
        assert read_metainfo(SimpleNamespace(cfg=cfg), may_open=False)['classes'] == classes
