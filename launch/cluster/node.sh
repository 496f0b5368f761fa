#!/usr/bin/env bash
# One machine's part of a run: starts the run, or goes on from its newest checkpoint. The same call on every machine:
#
#   node.sh RECIPE RUN_FOLDER [key=value ...]
#
# RUN_FOLDER is on a disk that all machines see. The environment says where it stands:
#   NODES (1), NODE_RANK (0), GPUS (per machine; all), MASTER_ADDR (localhost), MASTER_PORT (29500)
# Exit code 75: told to stop, and saved: call it again. Any other but 0: look at the output.
set -uo pipefail

recipe=$1 run=$2
shift 2
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

# All machines decide before any process of the run can write: these wait for one another first.
if compgen -G "$run/checkpoints/[0-9]*" >/dev/null; then
    arguments=(resume "$run" "$@")
else
    arguments=(train "$recipe" "$@" --folder "$run")
fi

# torchrun passes SIGTERM on, but ends with 1 whatever the reason: what was told to stop and has saved has left a note.
torchrun --nnodes "${NODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$gpus" \
    --master-addr "${MASTER_ADDR:-localhost}" --master-port "${MASTER_PORT:-29500}" \
    -m launch.main "${arguments[@]}" &
agent=$!
trap 'kill -TERM "$agent"' TERM INT USR1
code=1
while kill -0 "$agent" 2>/dev/null; do # a signal ends a wait, not the agent
    wait "$agent"
    code=$?
done
if [ "$code" -ne 0 ] && [ -f "$run/stopped.json" ]; then
    exit 75
fi
exit "$code"
