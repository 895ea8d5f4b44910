"""Settings without any data, shared by the detectors: least squares on synthetic images, and no search.

The reconstructor chooses the widths itself. More episodes search around its plan; they are rewarded with how much the
pruned model's heads answer as the dense one's do, on further synthetic images.
"""

autodfp = dict(
    type='mmautodfp.AutoDFPHook',
    target='backbone',  # what is pruned, by its path in the model
    budget=dict(type='ParamBudget', preserve_ratio=0.9, scope='module'),
    num_episodes=1,  # plays the plan that the reconstructor chooses
    agent=dict(type='SAC'),  # chooses those of further episodes
    reconstructor=dict(type='SyntheticLeastSquares', images=dict(num_images=64, size=256)),
    reward=dict(type='SyntheticReward', images=dict(num_images=16, size=256)),
    opening_lams=(0.5,),  # lambda decides nothing here
)
