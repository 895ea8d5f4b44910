"""A small VGG on scikit-learn's digits.

Trained from scratch with `python tools/train_demo.py configs/demo/vgg_digits.py`.
"""

_base_ = '../_base_/digits_classification.py'

model = dict(
    network=dict(type='mmautodfp.VGG', in_channels=1, image_size=8, channels=(24, 48), stages=(2, 3)),
)
