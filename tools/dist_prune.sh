#!/usr/bin/env bash
# Prune on several GPUs, one episode each at a time: tools/dist_prune.sh CONFIG GPUS [arguments of tools/prune.py ...]
# On several machines, set NNODES, NODE_RANK, MASTER_ADDR and PORT for each of them.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo 'usage: tools/dist_prune.sh CONFIG GPUS [arguments of tools/prune.py ...]' >&2
  exit 2
fi
config=$1
gpus=$2
shift 2
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" \
  --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" \
  --master_port="${PORT:-29500}" \
  --nproc_per_node="$gpus" \
  "$(dirname "${BASH_SOURCE[0]}")/prune.py" "$config" --launcher pytorch "$@"
