# shellcheck shell=bash
# cgroup2_view: lays cgroup2 over /sys/fs/cgroup. For a private mount namespace only.
# Controllers that v1 hierarchies hold stay there: on a hybrid machine limits do nothing.
cgroup2_view() {
    local controller
    if [[ $(stat -fc %T /sys/fs/cgroup) != cgroup2fs ]]; then
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
    fi
    # Only what runtimes use: the setting holds for the whole machine.
    for controller in cpu cpuset io memory pids; do
        if grep -qw "$controller" /sys/fs/cgroup/cgroup.controllers; then
            echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
        fi
    done
}
