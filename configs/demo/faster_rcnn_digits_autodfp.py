"""The demo: prune the digits detector to 70 % of its backbone's parameters."""

_base_ = ['./faster_rcnn_digits.py', '../_base_/autodfp_demo.py']

load_from = '{{ fileDirname }}/faster_rcnn_digits.pth'
