#!/usr/bin/env bash
# The workflow on a real SLURM of one node: installs it (Debian, Ubuntu), starts it, trains through workflow/profiles/slurm
# with jobs cancelled, out of time and preempted, compares with a local run, stops it.  About five minutes on two cores.
#
#     bash tests/cluster/run.sh [PYTHON]      PYTHON: of the environment that `make install` made (.venv/bin/python)
#
# Exit status 0: passed, or skipped with the reason where no SLURM can be installed or there is one already.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}

skip() { echo "SKIPPED tests/cluster: $*"; exit 0; }

sudo=""
if [ "$(id -u)" != 0 ]; then
    sudo="sudo -n"
    $sudo true 2>/dev/null || skip "SLURM's configuration lies in /etc/slurm: needs root or sudo without a password"
fi
if [[ $(readlink /etc/slurm/slurm.conf) =~ ^(/tmp/slurm-[A-Za-z0-9]{6})/slurm.conf$ ]]; then
    left=${BASH_REMATCH[1]}  # of a run of this script that was killed
    if tests/cluster/slurm.sh runs "$left"; then skip "another run of it is at work in $left"; fi
    tests/cluster/slurm.sh stop "$left"
fi
if [ -e /etc/slurm/slurm.conf ]; then skip "this machine has a SLURM of its own (/etc/slurm/slurm.conf)"; fi
if ! { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null; then
    command -v apt-get >/dev/null || skip "no slurmctld here, and no apt-get to install it with"
    export DEBIAN_FRONTEND=noninteractive
    $sudo apt-get update -qq >/dev/null 2>&1 || skip "apt-get update failed: no package archive can be reached"
    $sudo apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null 2>&1 \
        || skip "apt-get install slurm-wlm munge failed"
fi
[ -x "$python" ] || { echo "error: $python: not there; run make install, or name a Python: $0 PYTHON" >&2; exit 2; }

folder=$(mktemp -d /tmp/slurm-XXXXXX)
scenario=""
stop() {
    status=$?
    trap - EXIT INT TERM
    if [ -n "$scenario" ] && kill "$scenario" 2>/dev/null; then wait "$scenario" || true; fi
    tests/cluster/slurm.sh stop "$folder"
    if [ $status = 0 ]; then rm -rf "$folder"; else echo "SLURM's logs are kept in $folder/log" >&2; fi
    exit $status
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

rm -rf results/cluster
mkdir -p results/cluster
tests/cluster/slurm.sh start "$folder"
PATH="$(cd "$(dirname "$python")" && pwd):$PATH"
export PATH OMP_NUM_THREADS=1
# In the background, so that a signal to this script is obeyed at once.
timeout --kill-after=60 900 "$python" tests/cluster/scenario.py "$folder" &
scenario=$!
wait "$scenario"
scenario=""
echo "PASSED tests/cluster"
