"""Exporting a pruned detector with mmdeploy, as one ONNX file with decoding and NMS, and comparing it with torch.

``tools/export_mmdeploy.py`` runs it.
"""

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.models.dense_heads import rpn_head
from mmdet.models.detectors import BaseDetector, TwoStageDetector
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor
from torchvision.ops import box_iou

from mmautodfp.utils import AutoDFPError, last_line
from mmautodfp.utils.fileio import save_json, save_text
from mmautodfp.utils.settings import Count, checked

from .models import load_model, require
from .onnx import Opset, open_session

Detections = dict[str, Tensor]  # boxes [N, 4] in pixels of the input, scores [N], labels [N], optional masks [N, H, W]

SAME_IOU = 0.99
SAME_SCORE = 1e-3
FLOORS = (0.0, 0.05, 0.5)


@checked('an export with mmdeploy')
def export_end2end(
    config: str | os.PathLike,
    checkpoint: str | None = None,
    work_dir: str | None = None,
    num_images: Count = 32,
    batch: Count = 1,
    opset: Opset = 16,
    trust_checkpoint: bool = False,
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Let mmdeploy write ``end2end.onnx``, and compare its detections on test images with torch's.

    Args:
        config (str | os.PathLike): The ``pruned.py`` of a run; any detector's config works too.
        checkpoint (str | None): Its weights, file or URL. Defaults to the config's ``load_from``.
        work_dir (str | None): Where the files go. Defaults to ``mmdeploy`` beside the config.
        num_images (int): Images of the test split to compare on. Defaults to 32.
        batch (int): Images in one call. Defaults to 1.
        opset (int): Version of ONNX's operators, 11 or later. Defaults to 16, the first one whose RoiAlign can shift by
            half a pixel, as mmcv's does.
        trust_checkpoint (bool): Allow a checkpoint whose reading can run code in it. Defaults to False.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.

    Returns:
        dict[str, Any]: Content of ``mmdeploy.json``: facts about the file, its ``operators``, and the comparison, see
        :func:`compare`. For a two-stage detector also ``same_proposals``, the comparison with torch choosing proposals
        as mmdeploy does.

    Raises:
        AutoDFPError: A number is out of its range, a package is missing, the config or the checkpoint cannot be used,
            the model is no detector, mmdeploy fails, or the file has operators that onnxruntime lacks.
    """
    folder = Path(work_dir or Path(config).parent / 'mmdeploy')
    cfg, checkpoint, model = load_model(config, checkpoint, folder, trust_checkpoint, cfg_options)
    if not isinstance(model, BaseDetector):
        raise AutoDFPError(f'{config} was to be exported with mmdeploy, but a {type(model).__name__} is no detector')
    mmdeploy = require('mmdeploy', 'pip install --no-deps mmdeploy==1.3.1 aenum')
    images = images_of(cfg, num_images)
    settings = deploy_settings(cfg.model, opset)
    save_text(Config(settings).pretty_text, folder / 'deploy.py')
    path = folder / 'end2end.onnx'
    start = time.perf_counter()
    _write(path, settings, cfg, checkpoint, images[0]['data_samples'].img_path, type(model).__name__)
    seconds = time.perf_counter() - start
    operators = special_operators(path)
    if foreign := [name for name in operators if '::' in name]:
        raise AutoDFPError(f'{path} was written, but onnxruntime has no {", ".join(foreign)}; try a higher --opset')
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    batches = [pseudo_collate(images[i : i + batch]) for i in range(0, len(images), batch)]
    session = open_session(path)
    figures = compare([pair for each in batches for pair in run_both(model, session, each)])
    if isinstance(model, TwoStageDetector):
        with proposals_across_levels():
            pairs = [pair for each in batches for pair in run_both(model, session, each)]
        figures['same_proposals'] = compare(pairs)
    report = dict(
        config=str(config),
        checkpoint=str(checkpoint),
        model=type(model).__name__,
        file=path.name,
        bytes=path.stat().st_size,
        export_seconds=seconds,
        opset=opset,
        batch=batch,
        size=list(model.data_preprocessor(batches[0])['inputs'].shape[2:]),
        operators=operators,
        **figures,
        versions={package: require(package).__version__ for package in ('onnx', 'onnxruntime', 'mmdet')}
        | dict(torch=str(torch.__version__), mmdeploy=mmdeploy.__version__),
    )
    save_json(report, folder / 'mmdeploy.json')
    for how in ('', *(['same_proposals'] if 'same_proposals' in report else [])):
        for floor, counts in (report[how] if how else report)['scores_from'].items():
            print_log(
                f'{how:15} scores from {floor}: {counts["agreed"]} of {counts["torch"]} detections agree with torch'
            )
    print_log(f'{path}: boxes within {report["box_error"]:.0e} pixels, scores within {report["score_error"]:.0e}')
    return report


def deploy_settings(model: dict[str, Any], opset: int = 16) -> dict[str, Any]:
    """mmdeploy's deploy config for onnxruntime, with the thresholds of the model's post-processing.

    Args:
        model (dict): Config of the detector.
        opset (int): Version of ONNX's operators. Defaults to 16.

    Returns:
        dict[str, Any]: The config, with dynamic batch, height and width. Masks are exported as the head makes them, not
        pasted into their boxes.
    """
    test_cfg = model.get('test_cfg') or {}
    two_stages = 'rcnn' in test_cfg
    test_cfg = test_cfg['rcnn'] if two_stages else test_cfg
    most = test_cfg.get('max_per_img', 100)
    outputs = dict(dets=('batch', 'num_dets'), labels=('batch', 'num_dets'))
    if (model.get('roi_head') or {}).get('mask_head'):
        outputs['masks'] = ('batch', 'num_dets')
    axes = {name: dict(enumerate(words)) for name, words in outputs.items()}
    return dict(
        backend_config=dict(type='onnxruntime'),
        codebase_config=dict(
            type='mmdet',
            task='ObjectDetection',
            model_type='end2end',
            post_processing=dict(
                # In two stages it is used for the RPN, which has no threshold in mmdet; the R-CNN has its own.
                score_threshold=0.0 if two_stages else test_cfg.get('score_thr', 0.05),
                confidence_threshold=0.005,  # used for YOLOv3 only
                iou_threshold=(test_cfg.get('nms') or {}).get('iou_threshold', 0.5),
                max_output_boxes_per_class=most,
                pre_top_k=-1,
                keep_top_k=most,
                background_label_id=-1,
                export_postprocess_mask=False,  # pasting masks would need an operator of mmdeploy's own
            ),
        ),
        onnx_config=dict(
            type='onnx',
            export_params=True,
            keep_initializers_as_inputs=False,
            opset_version=opset,
            save_file='end2end.onnx',
            input_names=['input'],
            output_names=list(outputs),
            input_shape=None,
            optimize=False,  # needs an extension that mmdeploy's wheel lacks
            dynamic_axes=dict(input={0: 'batch', 2: 'height', 3: 'width'}, **axes),
        ),
    )


def _write(path: Path, settings: dict[str, Any], cfg: Config, checkpoint: str, image: str, model: str) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of the tracer about shapes, which the comparison checks
                from mmdeploy.apis import torch2onnx

                torch2onnx(image, scratch, path.name, Config(settings), cfg, checkpoint, device='cpu')
        except Exception as error:  # mmdeploy may raise anything for a model that it does not support
            reason = f'{type(error).__name__} {last_line(error)}'
            raise AutoDFPError(f'mmdeploy cannot write the {model} as ONNX: {reason}') from None
        os.replace(Path(scratch) / path.name, path)


def special_operators(path: Path) -> list[str]:
    """Which of RoiAlign and NMS a file has, and operators that are not ONNX's own, such as 'mmdeploy::MMCVRoiAlign'."""
    nodes = require('onnx').load(str(path)).graph.node
    own = {node.op_type for node in nodes if node.op_type in ('RoiAlign', 'NonMaxSuppression')}
    return sorted(own | {f'{node.domain}::{node.op_type}' for node in nodes if node.domain not in ('', 'ai.onnx')})


def images_of(cfg: Config, number: int) -> list[dict[str, Any]]:
    """The first images of the test split, after the test pipeline; fewer than ``number`` if the split has fewer.

    Raises:
        AutoDFPError: There is no test data loader, or its data set cannot be built.
        FileNotFoundError: A file of the data set is missing.
    """
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    if not cfg.get('test_dataloader'):
        raise AutoDFPError(f'detections were to be compared on images, but {cfg.filename} has no test_dataloader')
    try:
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise AutoDFPError(f'the test data of {cfg.filename} cannot be read: {last_line(error)}') from None
    return [dataset[index] for index in range(min(number, len(dataset)))]


@contextlib.contextmanager
def proposals_across_levels() -> Iterator[None]:
    """For the block, let mmdet's RPN suppress the proposals of all levels together, as mmdeploy does, not by level."""
    level_by_level = rpn_head.batched_nms

    def together(boxes: Tensor, scores: Tensor, levels: Tensor, *arguments, **settings) -> tuple[Tensor, Tensor]:
        return level_by_level(boxes, scores, torch.zeros_like(levels), *arguments, **settings)

    rpn_head.batched_nms = together
    try:
        yield
    finally:
        rpn_head.batched_nms = level_by_level


@torch.inference_mode()
def run_both(model: BaseDetector, session: Any, data: dict[str, list]) -> Iterator[tuple[Detections, Detections]]:
    """Torch's and onnxruntime's detections for each image of a batch."""
    data = model.data_preprocessor(data)
    inputs = data['inputs']
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {'input': inputs.numpy()})
    found = {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}
    for index, sample in enumerate(model.predict(inputs, data['data_samples'], rescale=False)):
        instances = sample.pred_instances
        expected = dict(boxes=instances.bboxes, scores=instances.scores, labels=instances.labels)
        dets = found['dets'][index]
        given = (dets[:, 2] > dets[:, 0]) & (dets[:, 3] > dets[:, 1])  # without the empty rows that fill up a batch
        got = dict(boxes=dets[given, :4], scores=dets[given, 4], labels=found['labels'][index][given])
        if 'masks' in found:
            expected['masks'] = instances.masks
            small = found['masks'][index][given][:, None]
            pasted, _ = _do_paste_mask(small, got['boxes'], *sample.img_shape[:2], skip_empty=False)
            got['masks'] = pasted >= model.test_cfg['rcnn']['mask_thr_binary']
        yield expected, got


def compare(pairs: Sequence[tuple[Detections, Detections]]) -> dict[str, Any]:
    """Compare torch's detections with those of the ONNX file.

    Two detections agree if they have the same class, an IoU of 0.99 or more, and scores that differ by 1e-3 at most.

    Args:
        pairs (Sequence[tuple[Detections, Detections]]): For each image torch's detections and the file's.

    Returns:
        dict[str, Any]: ``images``, their number; ``scores_from``, for scores from 0, 0.05 and 0.5 on the number of
        detections of ``torch`` and how many of them ``agreed``; ``extra``, the number of the file's detections that
        agree with none; ``box_error`` in pixels and ``score_error``, the largest differences of those that agree; with
        masks ``mask_pixels_off``, the number of pixels that differ, as a share of the pixels in torch's masks.
    """
    extra = wrong = pixels = 0
    box_error = score_error = 0.0
    scores, agreed = [], []
    for expected, got in pairs:
        matched = _match(expected, got)
        extra += len(got['boxes']) - len(matched)
        scores += expected['scores'].tolist()
        agreed += [expected['scores'][mine].item() for mine, _ in matched]
        for mine, other in matched:
            box_error = max(box_error, (expected['boxes'][mine] - got['boxes'][other]).abs().max().item())
            score_error = max(score_error, (expected['scores'][mine] - got['scores'][other]).abs().item())
            if 'masks' in got:
                wrong += (expected['masks'][mine] != got['masks'][other]).sum().item()
                pixels += expected['masks'][mine].sum().item()
    counts = {
        str(floor): dict(torch=sum(s >= floor for s in scores), agreed=sum(s >= floor for s in agreed))
        for floor in FLOORS
    }
    masks = dict(mask_pixels_off=wrong / max(pixels, 1)) if any('masks' in got for _, got in pairs) else {}
    errors = dict(box_error=box_error, score_error=score_error)
    return dict(images=len(pairs), scores_from=counts, extra=extra) | errors | masks


def _match(expected: Detections, got: Detections) -> list[tuple[int, int]]:
    """Indices of pairs of detections that agree, by falling IoU; a detection is in one pair at most."""
    same = box_iou(expected['boxes'], got['boxes'])
    same[expected['labels'][:, None] != got['labels'][None]] = 0
    same[(expected['scores'][:, None] - got['scores'][None]).abs() > SAME_SCORE] = 0
    pairs = []
    while same.numel() and same.max() >= SAME_IOU:
        mine, other = divmod(same.argmax().item(), same.shape[1])
        pairs.append((mine, other))
        same[mine], same[:, other] = 0, 0
    return pairs
