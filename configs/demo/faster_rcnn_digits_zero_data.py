"""Faster R-CNN of the demo without any data: 70 % of the backbone's parameters, no image seen."""

_base_ = ['./faster_rcnn_digits.py', '../_base_/zero_data_demo.py']

load_from = '{{ fileDirname }}/faster_rcnn_digits.pth'
