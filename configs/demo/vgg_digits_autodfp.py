"""The short demo: a small VGG that reads digits, at 40% of its parameters."""

_base_ = './vgg_digits.py'

load_from = '{{ fileDirname }}/vgg_digits.pth'
autodfp = dict(budget=dict(preserve_ratio=0.4))
