"""Settings of a frontier: widths as without data, and what is kept of the mAP on some validation images."""

_base_ = './zero_data.py'

autodfp = dict(reward=dict(_delete_=True, type='CocoReward', num_images=500, seed=0, precision='auto'))
