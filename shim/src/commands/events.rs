//! events: resource usage, one JSON record a line.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use libcgroups::common::CgroupManager as _;
use libcontainer::container::ContainerStatus;
use serde_json::json;

use super::{print, signal};
use crate::cli::Events;
use crate::store::Entry;

/// The `events` verb.
pub(super) fn events(root: &Path, args: &Events) -> Result<()> {
    let entry = Entry::new(root, &args.id)?;
    let seconds = args.interval.trim_end_matches('s').parse::<u64>().unwrap_or(0);
    if seconds == 0 {
        bail!("the interval must be whole seconds, from 1");
    }
    loop {
        let container = entry.load()?;
        if container.status() == ContainerStatus::Stopped {
            if args.stats {
                bail!("container {} is not running", args.id);
            }
            return Ok(());
        }
        let stats = signal::cgroup(&container)?
            .stats()
            .context("cannot read the container's statistics")?;
        let data = serde_json::to_value(&stats)?;
        print(&json!({"type": "stats", "id": args.id, "data": data}).to_string())?;
        if args.stats {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(seconds));
    }
}
