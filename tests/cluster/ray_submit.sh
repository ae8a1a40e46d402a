#!/usr/bin/env bash
# `ray up`, `ray submit` and `ray down` of cluster.yaml as it stands, through a real sshd on the loopback.
#
#   sudo tests/cluster/ray_submit.sh [PYTHON]      needs openssh-server, rsync, and a python with amrg[ray] (default: python)
#
# Everything happens in namespaces of its own: `ray up` and `ray down` stop every Ray process that they see by name, the
# user `ubuntu` of cluster.yaml exists only in there, and nothing listens beyond the loopback.
set -euo pipefail

if [[ ${1:-} != inside ]]; then
    work=$(mktemp -d -p /var/tmp)
    trap 'rm -rf "$work"' EXIT
    checkout=$(cd "$(dirname "$0")/../.." && pwd)
    python=$(readlink -f "$(dirname "$(command -v "${1:-python}")")")/python
    unshare -m -n -p -f --mount-proc --kill-child bash "$0" inside "$work" "$checkout" "$python"
    exit
fi

work=$2 checkout=$3 python=$4
ip link set lo up
export HOME=$work/home PATH=$(dirname "$python"):$PATH RAY_DISABLE_IMPORT_WARNING=1
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
mkdir -p "$HOME/.ssh" "$work/tmp" /run/sshd
mount --bind "$work/tmp" /tmp

# The user of cluster.yaml, and the machine's ssh server with one key.
{ echo "ubuntu:x:0:0::$HOME:/bin/bash"; cat /etc/passwd; } > "$work/passwd"
mount --bind "$work/passwd" /etc/passwd
ssh-keygen -q -t ed25519 -N '' -f "$HOME/.ssh/id_ed25519"
ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
cp "$HOME/.ssh/id_ed25519.pub" "$work/authorized_keys"
/usr/sbin/sshd -f /dev/null -E "$work/sshd.log" -h "$work/host_key" -o ListenAddress=127.0.0.1 -o StrictModes=no \
    -o AuthorizedKeysFile="$work/authorized_keys" -o PasswordAuthentication=no
# What the set-up of cluster.yaml would install is there; the package is the copy that `ray up` makes.
echo "export PATH=$PATH PYTHONPATH=$HOME/am-mrg OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0" > "$HOME/.bashrc"

cd "$checkout"
ray get-auth-token --generate > /dev/null
ray up -y cluster.yaml
ray submit cluster.yaml launchers/pipeline.py tiny
ray submit cluster.yaml launchers/pipeline.py tiny -- --cluster.readers 1 | tee "$work/again"
[[ $(grep -c "already made" "$work/again") == 6 ]]
ray down -y cluster.yaml
sleep 3
if pgrep -fa 'raylet|gcs_server|ray::' | grep -v pgrep; then
    echo "Ray processes are left" && exit 1
fi
ls "$HOME/runs/tiny"
echo "cluster.yaml: up, submitted twice, down"
