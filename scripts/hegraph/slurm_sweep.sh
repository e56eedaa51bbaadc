#!/bin/bash
# Run a sweep on the nodes of a SLURM job. Ray starts on each node, and stops after the sweep.
#
#   sbatch --nodes 4 scripts/hegraph/slurm_sweep.sh [GRID.yaml] [FLAG ...] [KEY VALUE ...]
#
# The arguments are those of `python -m trainers.hegraph sweep`. Submit it in the folder of the checkout, in an
# environment that has the package. Options of sbatch override the lines below. Environment variables: PYTHON (default
# python), PORT (default 6379).
#SBATCH --job-name=hegraph-sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=08:00:00

set -euo pipefail
case ${1:-} in
    -h | --help)
        sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p;}' "$0"
        exit
        ;;
esac
if [ -z "${SLURM_JOB_NODELIST:-}" ]; then
    echo "error: not in a SLURM job; run: sbatch --nodes 4 scripts/hegraph/slurm_sweep.sh ..." >&2
    exit 2
fi
PYTHON=${PYTHON:-python}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One task on each node: all start Ray, and the first runs the sweep. With --wait 0 the first can end before the others.
srun --nodes "$SLURM_JOB_NUM_NODES" --ntasks "$SLURM_JOB_NUM_NODES" --ntasks-per-node 1 --wait 0 \
    "$PYTHON" -m ray.scripts.scripts symmetric-run --address "$HEAD:${PORT:-6379}" \
    --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "${SLURM_CPUS_PER_TASK:-1}" -- \
    "$PYTHON" -m trainers.hegraph sweep --ray auto "$@"
