"""RetinaNet, ResNet-50, FPN with the public checkpoint of MMDetection, pruned without COCO or any other data."""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/zero_data.py']

load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/'
    'retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
)
