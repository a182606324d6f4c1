//! Which policy applies, and that nobody but root can have written it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nemoclaw_spec::policy::{BASELINE, MAX_POLICY_BYTES, Policy};

/// Where the operator's files live.
const CONFIG: &str = "/etc/nemoclaw";

/// A policy with its text, which the proxy parses again.
#[derive(Debug)]
pub(crate) struct Selected {
    pub(crate) policy: Policy,
    pub(crate) text: String,
    pub(crate) name: String,
}

/// Selects the policy: the runtime argument, else the operator's default file,
/// else the built-in baseline.
///
/// # Errors
/// A file that is missing, not root's own, or not a policy.
pub(crate) fn select(argument: Option<&str>) -> Result<Selected> {
    if let Some(argument) = argument.filter(|argument| *argument != "observe") {
        return load(&locate(argument)?);
    }
    let default = Path::new(CONFIG).join("policy.yaml");
    if default.symlink_metadata().is_ok() {
        return load(&default);
    }
    let policy = Policy::baseline()?;
    let name = policy.origin.to_string();
    Ok(Selected { policy, text: BASELINE.to_owned(), name })
}

fn locate(argument: &str) -> Result<PathBuf> {
    if argument.contains('/') {
        let path = PathBuf::from(argument);
        if !path.is_absolute() {
            bail!(
                "--policy {argument} is no absolute path; the runtime runs in the engine's directory"
            );
        }
        return Ok(path);
    }
    let fine = argument.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !argument.starts_with('.');
    if !fine {
        bail!(
            "`{}` is no policy name; use letters, digits, `-`, `_` and `.`",
            argument.escape_debug()
        );
    }
    Ok(Path::new(CONFIG).join("policies").join(format!("{argument}.yaml")))
}

fn load(path: &Path) -> Result<Selected> {
    let metadata =
        fs::metadata(path).with_context(|| format!("cannot find the policy {}", path.display()))?;
    // SECURITY: only root's files may widen; a file others can write is theirs.
    if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        bail!(
            "the policy {} must belong to root and be writable by nobody else; run: chown root {0} && chmod go-w {0}",
            path.display()
        );
    }
    if metadata.len() > MAX_POLICY_BYTES as u64 {
        bail!("the policy {} is larger than {MAX_POLICY_BYTES} bytes", path.display());
    }
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the policy {}", path.display()))?;
    let name = path.display().to_string();
    let policy = Policy::parse(&text, &name)?;
    Ok(Selected { policy, text, name })
}
