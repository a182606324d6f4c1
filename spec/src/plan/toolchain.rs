//! What is hidden from the container: compilers and netcat, and the parts of
//! /proc and /sys that tell about or change the host.

use super::ImageView;

const DIRECTORIES: [&str; 6] =
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/bin", "/sbin"];

/// Programs hidden whatever version follows their name (`gcc-12`).
const VERSIONED: [&str; 9] = ["gcc", "g++", "cpp", "c++", "cc", "c89", "c99", "clang", "clang++"];
/// Programs hidden by their exact name.
const EXACT: [&str; 11] = [
    "make",
    "gmake",
    "nc",
    "ncat",
    "netcat",
    "nc.openbsd",
    "nc.traditional",
    "tcc",
    "ld",
    "as",
    "x86_64-linux-gnu-gcc",
];
/// Prefixes that Debian and others put before a compiler's name.
const TRIPLETS: [&str; 4] =
    ["x86_64-linux-gnu-", "aarch64-linux-gnu-", "x86_64-pc-linux-gnu-", "riscv64-linux-gnu-"];

/// Paths of compilers and netcat in this image.
pub(super) fn masked(image: &dyn ImageView) -> Vec<String> {
    let mut masked = Vec::new();
    for directory in DIRECTORIES {
        // /bin is /usr/bin on merged systems: once is enough.
        if image.look(directory).is_none_or(|fact| fact.real != directory) {
            continue;
        }
        for name in image.list(directory) {
            if is_tool(&name) {
                masked.push(format!("{directory}/{name}"));
            }
        }
    }
    masked.sort_unstable();
    masked
}

fn is_tool(name: &str) -> bool {
    let name = TRIPLETS.iter().find_map(|triplet| name.strip_prefix(triplet)).unwrap_or(name);
    EXACT.contains(&name)
        || VERSIONED.iter().any(|tool| {
            name.strip_prefix(tool).is_some_and(|rest| {
                rest.is_empty()
                    || rest.strip_prefix('-').is_some_and(|version| {
                        !version.is_empty()
                            && version.bytes().all(|b| b.is_ascii_digit() || b == b'.')
                    })
            })
        })
}

/// Hidden whatever the engine says.
pub(super) fn hidden_proc_and_sys() -> Vec<String> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/kpagecgroup",
        "/proc/kpagecount",
        "/proc/kpageflags",
        "/proc/latency_stats",
        "/proc/pagetypeinfo",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/slabinfo",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/vmallocinfo",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::is_tool;

    #[test]
    fn compilers_are_known_by_any_version() {
        for name in
            ["gcc", "gcc-12", "g++-4.8", "cc", "make", "nc", "x86_64-linux-gnu-gcc-12", "clang-15"]
        {
            assert!(is_tool(name), "{name}");
        }
        for name in
            ["git", "gcc-ranlib", "cccheck", "ncurses6-config", "ccache", "curl", "ldd", "asm"]
        {
            assert!(!is_tool(name), "{name}");
        }
    }
}
