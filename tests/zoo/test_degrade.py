"""Worse photographs: each kind does what it says, and the same to the same image."""

import cv2
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS

from mmautodfp.utils import AutoDFPError
from mmautodfp.zoo import Degrade


@pytest.fixture
def image() -> np.ndarray:
    """Grey with a bright disc and a fine texture, uint8 [96, 128, 3]."""
    canvas = np.random.default_rng(0).integers(110, 130, (96, 128, 3), dtype=np.uint8)
    return cv2.circle(canvas, (64, 48), 20, (200, 60, 160), -1)


def degrade(image: np.ndarray, kind: str, strength: float, path: str = 'a/cell.jpg') -> np.ndarray:
    before = image.copy()
    found = Degrade(kind, strength).transform(dict(img=image, img_path=path))['img']
    np.testing.assert_array_equal(image, before)  # what was loaded is left as it was
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    return found


def test_blur_takes_detail_away_and_keeps_the_mean(image):
    sharpness = [
        cv2.Laplacian(one, cv2.CV_64F).var() for one in (image, *(degrade(image, 'blur', s) for s in (1.0, 3.0)))
    ]
    assert sharpness[0] > 5 * sharpness[1] > 25 * sharpness[2]
    assert degrade(image, 'blur', 3.0).mean() == pytest.approx(image.mean(), abs=1)


def test_blur_has_the_asked_deviation():
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    spread = cv2.GaussianBlur(point.astype(np.float32), (0, 0), 1.5)[:, 20, 0]
    found = degrade(point, 'blur', 1.5)[:, 20, 0]
    np.testing.assert_allclose(found, spread, atol=1)
    weights = spread / spread.sum()
    assert (weights @ (np.arange(41) - 20.0) ** 2) ** 0.5 == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize('deviation', [5.0, 20.0])
def test_noise_has_the_asked_deviation_in_every_colour_on_its_own(deviation):
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = degrade(grey, 'noise', deviation).astype(float) - 128
    assert noise.mean() == pytest.approx(0, abs=deviation / 50)
    assert noise.std(axis=(0, 1)) == pytest.approx([deviation] * 3, rel=0.03)
    assert abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.03


def test_noise_is_the_same_for_the_same_file_wherever_it_lies(image):
    first = degrade(image, 'noise', 20.0, 'a/cell.jpg')
    np.random.seed(1)  # noqa: NPY002, nor does it hang on numpy's own state
    np.testing.assert_array_equal(first, degrade(image, 'noise', 20.0, 'elsewhere/cell.jpg'))
    assert (first != degrade(image, 'noise', 20.0, 'a/other.jpg')).mean() > 0.9


def test_dark_multiplies(image):
    np.testing.assert_array_equal(degrade(image, 'dark', 0.3), np.round(image * 0.3).astype(np.uint8))
    np.testing.assert_array_equal(degrade(image, 'dark', 1.0), image)


@pytest.mark.parametrize('quality', [5, 40])
def test_jpeg_is_what_opencv_makes_of_a_file_of_that_quality(image, quality, tmp_path):
    path = str(tmp_path / 'image.jpg')
    cv2.imwrite(path, image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    np.testing.assert_array_equal(degrade(image, 'jpeg', float(quality)), cv2.imread(path))


def test_configs_name_it_with_its_scope():
    built = TRANSFORMS.build(dict(type='mmautodfp.Degrade', kind='blur', strength=2.0))
    assert repr(built) == "Degrade(kind='blur', strength=2)"


@pytest.mark.parametrize(
    ('kind', 'strength', 'message'),
    [
        ('fog', 1.0, "Degrade was asked for kind='fog'"),
        ('dark', 1.5, "the strength of 'dark' is a number from 0 to 1, got 1.5"),
        ('blur', 0.0, "the strength of 'blur' is a number from 0.1 to 100, got 0"),
        ('jpeg', 20.5, "the strength of 'jpeg' is a whole number from 0 to 100, got 20.5"),
        ('noise', 'much', "Degrade was asked for strength='much'"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(kind, strength, message):
    with pytest.raises(AutoDFPError) as error:
        Degrade(kind, strength)
    assert message in str(error.value)
