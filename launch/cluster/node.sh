#!/usr/bin/env bash
# Start a run on one machine of several, or continue it from its newest checkpoint. Make the same call on every machine:
#
#   node.sh RECIPE RUN_FOLDER [key=value ...]
#
# RUN_FOLDER must be on a disk that all machines see. These environment variables describe the machine (with defaults):
#   NODES (1), NODE_RANK (0), GPUS (of a machine; all), MASTER_ADDR (localhost), MASTER_PORT (29500)
# Exit code 75 means that the run was told to stop and is saved: call the script again. After any other code but 0, read
# the output.
set -uo pipefail

recipe=$1 run=$2
shift 2
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

# All machines decide the same: the processes of a run wait for one another before any of them writes a checkpoint.
if compgen -G "$run/checkpoints/[0-9]*" >/dev/null; then
    arguments=(resume "$run" "$@")
else
    arguments=(train "$recipe" "$@" --folder "$run")
fi

# torchrun passes SIGTERM on, but always exits with 1. A run that was told to stop and has saved leaves stopped.json.
torchrun --nnodes "${NODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$gpus" \
    --master-addr "${MASTER_ADDR:-localhost}" --master-port "${MASTER_PORT:-29500}" \
    -m launch.main "${arguments[@]}" &
agent=$!
trap 'kill -TERM "$agent"' TERM INT USR1
code=1
while kill -0 "$agent" 2>/dev/null; do # a signal ends `wait` and not the agent
    wait "$agent"
    code=$?
done
if [ "$code" -ne 0 ] && [ -f "$run/stopped.json" ]; then
    exit 75
fi
exit "$code"
