import pytest
import torch
import torch.nn.functional as F
from conftest import enliven
from torch import nn

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import MODELS
from mmautodfp.zoo import VGG, BasicBlock, CifarResNet, ImageClassifier, MobileNetV1, MobileNetV2, TorchvisionNet


@pytest.mark.parametrize(
    ('network', 'params'),
    [
        (lambda: VGG(16), 14_724_042),
        (lambda: VGG(19), 20_035_018),
        (lambda: CifarResNet(56), 855_770),
        (lambda: MobileNetV1(), 3_217_226),
        (lambda: MobileNetV2(), 2_237_770),
        (lambda: MobileNetV1(num_classes=1000, stem_stride=2), 4_231_976),
        (lambda: TorchvisionNet('resnet34'), 21_797_672),
    ],
)
def test_networks_have_the_published_number_of_parameters(network, params):
    assert sum(p.numel() for p in network().parameters()) == params


@pytest.mark.parametrize(
    'network',
    [VGG(16, channels=(4, 4, 8, 8, 8)), CifarResNet(8), MobileNetV1(), MobileNetV2()],
    ids=lambda n: type(n).__name__,
)
def test_networks_give_a_logit_a_class(network):
    assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_basic_block_activates_first_and_its_shortcut_reads_the_activated_input():
    block = enliven(BasicBlock(4, 6, 2))
    x = torch.randn(2, 4, 8, 8)

    def norm(layer, z):
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        return (z - layer.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    a = x.clamp(min=0)
    y = norm(block.bn1, F.conv2d(a, block.conv1.weight, None, 2, 1)).clamp(min=0)
    y = norm(block.bn2, F.conv2d(y, block.conv2.weight, None, 1, 1))
    y = y + norm(block.downsample[1], F.conv2d(a, block.downsample[0].weight, None, 2))
    assert torch.allclose(block(x), y, atol=1e-5)
    identity = enliven(BasicBlock(4, 4, 1))
    with torch.no_grad():
        for parameter in identity.bn2.parameters():
            parameter.zero_()
        identity.bn2.running_mean.zero_()
        assert torch.equal(identity(x), a)


def test_an_inverted_residual_adds_its_input_where_the_shapes_allow():
    shortcuts = [block.shortcut for block in MobileNetV2().layers]
    assert shortcuts == [i in (2, 4, 5, 7, 8, 9, 11, 12, 14, 15) for i in range(17)]
    block = MobileNetV2().layers[2].eval()
    nn.init.zeros_(block.bn3.weight)
    x = torch.randn(1, 24, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: VGG(15), 'depth=15; it must be one of 11, 13, 16, 19'),
        (lambda: VGG(16, image_size=16), 'each stage needs its channels and halves the image'),
        (lambda: CifarResNet(54), 'depth=54 and 3 stages; it has 6n'),
        (lambda: TorchvisionNet('resnet35'), "classifier 'resnet35', which it does not have"),
        (lambda: TorchvisionNet('vgg11', small_images=True), 'small_images is for ResNets'),
    ],
)
def test_networks_that_cannot_be_are_refused(make, message):
    with pytest.raises(AutoDFPError, match=message):
        make()


@pytest.mark.parametrize('prefix', ['', 'module.', 'network.', 'module.network.'])
def test_checkpoints_load_with_any_prefix_and_in_half_precision(prefix):
    torch.manual_seed(0)
    trained = enliven(CifarResNet(8))
    state = {prefix + name: t.half() if t.is_floating_point() else t for name, t in trained.state_dict().items()}
    model = MODELS.build(dict(type='mmautodfp.ImageClassifier', network=dict(type='mmautodfp.CifarResNet', depth=8)))
    assert isinstance(model, ImageClassifier)
    model.load_state_dict(state)  # strict
    assert model.network.fc.weight.dtype == torch.float32
    assert torch.equal(model.network.fc.weight, trained.fc.weight.half().float())
    assert all(name.startswith(prefix) for name in state)  # the caller's dict is untouched
