#!/bin/bash
# Several machines through Slurm:  sbatch configs/accelerate/slurm.sh configs/default.toml --data.shards /shared/faces-64
#
# Two minutes before its time is over the job gets a SIGTERM: the run is saved, and the job is put back into the queue,
# where it goes on later. To be submitted from the repository's root.
#SBATCH --job-name=leanstream
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail

GPUS_PER_NODE=4
export HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PROCESSES=$((SLURM_JOB_NUM_NODES * GPUS_PER_NODE))

stopped=
trap 'stopped=yes; kill -TERM "$launchers"' TERM

# Expanded on each machine, which has a rank of its own.
srun --kill-on-bad-exit=1 bash -c '
  exec accelerate launch --quiet --multi_gpu --mixed_precision no --dynamo_backend no \
    --num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$HEAD_NODE" --main_process_port 29500 --rdzv_backend static \
    train/run.py "$@"
' leanstream "$@" &
launchers=$!

code=0
wait "$launchers" || code=$?
if [ "$stopped" ]; then
  # The trap ended the first wait; the second one is for the save.
  wait "$launchers" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
