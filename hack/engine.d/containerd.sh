# shellcheck shell=bash
# shellcheck disable=SC2154  # engine, run, state, netns, ... come from hack/engine
# A containerd with root, state and socket of its own, for ctr.

containerd_need() {
    cmd_need jq jq
    [[ -z $root_suite ]] || return 0
    cmd_need containerd containerd
    cmd_need runc runc
}

# The CRI plugin is off: it wants a CNI configuration and a pause image.
containerd_config() {
    cat <<EOT
version = 2
root = "$state/data"
state = "$run/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$run/containerd.sock"
EOT
}

containerd_is_up() {
    alive "$run/containerd.pid" && containerd_ctr version >/dev/null 2>&1
}

# The client has to be of the engine's version, hence from inside.
containerd_ctr() {
    run_inside ctr --address "$run/containerd.sock" "$@"
}

containerd_up() {
    runtime_wrappers
    ! containerd_is_up || return 0
    containerd_down
    containerd_config >"$state/config.toml"
    spawn "$run/containerd.pid" "$state/containerd.log" containerd --config "$state/config.toml"
    wait_for 30 "$run/containerd.pid" "$state/containerd.log" containerd_ctr version
    # What a killed daemon could not remove.
    containerd_clear
    pod_up
}

containerd_clear() {
    local ns id
    containerd_ctr namespaces ls -q | while read -r ns; do
        containerd_ctr -n "$ns" tasks ls -q </dev/null | while read -r id; do
            timeout 20 "$here/engine" exec "$engine" ctr -n "$ns" tasks rm -f "$id" >/dev/null 2>&1 </dev/null || true
        done
        containerd_ctr -n "$ns" containers ls -q </dev/null | while read -r id; do
            containerd_ctr -n "$ns" containers rm "$id" >/dev/null 2>&1 </dev/null || true
        done
    done
}

containerd_down() {
    local ns id dir
    ! containerd_is_up || containerd_clear
    stop_pid "$run/containerd.pid" 10
    for dir in "$run"/state/io.containerd.runtime.v2.task/*/*/; do
        [[ -d $dir ]] || continue
        id=$(basename "$dir")
        ns=$(basename "$(dirname "$dir")")
        end_container "$ns" "$id"
        # The runtime's own record of it; the shim's root is the same for every containerd.
        ! space_is_up || run_inside rm -rf "/run/containerd/runc/$ns/$id"
    done
    sweep
    unmount_below "$run/state" "$state/data"
    rm -rf "$run/state" "$run"/containerd.sock*
    pod_down
}

containerd_env() {
    printf 'CONTAINERD_ADDRESS=%s/containerd.sock\n' "$run"
    printf 'NEMOCLAW_POD_NETNS=/run/netns/%s-pod\n' "$netns"
}

containerd_exec() {
    export CONTAINERD_ADDRESS=$run/containerd.sock
    exec_inside "$@"
}

# A wired network namespace to hand over, as a CNI plugin would leave it
# (ctr run --with-ns network:PATH).
pod_up() {
    [[ ! -e /run/netns/$netns-pod ]] || return 0
    ip netns add "$netns-pod"
    ip -n "$netns-pod" link set lo up
    ip -n "$netns-pod" link add eth0 type veth peer name pod0 netns "$netns"
    ip -n "$netns-pod" addr add 10.89.0.2/24 dev eth0
    ip -n "$netns-pod" link set eth0 up
    ip -n "$netns" addr add 10.89.0.1/24 dev pod0
    ip -n "$netns" link set pod0 up
    ip -n "$netns-pod" route add default via 10.89.0.1
}

pod_down() {
    [[ ! -e /run/netns/$netns-pod ]] || ip netns del "$netns-pod"
}

# ctr reads image archives only: the tarball becomes the one layer of an OCI layout.
containerd_load() {
    local image=$1 hash tarball name=nemoclaw-test/$1:latest dir layer config manifest
    hash=$("$here/image" --hash "$image")
    containerd_is_up || die "$engine is not up"
    ! containerd_ctr images ls "name==$name" | grep -q "nemoclaw.recipe=$hash" || return 0
    tarball=$("$here/image" "$image")
    dir=$(mktemp -d "$NEMOCLAW_WORK/images/.oci-XXXXXX")
    mkdir -p "$dir/blobs/sha256"
    layer=$(sha256sum "$tarball" | cut -d' ' -f1)
    ln "$tarball" "$dir/blobs/sha256/$layer"
    config=$(jq -cn --arg layer "sha256:$layer" '{
        architecture: "amd64", os: "linux",
        config: {Cmd: ["/bin/sh"], Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        rootfs: {type: "layers", diff_ids: [$layer]}}' | oci_blob "$dir")
    manifest=$(jq -cn --argjson config "$config" --arg layer "sha256:$layer" \
        --argjson size "$(stat -c %s "$tarball")" '{schemaVersion: 2,
        mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: ($config + {mediaType: "application/vnd.oci.image.config.v1+json"}),
        layers: [{mediaType: "application/vnd.oci.image.layer.v1.tar", digest: $layer, size: $size}]}' |
        oci_blob "$dir")
    jq -cn --argjson manifest "$manifest" --arg name "$name" '{schemaVersion: 2, manifests: [$manifest +
        {mediaType: "application/vnd.oci.image.manifest.v1+json",
         annotations: {"io.containerd.image.name": $name}}]}' >"$dir/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$dir/oci-layout"
    tar -C "$dir" -cf - oci-layout index.json blobs | containerd_ctr images import - >/dev/null
    containerd_ctr images label "$name" "nemoclaw.recipe=$hash" >/dev/null
    rm -rf "$dir"
}

# oci_blob DIR: stores stdin as a blob and prints its descriptor without a media type.
oci_blob() {
    local digest
    cat >"$1/blob"
    digest=$(sha256sum "$1/blob" | cut -d' ' -f1)
    jq -cn --arg digest "sha256:$digest" --argjson size "$(stat -c %s "$1/blob")" \
        '{digest: $digest, size: $size}'
    mv "$1/blob" "$1/blobs/sha256/$digest"
}
