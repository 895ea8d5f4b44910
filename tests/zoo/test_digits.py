import hashlib
import json
from itertools import pairwise

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from mmautodfp.utils import AutoDFPError
from mmautodfp.zoo import DIGIT_CLASSES, SPLITS, make_digits
from mmautodfp.zoo.digits import STAMP, VERSION, Split, draw_picture, outline


def annotations(root, split) -> dict:
    return json.loads((root / 'annotations' / f'instances_{split}.json').read_text())


def test_pixels_and_annotations_are_the_same_everywhere(tmp_path, monkeypatch):
    # A digest of what the shipped checkpoints were trained on, whatever wrote the PNG files.
    monkeypatch.setitem(SPLITS, 'train', Split(6, SPLITS['train'].digits, SPLITS['train'].seed))
    monkeypatch.setitem(SPLITS, 'val', Split(3, SPLITS['val'].digits, SPLITS['val'].seed))
    monkeypatch.setitem(SPLITS, 'test', Split(3, SPLITS['test'].digits, SPLITS['test'].seed))
    digest = hashlib.sha256()
    root = make_digits(tmp_path / 'digits')
    for split in SPLITS:
        for image in annotations(root, split)['images']:
            digest.update(cv2.imread(str(root / split / image['file_name'])).tobytes())
        digest.update(json.dumps(annotations(root, split), sort_keys=True).encode())
    assert digest.hexdigest() == '971804e8bc2fbd97a046036b115f31667d8aaed01e8d98772b181343509327a4'


def test_it_is_coco_format_with_boxes_and_polygons_that_fit_the_digits(digits_root):
    for split, setting in SPLITS.items():
        content = annotations(digits_root, split)
        assert len(content['images']) == setting.num_images
        assert [category['name'] for category in content['categories']] == list(DIGIT_CLASSES)
        counts = np.bincount([a['image_id'] for a in content['annotations']], minlength=setting.num_images + 1)[1:]
        assert counts.min() >= 1
        assert counts.max() <= 5
        for annotation in content['annotations'][:300]:
            x, y, w, h = annotation['bbox']
            assert 0 <= x < x + w <= 128
            assert 0 <= y < y + h <= 128
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in annotation['segmentation']])
            assert np.abs(points.min(0) - (x, y)).max() <= 0.5
            assert np.abs(points.max(0) - (x + w, y + h)).max() <= 0.5
            assert annotation['area'] <= w * h


def test_every_split_draws_from_digits_of_its_own():
    ranges = sorted(split.digits for split in SPLITS.values())
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(load_digits().images)
    assert all(before[1] == after[0] for before, after in pairwise(ranges))


def test_masks_do_not_overlap_and_cover_the_glyph():
    digits = load_digits()
    for seed in range(20):
        picture, objects = draw_picture(np.random.default_rng(seed), digits.images, digits.target)
        assert picture.shape == (128, 128, 3)
        assert sum(mask.astype(int) for _, mask in objects).max() == 1
        for _, mask in objects:
            polygons = outline(mask)['segmentation']
            filled = np.zeros((256, 256), np.uint8)
            cv2.fillPoly(filled, [np.rint(np.reshape(p, (-1, 2)) * 2 - 0.5).astype(int) for p in polygons], 1)
            assert filled[::2, ::2][mask].mean() > 0.99


def test_a_made_data_set_is_not_made_again(digits_root):
    stamp = (digits_root / 'annotations/instances_val.json').stat().st_mtime_ns
    make_digits(digits_root)
    assert (digits_root / 'annotations/instances_val.json').stat().st_mtime_ns == stamp
    assert (digits_root / STAMP).read_text() == f'{VERSION}\n'


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, 'imwrite', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_digits(tmp_path / 'digits')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('place', ['file', 'file/digits'])
def test_no_folder_is_made_where_a_file_is(tmp_path, place):
    (tmp_path / 'file').write_text('')
    with pytest.raises(AutoDFPError, match=f'{place} was to receive the digits data set, but .*/file is a file; name'):
        make_digits(tmp_path / place)


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    (tmp_path / 'VERSION').write_text('2.4.1')
    with pytest.raises(AutoDFPError, match='holds other files'):
        make_digits(tmp_path)
    assert (tmp_path / 'thesis.tex').read_text() == 'years of work'
