"""The search as the detectors of blood cells run it: 120 episodes on 64 of the 87 photographs for validation."""

_base_ = './autodfp.py'

autodfp = dict(
    num_episodes=120,
    agent=dict(warmup_episodes=40, warmup='around_uniform'),
    reward=dict(num_images=64, batch_size=16),
)
