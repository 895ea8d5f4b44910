"""FCOS, caffe-style ResNet-50, FPN with the public checkpoint of MMDetection, pruned without COCO or any other data."""

_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', './_base_/zero_data.py']

load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r50_caffe_fpn_gn-head_1x_coco/'
    'fcos_r50_caffe_fpn_gn-head_1x_coco-821213aa.pth'
)
