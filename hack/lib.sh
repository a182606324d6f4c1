# shellcheck shell=bash
# Helpers for the scripts in hack/. Sourced, never run; the caller has set -euo pipefail.

NEMOCLAW_REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Everything the scripts make lives here: images, engine state, foreign roots.
NEMOCLAW_WORK=${NEMOCLAW_WORK:-$NEMOCLAW_REPO/target/engines}
# Where the built binaries are expected; engines refer to them by this path.
NEMOCLAW_DIST=${NEMOCLAW_DIST:-$NEMOCLAW_REPO/target/dist}
export NEMOCLAW_REPO NEMOCLAW_WORK NEMOCLAW_DIST

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

need_root() {
    [[ $EUID -eq 0 ]] || die "must be run as root"
}

have() { command -v "$1" >/dev/null 2>&1; }

# apt_need PKG...: installs what is missing, with one index refresh at most.
# Services are not started: SYSTEMD_OFFLINE makes systemctl ignore "start" where
# systemd is PID 1; without systemd the package scripts have nothing to start with.
apt_need() {
    local pkg
    local -a missing=()
    for pkg in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$pkg" 2>/dev/null || true) == installed ]] ||
            missing+=("$pkg")
    done
    ((${#missing[@]})) || return 0
    need_root
    say "installing ${missing[*]}"
    if [[ -z ${NEMOCLAW_APT_FRESH:-} ]]; then
        apt-get update -q >&2
        export NEMOCLAW_APT_FRESH=1
    fi
    DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 RUNLEVEL=1 NEEDRESTART_SUSPEND=1 \
        apt-get install -qy --no-install-recommends "${missing[@]}" >&2
}

# cmd_need CMD PKG: installs PKG only where no other package brings CMD
# (a machine with docker-ce must not have it replaced by docker.io).
cmd_need() {
    have "$1" || apt_need "$2"
}

# debian_sources SUITE: apt lines for a Debian suite from the mirrors this machine
# uses itself. Prints nothing where it uses none (mmdebstrap then has its own default).
debian_sources() {
    local suite=$1 origin uri release component codename
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && printf %s "${VERSION_CODENAME:-}")
    [[ -n $codename ]] || return 0
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)' \
        'Identifier: Packages' 2>/dev/null |
        while read -r origin uri release component; do
            [[ $origin == Debian && $component == main ]] || continue
            case $release in
            "$codename" | "$codename-updates" | "$codename-security") ;;
            *) continue ;;
            esac
            printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s %s\n' \
                "$uri" "${release/#$codename/$suite}" "$component"
        done
}

# apt_transport: one --aptopt per line for the proxy and transport settings of this
# machine's apt, which mmdebstrap does not read by itself.
apt_transport() {
    apt-config dump 2>/dev/null |
        grep -E '^Acquire::(https?::|ftp::|Retries|Check-Valid-Until|Check-Date|ForceIPv)' |
        grep -v ' "";$' || true
}

# debootstrap_into TARGET SUITE PKG,PKG... [MMDEBSTRAP-ARG...]
debootstrap_into() {
    local target=$1 suite=$2 packages=$3 line
    shift 3
    apt_need mmdebstrap debian-archive-keyring
    local -a opts=()
    while IFS= read -r line; do
        [[ -z $line ]] || opts+=("--aptopt=$line")
    done < <(apt_transport)
    local sources
    sources=$(debian_sources "$suite")
    # Without lists there is nothing to read the mirror from.
    if [[ -z $sources && -z ${NEMOCLAW_APT_FRESH:-} ]]; then
        apt-get update -q >&2
        export NEMOCLAW_APT_FRESH=1
        sources=$(debian_sources "$suite")
    fi
    local -a from=()
    local log
    mkdir -p "$NEMOCLAW_WORK"
    log=$(mktemp "$NEMOCLAW_WORK/mmdebstrap-XXXXXX.log")
    [[ -z $sources ]] || from=(-)
    # The hooks keep this machine's transport settings out of the result.
    # shellcheck disable=SC2016
    mmdebstrap --variant=minbase --mode=root --include="$packages" \
        --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' \
        "${opts[@]}" "$@" \
        --customize-hook='rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap' \
        "$suite" "$target" "${from[@]}" >"$log" 2>&1 <<<"$sources" || {
        tail -n 30 "$log" >&2
        die "mmdebstrap failed; the whole output is in $log"
    }
    rm -f "$log"
}
