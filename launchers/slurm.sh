#!/bin/bash
# Any command of the chain on every GPU that SLURM gives, on one node or several, without Ray.
#
#   sbatch --nodes 2 --time 24:00:00 launchers/slurm.sh amrg run mimic_cxr [--section.key VALUE ...]
#   sbatch --nodes 2 --time 24:00:00 launchers/slurm.sh python launchers/stage2.py mimic_cxr --ds_config zero3.json
#
# Submit from the folder that holds `data`, `models` and `runs`, which all nodes must see under one path, with the
# environment of the installation active: sbatch hands it on. What sbatch is told goes before what stands here.
# Ended by its time limit, training saves and stops; submitted again, the same command goes on from there.
#SBATCH --job-name=amrg
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@180
# (--gpus-per-node and not --gpus-per-task: of all GPUs of its node a rank takes the one with its LOCAL_RANK.)

set -euo pipefail
if [ $# -eq 0 ]; then
    echo "usage: sbatch [--nodes N] launchers/slurm.sh COMMAND [ARGUMENT ...]" >&2
    exit 2
fi

# Ranks are numbered from the first node on, so rank 0 is there.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts%%$'\n'*}
# Two jobs on one node shall not meet; below 32768 the system gives no port to others.
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
# What the shell of sbatch says of other ranks is not true of these, which may be on several machines.
unset LOCAL_WORLD_SIZE LOCAL_SIZE

# Ranks wait for what the first one makes alone: should it fail, SLURM must end them, too. Since SLURM 22.05 srun has to be told
# the CPUs of a task again. `exec`, so that signals reach Python itself.
# shellcheck disable=SC2016  # the variables are those of a task
exec srun --kill-on-bad-exit=1 --distribution=block --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
exec "$@"' rank "$@"
