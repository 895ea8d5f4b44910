"""Conversion of BCCD, 364 microscope photographs of blood cells with boxes, to COCO's format.

The data set itself is in Pascal VOC's format: https://github.com/Shenggan/BCCD_Dataset (MIT licence).
"""

import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import require_folder

BCCD_CLASSES = ('RBC', 'WBC', 'Platelets')


def make_bccd(source: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Copy the photographs into one folder, and write the boxes of each split in COCO's format.

    The splits are the data set's own. Boxes without width or height are left out, as no detector can find them.

    Args:
        source (str | os.PathLike): Checkout of the data set's repository, or its folder ``BCCD``, which has
            ``JPEGImages``, ``Annotations`` (Pascal VOC's XML) and ``ImageSets/Main/{train,val,test}.txt``.
        out (str | os.PathLike): Folder for ``images/`` and ``{train,val,test}.json``; it is made if need be.

    Returns:
        Path: ``out``.

    Raises:
        AutoDFPError: ``source`` lacks a folder or a file, one is damaged, a box is of none of the three classes, or
            ``out`` is a file.
    """
    source, out = Path(source), Path(out)
    require_folder(out, 'the BCCD data set')
    if (source / 'BCCD').is_dir():
        source = source / 'BCCD'
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        if not (source / name).is_dir():
            raise AutoDFPError(f'{source} was to be the BCCD data set, but it has no folder {name}')
    # All splits are read before anything is written, so that a missing file leaves nothing half done.
    splits = {split: _read_split(source, split) for split in ('train', 'val', 'test')}
    (out / 'images').mkdir(parents=True, exist_ok=True)
    for split, content in splits.items():
        for image in content['images']:
            shutil.copyfile(source / 'JPEGImages' / image['file_name'], out / 'images' / image['file_name'])
        (out / f'{split}.json').write_text(json.dumps(content))
    return out


def _read_split(source: Path, split: str) -> dict:
    """One split in COCO's format."""
    images, annotations = [], []
    for number, name in enumerate(_read(source / 'ImageSets' / 'Main' / f'{split}.txt').split()):
        if not (source / 'JPEGImages' / f'{name}.jpg').is_file():
            raise AutoDFPError(f'{name}.jpg is in the {split} split of BCCD, but it is not in {source / "JPEGImages"}')
        size, boxes = _read_annotation(source / 'Annotations' / f'{name}.xml')
        images.append(dict(id=number, file_name=f'{name}.jpg') | size)
        for kind, (left, top, right, bottom) in boxes:
            if kind not in BCCD_CLASSES:
                raise AutoDFPError(f'{name}.xml has a box of class {kind!r}; BCCD has {", ".join(BCCD_CLASSES)}')
            w, h = right - left, bottom - top
            if w > 0 and h > 0:
                box = dict(bbox=[left, top, w, h], area=w * h, iscrowd=0)
                category = BCCD_CLASSES.index(kind) + 1
                annotations.append(dict(id=len(annotations) + 1, image_id=number, category_id=category, **box))
    categories = [dict(id=number + 1, name=name) for number, name in enumerate(BCCD_CLASSES)]
    return dict(images=images, annotations=annotations, categories=categories)


def _read_annotation(path: Path) -> tuple[dict[str, int], list[tuple[str | None, list[float]]]]:
    """Size of a photograph; and its boxes, each with its class."""
    text, sides = _read(path), ('xmin', 'ymin', 'xmax', 'ymax')
    try:
        root = ElementTree.fromstring(text)
        size = {side: int(root.findtext(f'size/{side}')) for side in ('width', 'height')}
        boxes = [
            (one.findtext('name'), [float(one.findtext(f'bndbox/{side}')) for side in sides])
            for one in root.iter('object')
        ]
    except (ElementTree.ParseError, TypeError, ValueError):  # a text that is missing is None, which is no number
        raise AutoDFPError(
            f'{path} was to be XML with the size of a photograph and its boxes, but it is damaged; fetch BCCD anew'
        ) from None
    return size, boxes


def _read(path: Path) -> str:
    if not path.is_file():
        raise AutoDFPError(f'BCCD was to be read, but {path} is not there')
    return path.read_text(encoding='utf-8', errors='replace')  # the caller refuses what is damaged
