"""RTMDet-tiny on blood cells: 90 % of the backbone's parameters."""

_base_ = ['./rtmdet_tiny_bccd.py', '../_base_/autodfp_bccd.py']

load_from = '{{ fileDirname }}/rtmdet_tiny_bccd.pth'
