//! The environment of confined processes: PATH locked to trusted directories,
//! variables that inject code into programs removed.

use super::{ImageView, beneath};

/// Where system programs live.
const SYSTEM_PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Directories of which the sandbox can write something.
const WRITABLE: [&str; 6] = ["/tmp", "/var/tmp", "/sandbox", "/home", "/dev", "/run"];

/// Variables that make a program run or load something of the caller's choice.
const INJECTING: [&str; 34] = [
    "BASH_ENV",
    "BASHOPTS",
    "CDPATH",
    "CORECLR_PROFILER",
    "DOTNET_STARTUP_HOOKS",
    "ENV",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GIT_EXEC_PATH",
    "GIT_EXTERNAL_DIFF",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "HOSTALIASES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LOCALDOMAIN",
    "LOCPATH",
    "LUA_INIT",
    "MALLOC_TRACE",
    "NIS_PATH",
    "NODE_OPTIONS",
    "NODE_PATH",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "PERLLIB",
    "PROMPT_COMMAND",
    "PS4",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "RES_OPTIONS",
    "RUBYOPT",
];

/// Prefixes of such variables.
const INJECTING_PREFIXES: [&str; 4] = ["LD_", "DYLD_", "GLIBC_TUNABLES", "BASH_FUNC_"];

/// Entries of the image's PATH that may stay: owned by root, not writable by
/// others, and outside every writable directory.
pub(super) fn trusted_path_entries(env: &[String], image: &dyn ImageView) -> Vec<String> {
    let Some(path) = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")) else {
        return Vec::new();
    };
    path.split(':')
        .take(64)
        .filter(|entry| entry.starts_with('/') && !SYSTEM_PATH.contains(entry))
        .filter(|entry| !entry.split('/').any(|part| part == ".."))
        .filter(|entry| !WRITABLE.iter().any(|writable| beneath(entry, writable)))
        .filter(|entry| {
            image.look(entry).is_some_and(|fact| {
                fact.directory
                    && fact.uid == 0
                    && fact.mode & 0o022 == 0
                    && !WRITABLE.iter().any(|writable| beneath(&fact.real, writable))
            })
        })
        .map(ToString::to_string)
        .collect()
}

/// The environment for the one asked for.
pub(super) fn filter(
    asked: &[String],
    keep: &[String],
    trusted: &[String],
    home: Option<&str>,
) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(asked.len() + 2);
    for entry in asked {
        let name = entry.split('=').next().unwrap_or_default();
        let kept = keep.iter().any(|kept| kept == name);
        let injecting = INJECTING.contains(&name)
            || INJECTING_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let replaced = name == "PATH" || (name == "HOME" && home.is_some());
        if (injecting && !kept) || replaced || name.is_empty() || entry.contains('\0') {
            continue;
        }
        env.push(entry.clone());
    }
    // The image's own order among trusted entries, as its author wanted it.
    let requested =
        asked.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let mut path: Vec<&str> = requested
        .split(':')
        .filter(|entry| SYSTEM_PATH.contains(entry) || trusted.iter().any(|known| known == entry))
        .collect();
    path.extend(SYSTEM_PATH);
    let mut seen = Vec::new();
    path.retain(|entry| {
        let new = !seen.contains(entry);
        seen.push(entry);
        new
    });
    env.insert(0, format!("PATH={}", path.join(":")));
    if let Some(home) = home {
        env.push(format!("HOME={home}"));
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(entries: &[&str]) -> Vec<String> {
        entries.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn injecting_variables_go_and_others_stay() {
        let asked = env(&[
            "LD_PRELOAD=/tmp/x.so",
            "NODE_OPTIONS=-r x",
            "FOO=bar",
            "LANG=C",
            "BASH_FUNC_x%%=()",
        ]);
        let got = filter(&asked, &[], &[], None);
        assert_eq!(
            got,
            env(&[
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "FOO=bar",
                "LANG=C"
            ])
        );
        assert!(
            filter(&asked, &env(&["NODE_OPTIONS"]), &[], None)
                .contains(&"NODE_OPTIONS=-r x".to_owned())
        );
    }

    #[test]
    fn path_keeps_only_trusted_entries_in_their_order() {
        let asked = env(&["PATH=/tmp/bin:.:/opt/tool/bin:/usr/bin::/sandbox/bin", "HOME=/root"]);
        let got = filter(&asked, &[], &env(&["/opt/tool/bin"]), Some("/sandbox"));
        assert_eq!(
            got,
            env(&[
                "PATH=/opt/tool/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin",
                "HOME=/sandbox"
            ])
        );
    }
}
