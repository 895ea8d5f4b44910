"""What is missing of the data is told before the search, not by the evaluation behind it."""

import re
import shutil

import pytest
from conftest import REPO

from mmautodfp import runs
from mmautodfp.runs.data import require_images
from mmautodfp.utils import AutoDFPError


def complaint(small_demo, work_dir, **options) -> str:
    """The sentence that a run of the demo ends in, which has begun no search by then."""
    config = REPO / 'configs/demo/faster_rcnn_digits_autodfp.py'
    with pytest.raises(AutoDFPError) as caught:
        runs.prune(config, work_dir=str(work_dir), cfg_options=small_demo | options)
    assert not (work_dir / 'search.pth').exists()
    return str(caught.value)


@pytest.mark.parametrize('compare', [True, False])
def test_a_missing_image_of_the_tests_is_told_before_the_search(small_demo, digits_root, tmp_path, compare):
    shutil.copytree(digits_root / 'test', tmp_path / 'test', ignore=shutil.ignore_patterns('0001*', '0[1-9]*'))
    folder = {'test_dataloader.dataset.data_root': f'{tmp_path}/', 'autodfp.compare': compare}
    assert complaint(small_demo, tmp_path / 'run', **folder) == (
        f'10 of the 24 images that test_dataloader names cannot be found, first {tmp_path}/test/00010.png; put the '
        'data there or set data_root and data_prefix'
    )


@pytest.mark.parametrize('name', ['val_dataloader.dataset', 'test_dataloader.dataset', 'test_evaluator'])
def test_a_damaged_annotation_file_is_named(small_demo, tmp_path, name):
    file = tmp_path / 'cut off.json'
    file.write_text('{"images": [')
    found = complaint(small_demo, tmp_path / 'run', **{f'{name}.ann_file': str(file)})
    assert re.match(f'the annotation file of {name} was to be read from {file}, but that is not readable JSON', found)


class Stored:
    """Two images of a storage, of which the second is lost."""

    def __len__(self):
        return 2

    def get_data_info(self, index):
        return dict(img_path=f's3://bucket/{index}.png')

    def __getitem__(self, index):
        return dict(inputs=(1,)[index])


def test_images_that_lie_elsewhere_are_not_missed():
    require_images(Stored(), 'test_dataloader')
    require_images([dict(inputs=1)], 'test_dataloader')  # no files are told
