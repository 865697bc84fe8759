#!/bin/sh
# Slurm's Prolog on a node: notes whose GPUs are whose, for `switchgear agent --hpc-job-mapping-dir`. See docs/slurm.md.
# Slurm drains a node whose prolog fails, and the job waits for it: this one succeeds whatever happens, within 2 seconds.
if [ "${1-}" != inner ]; then
    timeout -k 1 2 sh "$0" inner >/dev/null 2>&1
    exit 0
fi

settings=${SWITCHGEAR_SLURM_SETTINGS:-/etc/switchgear/slurm.env}
# shellcheck source=deploy/slurm/slurm.env
if [ -r "$settings" ]; then . "$settings"; fi
jobs=${SWITCHGEAR_RUN:-/run/switchgear}/slurm-jobs

case ${SLURM_JOB_ID-} in '' | *[!0-9]*) exit ;; esac
[ -d "$jobs" ] || exit # nobody here reads it
{
    for name in SLURM_JOB_ID SLURM_HET_JOB_ID SLURM_JOB_GPUS SLURM_JOB_USER SLURM_JOB_ACCOUNT SLURM_JOB_PARTITION \
        SLURM_JOB_QOS SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID; do
        eval "value=\${$name-}"
        [ -z "$value" ] || printf '%s=%s\n' "$name" "$value"
    done
} >"$jobs/.$SLURM_JOB_ID" && mv -f "$jobs/.$SLURM_JOB_ID" "$jobs/slurm_$SLURM_JOB_ID"
