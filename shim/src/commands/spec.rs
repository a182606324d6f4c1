//! spec: an example config.json.

use std::fs::OpenOptions;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use libcontainer::oci_spec::runtime::{Spec as OciSpec, get_rootless_mounts};

use crate::cli::Spec;

/// The `spec` verb.
pub(super) fn write(args: &Spec) -> Result<()> {
    let mut spec = OciSpec::default();
    if args.rootless {
        spec.set_mounts(Some(get_rootless_mounts()));
    }
    let path = args.bundle.join("config.json");
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(&path).with_context(|| {
            format!("cannot make {}; remove an older one first", path.display())
        })?;
    file.write_all(&serde_json::to_vec_pretty(&spec)?)
        .with_context(|| format!("cannot write {}", path.display()))
}
