"""The same as the demos run it: 70 % of the parameters, and synthetic images of the digits' size."""

_base_ = './zero_data.py'

autodfp = dict(
    budget=dict(preserve_ratio=0.7),
    agent=dict(warmup_episodes=40, warmup='around_uniform'),
    reconstructor=dict(images=dict(size=128)),
    reward=dict(images=dict(size=128)),
)
