# shellcheck shell=bash
# A Debian 13 root with newer engines, shared by docker26, podman5 and ctr17; each
# engine writes into an overlay of its own.

trixie_packages=docker.io,docker-cli,containerd,podman,crun,runc,conmon,catatonit,netavark,aardvark-dns
trixie_packages+=,containernetworking-plugins,iptables,nftables,iproute2,jq,curl,ca-certificates
trixie_packages+=,procps,iputils-ping,python3,socat,strace,uidmap

trixie_root() {
    printf '%s/roots/trixie-%s\n' "$NEMOCLAW_WORK" \
        "$(printf %s "trixie 1 $trixie_packages" | sha256sum | cut -c1-12)"
}

trixie_need() {
    local root
    root=$(trixie_root)
    [[ ! -d $root ]] || return 0
    mkdir -p "$NEMOCLAW_WORK/roots"
    (
        flock 8
        [[ ! -d $root ]] || exit 0
        say "building a Debian 13 root with engines, once"
        rm -rf "$root.new"
        debootstrap_into "$root.new" trixie "$trixie_packages"
        mv "$root.new" "$root"
    ) 8>"$NEMOCLAW_WORK/roots/.lock"
}
