#!/usr/bin/env bash
# A SLURM of one node for the test beside it, without systemd and without touching a SLURM that is there already.
#
#     slurm.sh start FOLDER     write the configuration into FOLDER, start munged, slurmctld and slurmd, wait until idle
#     slurm.sh stop FOLDER      cancel what runs, end the three by their pid files, and what is left of the jobs
#     slurm.sh runs FOLDER      exit status 0 if any of the three runs
#
# The node offers two pretended GPUs (device files that are always there), in the partitions of workflow/profiles/slurm.
# FOLDER must be short: the path of a Unix socket has at most 107 characters.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"  # the daemons are there, which is not on every user's PATH

action=$1 folder=$2 cluster=finallyse-test
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo -n"
daemons="slurmd slurmctld munged"  # in the order in which they are ended

alive() {  # is the process of this pid file alive?
    [ -s "$folder/run/$1.pid" ] && kill -0 "$(cat "$folder/run/$1.pid")" 2>/dev/null
}

runs() {
    for daemon in $daemons; do alive "$daemon" && return; done
    return 1
}

configure() {
    local host user
    host=$(hostname -s)
    user=$(id -un)
    mkdir -p "$folder"/{run,state,spool,log}
    chmod 755 "$folder" "$folder/run"
    chmod 700 "$folder/state" "$folder/log"
    cat > "$folder/slurm.conf" <<CONF
ClusterName=$cluster
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
# Ports other than the usual ones, so that nothing of a real cluster answers.
SlurmctldPort=16917
SlurmdPort=16918
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
# No cgroups, no accounting, no mail: nothing that a container lacks.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/jobs.txt
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=2,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Ended jobs stay visible to squeue, which the executor asks for their fate where there is no accounting.
MinJobAge=3600
# Seconds between SIGTERM and SIGKILL at the time limit or at scancel; 30 is SLURM's default.
KillWait=30
OverTimeLimit=0
GresTypes=gpu
# The node says that it has more cores and memory than this machine: a cluster's jobs ask for a cluster's nodes.
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=$host Default=YES MaxTime=INFINITE DefaultTime=10 DefMemPerCPU=500 State=UP
PartitionName=gpu Nodes=$host MaxTime=INFINITE DefaultTime=10 DefMemPerCPU=500 State=UP
CONF
    cat > "$folder/gres.conf" <<CONF
AutoDetect=off
NodeName=$host Name=gpu File=/dev/null
NodeName=$host Name=gpu File=/dev/zero
CONF
    echo "CgroupAutomount=no" > "$folder/cgroup.conf"
    if [ ! -s "$folder/munge.key" ]; then
        (umask 377 && head -c 1024 /dev/urandom > "$folder/munge.key")
    fi
    # Job steps do not inherit SLURM_CONF, so the configuration must lie where SLURM looks by itself.
    $sudo mkdir -p /etc/slurm
    for file in slurm.conf gres.conf cgroup.conf; do
        $sudo ln -sfn "$folder/$file" "/etc/slurm/$file"
    done
}

start() {
    configure
    alive munged || munged --force --key-file="$folder/munge.key" --socket="$folder/run/munge.socket" \
        --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/run/munged.seed"
    alive slurmctld || slurmctld -c
    alive slurmd || slurmd -c
    for _ in $(seq 120); do
        [ "$(sinfo -h -p cpu -o %T 2>/dev/null)" = idle ] && { sinfo -o "%P %N %T %c cores, %m MB, %G"; return; }
        sleep 0.25
    done
    echo "error: SLURM's node is not idle after 30 s; see $folder/log" >&2
    exit 1
}

stop() {
    if alive slurmctld; then
        scancel --quiet --user "$(id -un)" 2>/dev/null || true
        for _ in $(seq 60); do
            [ -z "$(squeue -h -t running,completing 2>/dev/null)" ] && break
            sleep 0.25
        done
    fi
    for daemon in $daemons; do
        if alive "$daemon"; then kill "$(cat "$folder/run/$daemon.pid")"; fi
    done
    for daemon in $daemons; do
        for _ in $(seq 80); do alive "$daemon" || break; sleep 0.25; done
        if alive "$daemon"; then kill -KILL "$(cat "$folder/run/$daemon.pid")"; fi
    done
    # Without cgroups, SLURM loses sight of a job's processes whose parent has ended.
    for environment in /proc/[0-9]*/environ; do
        if grep -qsz "^SLURM_CLUSTER_NAME=$cluster\$" "$environment"; then
            kill -KILL "$(basename "$(dirname "$environment")")" 2>/dev/null || true
        fi
    done
    for file in slurm.conf gres.conf cgroup.conf; do
        if [ "$(readlink "/etc/slurm/$file" 2>/dev/null)" = "$folder/$file" ]; then $sudo rm -f "/etc/slurm/$file"; fi
    done
}

"$action"
