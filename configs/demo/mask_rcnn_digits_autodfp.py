"""The demo with Mask R-CNN: 70 % of the backbone's parameters, rewarded with the mean of box and mask mAP."""

_base_ = ['./mask_rcnn_digits.py', '../_base_/autodfp_demo.py']

load_from = '{{ fileDirname }}/mask_rcnn_digits.pth'
autodfp = dict(reward=dict(metric='mean'))
