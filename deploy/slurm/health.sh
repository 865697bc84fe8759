#!/bin/sh
# Slurm's HealthCheckProgram: asks `switchgear slurm health` whether this node is fit for jobs. See docs/slurm.md.
# Without a word from the operator it only logs what it would do; it drains the node with SWITCHGEAR_DRAIN=act. It always succeeds, and
# gives up before the 60 seconds after which Slurm would end it.
case ${1-} in
'')
    timeout -k 1 50 sh "$0" wait >/dev/null 2>&1
    exit 0
    ;;
wait)
    # In a session of its own: a call of a driver that hangs in the kernel cannot be killed, and nobody is to wait for it.
    setsid sh "$0" check &
    wait "$!"
    exit
    ;;
esac

PATH=/opt/switchgear/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
settings=${SWITCHGEAR_SLURM_SETTINGS:-/etc/switchgear/slurm.env}
# shellcheck source=deploy/slurm/slurm.env
if [ -r "$settings" ]; then . "$settings"; fi
export PATH

case ${SWITCHGEAR_DRAIN:=advise} in act | advise) ;; *) exit ;; esac
run=${SWITCHGEAR_RUN:-/run/switchgear}
mkdir -p "$run" && exec 9>"$run/health-${SLURMD_NODENAME:-node}.lock" || exit
{
    if flock -w 4 9; then
        # Words of options, each one of its own.
        # shellcheck disable=SC2086
        timeout -k 2 40 ${SWITCHGEAR:-switchgear} slurm health --drain "$SWITCHGEAR_DRAIN" ${SWITCHGEAR_HEALTH_OPTIONS-} 2>&1
    else
        echo "the check before this one has not ended: a call of a driver hangs"
    fi
} | ${SWITCHGEAR_LOG:-logger -t switchgear-health} 9>&-
