#!/bin/sh
# Slurm's Epilog on a node: takes back what prolog.sh noted. Like that one it succeeds whatever happens, within 2 seconds.
if [ "${1-}" != inner ]; then
    timeout -k 1 2 sh "$0" inner >/dev/null 2>&1
    exit 0
fi

settings=${SWITCHGEAR_SLURM_SETTINGS:-/etc/switchgear/slurm.env}
# shellcheck source=deploy/slurm/slurm.env
if [ -r "$settings" ]; then . "$settings"; fi

case ${SLURM_JOB_ID-} in '' | *[!0-9]*) exit ;; esac
rm -f "${SWITCHGEAR_RUN:-/run/switchgear}/slurm-jobs/slurm_$SLURM_JOB_ID"
