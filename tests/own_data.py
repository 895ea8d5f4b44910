"""A data set of one's own: two classes, and names that break what is careless."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmautodfp.utils.fileio import load_json, save_json, save_tensors, save_text

CONFIGS = Path(__file__).parents[1] / 'configs'

CLASSES = ('<script>alert("null")</script>', 'it\'s "eins" & \\größer {{ x }} $1$')
NAMES = (
    'two words.png',
    'ünï cödé 图像.png',
    'it\'s "quoted".png',
    '<script>alert(1)<script>.png',
    '<img src=x onerror=alert(2)>.png',
    '100%25 #1 ?a=b&c;.png',
    '$(touch pwned).png',
    '-rf.png',
)
CONFIG = """
_base_ = {bases!r}

data_root = {root!r}
metainfo = dict(classes={classes!r})
load_from = {checkpoint!r}
model = dict(roi_head=dict(bbox_head=dict(num_classes=2)))
loader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(
    data_root=data_root, metainfo=metainfo, ann_file='my annotations/ü.json', data_prefix=dict(img='my images/')))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
val_evaluator = dict(ann_file=data_root + 'my annotations/ü.json')
test_evaluator = dict(ann_file=data_root + 'my annotations/ü.json')
train_cfg = dict(max_epochs=1)
autodfp = dict(num_episodes=3, agent=dict(warmup_episodes=1), reward=dict(num_images=6, batch_size=3))
"""


@pytest.fixture(scope='session')
def own_data(digits_root: Path, tmp_path_factory) -> SimpleNamespace:
    """Images, annotations, a detector of two classes and the config that puts them together."""
    root = tmp_path_factory.mktemp('own') / 'my "data" <b>ü'
    content = load_json(digits_root / 'annotations/instances_val.json', 'annotations')
    zeros_and_ones = [a for a in content['annotations'] if a['category_id'] in (1, 2)]
    chosen = sorted({a['image_id'] for a in zeros_and_ones})[: len(NAMES) + 4]
    images = [image for image in content['images'] if image['id'] in chosen]
    (root / 'my images').mkdir(parents=True)
    for number, image in enumerate(images):
        name = NAMES[number] if number < len(NAMES) else image['file_name']
        shutil.copy(digits_root / 'val' / image['file_name'], root / 'my images' / name)
        image['file_name'] = name
    # Category ids need neither begin at 1 nor be dense.
    categories = [dict(id=7 * (number + 1), name=name) for number, name in enumerate(CLASSES)]
    annotations = [a | dict(category_id=7 * a['category_id']) for a in zeros_and_ones if a['image_id'] in chosen]
    content = dict(images=images, annotations=annotations, categories=categories)
    save_json(content, root / 'my annotations' / 'ü.json')
    state = torch.load(CONFIGS / 'demo/faster_rcnn_digits.pth', weights_only=True)['state_dict']
    for kind in ('weight', 'bias'):
        head = 'roi_head.bbox_head'
        state[f'{head}.fc_cls.{kind}'] = state[f'{head}.fc_cls.{kind}'][[0, 1, 10]]  # the last is the background
        state[f'{head}.fc_reg.{kind}'] = state[f'{head}.fc_reg.{kind}'][:8]
    save_tensors(dict(state_dict=state), root / 'two classes.pth')
    config = root / 'my config.py'
    bases = [str(CONFIGS / name) for name in ('demo/faster_rcnn_digits.py', '_base_/autodfp_demo.py')]
    values = dict(bases=bases, root=f'{root}/', classes=CLASSES, checkpoint=str(root / 'two classes.pth'))
    save_text(CONFIG.format(**values), config)
    return SimpleNamespace(root=root, config=config, names=[image['file_name'] for image in images])
