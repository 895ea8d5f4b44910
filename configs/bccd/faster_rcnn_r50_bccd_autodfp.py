"""Faster R-CNN with a whole ResNet-50 on blood cells: 90 % of the backbone's parameters."""

_base_ = ['./faster_rcnn_r50_bccd.py', '../_base_/autodfp_bccd.py']

load_from = 'data/faster_rcnn_r50_bccd.pth'  # not in the repository, see faster_rcnn_r50_bccd.py
