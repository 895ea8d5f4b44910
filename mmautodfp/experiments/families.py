"""Which of MMDetection's families of detectors can be pruned as a whole; ``tools/benchmark.py families`` runs it."""

import gc
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

from mmautodfp.costs import measure_positions, model_costs
from mmautodfp.graph import ChannelGroup, outputs_of, samples_of
from mmautodfp.kernels import dead_leaves
from mmautodfp.reconstruction import PruneOnly
from mmautodfp.search.survey import survey_target
from mmautodfp.surgery import PruningPlan, apply_plan

MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'

#: One config of each folder of MMDetection's that describes a detector of still images.
FAMILIES = dict(
    atss='atss_r50_fpn_1x_coco',
    autoassign='autoassign_r50-caffe_fpn_1x_coco',
    carafe='faster-rcnn_r50_fpn-carafe_1x_coco',
    cascade_rcnn='cascade-rcnn_r50_fpn_1x_coco',
    cascade_rpn='cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco',
    centernet='centernet_r18_8xb16-crop512-140e_coco',
    centripetalnet='centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco',
    condinst='condinst_r50_fpn_ms-poly-90k_coco_instance',
    conditional_detr='conditional-detr_r50_8xb2-50e_coco',
    convnext='mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco',
    cornernet='cornernet_hourglass104_32xb3-210e-mstest_coco',
    crowddet='crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman',
    dab_detr='dab-detr_r50_8xb2-50e_coco',
    dcn='faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco',
    dcnv2='faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco',
    ddod='ddod_r50_fpn_1x_coco',
    ddq='ddq-detr-4scale_r50_8xb2-12e_coco',
    deformable_detr='deformable-detr_r50_16xb2-50e_coco',
    detectors='detectors_cascade-rcnn_r50_1x_coco',
    detr='detr_r50_8xb2-150e_coco',
    dino='dino-4scale_r50_8xb2-12e_coco',
    double_heads='dh-faster-rcnn_r50_fpn_1x_coco',
    dyhead='atss_r50_fpn_dyhead_1x_coco',
    efficientnet='retinanet_effb3_fpn_8xb4-crop896-1x_coco',
    empirical_attention='faster-rcnn_r50-attn1111_fpn_1x_coco',
    fast_rcnn='fast-rcnn_r50_fpn_1x_coco',
    faster_rcnn='faster-rcnn_r50_fpn_1x_coco',
    fcos='fcos_r50-caffe_fpn_gn-head_1x_coco',
    foveabox='fovea_r50_fpn_4xb4-1x_coco',
    fpg='faster-rcnn_r50_fpg_crop640-50e_coco',
    fsaf='fsaf_r50_fpn_1x_coco',
    gcnet='mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco',
    gfl='gfl_r50_fpn_1x_coco',
    glip='glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365',
    gn='mask-rcnn_r50_fpn_gn-all_2x_coco',
    grid_rcnn='grid-rcnn_r50_fpn_gn-head_1x_coco',
    groie='faste-rcnn_r50_fpn_groie_1x_coco',
    grounding_dino='grounding_dino_swin-t_pretrain_obj365_goldg_cap4m',
    guided_anchoring='ga-faster-rcnn_r50_fpn_1x_coco',
    hrnet='faster-rcnn_hrnetv2p-w18-1x_coco',
    htc='htc-without-semantic_r50_fpn_1x_coco',
    ld='ld_r18-gflv1-r101_fpn_1x_coco',
    libra_rcnn='libra-faster-rcnn_r50_fpn_1x_coco',
    mask2former='mask2former_r50_8xb2-lsj-50e_coco',
    mask_rcnn='mask-rcnn_r50_fpn_1x_coco',
    maskformer='maskformer_r50_ms-16xb1-75e_coco',
    mm_grounding_dino='grounding_dino_swin-t_pretrain_obj365',
    ms_rcnn='ms-rcnn_r50_fpn_1x_coco',
    nas_fcos='nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco',
    nas_fpn='retinanet_r50_nasfpn_crop640-50e_coco',
    paa='paa_r50_fpn_1x_coco',
    pafpn='faster-rcnn_r50_pafpn_1x_coco',
    panoptic_fpn='panoptic-fpn_r50_fpn_1x_coco',
    point_rend='point-rend_r50-caffe_fpn_ms-1x_coco',
    pvt='retinanet_pvt-t_fpn_1x_coco',
    queryinst='queryinst_r50_fpn_1x_coco',
    regnet='faster-rcnn_regnetx-3.2GF_fpn_1x_coco',
    reppoints='reppoints-moment_r50_fpn-gn_head-gn_1x_coco',
    res2net='faster-rcnn_res2net-101_fpn_2x_coco',
    resnest='faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco',
    retinanet='retinanet_r50_fpn_1x_coco',
    rpn='rpn_r50_fpn_1x_coco',
    rtmdet='rtmdet_tiny_8xb32-300e_coco',
    sabl='sabl-faster-rcnn_r50_fpn_1x_coco',
    scnet='scnet_r50_fpn_1x_coco',
    scratch='faster-rcnn_r50-scratch_fpn_gn-all_6x_coco',
    simple_copy_paste='mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_32xb2-ssj-90k_coco',
    solo='solo_r50_fpn_1x_coco',
    solov2='solov2_r50_fpn_1x_coco',
    sparse_rcnn='sparse-rcnn_r50_fpn_1x_coco',
    ssd='ssd300_coco',
    strong_baselines='mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-100e_coco',
    swin='retinanet_swin-t-p4-w7_fpn_1x_coco',
    timm_example='retinanet_timm-tv-resnet50_fpn_1x_coco',
    tood='tood_r50_fpn_1x_coco',
    tridentnet='tridentnet_r50-caffe_1x_coco',
    vfnet='vfnet_r50_fpn_1x_coco',
    yolact='yolact_r50_1xb8-55e_coco',
    yolo='yolov3_d53_8xb8-320-273e_coco',
    yolof='yolof_r50-c5_8xb8-1x_coco',
    yolox='yolox_tiny_8xb8-300e_coco',
) | {'gn+ws': 'faster-rcnn_r50_fpn_gn-ws-all_1x_coco'}

#: Folders with the network of another family, trained in another way or on something else: a config, that family.
SAME = dict(
    albu_example=('mask-rcnn_r50_fpn_albu-1x_coco', 'mask_rcnn'),
    boxinst=('boxinst_r50_fpn_ms-90k_coco', 'condinst'),
    cityscapes=('faster-rcnn_r50_fpn_1x_cityscapes', 'faster_rcnn'),
    deepfashion=('mask-rcnn_r50_fpn_15e_deepfashion', 'mask_rcnn'),
    dynamic_rcnn=('dynamic-rcnn_r50_fpn_1x_coco', 'faster_rcnn'),
    free_anchor=('freeanchor_r50_fpn_1x_coco', 'retinanet'),
    ghm=('retinanet_r50_fpn_ghm-1x_coco', 'retinanet'),
    instaboost=('mask-rcnn_r50_fpn_instaboost-4x_coco', 'mask_rcnn'),
    lad=('lad_r50-paa-r101_fpn_2xb8_coco_1x', 'paa'),
    lvis=('mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1', 'mask_rcnn'),
    misc=('d2_faster-rcnn_r50-caffe_fpn_ms-90k_coco', 'faster_rcnn'),
    objects365=('faster-rcnn_r50_fpn_16xb4-1x_objects365v1', 'faster_rcnn'),
    openimages=('faster-rcnn_r50_fpn_32xb2-1x_openimages', 'faster_rcnn'),
    pascal_voc=('faster-rcnn_r50_fpn_1x_voc0712', 'faster_rcnn'),
    pisa=('faster-rcnn_r50_fpn_pisa_1x_coco', 'faster_rcnn'),
    resnet_strikes_back=('faster-rcnn_r50-rsb-pre_fpn_1x_coco', 'faster_rcnn'),
    seesaw_loss=('mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1', 'mask_rcnn'),
    selfsup_pretrain=('mask-rcnn_r50-mocov2-pre_fpn_1x_coco', 'mask_rcnn'),
    v3det=('faster_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x', 'faster_rcnn'),
    wider_face=('retinanet_r50_fpn_1x_widerface', 'retinanet'),
)

#: More configs of a family, for backbones and heads that have no folder of their own.
FURTHER = (
    'faster_rcnn/faster-rcnn_x101-32x4d_fpn_1x_coco',
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco',
    'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco',
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco',
    'faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco',
    'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco',
    'centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco',
)

TRACKERS = ['bytetrack', 'deepsort', 'mask2former_vis', 'masktrack_rcnn', 'ocsort', 'qdtrack', 'sort', 'strongsort']
#: Folders that hold something else, and what.
OTHERS = dict.fromkeys(TRACKERS, 'a tracker in videos') | {
    '_base_': 'settings that other configs share',
    'clrnet': 'a detector of lanes, which the maintained forks alone have',
    'common': 'settings that other configs share',
    'dsdl': 'data sets for the detectors of other folders',
    'legacy_1.x': 'detectors of other folders, with weights of MMDetection 1',
    'reid': 'a part of trackers in videos',
    'soft_teacher': 'a way of training two copies of a detector of another folder',
}

#: What the survey's reasons mean, in plain words; predictors stay always and are not named.
REASONS = {
    'gives an output of the model|feeds (max|argmax|sort)': '',
    'does not come out the same together': 'what cannot be proven',
    'bmm|native_layer_norm|grid_sampler|softmax|feeds mm,': 'attention, softmax and LayerNorm',
    'tensor of fixed size': 'what position codes, queries or boxes are added to',
    'no layer that could make up': 'what no layer reads, such as offsets',
    'shares .* with other channels': 'outputs that are split behind a norm',
    'feeds sum': 'what is summed up over channels',
    'in an order that is not known': 'channels that are read in another order',
    'shares its samples out': 'inputs of deformable convolutions in several groups',
    'feeds convolution': 'what convolutions of other kinds read',
}
FAILURES = {
    'mmpretrain': 'needs the package mmpretrain',
    'timm': 'needs the package timm',
    'transformers': 'needs the package transformers, and words with each image',
    'GPU memory usage': 'needs the package fairscale, and words with each image',
    "'list' object has no attribute": 'calls layers with lists of maps',
    'process group': 'can be built in a distributed run alone (MMSyncBN)',
    '_gt_instances': 'wants a ground truth to be run',
    'device cpu not found': 'uses an operation of mmcv that runs on GPUs alone',
}


def measure_families(
    configs: Sequence[str] | None = None, size: int = 256, tell: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Prune each family's detector, of random weights, as a whole.

    Args:
        configs (Sequence[str] | None): Relative to MMDetection's configs, without '.py'. Defaults to None: all.
        size (int): Side of the image on which FLOPs are counted; twice that if it is too small. Defaults to 256.
        tell (Callable | None): Called with a line after each. Defaults to None.

    Returns:
        dict[str, Any]: ``results`` as of :func:`measure_family`; ``same``, folders with the network of another family;
            ``others``, folders with something else.
    """
    results = []
    for config in all_configs() if configs is None else configs:
        results.append(measure_family(config, size))
        if tell is not None:
            tell(str(results[-1]))
    same = {family: other for family, (_, other) in SAME.items()}
    return dict(mmdet=mmdet.__version__, size=size, results=results, same=same, others=OTHERS)


def all_configs() -> list[str]:
    """One config of each family, and further ones behind it."""
    configs = [f'{family}/{name}' for family, name in FAMILIES.items()]
    return sorted([*configs, *FURTHER], key=lambda config: config.partition('/')[0])


def measure_family(config: str, size: int = 256) -> dict[str, Any]:
    """What can be pruned of a detector, and whether it works with half of it gone.

    Args:
        config (str): Relative to MMDetection's configs, without '.py'.
        size (int): Side of the image on which FLOPs are counted; twice that if it is too small. Defaults to 256.

    Returns:
        dict[str, Any]: ``config`` and ``family``, and ``failed`` with the reason if it could not be built, or be
        looked at; otherwise ``groups`` (how many), ``flops`` (share of the model's FLOPs that depends on the groups'
        widths), ``flops_at_half`` (share of them that is left with half of each group), ``left`` (lines on what
        stays), ``predicts`` (None if the dense detector does not either) and ``restored``.
    """
    found: dict[str, Any] = dict(family=config.partition('/')[0], config=config)
    started = time.perf_counter()
    try:
        model = build_model(settings_of(config))
    except Exception as error:  # a family's own code may end with anything
        return found | dict(failed=f'cannot be built: {_line(error)}')
    try:
        found |= prune_half(model, size)
    except Exception as error:
        found |= dict(failed=_line(error))
    del model
    gc.collect()
    return found | dict(seconds=round(time.perf_counter() - started, 1))


def settings_of(config: str) -> ConfigDict:
    """The model of a config of MMDetection's, without what names files of weights, and with few regions."""
    model = Config.fromfile(MMDET_CONFIGS / f'{config}.py').model
    _forget_files(model)
    first_stage = (model.get('test_cfg') or {}).get('rpn')
    if first_stage:
        first_stage.max_per_img = 50  # untrained, it finds objects everywhere
    return model


def build_model(settings: ConfigDict) -> nn.Module:
    """A detector of random weights in eval mode; nothing is downloaded."""
    register_all_modules()
    torch.manual_seed(0)
    model = MODELS.build(settings)
    if isinstance(levels := getattr(model, 'level_embed', None), nn.Parameter):
        nn.init.normal_(levels)  # deformable DETRs leave there what was in memory
    model.eval()  # a student's returns nothing
    return model


def _forget_files(settings: Any) -> None:
    """Take out what names weights, and let what names a teacher's config find it."""
    for value in settings.values() if isinstance(settings, dict) else settings:
        if isinstance(value, dict | list | tuple):
            _forget_files(value)
    if isinstance(settings, dict):
        for key in {'init_cfg', 'pretrained', 'teacher_ckpt'}.intersection(settings):
            settings[key] = None
        if 'teacher_config' in settings:
            settings['teacher_config'] = str(MMDET_CONFIGS / settings['teacher_config'].removeprefix('configs/'))


@torch.no_grad()
def prune_half(model: nn.Module, size: int) -> dict[str, Any]:
    """Take out random halves of all groups, predict, and bring them back."""
    survey = survey_target(model, 'model')
    try:
        images, positions = _look(model, size)
    except RuntimeError:  # coarse levels of small images are smaller than some kernels
        images, positions = _look(model, 2 * size)
    flops = model_costs(model, model, survey.groups, positions).flops['model']
    tensors = lambda: [*model.parameters(), *model.buffers()]
    before, values = tensors(), [tensor.clone() for tensor in tensors()]
    plan = half_plan(survey.groups)
    restore = apply_plan(model, plan, PruneOnly(), groups=survey.groups)
    predict = lambda: len(model(images, samples_of(images), mode='predict')) == 1
    predicts, problem = None, None
    try:
        predicts = predict()
    except Exception as error:
        problem = error
    finally:
        restore()
    if problem is not None and _succeeds(predict):  # SSD's head of MMDetection 3.3.0 fails by itself
        raise problem
    same = all(
        now is then and torch.equal(now, value) for now, then, value in zip(tensors(), before, values, strict=True)
    )
    return dict(
        groups=len(survey.groups),
        flops=round(1 - flops.constant / flops(flops.dense), 4),
        flops_at_half=round(flops.ratio([plan.widths[group.name] for group in survey.groups]), 4),
        left=survey.left,
        predicts=predicts,
        restored=same,
    )


def _succeeds(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return False
    return True


def _look(model: nn.Module, size: int) -> tuple[Tensor, dict[nn.Module, int]]:
    images = dead_leaves(1, size, (127.5,) * 3, (58.0,) * 3)
    return images, measure_positions(model, lambda: outputs_of(model, images))


def half_plan(groups: Sequence[ChannelGroup], seed: int = 0) -> PruningPlan:
    """A plan that keeps random halves of all groups."""
    random = torch.Generator().manual_seed(seed)
    order: list[Tensor] = [torch.randperm(group.num_channels, generator=random) for group in groups]
    return PruningPlan.of([group.name for group in groups], order, [(len(one) + 1) // 2 for one in order])


def table_row(found: dict[str, Any]) -> str:
    """A row of the table in docs/detectors.md: config, groups, shares of FLOPs, and what stays besides predictors."""
    if 'failed' in found:
        return f'| `{found["config"]}` | - | - | - | {_words_of(found["failed"], FAILURES)} |'
    stays = dict.fromkeys(words for line in found['left'] if (words := _words_of(line, REASONS)))
    if not stays and found['flops'] < 0.9:  # the survey does not know them as layers
        stays[REASONS['feeds convolution']] = None
    if not found['predicts']:
        stays['(does not predict here when dense either)'] = None
    shares = ' | '.join(f'{100 * found[name]:.0f} %' for name in ('flops', 'flops_at_half'))
    return f'| `{found["config"]}` | {found["groups"]} | {shares} | {"; ".join(stays)} |'


def _words_of(line: str, known: dict[str, str]) -> str:
    return next((words for pattern, words in known.items() if re.search(pattern, line)), line)


def _line(error: Exception) -> str:
    return f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0]}'
