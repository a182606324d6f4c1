# shellcheck shell=bash
# shellcheck disable=SC2154  # engine, run, state, netns, ... come from hack/engine
# podman has no daemon: up makes its configuration and its network namespace.

podman_need() {
    [[ -z $root_suite ]] || return 0
    apt_need netavark aardvark-dns catatonit
    cmd_need podman podman
    cmd_need conmon conmon
    cmd_need runc runc
    cmd_need crun crun
    cmd_need iptables iptables
}

# podman's default limits are higher than a root without CAP_SYS_RESOURCE may set, and
# it lowers its own nproc to 32768 first.
# static_dir stays unset: conmon's clean-up command does not get it, works on another
# database then, and every run takes 20 seconds.
podman_config() {
    cat <<EOT
[containers]
default_ulimits = ["nofile=$(limit -n 1048576)", "nproc=$(limit -u 32768)"]
log_driver = "k8s-file"
$(podman_pids)
[network]
network_backend = "netavark"
network_config_dir = "$state/networks"
default_subnet = "10.88.0.0/16"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "$run/libpod"
[engine.runtimes]
runc = ["$(run_inside sh -c 'command -v runc')"]
crun = ["$(run_inside sh -c 'command -v crun')"]
nemoclaw = ["$NEMOCLAW_DIST/nemoclaw"]
nemoclaw-observe = ["$NEMOCLAW_WORK/bin/nemoclaw-observe"]
nemoclaw-test = ["$NEMOCLAW_WORK/bin/nemoclaw-test"]
$(for_policies podman_runtime)
EOT
}

# podman_runtime NAME FILE: the entry of a runtime with that policy.
podman_runtime() {
    printf 'nemoclaw-%s = ["%s/bin/nemoclaw-%s"]\n' "$1" "$NEMOCLAW_WORK" "$1"
}

# limit FLAG MAX: this shell's hard limit, at most MAX, as "soft:hard".
limit() {
    local value
    value=$(ulimit -H "$1")
    [[ $value != unlimited && $value -lt $2 ]] || value=$2
    printf '%s:%s\n' "$value" "$value"
}

podman_storage() {
    cat <<EOT
[storage]
driver = "overlay"
graphroot = "$state/storage"
runroot = "$run/storage"
EOT
}

podman_is_up() { [[ -s $run/containers.conf ]]; }

podman_up() {
    runtime_wrappers
    ! podman_is_up || return 0
    mkdir -p "$state/networks" "$run/libpod"
    podman_storage >"$run/storage.conf"
    podman_config >"$run/containers.conf.new"
    mv "$run/containers.conf.new" "$run/containers.conf"
}

podman_down() {
    if podman_is_up && space_is_up; then
        podman_cli rm --all --force --time 1 >/dev/null 2>&1 || true
        podman_cli pod rm --all --force >/dev/null 2>&1 || true
        podman_cli network prune --force >/dev/null 2>&1 || true
    fi
    sweep
    unmount_below "$state/storage" "$run"
}

podman_env() {
    printf 'CONTAINERS_CONF=%s/containers.conf\n' "$run"
    printf 'CONTAINERS_STORAGE_CONF=%s/storage.conf\n' "$run"
}

# pids_limit: where cgroup2 has no pids controller the default limit fails.
podman_pids() {
    if [[ -n $cg2 ]] && ! run_inside grep -qw pids /sys/fs/cgroup/cgroup.controllers; then
        printf 'pids_limit = 0\n'
    fi
}

podman_cli() { (podman_exec podman "$@"); }

podman_exec() {
    export CONTAINERS_CONF=$run/containers.conf CONTAINERS_STORAGE_CONF=$run/storage.conf
    export PODMAN_IGNORE_CGROUPSV1_WARNING=1
    exec_inside "$@"
}

podman_load() {
    local image=$1 hash tarball have_hash name=localhost/nemoclaw-test/$1:latest
    { space_is_up && podman_is_up; } || die "$engine is not up"
    hash=$("$here/image" --hash "$image")
    have_hash=$(podman_cli image inspect -f '{{index .Labels "nemoclaw.recipe"}}' "$name" 2>/dev/null || true)
    [[ $have_hash != "$hash" ]] || return 0
    tarball=$("$here/image" "$image")
    podman_cli import -c "LABEL nemoclaw.recipe=$hash" \
        -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        -c 'CMD ["/bin/sh"]' "$tarball" "$name" >/dev/null 2>&1
}
