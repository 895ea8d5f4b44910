#!/usr/bin/env bash
# Make the virtual environment that `make demo` and `make test` run in. It can be run again at any time: it does nothing
# where the environment is up to date, and repairs one whose set-up was cut short.
#
#   STACK   openmmlab: torch 2.1.2 with mmcv 2.1.0, mmdet 3.3.0 and mmengine 0.10.7 (default)
#           onedl: torch 2.12.1 with their maintained forks, onedl-mmcv, onedl-mmdetection and onedl-mmengine
#   VENV    its folder (default: .venv, of the second stack .venv-onedl)
#   PYTHON  Python 3.10 or 3.11 to make it with (default: the first found of python3.11, python3.10, python3, python)
#
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) hold; MAX_JOBS limits the compiler processes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

STACK=${STACK:-openmmlab}
case $STACK in
  openmmlab) default_venv=.venv pins=tools/constraints.txt mmcv=mmcv mmlab=(mmengine mmdet) ;;
  onedl)
    default_venv=.venv-onedl pins=tools/constraints-onedl.txt
    mmcv=onedl-mmcv mmlab=(onedl-mmengine onedl-mmdetection)
    ;;
  *)
    echo "setup: there is no STACK=$STACK; there are openmmlab and onedl" >&2
    exit 1
    ;;
esac
VENV=${VENV:-$default_venv}
py=$VENV/bin/python
stamp=$VENV/.mmautodfp
torch=$(sed -n 's/^torch==//p' "$pins")
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# pip runs as a job of its own: whoever interrupts or kills this script then stops pip and its compilers too.
pip() {
  set -m
  "$py" -m pip "$@" </dev/null &
  set +m
  wait "$!"
}
stop_jobs() {
  local job
  for job in $(jobs -p); do
    kill -INT -- "-$job" 2>/dev/null || true
  done
  wait
}
trap stop_jobs EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

install() { pip install -qq -c "$pins" "$@"; }
need() {
  install "$@" || die 'pip could not install this (its lines are above; is a package registry within reach?): try again'
}

usable() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11)])' >/dev/null 2>&1
}

find_python() {
  local name
  if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.10 or 3.11 that can make virtual environments"
    echo "$PYTHON"
    return
  fi
  for name in python3.11 python3.10 python3 python; do
    if usable "$name"; then
      echo "$name"
      return
    fi
  done
  die "none of python3.11, python3.10, python3 and python is a Python 3.10 or 3.11 with the venv module" \
    "(Debian, Ubuntu: apt install python3.11-venv): install one, or name it with PYTHON=/path/to/python"
}

# Packages that pip left half installed when it was killed.
broken_packages() {
  "$py" - <<'PYTHON'
from importlib.metadata import distributions

for dist in distributions():
    files = [file for file in dist.files or [] if file.suffix != '.pyc']
    if not files or dist.read_text('INSTALLER') is None or not all(file.locate().exists() for file in files):
        print(dist.metadata['Name'])
PYTHON
}

make_venv() {
  local python why=''
  if usable "$py" && pip --version >/dev/null 2>&1; then
    why=$(broken_packages 2>/dev/null | tr '\n' ' ') || why='unreadable '
    [ -n "$why" ] || return 0
  fi
  if [ -e "$stamp" ]; then
    say "$VENV is incomplete${why:+ (${why% })}: starting over"
  elif [ -e "$VENV" ]; then
    die "$VENV exists but is not a working environment of Python 3.10 or 3.11: remove it or choose another VENV="
  fi
  python=$(find_python)
  say "making $VENV with $("$python" --version) (10 seconds)"
  rm -rf "$VENV"
  mkdir -p "$VENV"
  echo unfinished >"$stamp"
  "$python" -m venv "$VENV" || die "could not make $VENV: see the lines above"
}

# opencv-python needs libGL, which servers seldom have; the headless build has the same code without the windows.
check_opencv() {
  "$py" -c 'import cv2' >/dev/null 2>&1 && return
  say 'opencv-python does not load here, most likely for want of libGL: taking its headless build (10 seconds)'
  pip uninstall -qq -y opencv-python || true
  need --no-deps --force-reinstall opencv-python-headless
}

mmcv_loads() { "$py" -c 'from mmcv.ops import nms' >/dev/null 2>&1; }

# Take a ready wheel where pip finds one that loads: a wheel made for another torch has the same name.
ready_mmcv() {
  install --no-deps --only-binary "$mmcv" "$@" >/dev/null 2>&1 && mmcv_loads && return
  pip uninstall -qq -y "$mmcv" >/dev/null 2>&1 || true
  return 1
}

compile_mmcv() {
  local header jobs
  command -v "${CXX:-c++}" >/dev/null ||
    die "no ready wheel of $mmcv found, and no C++ compiler to make one: install g++"
  header=$("$py" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
  [ -e "$header" ] || die "no ready wheel of $mmcv found, and $header to make one is missing: install python3-dev"
  jobs=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
  say "no ready wheel of $mmcv found: compiling it for a $1 with $jobs jobs (8 minutes on two cores, more for a GPU)"
  need ninja
  [ "$1" = gpu ] || export CUDA_VISIBLE_DEVICES=
  PATH=$(cd "$VENV" && pwd)/bin:$PATH MMCV_WITH_OPS=1 FORCE_CUDA=0 CFLAGS="${CFLAGS:-} -g0" MAX_JOBS=$jobs \
    pip wheel -qq -c "$pins" --no-deps --no-build-isolation --no-cache-dir --no-binary "$mmcv" -w "$2" "$mmcv" ||
    die 'could not compile it: the error is in the lines above'
  ready_mmcv "$2"/*.whl || die "the $mmcv compiled into $2 does not load"
}

# OpenMMLab's own index has wheels for torch 2.1.
published_mmcv() {
  [ "$STACK" = openmmlab ] && ready_mmcv --no-index --timeout 5 --retries 0 \
    --find-links "https://download.openmmlab.com/mmcv/dist/$1/torch2.1/index.html" mmcv
}

install_mmcv() {
  mmcv_loads && return
  local device=cpu compiled=cpu tag wheels
  if nvidia-smi -L >/dev/null 2>&1; then
    device=cu121
    ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] || compiled=gpu
  fi
  tag=$("$py" -c 'import sys, sysconfig; print(f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}")')
  wheels=${XDG_CACHE_HOME:-${HOME:-$VENV}/.cache}/mmautodfp/torch$torch-$compiled-$tag
  say "$mmcv: looking for a ready wheel (up to 20 seconds)"
  pip uninstall -qq -y "$mmcv" >/dev/null 2>&1 || true
  ready_mmcv "$mmcv" || ready_mmcv "$wheels"/*.whl || published_mmcv "$device" || compile_mmcv "$compiled" "$wheels"
}

key=$({ pwd && echo "$STACK" && cat pyproject.toml tools/setup.sh "$pins"; } | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && "$py" -c '' 2>/dev/null; then
  exit
fi
make_venv
say "torch $torch and torchvision (3 minutes, several GB)"
need setuptools wheel torch torchvision
say "${mmlab[*]} and opencv (1 minute)"
need numpy opencv-python "${mmlab[@]}"
check_opencv
install_mmcv
say 'mmautodfp itself and the tools to test it (1 minute)'
need --no-build-isolation -e ".[dev,export,$STACK]"
check_opencv
"$py" -c 'import mmautodfp, mmdet, pycocotools, sklearn, torchvision; from mmcv.ops import nms' ||
  die "what was installed does not load: remove $VENV and run this again"
echo "$key" >"$stamp"
say "$VENV is ready"
