#!/usr/bin/env bash
# Many sessions on a SLURM cluster, one each task of a job array, at most eight at once:
#
#   ls /lab/2026/*.nwb > sessions.txt
#   sbatch --array=1-$(wc -l < sessions.txt)%8 deploy/slurm_array.sh sessions.txt /lab/sorted [--seed 1 ...]
#
# What follows the two names goes to `accm sort`. It runs in the image that ACCM_IMAGE names (a file of Apptainer) or
# else with the `accm` on PATH. To go on after failures or a time limit submit the same again: a result is there whole
# or not at all, and a session that has one is left out.
#SBATCH --job-name=accm-sort
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=accm-sort-%A_%a.log
set -euo pipefail

usage="usage: sbatch --array=1-N slurm_array.sh SESSIONS.txt OUT [options of accm sort]"
list=${1:?$usage} out=${2:?$usage}
shift 2
: "${SLURM_ARRAY_TASK_ID:?Submit it as an array. $usage}"

session=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$list")
[[ -n $session ]] || { echo "$list has no line $SLURM_ARRAY_TASK_ID; --array begins with 1." >&2; exit 2; }
name=$(basename "$session")
twice=$(awk -F/ -v name="$name" '$NF == name' "$list" | wc -l)
((twice == 1)) || { echo "$twice sessions in $list are called $name; their results would be one file." >&2; exit 2; }

result=$out/${name%.nwb}_sorted.nwb
if [[ -e $result ]]; then
    echo "$result is there already."
    exit 0
fi
mkdir -p "$out"
run=(accm)
if [[ -n ${ACCM_IMAGE:-} ]]; then
    folder=$(realpath "$(dirname "$session")")
    run=(apptainer run --bind "$folder" --bind "$(realpath "$out")")
    [[ -n ${CUDA_VISIBLE_DEVICES:-} ]] && run+=(--nv)
    run+=("$ACCM_IMAGE")
fi
echo "$session on $(hostname), task $SLURM_ARRAY_TASK_ID"
exec "${run[@]}" sort "$session" -o "$result" "$@"
