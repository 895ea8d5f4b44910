"""Pictures of a folder in place of drawn images."""

import shutil

import mmcv
import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.config import Config
from torch import nn

from mmautodfp.graph import find_groups
from mmautodfp.kernels import dead_leaves
from mmautodfp.reconstruction import SyntheticImages, SyntheticLeastSquares
from mmautodfp.rewards import SyntheticReward
from mmautodfp.runs.configs import use_pictures
from mmautodfp.utils import AutoDFPError

PLAIN = dict(mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture
def folder(tmp_path):
    """Five pictures of noise, of which one lies deeper, beside a file that is none."""
    random = np.random.default_rng(0)
    for i, name in enumerate(['a.png', 'b.png', 'c.PNG', 'd.png', 'below/e.png']):
        mmcv.imwrite(random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8), str(tmp_path / name))
    (tmp_path / 'notes.txt').write_text('no picture')
    return tmp_path


def drawn(folder, **settings):
    return torch.cat(list(SyntheticImages(folder=str(folder), **(PLAIN | settings)).batches()))


def all_parts(folder, size, flag='color'):
    """Every part of every picture of a folder, red first, by the picture's name."""
    for file in sorted(file for file in folder.rglob('*') if file.suffix.lower() == '.png'):
        picture = mmcv.imread(str(file), flag, channel_order='rgb')
        picture = picture.reshape(*picture.shape[:2], -1).transpose(2, 0, 1)
        for y in range(picture.shape[1] - size + 1):
            for x in range(picture.shape[2] - size + 1):
                yield file.name, picture[:, y : y + size, x : x + size]


def sources(folder, images, flag='color'):
    """Of which picture each image is a part."""
    parts = list(all_parts(folder, images.shape[-1], flag))
    return [[name for name, part in parts if np.array_equal(part, image)] for image in images.numpy()]


def test_images_are_parts_of_pictures_and_no_picture_comes_twice_before_all_have_come(folder):
    found = sources(folder, drawn(folder, num_images=10, size=16))
    assert all(len(names) == 1 for names in found)
    assert sorted(found[:5]) == sorted(found[5:]) == [['a.png'], ['b.png'], ['c.PNG'], ['d.png'], ['e.png']]


def test_hidden_files_are_left_out(folder):
    before = drawn(folder, num_images=12, size=16)
    (folder / '._a.png').write_text('what macOS leaves beside a.png')
    (folder / '.thumbnails').mkdir()
    shutil.copy(folder / 'a.png', folder / '.thumbnails')
    assert torch.equal(before, drawn(folder, num_images=12, size=16))


def test_a_picture_that_comes_again_shows_another_part(folder):
    images = drawn(folder, num_images=10, size=8)
    assert not any(torch.equal(*pair) for pair in zip(images[:5], images[5:], strict=True))


def test_images_do_not_depend_on_the_batches_but_on_the_seed(folder):
    at_once, in_batches, other = (
        drawn(folder, num_images=6, size=16, batch_size=size, seed=seed) for size, seed in [(6, 0), (2, 0), (6, 1)]
    )
    assert torch.equal(at_once, in_batches)
    assert not torch.equal(at_once, other)


def test_grey_models_get_grey_pictures(folder):
    images = drawn(folder, num_images=5, size=16, mean=(0.0,), std=(1.0,))
    assert images.shape == (5, 1, 16, 16)
    assert all(len(names) == 1 for names in sources(folder, images, 'grayscale'))


def test_small_pictures_are_filled_up_with_the_mean(folder):
    mean = (100.0, 110.0, 120.0)
    images = drawn(folder, num_images=5, size=40, mean=mean, std=(2.0,) * 3)
    heights = sorted(int((image != 0).any(0).any(1).sum()) for image in images)
    assert heights == [20, 21, 22, 23, 24]
    for image in images:
        assert not image[:, (image != 0).any(0).any(1).sum() :].any()
        assert not image[:, :, 30:].any()
    picture = mmcv.imread(str(folder / 'a.png'), channel_order='rgb').transpose(2, 0, 1)
    (image,) = [image for image in images if not image[:, 20:].any()]
    expected = (torch.from_numpy(picture) - torch.tensor(mean).view(-1, 1, 1)) / 2
    torch.testing.assert_close(image[:, :20, :30], expected)


def test_pictures_are_scaled_as_the_test_images_are(folder):
    resized = mmcv.imrescale(mmcv.imread(str(folder / 'a.png'), channel_order='rgb'), (15, 10))
    images = drawn(folder, num_images=5, size=(10, 15), scale=(15, 10))
    assert any(np.array_equal(image, resized.transpose(2, 0, 1)) for image in images.numpy())


def test_pictures_are_stretched_where_the_test_images_are(folder):
    resized = mmcv.imresize(mmcv.imread(str(folder / 'a.png'), channel_order='rgb'), (12, 18))
    images = drawn(folder, num_images=5, size=(18, 12), scale=(12, 18), keep_ratio=False)
    assert any(np.array_equal(image, resized.transpose(2, 0, 1)) for image in images.numpy())


class Detector(nn.Module):
    """Is taken for one of MMDetection's."""

    extract_feat = bbox_head = None


@pytest.mark.parametrize(
    ('model', 'bgr_to_rgb', 'rgb', 'red_first'),
    [
        (Detector(), True, None, True),
        (Detector(), False, None, False),
        (Detector(), False, True, True),
        (nn.Module(), False, None, True),  # our classifiers read files with red first
        (nn.Module(), False, False, False),
    ],
)
def test_the_channels_come_as_the_model_takes_them(folder, model, bgr_to_rgb, rgb, red_first):
    model.data_preprocessor = DetDataPreprocessor([1.0, 2, 3], [1.0, 1, 1], bgr_to_rgb=bgr_to_rgb)
    settings = SyntheticImages(folder=str(folder), num_images=2, size=16, rgb=rgb)
    (image, _), *_ = settings.normalized_as(model).batches()
    pixels = image + torch.tensor([1.0, 2, 3]).view(-1, 1, 1)
    assert len(sources(folder, (pixels if red_first else pixels.flip(0))[None])[0]) == 1


def test_other_pictures_make_another_search_and_another_place_does_not(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    shutil.copytree(folder, elsewhere, dirs_exist_ok=True)
    identities = [SyntheticLeastSquares(dict(folder=str(place))).identity for place in (folder, elsewhere)]
    assert identities[0] == identities[1]
    mmcv.imwrite(np.zeros((20, 30, 3), np.uint8), str(elsewhere / 'a.png'))
    assert SyntheticReward(dict(folder=str(folder))).identity != SyntheticReward(dict(folder=str(elsewhere))).identity
    assert SyntheticImages(size=16).identity == (
        "SyntheticImages(num_images=64, size=(16, 16), batch_size=8, kind='dead_leaves', seed=0, "
        'mean=(127.5, 127.5, 127.5), std=(58.0, 58.0, 58.0))'  # as searches that are kept name it
    )


def test_least_squares_learn_the_same_from_drawn_images_as_from_pictures_of_them(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    pixels = dead_leaves(8, (24, 24), PLAIN['mean'], PLAIN['std']).round()
    for number, image in enumerate(pixels):
        mmcv.imwrite(image.permute(1, 2, 0).flip(2).numpy().astype(np.uint8), str(tmp_path / f'{number}.png'))
    deliveries = []
    for folder in (None, str(tmp_path)):
        reconstructor = SyntheticLeastSquares(dict(num_images=8, size=24, folder=folder))
        (group,) = find_groups(module)
        reconstructor.ensure_fitted(module)
        deliveries.append(reconstructor.reconstruct(group, torch.arange(4), 0.5).delivery)
    torch.testing.assert_close(*deliveries, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda folder: folder / 'missing', 'missing, but there is no such folder'),
        (lambda folder: folder / 'empty', 'empty, but none of them is in it or below it'),
        (lambda folder: folder / 'damaged', r'damaged/x\.jpg was to be read, but it cannot be, or is no picture'),
        (lambda folder: folder / 'nothing', r'nothing/x\.jpg was to be read, but it cannot be, or is no picture'),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, spoil, message):
    (tmp_path / 'empty/folder.jpg').mkdir(parents=True)
    for name, content in (('damaged', b'no picture'), ('nothing', b'')):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'x.jpg').write_bytes(content)
    with pytest.raises(AutoDFPError, match=message):
        drawn(spoil(tmp_path), num_images=2, size=16)


def test_a_line_that_scaling_leaves_nothing_of_is_told(tmp_path):
    mmcv.imwrite(np.zeros((1, 200, 3), np.uint8), str(tmp_path / 'line.png'))
    with pytest.raises(
        AutoDFPError, match=r'line\.png of 200x1 pixels was to be made to fit in 32x32, but is too thin'
    ):
        drawn(tmp_path, num_images=2, size=16, scale=(32, 32))


def test_pictures_have_one_channel_or_three(folder):
    with pytest.raises(AutoDFPError, match='pictures of 1 or 3 channels can be read, but images of 4 were asked for'):
        drawn(folder, num_images=2, size=16, mean=(0.0,) * 4, std=(1.0,) * 4)


def test_no_name_is_no_folder():
    with pytest.raises(AutoDFPError, match="a set of images was asked for folder=''"):
        SyntheticImages(folder='')


def test_a_config_is_told_the_folder_and_the_scale_of_its_test_images():
    pipeline = [dict(type='LoadImageFromFile'), dict(type='mmdet.Resize', scale=(1333, 800), keep_ratio=True)]
    settings = dict(
        reconstructor=dict(type='SyntheticLeastSquares', images=dict(size=64)), reward=dict(type='SyntheticReward')
    )
    dataset = dict(type='ConcatDataset', datasets=[dict(type='CocoDataset', pipeline=pipeline)])
    cfg = Config(dict(autodfp=settings, test_dataloader=dict(dataset=dataset)))
    use_pictures(cfg, 'photos')
    assert cfg.autodfp.reconstructor['images'] == dict(size=64, folder='photos', scale=(1333, 800))
    assert cfg.autodfp.reward['images'] == dict(folder='photos', scale=(1333, 800))
    assert SyntheticReward(dict(cfg.autodfp.reward['images'])).images[0] == 'photos 1:0'
    settings = dict(reward=dict(type='CocoReward'), reconstructor=dict(type='SyntheticLeastSquares'))
    of_annotations = Config(dict(autodfp=settings))
    use_pictures(of_annotations, 'photos')
    assert of_annotations.autodfp.reconstructor['images'] == dict(folder='photos', scale=None)
    assert of_annotations.autodfp.reward == dict(type='CocoReward')


@pytest.mark.parametrize(
    ('resize', 'scale'),
    [
        (dict(type='Resize', scale=640, keep_ratio=True), dict(scale=(640, 640))),
        (dict(type='Resize', scale=(300, 500)), dict(scale=(300, 500), keep_ratio=False)),
        (dict(type='FixShapeResize', width=300, height=500), dict(scale=(300, 500), keep_ratio=False)),
        (dict(type='ResizeShortestEdge', scale=800, max_size=1333), dict(scale=(1333, 800))),
        (
            dict(type='RandomChoiceResize', scales=[(9, 6), (9, 7), (9, 8)], keep_ratio=True),
            dict(scale=(9, 7)),
        ),
        (dict(type='RandomChoiceResize', scales=[480, 512], keep_ratio=True), dict(scale=(512, 512))),
        (dict(type='RandomResize', scale=[(9, 6), (9, 8)], keep_ratio=True), dict(scale=(9, 8))),
        (dict(type='RandomResize', scale=(9, 8), ratio_range=(0.1, 2.0)), dict(scale=(9, 8), keep_ratio=False)),
        (dict(type='Resize', scale_factor=0.5), dict(scale=None)),
    ],
)
def test_the_scale_of_test_images_is_read_as_their_transform_does(resize, scale):
    settings = dict(reconstructor=dict(type='SyntheticLeastSquares'))
    pipeline = [dict(type='LoadImageFromFile'), resize]
    cfg = Config(dict(autodfp=settings, test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    use_pictures(cfg, 'photos')
    assert cfg.autodfp.reconstructor['images'] == dict(folder='photos') | scale
    SyntheticImages(**cfg.autodfp.reconstructor['images'])  # a setting that it takes


@pytest.mark.parametrize('model', [dict(), dict(network=dict(type='mmautodfp.VGG'))])
def test_a_scale_that_the_settings_tell_stays(model):
    settings = dict(reconstructor=dict(type='SyntheticLeastSquares', images=dict(scale=(40, 30))))
    dataset = dict(pipeline=[dict(type='Resize', scale=640)])
    cfg = Config(dict(autodfp=settings, model=model, test_dataloader=dict(dataset=dataset)))
    use_pictures(cfg, 'photos')
    assert cfg.autodfp.reconstructor['images'] == dict(scale=(40, 30), folder='photos')


@pytest.mark.parametrize(('size', 'width'), [(16, 16), ((16, 24), 24)])
def test_the_shorter_side_of_a_classifiers_picture_becomes_that_of_its_parts(folder, size, width):
    settings = dict(reconstructor=dict(type='SyntheticLeastSquares', images=dict(size=size)))
    cfg = Config(dict(autodfp=settings, model=dict(network=dict(type='mmautodfp.VGG'))))
    use_pictures(cfg, str(folder))
    (images,) = SyntheticImages(**cfg.autodfp.reconstructor['images'], **PLAIN, num_images=5).batches()
    whole = mmcv.imrescale(mmcv.imread(str(folder / 'a.png'), channel_order='rgb'), 16 / 20).transpose(2, 0, 1)
    assert whole.shape == (3, 16, 24)
    parts = [whole[:, :, x : x + width] for x in range(24 - width + 1)]
    assert sum(np.array_equal(image, part) for image in images.numpy() for part in parts) == 1


@pytest.mark.parametrize('settings', [dict(), dict(reconstructor=dict(type='PruneOnly'))])
def test_a_reconstructor_that_looks_at_no_images_is_told(settings):
    with pytest.raises(AutoDFPError, match=r'looks at none; add --cfg-options autodfp\.reconstructor\.type='):
        use_pictures(Config(dict(autodfp=settings)), 'photos')
