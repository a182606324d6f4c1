//! The shadow bundle: libcontainer reads `config.json` from disk, so the
//! hardened spec lives in a directory of ours that only root can enter.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use oci_spec::runtime::Spec;

use crate::store::{Entry, write_file};

/// Reads the engine's `config.json`.
pub(crate) fn read(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    Spec::load(&path).with_context(|| format!("cannot understand {}", path.display()))
}

/// The image's root as an absolute path.
pub(crate) fn rootfs(bundle: &Path, spec: &Spec) -> Result<PathBuf> {
    let root = spec.root().as_ref().context("config.json has no root")?;
    Ok(bundle.join(root.path()))
}

/// Writes the hardened spec where libcontainer will read it.
pub(crate) fn write(entry: &Entry, mut spec: Spec, rootfs: &Path) -> Result<PathBuf> {
    if let Some(root) = spec.root_mut() {
        root.set_path(rootfs.to_owned());
    }
    let directory = entry.directory.join("bundle");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    write_file(&directory.join("config.json"), &serde_json::to_vec(&spec)?)?;
    Ok(directory)
}
