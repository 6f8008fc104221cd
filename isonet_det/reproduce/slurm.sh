#!/bin/bash
#SBATCH --job-name=isonet_det
#SBATCH --array=0-@LAST@
#SBATCH --nodes=@MACHINES@
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=@GPUS@
#SBATCH --requeue
#SBATCH --signal=TERM@300
# One row of the table per array task. Before its time limit, or when it is preempted, a row saves
# its state and exits with 75; it is then queued again and resumes. It needs one iteration, writing a
# checkpoint, and a few seconds; where the cluster gives less between SIGTERM and SIGKILL, or kills
# inside an evaluation, the row resumes from the checkpoint before.
# shellcheck disable=SC2016  # every machine fills in its own rank
rows=(
  @ROWS@
)
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((29500 + SLURM_ARRAY_TASK_ID))
export HEAD PORT
# One process per machine, which starts one per GPU; each machine knows its rank by SLURM_NODEID.
srun bash -c "exec ${rows[$SLURM_ARRAY_TASK_ID]}"
status=$?
if [ "$status" -eq 75 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
