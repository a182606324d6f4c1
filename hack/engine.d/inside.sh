#!/usr/bin/env bash
# Runs in a fresh mount namespace: arranges the file systems of an engine, says so in
# RUN/ready, and then sleeps to keep the namespace.
#   inside.sh RUN STATE CG2 [ROOT]
set -euo pipefail
run=$1 state=$2 cg2=$3 lower=${4:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=hack/engine.d/cgroup2.sh
. "$here/cgroup2.sh"

# same PATH...: the path is the same thing inside and outside.
same() {
    local path
    for path in "$@"; do
        mkdir -p "$path" "$root$path"
        [[ $path -ef $root$path ]] || mount --bind "$path" "$root$path"
    done
}

if [[ -n $lower ]]; then
    root=$state/root
    mkdir -p "$root" "$state/upper" "$state/overlay-work"
    mount -t overlay -o "lowerdir=$lower,upperdir=$state/upper,workdir=$state/overlay-work" overlay "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mkdir -p "$root/run/lock"
    # A chroot is not enough: runc remounts "/", which has to be a mount point.
    same /tmp "$NEMOCLAW_REPO" "$NEMOCLAW_WORK" "$NEMOCLAW_DIST" "$run"
    if [[ -d /run/netns ]]; then
        mkdir -p "$root/run/netns"
        mount --rbind /run/netns "$root/run/netns"
    fi
    : >"$root/etc/resolv.conf"
    mkdir -p "$root/.outside"
    cd "$root"
    pivot_root . .outside
    cd /
    umount -l /.outside
    rmdir /.outside
fi
echo 'nameserver 203.0.113.53' >"$run/resolv.conf"
mount --bind "$run/resolv.conf" /etc/resolv.conf
[[ $cg2 != 1 ]] || cgroup2_view
: >"$run/ready"
exec sleep infinity
