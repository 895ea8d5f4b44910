"""FCOS on blood cells: 90 % of the backbone's parameters."""

_base_ = ['./fcos_bccd.py', '../_base_/autodfp_bccd.py']

load_from = '{{ fileDirname }}/fcos_bccd.pth'
