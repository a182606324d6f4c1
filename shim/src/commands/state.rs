//! state: what engines ask about a container.

use std::path::Path;

use anyhow::Result;
use libcontainer::container::ContainerStatus;
use serde_json::json;

use crate::store::Entry;

/// Prints the state in the shape of the OCI runtime specification.
pub(super) fn print_json(root: &Path, id: &str) -> Result<serde_json::Value> {
    let entry = Entry::new(root, id)?;
    let container = entry.load()?;
    let record = entry.record()?;
    let status = container.status();
    let pid = match status {
        ContainerStatus::Stopped => 0,
        _ => container.pid().map_or(record.pid, nix::unistd::Pid::as_raw),
    };
    Ok(json!({
        "ociVersion": "1.2.0",
        "id": id,
        "pid": pid,
        "status": status.to_string().to_ascii_lowercase(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "owner": "",
        "annotations": record.annotations,
    }))
}

/// The `state` verb.
pub(super) fn print(root: &Path, id: &str) -> Result<()> {
    print_value(&print_json(root, id)?)
}

fn print_value(value: &serde_json::Value) -> Result<()> {
    super::print(&serde_json::to_string_pretty(value)?)
}
