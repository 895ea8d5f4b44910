"""Faster R-CNN, ResNet-50 at a quarter of its width, FPN with 64 channels, on photographs of blood cells.

Trained from scratch with `python tools/train_demo.py configs/bccd/faster_rcnn_bccd.py`.
"""

_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', '../_base_/bccd_detection.py']

# Cells are 10 to 150 pixels wide and about as high, most of them 50: anchors of 16 to 256 pixels, and RoI levels
# chosen so that more than one level of the FPN is used. A photograph has 30 cells at most.
model = dict(
    backbone=dict(base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], ratios=[0.7, 1.0, 1.4]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=14),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=3),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=512, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=512, max_per_img=100), rcnn=dict(max_per_img=50)),
)
