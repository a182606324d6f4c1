# shellcheck shell=bash
# shellcheck disable=SC2154  # engine, run, state, netns, ... come from hack/engine
# The space an engine lives in: a network namespace with test servers next door, and
# where it needs one (another Debian, a cgroup2 view) a mount namespace held open by a
# sleeping process.

# alive FILE: the pid in FILE is a process of ours. The file holds "PID START", so that
# a number used again by somebody else is not taken for it.
alive() {
    local pid start now
    [[ -s $1 ]] || return 1
    read -r pid start <"$1" || true
    now=$(pid_start "$pid") || return 1
    [[ -z $start || $start == "$now" ]]
}

# pid_start PID: the start time in ticks, from the fields after the command name.
pid_start() {
    local stat
    local -a field
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    read -ra field <<<"${stat##*) }"
    [[ ${field[0]} != Z ]] || return 1
    printf '%s\n' "${field[19]}"
}

pid_of() { awk '{ print $1; exit }' "$1"; }

record() { printf '%s %s\n' "$1" "$(pid_start "$1")" >"$2"; }

# stop_pid FILE SECONDS: TERM, then KILL after so long.
stop_pid() {
    local pid i
    alive "$1" || {
        rm -f "$1"
        return 0
    }
    pid=$(pid_of "$1")
    kill -TERM "$pid" 2>/dev/null || true
    for ((i = 0; i < $2 * 10; i++)); do
        alive "$1" || break
        sleep 0.1
    done
    ! alive "$1" || kill -KILL "$pid" 2>/dev/null || true
    for ((i = 0; i < 50; i++)); do
        alive "$1" || break
        sleep 0.1
    done
    rm -f "$1"
}

# wait_for SECONDS PIDFILE LOG CMD...: until CMD succeeds; fails early when the process is gone.
wait_for() {
    local seconds=$1 pidfile=$2 log=$3 i
    shift 3
    for ((i = 0; i < seconds * 10; i++)); do
        ! "$@" >/dev/null 2>&1 || return 0
        alive "$pidfile" || break
        sleep 0.1
    done
    tail -n 20 "$log" >&2
    die "$engine did not come up; the log is $log"
}

# A cgroup of the engine's own without limits, to find what it leaves behind.
family() {
    local top
    for top in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup; do
        if [[ -f $top/cgroup.procs ]]; then
            printf '%s/nc-%s\n' "$top" "$engine"
            return
        fi
    done
}

# sweep: ends what the engine started and its daemon did not stop.
sweep() { end_cgroup "$(family)"; }

# end_cgroup DIR: kills the processes in DIR one by one, then removes it.
end_cgroup() {
    local dir=$1 pid i
    [[ -d $dir ]] || return 0
    for ((i = 0; i < 50; i++)); do
        while read -r pid; do
            kill -KILL "$pid" 2>/dev/null || true
        done < <(find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null)
        find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [[ -d $dir ]] || return 0
        sleep 0.1
    done
    say "$engine: processes left in $dir"
}

# end_container PARENT ID: the same for a container's cgroups in every hierarchy.
end_container() {
    local dir
    for dir in /sys/fs/cgroup/"$1/$2" /sys/fs/cgroup/*/"$1/$2"; do
        end_cgroup "$dir"
    done
}

# unmount_below DIR...: mounts an engine left in these directories.
unmount_below() {
    local dir target
    for dir in "$@"; do
        while read -r target; do
            umount -l "$target" 2>/dev/null || true
        done < <(awk -v dir="$dir" '$2 == dir || index($2, dir "/") == 1 { print $2 }' /proc/self/mounts | sort -r)
    done
}

# Engine end .1, server end .10, .11, .53; both default to each other, and what the
# servers' side does not have is answered "unreachable" rather than swallowed.
net_up() {
    local server=203.0.113
    [[ ! -e /run/netns/$netns || ! -e /run/netns/$upns ]] || return 0
    cmd_need ip iproute2
    net_down
    ip netns add "$netns"
    ip netns add "$upns"
    ip -n "$netns" link set lo up
    ip -n "$upns" link set lo up
    ip -n "$netns" link add upstream0 type veth peer name engine0 netns "$upns"
    ip -n "$netns" -batch - <<EOT
addr add $server.1/24 dev upstream0
link set upstream0 up
route add default via $server.10
EOT
    ip -n "$upns" -batch - <<EOT
addr add $server.10/24 dev engine0
addr add $server.11/24 dev engine0
addr add $server.53/24 dev engine0
addr add 10.99.0.10/32 dev engine0
addr add 169.254.169.254/32 dev engine0
link set engine0 up
route add 172.16.0.0/12 via $server.1
route add 10.88.0.0/15 via $server.1
route add unreachable default metric 4096
EOT
    # IPv6 may be off on this machine; the tests for it then have nothing to reach.
    {
        ip -n "$netns" addr add 2001:db8:113::1/64 dev upstream0 nodad
        ip -n "$upns" addr add 2001:db8:113::10/64 dev engine0 nodad
        ip -n "$netns" route add default via 2001:db8:113::10
    } 2>/dev/null || true
    nsenter --net="/run/netns/$upns" sh -c \
        'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
         echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start'
    nsenter --net="/run/netns/$netns" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
}

net_down() {
    local ns
    for ns in "$netns" "$upns"; do
        [[ ! -e /run/netns/$ns ]] || ip netns del "$ns"
    done
}

net_env() {
    printf 'NEMOCLAW_NETNS=/run/netns/%s\n' "$netns"
    printf 'NEMOCLAW_UP_NETNS=/run/netns/%s\n' "$upns"
}

space_is_up() {
    [[ -e /run/netns/$netns && -e /run/netns/$upns ]] || return 1
    [[ -z $holder ]] || alive "$run/holder.pid"
}

# Starts the process that holds the mount namespace, in the engine's netns.
space_up() {
    [[ -n $holder ]] || return 0
    ! alive "$run/holder.pid" || return 0
    [[ -z $root_suite ]] || trixie_need
    rm -f "$run/ready"
    setsid nsenter --net="/run/netns/$netns" unshare --mount --propagation slave \
        bash "$here/engine.d/inside.sh" "$run" "$state" "${cg2:-0}" "${root_suite:+$(trixie_root)}" \
        </dev/null >"$state/holder.log" 2>&1 9>&- &
    record $! "$run/holder.pid"
    wait_for 20 "$run/holder.pid" "$state/holder.log" test -e "$run/ready"
}

space_down() {
    sweep
    stop_pid "$run/holder.pid" 5
}

# enter_vector: the command prefix that enters the engine's namespaces, in `enter`.
enter_vector() {
    if [[ -n $holder ]]; then
        enter=(nsenter --target "$(pid_of "$run/holder.pid")" --mount --net --)
    else
        enter=(nsenter --net="/run/netns/$netns" --)
    fi
}

# exec_inside CMD...: replaces this shell; keeps the working directory where it exists inside.
exec_inside() {
    local -a enter
    enter_vector
    # shellcheck disable=SC2016
    exec "${enter[@]}" sh -c 'cd "$0" 2>/dev/null || cd /; exec "$@"' "$PWD" "$@"
}

run_inside() { (exec_inside "$@"); }

# spawn PIDFILE LOG CMD...: starts a daemon inside, in the engine's cgroup.
spawn() {
    local pidfile=$1 log=$2 dir
    shift 2
    local -a enter
    enter_vector
    dir=$(family)
    [[ -z $dir ]] || mkdir -p "$dir" 2>/dev/null || true
    # shellcheck disable=SC2016
    setsid bash -c '
        [[ -z $0 ]] || echo $$ >"$0/cgroup.procs" || true
        cd /
        exec "$@"' "$dir" "${enter[@]}" "$@" </dev/null >"$log" 2>&1 9>&- &
    record $! "$pidfile"
}

# runtime_wrappers: containerd and podman name a runtime without arguments, so the
# variants that Docker's runtimeArgs make are scripts here.
runtime_wrappers() {
    local dir=$NEMOCLAW_WORK/bin
    mkdir -p "$dir" "$NEMOCLAW_WORK/policy"
    runtime_wrapper "$dir/nemoclaw-observe" observe
    runtime_wrapper "$dir/nemoclaw-test" "$NEMOCLAW_WORK/policy/test.yaml"
    for_policies policy_wrapper
}

policy_wrapper() { runtime_wrapper "$NEMOCLAW_WORK/bin/nemoclaw-$1" "$2"; }

# for_policies CMD: calls CMD with name and file of each policy of tests/policies, which
# is copied first, because a policy has to be root's own.
for_policies() {
    local file name
    mkdir -p "$NEMOCLAW_WORK/policy"
    for file in "$NEMOCLAW_REPO"/tests/policies/*.yaml; do
        name=$(basename "$file" .yaml)
        install -m 0644 "$file" "$NEMOCLAW_WORK/policy/$name.yaml"
        "$1" "$name" "$NEMOCLAW_WORK/policy/$name.yaml"
    done
}

runtime_wrapper() {
    printf '#!/bin/sh\nexec "%s" --policy "%s" "$@"\n' "$NEMOCLAW_DIST/nemoclaw" "$2" >"$1.new"
    chmod 755 "$1.new"
    mv "$1.new" "$1"
}

# cgroup2_run CMD...: a cgroup2 view, with whatever controllers the v1 mounts leave over.
cgroup2_run() {
    # shellcheck disable=SC2016
    exec unshare --mount --propagation slave bash -c '
        set -euo pipefail
        . "$0/cgroup2.sh"
        cgroup2_view
        exec "$@"' "$here/engine.d" "$@"
}
