"""The config of a pruned model, and what is known of its data set."""

from types import SimpleNamespace

import pytest
import torch
from conftest import REPO, enliven
from mmdet.apis import init_detector
from mmdet.datasets import CocoDataset
from mmengine.config import Config

from mmautodfp.api import prune
from mmautodfp.deploy.mmdeploy import deploy_settings
from mmautodfp.graph import outputs_of
from mmautodfp.outputs import keep_config, read_metainfo, slim_config
from mmautodfp.utils import AutoDFPError

COCO_CLASSES = CocoDataset.METAINFO['classes']


def test_the_written_config_forgets_the_search_and_stale_weights():
    pretrained = dict(type='Pretrained', checkpoint='x')
    cfg = Config(
        dict(
            model=dict(
                type='D',
                backbone=dict(type='ResNet', init_cfg=pretrained),
                roi_head=dict(bbox_head=[dict(init_cfg=pretrained), dict(init_cfg=pretrained)]),
            ),
            custom_hooks=[dict(type='mmautodfp.AutoDFPHook'), dict(type='EMAHook')],
            autodfp=dict(num_episodes=3),
            work_dir='somewhere',
        )
    )
    layers = {'layer1.0.conv1': dict(out_channels=3)}
    slim = slim_config(cfg, 'backbone', layers, 'pruned.pth')
    assert (slim.model.type, slim.model.slim_type) == ('mmautodfp.SlimModel', 'D')
    assert slim.model.layers == {'backbone.layer1.0.conv1': dict(out_channels=3)}
    assert slim.model.backbone == dict(type='ResNet', init_cfg=None)
    assert slim.model.roi_head == dict(bbox_head=[dict(init_cfg=None), dict(init_cfg=None)])
    assert slim.custom_hooks == [dict(type='EMAHook')]
    assert not {'autodfp', 'work_dir'} & set(slim)
    assert cfg.model.backbone.type == 'ResNet'  # the run's own config is untouched


@pytest.mark.parametrize(
    ('net', 'target'),
    [
        ('retinanet', 'backbone'),
        ('retinanet', 'bbox_head'),
        ('mask_rcnn', 'rpn_head'),
        ('mask_rcnn', 'roi_head'),
        ('mask_rcnn', 'roi_head.mask_head'),
        ('retinanet', 'backbone.layer4'),  # has no config of its own
    ],
)
def test_a_detector_of_which_any_part_was_pruned_is_loaded_by_mmdet_and_gives_the_same(net, target, tmp_path):
    cfg = Config.fromfile(REPO / f'configs/demo/{net}_digits.py')
    dense = init_detector(cfg, device='cpu', palette='random')
    params = sum(p.numel() for p in dense.parameters())
    pruned = prune(enliven(dense), constraint=0.7, target=target, reconstructor=dict(type='PruneOnly'))
    text = slim_config(cfg, pruned.task.path, pruned.layers, None).pretty_text
    (tmp_path / 'pruned.py').write_text(text)
    torch.save(dict(state_dict=dense.state_dict()), tmp_path / 'pruned.pth')
    loaded = init_detector(tmp_path / 'pruned.py', str(tmp_path / 'pruned.pth'), device='cpu', palette='random')
    assert sum(p.numel() for p in loaded.parameters()) < params
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = (outputs_of(model, images) for model in (loaded, dense))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert deploy_settings(loaded.cfg.model) == deploy_settings(cfg.model)  # finds the mask head


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


@pytest.mark.parametrize(('name', 'kept'), [('mine.py', ['mine.py']), ('pruned.py', ['pruned_before.py']), (None, [])])
def test_a_runs_config_takes_the_name_of_no_result(tmp_path, name, kept):
    given, work_dir = tmp_path / (name or 'mine.py'), tmp_path / 'work'
    given.write_text('a = 1')
    work_dir.mkdir()
    keep_config(Config(dict(a=1), filename=name and str(given)), work_dir)
    assert [file.name for file in work_dir.iterdir()] == kept


def test_a_config_that_cannot_be_written_costs_no_earlier_one(tmp_path):
    (tmp_path / 'mine.py').write_text('a = 1')
    given = tmp_path / 'given' / 'mine.py'
    given.parent.mkdir()
    given.write_text('')
    cfg = Config(dict(a=1), filename=str(given))
    cfg.a = lambda: 1
    with pytest.raises(AutoDFPError, match=r'mine\.py cannot be written as a config for the results'):
        keep_config(cfg, tmp_path)
    assert [file.read_text() for file in tmp_path.iterdir() if file.is_file()] == ['a = 1']


def test_a_model_whose_argument_has_a_name_of_slim_models_is_refused():
    with pytest.raises(AutoDFPError, match=r'takes layers, a name that mmautodfp\.SlimModel needs for itself'):
        slim_config(Config(dict(model=dict(type='Net', layers=[3, 4], backbone={}))), 'backbone', {}, None)
