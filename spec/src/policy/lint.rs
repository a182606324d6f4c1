//! Advice about a policy that is valid but probably not meant so.

use super::{Binaries, Diagnostic, LandlockMode, Policy, Severity};
use crate::name::HostPattern;

/// Everything worth a thought about `policy`, most of it from the mission's
/// list of common mistakes.
pub fn lint(policy: &Policy) -> Vec<Diagnostic> {
    let mut advice = Vec::new();
    let mut say = |line: u64, message: String, help: &str| {
        advice.push(Diagnostic {
            file: policy.origin.to_string(),
            line,
            column: 0,
            severity: Severity::Advice,
            message,
            help: help.to_owned(),
            text: String::new(),
        });
    };
    if policy.landlock == LandlockMode::BestEffort {
        say(
            0,
            "`best_effort` lets a container start with a weaker file-system boundary".to_owned(),
            "write `compatibility: hard_requirement`",
        );
    }
    if policy.options.pids == 0 {
        say(0, "`pids: 0` lets a fork bomb take the host along".to_owned(), "write a limit");
    }
    if policy.options.pids > 1024 {
        say(0, format!("`pids: {}` is more than 1024", policy.options.pids), "lower it");
    }
    if policy.options.allow_root {
        say(0, "`allow_root` lets containers run as root".to_owned(), "name a user instead");
    }
    for path in &policy.filesystem.read_write {
        let broad =
            ["/usr", "/lib", "/etc", "/bin", "/sbin", "/opt", "/var", "/home", "/proc", "/sys"];
        if broad.iter().any(|system| path.trim_end_matches('/') == *system) {
            say(0, format!("`{path}` is writable as a whole"), "name the directory that needs it");
        }
    }
    for rule in &policy.rules {
        match &rule.binaries {
            Binaries::Any => say(
                rule.line,
                format!("rule `{}` is for every program", rule.key),
                "list the programs that need it under `binaries:`",
            ),
            Binaries::Listed(list) if list.is_empty() => say(
                rule.line,
                format!("rule `{}` lists no binaries and therefore matches nothing", rule.key),
                "list the programs, or write `binaries: any` in a file with a `nemoclaw:` section",
            ),
            Binaries::Listed(list) => {
                for pattern in list.iter().filter(|pattern| writable(pattern.as_str())) {
                    say(
                        rule.line,
                        format!("`{pattern}` covers paths the sandbox can write"),
                        "name a program in a read-only directory",
                    );
                }
            }
        }
        if rule.endpoints.is_empty() {
            say(
                rule.line,
                format!("rule `{}` has no endpoints", rule.key),
                "add one, or remove the rule",
            );
        }
        for endpoint in &rule.endpoints {
            if let HostPattern::Glob(_) = endpoint.host {
                say(
                    endpoint.line,
                    format!("`{}` lets data out in the names themselves", endpoint.host),
                    "name the hosts",
                );
            }
        }
    }
    for finding in &policy.unenforced {
        // A container with this policy does not start.
        advice.push(finding.clone());
    }
    advice
}

fn writable(pattern: &str) -> bool {
    ["/sandbox", "/tmp", "/var/tmp", "/home", "/dev/shm", "/**", "**"]
        .iter()
        .any(|prefix| pattern.starts_with(prefix))
}
