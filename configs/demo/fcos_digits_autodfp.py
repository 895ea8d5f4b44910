"""The demo with FCOS on a caffe-style ResNet: 70 % of the backbone's parameters."""

_base_ = ['./fcos_digits.py', '../_base_/autodfp_demo.py']

load_from = '{{ fileDirname }}/fcos_digits.pth'
