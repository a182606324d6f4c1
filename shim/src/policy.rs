//! Which policy applies, and that nobody but root can have written it.

use std::cell::RefCell;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use nemoclaw_spec::policy::{BASELINE, Files, Library, MAX_POLICY_BYTES, Policy, preset};

/// Where the operator's files live.
const CONFIG: &str = "/etc/nemoclaw";

/// A policy with its text, which the proxy parses again.
#[derive(Debug)]
pub(crate) struct Selected {
    pub(crate) policy: Policy,
    pub(crate) text: String,
    pub(crate) name: String,
    pub(crate) files: Files,
}

/// Selects the policy: the runtime argument, else the operator's default file,
/// else the built-in baseline.
///
/// # Errors
/// A file that is missing, not root's own, or not a policy.
pub(crate) fn select(argument: Option<&str>) -> Result<Selected> {
    if let Some(argument) = argument.filter(|argument| *argument != "observe") {
        let path = locate(argument)?;
        let built_in = preset::policy(argument).filter(|_| path.symlink_metadata().is_err());
        return built_in.map_or_else(
            || load(&path),
            |text| parsed(text.to_owned(), format!("built-in {argument}")),
        );
    }
    let default = Path::new(CONFIG).join("policy.yaml");
    if default.symlink_metadata().is_ok() {
        return load(&default);
    }
    let policy = Policy::baseline()?;
    let name = policy.origin.to_string();
    Ok(Selected { policy, text: BASELINE.to_owned(), name, files: Files::default() })
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
    if !plain_name(argument) {
        bail!(
            "`{}` is no policy name; use letters, digits, `-`, `_` and `.`",
            argument.escape_debug()
        );
    }
    Ok(Path::new(CONFIG).join("policies").join(format!("{argument}.yaml")))
}

fn load(path: &Path) -> Result<Selected> {
    parsed(read(path)?, path.display().to_string())
}

fn parsed(text: String, name: String) -> Result<Selected> {
    let library = Operator::default();
    let policy = Policy::parse_with(&text, &name, &library).map_err(|invalid| {
        // Why a file could not be read is a better answer than that it is unknown.
        match library.failed.take() {
            Some(error) => error.context(invalid),
            None => anyhow!(invalid),
        }
    })?;
    Ok(Selected { policy, text, name, files: library.found.take() })
}

/// Reads a file that only root can have written.
fn read(path: &Path) -> Result<String> {
    // SECURITY: only root's files may widen. The path is resolved once, and
    // what is checked is what is read.
    let real = fs::canonicalize(path)
        .with_context(|| format!("cannot find the policy {}", path.display()))?;
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() | rustix::fs::OFlags::NONBLOCK.bits();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags).unwrap_or_default())
        .open(&real)
        .with_context(|| format!("cannot open the policy {}", path.display()))?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("the policy {} is no file", path.display());
    }
    if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        bail!(
            "the policy {} must belong to root and be writable by nobody else; run: chown root {0} && chmod go-w {0}",
            path.display()
        );
    }
    let limit = MAX_POLICY_BYTES as u64;
    let mut text = String::new();
    file.take(limit + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read the policy {}", path.display()))?;
    if text.len() > MAX_POLICY_BYTES {
        bail!("the policy {} is larger than {MAX_POLICY_BYTES} bytes", path.display());
    }
    Ok(text)
}

/// The operator's files, found by name in /etc/nemoclaw, and what was found.
#[derive(Debug, Default)]
struct Operator {
    found: RefCell<Files>,
    failed: RefCell<Option<anyhow::Error>>,
}

impl Operator {
    fn find(&self, kind: &str, name: &str) -> Option<(String, String)> {
        if !plain_name(name) {
            return None;
        }
        let path = Path::new(CONFIG).join(kind).join(format!("{name}.yaml"));
        path.symlink_metadata().ok()?;
        match read(&path) {
            Ok(text) => Some((text, path.display().to_string())),
            Err(error) => {
                self.failed.replace(Some(error));
                None
            }
        }
    }
}

impl Library for Operator {
    fn policy(&self, name: &str) -> Option<(String, String)> {
        let found = self.find("policies", name)?;
        self.found.borrow_mut().policies.insert(name.to_owned(), found.clone());
        Some(found)
    }

    fn preset(&self, name: &str) -> Option<(String, String)> {
        let found = self.find("presets", name)?;
        self.found.borrow_mut().presets.insert(name.to_owned(), found.clone());
        Some(found)
    }
}

/// Whether a name can be a file's without leading anywhere else.
fn plain_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !name.starts_with('.')
        && !name.is_empty()
}
