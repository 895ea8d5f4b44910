"""BCCD laid out from Pascal VOC's layout; a few photographs of one colour stand in for it."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, SHARED
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmautodfp import runs
from mmautodfp.utils import AutoDFPError
from mmautodfp.zoo import BCCD_CLASSES, make_bccd

SPLITS = {'train': ['BloodImage_00001', 'BloodImage_00003'], 'val': ['BloodImage_00000'], 'test': ['BloodImage_00007']}
BOXES = [('WBC', 10, 20, 110, 220), ('RBC', 300, 40, 352, 90), ('RBC', 5, 5, 5, 9), ('Platelets', 600, 441, 640, 480)]


CHECKPOINTS = sorted((REPO / 'configs/bccd').glob('*.pth'))


def write_box(kind: str, left: int, top: int, right: int, bottom: int) -> str:
    sides = f'<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>'
    return f'<object><name>{kind}</name><bndbox>{sides}</bndbox></object>'


@pytest.fixture
def source(tmp_path) -> Path:
    root = tmp_path / 'BCCD_Dataset'
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / 'BCCD' / name).mkdir(parents=True)
    size = '<size><width>640</width><height>480</height><depth>3</depth></size>'
    text = f'<annotation>{size}{"".join(write_box(*box) for box in BOXES)}</annotation>'
    for split, names in SPLITS.items():
        (root / 'BCCD/ImageSets/Main' / f'{split}.txt').write_text('\n'.join(names) + '\n')
        for name in names:
            cv2.imwrite(str(root / 'BCCD/JPEGImages' / f'{name}.jpg'), np.full((480, 640, 3), 200, np.uint8))
            (root / 'BCCD/Annotations' / f'{name}.xml').write_text(text)
    return root


@pytest.mark.parametrize('inner', ['', 'BCCD'])
def test_photographs_and_boxes_of_every_split_are_laid_out(source, tmp_path, inner):
    out = make_bccd(source / inner, tmp_path / 'data' / 'bccd')
    assert out == tmp_path / 'data' / 'bccd'
    for split, names in SPLITS.items():
        content = json.loads((out / f'{split}.json').read_text())
        assert [image['file_name'] for image in content['images']] == [f'{name}.jpg' for name in names]
        assert [category['name'] for category in content['categories']] == list(BCCD_CLASSES)
        assert len({box['id'] for box in content['annotations']}) == 3 * len(names)
        first, _, last = content['annotations'][:3]
        assert first == dict(
            id=1, image_id=0, category_id=2, bbox=[10, 20, 100, 200], area=20_000, iscrowd=0
        )  # a box without width is left out
        assert last == dict(id=3, image_id=0, category_id=3, bbox=[600, 441, 40, 39], area=1560, iscrowd=0)
        for name in names:
            copied = (out / 'images' / f'{name}.jpg').read_bytes()
            assert copied == (source / 'BCCD/JPEGImages' / f'{name}.jpg').read_bytes()


def test_the_configs_read_what_was_laid_out(source, tmp_path):
    register_all_modules()
    out = make_bccd(source, tmp_path / 'bccd')
    cfg = Config.fromfile(REPO / 'configs/_base_/bccd_detection.py')
    assert cfg.metainfo.classes == BCCD_CLASSES
    for split, names in SPLITS.items():
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset | dict(data_root=str(out)))
        assert len(dataset) == len(names)
        sample = dataset[0]
        assert sample['inputs'].shape == (3, 240, 320)
        assert sorted(sample['data_samples'].gt_instances.labels.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ('missing', 'message'),
    [
        ('JPEGImages', 'has no folder JPEGImages'),
        ('ImageSets/Main/val.txt', r'val\.txt is not there'),
        ('Annotations/BloodImage_00007.xml', r'BloodImage_00007\.xml is not there'),
        ('JPEGImages/BloodImage_00003.jpg', r'BloodImage_00003\.jpg is in the train split of BCCD, but it is not in '),
    ],
)
def test_what_is_missing_is_told_and_nothing_is_written(source, tmp_path, missing, message):
    (source / 'BCCD' / missing).rename(source / 'elsewhere')
    with pytest.raises(AutoDFPError, match=message):
        make_bccd(source, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_box_of_another_class_is_told(source, tmp_path):
    path = source / 'BCCD/Annotations/BloodImage_00000.xml'
    path.write_text(path.read_text().replace('WBC', 'Yeast'))
    with pytest.raises(AutoDFPError, match=r"^BloodImage_00000\.xml has a box of class 'Yeast'; BCCD has RBC, WBC, Pl"):
        make_bccd(source, tmp_path / 'out')


@pytest.mark.parametrize('part', [b'</annotation>', b'<width>640</width>', b'<ymax>220</ymax>'])
@pytest.mark.parametrize('left', [b'', b'\xff'])  # the second is no UTF-8
def test_a_damaged_annotation_is_told(source, tmp_path, part, left):
    path = source / 'BCCD/Annotations/BloodImage_00007.xml'
    path.write_bytes(path.read_bytes().replace(part, left))
    with pytest.raises(AutoDFPError, match=r'BloodImage_00007\.xml was to be XML with .* it is damaged; fetch BCCD'):
        make_bccd(source, tmp_path / 'out')


@pytest.mark.parametrize('place', ['file', 'file/bccd'])
def test_no_folder_is_made_where_a_file_is(source, tmp_path, place):
    (tmp_path / 'file').write_text('')
    with pytest.raises(AutoDFPError, match=f'{place} was to receive the BCCD data set, but .*/file is a file; name'):
        make_bccd(source, tmp_path / place)


@pytest.mark.parametrize('path', CHECKPOINTS, ids=[path.stem for path in CHECKPOINTS])
def test_a_shipped_checkpoint_is_small_and_of_its_config(path):
    register_all_modules()
    assert path.stat().st_size <= 6_000_000
    content = torch.load(path, weights_only=True)
    MODELS.build(Config.fromfile(path.with_suffix('.py')).model).load_state_dict(content['state_dict'])
    assert content['meta']['dataset_meta']['classes'] == BCCD_CLASSES


@pytest.mark.slow
@pytest.mark.parametrize('path', CHECKPOINTS, ids=[path.stem for path in CHECKPOINTS])
def test_a_shipped_detector_finds_cells_as_well_as_its_record_says(path, tmp_path):
    root = SHARED / 'data/bccd'
    if not root.is_dir():
        pytest.skip(f'{root} with real photographs is not there')
    record = json.loads(path.with_suffix('.json').read_text())
    options = {'test_dataloader.dataset.data_root': str(root), 'test_evaluator.ann_file': str(root / 'test.json')}
    config = path.with_suffix('.py')
    found = runs.evaluate(str(config), str(path), work_dir=str(tmp_path), cfg_options=options)
    assert found['coco/bbox_mAP'] == pytest.approx(record['test']['coco/bbox_mAP'], abs=0.01)
