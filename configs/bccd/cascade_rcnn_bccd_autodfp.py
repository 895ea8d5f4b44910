"""Cascade R-CNN on blood cells: 90 % of the backbone's parameters."""

_base_ = ['./cascade_rcnn_bccd.py', '../_base_/autodfp_bccd.py']

load_from = '{{ fileDirname }}/cascade_rcnn_bccd.pth'
