"""RetinaNet, ResNet-50, FPN on COCO 2017 under data/coco, with the public checkpoint of MMDetection."""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/autodfp.py']

load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/'
    'retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
)
