"""A small ResNet that reads digits, at 50% of its parameters."""

_base_ = './resnet_digits.py'

load_from = '{{ fileDirname }}/resnet_digits.pth'
autodfp = dict(budget=dict(preserve_ratio=0.5))
