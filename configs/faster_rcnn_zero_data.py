"""Faster R-CNN, ResNet-50, FPN with the public checkpoint of MMDetection, pruned without COCO or any other data."""

_base_ = ['./faster_rcnn_autodfp.py']

autodfp = dict(
    opening_lams=(0.5,),  # lambda decides nothing here
    reconstructor=dict(_delete_=True, type='SyntheticLeastSquares', images=dict(num_images=64, size=256)),
    reward=dict(_delete_=True, type='SyntheticReward', images=dict(num_images=16, size=256)),
)
