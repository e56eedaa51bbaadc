#!/bin/bash
# A sweep on the nodes of a SLURM job. Ray is started on all of them, and ends with the sweep.
#
#   sbatch --nodes 4 scripts/hegraph/slurm_sweep.sh [GRID.yaml] [FLAG ...] [KEY VALUE ...]
#
# The words are those of `python -m trainers.hegraph sweep`. Start it in the folder of the checkout, with the environment
# active that has the package; options of sbatch win over the lines below. From the environment: PYTHON (default python),
# PORT (default 6379).
#SBATCH --job-name=hegraph-sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=08:00:00

set -euo pipefail
if [ -z "${SLURM_JOB_NODELIST:-}" ]; then
    echo "error: this is a job for SLURM: sbatch --nodes 4 scripts/hegraph/slurm_sweep.sh ..." >&2
    exit 2
fi
PYTHON=${PYTHON:-python}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One task on each node: all start Ray, and the first runs the sweep. --wait lets the others end in their own time.
srun --nodes "$SLURM_JOB_NUM_NODES" --ntasks "$SLURM_JOB_NUM_NODES" --ntasks-per-node 1 --wait 0 \
    "$PYTHON" -m ray.scripts.scripts symmetric-run --address "$HEAD:${PORT:-6379}" \
    --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "${SLURM_CPUS_PER_TASK:-1}" -- \
    "$PYTHON" -m trainers.hegraph sweep --ray auto "$@"
