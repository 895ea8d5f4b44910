"""Mask R-CNN, ResNet-50, FPN on COCO 2017 under data/coco, with the public checkpoint of MMDetection."""

_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/autodfp.py']

load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_fpn_1x_coco/'
    'mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth'
)

autodfp = dict(reward=dict(metric='mean'))  # of box and mask mAP
