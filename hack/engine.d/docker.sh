# shellcheck shell=bash
# shellcheck disable=SC2154  # engine, run, state, netns, ... come from hack/engine
# A dockerd with data-root, exec-root, socket and containerd of its own.

docker_need() {
    [[ -z $root_suite ]] || return 0
    cmd_need dockerd docker.io
    # From Debian 13 on the client is a package of its own.
    cmd_need docker docker-cli
    cmd_need containerd containerd
    cmd_need runc runc
    cmd_need iptables iptables
    cmd_need crun crun
}

docker_config() {
    cat <<EOT
{
  "data-root": "$state/data",
  "exec-root": "$run/exec",
  "pidfile": "$run/docker.pid",
  "hosts": ["unix://$run/docker.sock"],
  "dns": ["203.0.113.53"],
  "exec-opts": ["native.cgroupdriver=cgroupfs"],
  "live-restore": $([[ $engine == docker26* ]] && echo true || echo false),
  "runtimes": {
    "nemoclaw": {"path": "$NEMOCLAW_DIST/nemoclaw"},
    "nemoclaw-weak": {"path": "$NEMOCLAW_WORK/weak/nemoclaw"},
    "nemoclaw-unnoted": {"path": "$NEMOCLAW_REPO/hack/hosts/unnoted", "runtimeArgs": ["--policy", "$NEMOCLAW_WORK/policy/test.yaml"]},
    "nemoclaw-full-disk": {"path": "$NEMOCLAW_REPO/hack/hosts/full-disk", "runtimeArgs": ["--policy", "$NEMOCLAW_WORK/policy/test.yaml"]},
    "nemoclaw-observe": {"path": "$NEMOCLAW_DIST/nemoclaw", "runtimeArgs": ["--policy", "observe"]},
    "nemoclaw-test": {"path": "$NEMOCLAW_DIST/nemoclaw", "runtimeArgs": ["--policy", "$NEMOCLAW_WORK/policy/test.yaml"]},
$(for_policies docker_runtime)
    "crun": {"path": "$(run_inside sh -c 'command -v crun')"}
  }
}
EOT
}

# docker_runtime NAME FILE: the entry of a runtime with that policy.
docker_runtime() {
    printf '    "nemoclaw-%s": {"path": "%s/nemoclaw", "runtimeArgs": ["--policy", "%s"]},\n' "$1" "$NEMOCLAW_DIST" "$2"
}

docker_is_up() {
    alive "$run/dockerd.pid" && docker_cli version >/dev/null 2>&1
}

# Another Debian brings its own client: this machine needs none for it.
docker_cli() {
    local -a in=()
    [[ -z $root_suite ]] || in=(run_inside)
    "${in[@]}" env -u DOCKER_CONTEXT -u DOCKER_TLS_VERIFY DOCKER_HOST="unix://$run/docker.sock" docker "$@"
}

docker_up() {
    docker_config >"$state/daemon.json.new"
    mv "$state/daemon.json.new" "$state/daemon.json"
    ! docker_is_up || return 0
    docker_down
    mkdir -p "$NEMOCLAW_WORK/policy"
    spawn "$run/dockerd.pid" "$state/dockerd.log" dockerd --config-file "$state/daemon.json"
    wait_for 60 "$run/dockerd.pid" "$state/dockerd.log" docker_cli version
    # What a killed daemon could not remove.
    docker_clear
}

# As if the daemon had crashed: nothing is cleared before it starts again.
docker_crash() {
    docker_is_up || die "$engine is not up"
    local pid
    pid=$(cat "$run/docker.pid")
    kill -KILL "$pid"
    while alive "$run/dockerd.pid" || kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    rm -f "$run/docker.pid"
    spawn "$run/dockerd.pid" "$state/dockerd.log" dockerd --config-file "$state/daemon.json"
    wait_for 60 "$run/dockerd.pid" "$state/dockerd.log" docker_cli version
}

docker_clear() {
    local id
    docker_cli ps -aq | while read -r id; do
        timeout 20 "$here/engine" exec "$engine" docker rm -f "$id" >/dev/null 2>&1 </dev/null || true
    done
    docker_cli network prune -f >/dev/null || true
}

# Containers and networks go, images and volumes stay.
docker_down() {
    local dir
    ! docker_is_up || docker_clear
    stop_pid "$run/dockerd.pid" 20
    for dir in "$run"/exec/containerd/daemon/io.containerd.runtime.v2.task/moby/*/; do
        [[ ! -d $dir ]] || end_container docker "$(basename "$dir")"
    done
    sweep
    unmount_below "$run" "$state/data"
    rm -rf "$run/exec" "$run/docker.sock" "$run/docker.pid"
}

docker_env() {
    printf 'DOCKER_HOST=unix://%s/docker.sock\n' "$run"
}

docker_exec() {
    export DOCKER_HOST=unix://$run/docker.sock
    exec_inside "$@"
}

# The recipe's hash is a label, so that a changed recipe is imported again.
docker_load() {
    local image=$1 hash tarball have_hash
    hash=$("$here/image" --hash "$image")
    docker_is_up || die "$engine is not up"
    have_hash=$(docker_cli image inspect -f '{{index .Config.Labels "nemoclaw.recipe"}}' \
        "nemoclaw-test/$image" 2>/dev/null || true)
    [[ $have_hash != "$hash" ]] || return 0
    tarball=$("$here/image" "$image")
    docker_cli import -c "LABEL nemoclaw.recipe=$hash" \
        -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        -c 'CMD ["/bin/sh"]' "$tarball" "nemoclaw-test/$image" >/dev/null
}
