"""What a report looks at when it is made again from the files of a run."""

import torch
from chain import IMAGES
from conftest import enliven
from torch import nn

from mmautodfp.api import PruningTask
from mmautodfp.runs.report import load_pruned


def test_the_pruned_model_is_the_one_of_the_checkpoint_with_the_biases_that_appeared_in_it(tmp_path):
    model = enliven(nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 1, bias=False), nn.GroupNorm(2, 4)))
    images = dict(num_images=2, batch_size=2, size=16)
    reconstructor = dict(type='SyntheticLeastSquares', images=images)
    task = PruningTask.build(model, '', IMAGES, 0.5, reconstructor)
    plan, dense = task.allocated_plan(), model(IMAGES)
    with task.apply(plan, final=True):
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'pruned.pth')
        pruned = model(IMAGES)
    assert '2.bias' in torch.load(tmp_path / 'pruned.pth')['state_dict']
    with load_pruned(task, plan, tmp_path / 'pruned.pth') as restore:
        assert torch.equal(model(IMAGES), pruned)
        restore.swap()
        assert torch.equal(model(IMAGES), dense)
        restore.swap()
        assert torch.equal(model(IMAGES), pruned)
    assert torch.equal(model(IMAGES), dense)
