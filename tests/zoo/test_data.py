import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement
from PIL import Image

from mmautodfp.utils import AutoDFPError
from mmautodfp.zoo import CIFAR10, Accuracy, ImageClassifier, ImageFolder, SklearnDigits
from mmautodfp.zoo.datasets import CIFAR10_CLASSES


def write_npz(path, **changes):
    rng = np.random.default_rng(0)
    content = dict(images=rng.integers(0, 256, (6, 32, 32, 3), np.uint8), labels=np.arange(6, dtype=np.uint8))
    content |= dict(official_index=np.arange(6) * 2) | changes
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return content


def test_cifar10_is_read_from_an_npz_file(tmp_path):
    content = write_npz(tmp_path / 'half.npz')
    data = CIFAR10(tmp_path / 'half.npz')
    assert len(data) == 6
    assert data.names[2] == 'cifar10/test/4'
    assert data.metainfo['classes'] == CIFAR10_CLASSES
    item = data[2]
    assert item['inputs'].dtype == torch.uint8
    assert np.array_equal(item['inputs'].permute(1, 2, 0).numpy(), content['images'][2])
    assert item['data_samples'].gt_label == 2


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(labels=None), 'no .npz file with images and labels'),
        (dict(labels=np.zeros(5)), r'found uint8 .* and 5 labels'),
    ],
)
def test_an_npz_file_with_something_else_is_refused(tmp_path, changes, message):
    write_npz(tmp_path / 'half.npz', **changes)
    with pytest.raises(AutoDFPError, match=message):
        CIFAR10(tmp_path / 'half.npz')


def test_cifar10_that_is_not_there_is_missed_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(AutoDFPError, match='no such file'):
        CIFAR10(tmp_path / 'absent.npz')
    with pytest.raises(AutoDFPError, match='does not hold it; put cifar-10-python'):
        CIFAR10(tmp_path, download=False)

    def offline(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setattr('torchvision.datasets.cifar.download_and_extract_archive', offline)
    with pytest.raises(AutoDFPError, match=r'fetching it failed \(no route to host\)'):
        CIFAR10(tmp_path)


def test_an_image_folder_is_labelled_by_its_folders_and_cut_from_the_middle(tmp_path):
    for label, folder in enumerate(('n01', 'n02')):
        (tmp_path / folder).mkdir()
        picture = np.zeros((60, 40, 3), np.uint8)
        picture[20:40, 10:30] = (255, 0, 100 * label)
        Image.fromarray(picture).save(tmp_path / folder / 'a.png')
    data = ImageFolder(tmp_path, resize=40, size=20)
    assert (data.labels, data.names) == ([0, 1], ['n01/a.png', 'n02/a.png'])
    assert data.metainfo['classes'] == ('n01', 'n02')
    image = data[1]['inputs']
    assert image.shape == (3, 20, 20)
    assert image.flatten(1).unique(dim=1).tolist() == [[255], [0], [100]]
    with pytest.raises(AutoDFPError, match='one folder a class, but there is no such folder'):
        ImageFolder(tmp_path / 'absent')
    (tmp_path / 'n03').mkdir()
    with pytest.raises(AutoDFPError, match='no valid file for the classes n03'):
        ImageFolder(tmp_path)


def test_the_digits_are_split_without_overlap():
    splits = [SklearnDigits(split) for split in ('train', 'val', 'test')]
    assert [len(data) for data in splits] == [1000, 300, 497]
    assert len({name for data in splits for name in data.names}) == 1797
    image = splits[0].image(0)
    assert image.shape == (1, 8, 8)
    assert image.max() == 255
    with pytest.raises(AutoDFPError, match="split='all'"):
        SklearnDigits('all')


def test_a_shifted_digit_keeps_its_ink():
    plain, moved = SklearnDigits('train'), SklearnDigits('train', shift=1)
    torch.manual_seed(0)
    pairs = [(plain.image(i), moved.image(i)) for i in range(20)]
    assert all(torch.equal(a.flatten().sort().values, b.flatten().sort().values) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)


def sample(label, scores):
    return dict(gt_label=label, pred_scores=torch.tensor(scores))


def test_accuracy_counts_the_labels_with_the_highest_score():
    metric = Accuracy()
    metric.process({}, [sample(0, [3.0, 3.0, 1.0]), sample(1, [3.0, 3.0, 1.0]), sample(2, [3.0, 2.0, 1.0])])
    assert metric.evaluate(3) == {'accuracy/top1': 1 / 3}


def test_broken_scores_are_not_accurate():
    metric = Accuracy()
    metric.process({}, [sample(label, [float('nan')] * 4) for label in range(4)])
    assert metric.evaluate(4)['accuracy/top1'] <= 0.25


def test_a_classifier_predicts_and_learns_in_the_runners_modes():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    model = ImageClassifier(network, dict(type='ImgDataPreprocessor', mean=[127.5], std=[64]))
    data = SklearnDigits('val')
    batch = model.data_preprocessor(
        dict(inputs=[data[i]['inputs'] for i in range(4)], data_samples=[data[i]['data_samples'] for i in range(4)])
    )
    logits = model(**batch)
    assert torch.allclose(logits, network((torch.stack([data[i]['inputs'] for i in range(4)]).float() - 127.5) / 64))
    labels = torch.tensor(data.labels[:4])
    reference = -torch.log_softmax(logits, 1)[range(4), labels].mean()
    assert torch.allclose(model(**batch, mode='loss')['loss'], reference)
    predicted = model(**batch, mode='predict')
    assert isinstance(predicted[0], BaseDataElement)
    assert [found.pred_label for found in predicted] == logits.argmax(1).tolist()
    assert torch.equal(predicted[3].pred_scores, logits[3])
