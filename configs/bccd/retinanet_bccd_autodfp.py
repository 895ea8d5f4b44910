"""RetinaNet on blood cells: 90 % of the backbone's parameters."""

_base_ = ['./retinanet_bccd.py', '../_base_/autodfp_bccd.py']

load_from = '{{ fileDirname }}/retinanet_bccd.pth'
