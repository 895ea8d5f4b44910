"""The demo without any data: 70 % of the backbone's parameters, no image seen."""

_base_ = ['./faster_rcnn_digits_autodfp.py']

autodfp = dict(
    opening_lams=(0.5,),  # lambda decides nothing here
    reconstructor=dict(_delete_=True, type='SyntheticLeastSquares', images=dict(num_images=64, size=128)),
    reward=dict(_delete_=True, type='SyntheticReward', images=dict(num_images=16, size=128)),
)
