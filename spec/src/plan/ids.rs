//! Ids of a user namespace that the engine asks for (user_namespaces(7)).

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

/// What nobody has: what lies outside every range.
const NOBODY: u32 = u32::MAX;

/// A range of ids: first inside, first on the host, how many.
type Range = (u32, u32, u32);

/// How ids of the container and of the host correspond; without ranges they are
/// the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    users: Vec<Range>,
    groups: Vec<Range>,
}

impl Ids {
    /// The ranges of a spec.
    pub fn of(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let ranges = |mappings: Option<&Vec<LinuxIdMapping>>| {
            mappings
                .into_iter()
                .flatten()
                .map(|own| (own.container_id(), own.host_id(), own.size()))
                .collect()
        };
        Self {
            users: ranges(linux.and_then(|linux| linux.uid_mappings().as_ref())),
            groups: ranges(linux.and_then(|linux| linux.gid_mappings().as_ref())),
        }
    }

    /// User and group on the host.
    pub fn outside(&self, user: u32, group: u32) -> (u32, u32) {
        (outside(&self.users, user), outside(&self.groups, group))
    }

    /// User and group as the container sees them; 4294967295 for those it does not
    /// have.
    pub fn inside(&self, user: u32, group: u32) -> (u32, u32) {
        (inside(&self.users, user), inside(&self.groups, group))
    }
}

/// Whether the container gets a user namespace.
pub fn has_user_namespace(spec: &Spec) -> bool {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces.into_iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

fn outside(ranges: &[Range], id: u32) -> u32 {
    let found = ranges.iter().find_map(|(first, host, length)| {
        id.checked_sub(*first).filter(|offset| offset < length)?.checked_add(*host)
    });
    if ranges.is_empty() { id } else { found.unwrap_or(NOBODY) }
}

fn inside(ranges: &[Range], id: u32) -> u32 {
    let found = ranges.iter().find_map(|(first, host, length)| {
        id.checked_sub(*host).filter(|offset| offset < length)?.checked_add(*first)
    });
    if ranges.is_empty() { id } else { found.unwrap_or(NOBODY) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_ranges_and_nobody_s_outside() {
        let ids = Ids { users: vec![(0, 100_000, 65_536)], groups: vec![(0, 200_000, 10)] };
        assert_eq!(ids.outside(998, 3), (100_998, 200_003));
        assert_eq!(ids.inside(100_998, 200_003), (998, 3));
        assert_eq!(ids.outside(65_536, 10), (NOBODY, NOBODY));
        assert_eq!(ids.inside(0, 5), (NOBODY, NOBODY));
        assert_eq!(Ids::default().outside(7, 8), (7, 8));
        assert_eq!(Ids::default().inside(7, 8), (7, 8));
    }
}
