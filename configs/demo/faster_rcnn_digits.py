"""Faster R-CNN, ResNet-50 at a quarter of its width, FPN with 64 channels, on the digits: what the demo prunes.

Trained from scratch with `python tools/train_demo.py configs/demo/faster_rcnn_digits.py`.
"""

_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/digits_detection.py',
]

# Digits are 10 to 60 pixels wide: anchors of 16 to 256 pixels, and RoI levels chosen so that all of the FPN is used.
model = dict(
    backbone=dict(base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], ratios=[1.0, 1.5, 2.5]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=14),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=256, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=256, max_per_img=50), rcnn=dict(max_per_img=20)),
)
