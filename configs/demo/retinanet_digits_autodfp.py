"""The demo with RetinaNet: 70 % of the backbone's parameters."""

_base_ = ['./retinanet_digits.py', '../_base_/autodfp_demo.py']

load_from = '{{ fileDirname }}/retinanet_digits.pth'
