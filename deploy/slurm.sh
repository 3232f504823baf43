#!/bin/bash
#SBATCH --job-name=mpscape
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=INT@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
#   sbatch deploy/slurm.sh sweeps/scaling.yaml /shared/results
#
# A job that is stopped, preempted or out of time loses at most the repeats that it was measuring: submit it again.
set -euo pipefail
spec=$1 store=$2

export RAY_worker_niceness=0 RAY_process_group_cleanup_enabled=1
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 RAY_USAGE_STATS_ENABLED=0

# A token of this job alone. Slurm passes the environment to the tasks; the command line of a process is for all to see.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

name=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$name" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on a shared head node must not meet

srun --kill-on-bad-exit=1 ray symmetric-run --address "$address:$port" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    env RAY_ADDRESS="$address:$port" python -m orchestrator.sweep "$spec" --store "$store"
