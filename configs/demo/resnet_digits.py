"""A small ResNet on scikit-learn's digits.

Trained from scratch with `python tools/train_demo.py configs/demo/resnet_digits.py`.
"""

_base_ = '../_base_/digits_classification.py'

model = dict(network=dict(type='mmautodfp.CifarResNet', depth=14, in_channels=1, channels=(16, 32, 48)))
