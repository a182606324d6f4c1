//! Virtual addresses: every name the sandbox asks for gets one that maps back
//! to exactly that name, without anybody outside being asked.
//!
//! The table lies in a memory file that outlives the worker. Names that rules spell out
//! keep their address for the sandbox's life; others are forgotten, oldest first, once
//! no answer or connection can still use them. Each kind has a part of the pool of its
//! own, so that a flood of one leaves the others alone: at its end names that a wildcard
//! admits get no answer (SERVFAIL), and names that nothing admits share one address,
//! where they are refused as before.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use nemoclaw_spec::control::{POOL_V4, POOL_V6};
use nemoclaw_spec::decide::Naming;
use nemoclaw_spec::name::{Host, MAX_HOST_BYTES};

/// Bytes of one slot: length, then the name.
const SLOT: usize = 256;
/// Addresses in the pool, less the first and the last (the network's own).
const CAPACITY: u32 = (1 << (32 - POOL_V4.1)) - 2;
/// The last addresses of the parts of the pool: for names that rules spell out, for
/// those that wildcards admit, and for those that nothing admits.
const PARTS: [u32; 3] = [CAPACITY / 4, CAPACITY / 4 * 3, CAPACITY - 1];
/// What those of the last part share that came when it was full.
const SHARED: u32 = CAPACITY;
/// Behind the pool, in the table: names that were resolved and no rule spells out.
const RESOLVED: u32 = CAPACITY + 1;

/// How long an answer may be kept, in seconds.
pub(super) const TTL: u32 = 60;
/// How long a forgotten name's address rests before another gets it.
const REST: Duration = Duration::from_secs(2 * TTL as u64);

/// The table of one sandbox.
pub(super) struct Names {
    inner: RefCell<Inner>,
    has_v6: bool,
    search: Vec<String>,
}

struct Inner {
    file: File,
    by_host: HashMap<Host, u32>,
    by_slot: HashMap<u32, Entry>,
    parts: [Part; 3],
    /// Names that were resolved although no rule spells them out.
    resolved: HashSet<Host>,
}

/// A part of the pool.
struct Part {
    /// The first slot that was never used, and the last there is.
    next: u32,
    last: u32,
    /// Slots that may be forgotten, in the order of their last use.
    oldest: VecDeque<(u32, Instant)>,
}

struct Entry {
    host: Host,
    used: Instant,
    connections: u32,
}

/// Which part names of this kind are in.
fn part_of(naming: Naming) -> usize {
    match naming {
        Naming::Spelled => 0,
        Naming::Wildcard => 1,
        Naming::Unknown => 2,
    }
}

impl Names {
    /// Reads what earlier workers gave out.
    pub(super) fn load(file: File, has_v6: bool, search: &[String]) -> Self {
        let mut first = 1;
        let parts = PARTS.map(|last| {
            let part = Part { next: first, last, oldest: VecDeque::new() };
            first = last + 1;
            part
        });
        let mut inner = Inner {
            file,
            by_host: HashMap::new(),
            by_slot: HashMap::new(),
            parts,
            resolved: HashSet::new(),
        };
        inner.read_back();
        let search = search
            .iter()
            .filter_map(|domain| Host::parse(domain).ok())
            .map(|host| host.to_string())
            .collect();
        Self { inner: RefCell::new(inner), has_v6, search }
    }

    /// Whether the namespace has IPv6 addresses to give.
    pub(super) fn has_v6(&self) -> bool {
        self.has_v6
    }

    /// Whether `host` is a search domain's attempt at another name.
    pub(super) fn is_search_attempt(&self, host: &Host) -> bool {
        self.search.iter().any(|domain| {
            host.as_str().strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
        })
    }

    /// The index behind a host's addresses; `None` when its part of the pool is
    /// exhausted.
    pub(super) fn assign(&self, host: &Host, naming: Naming) -> Option<Virtual> {
        let assigned = self.inner.borrow_mut().assign(host, naming);
        let shared = (naming == Naming::Unknown).then_some(SHARED);
        assigned.or(shared).map(Virtual)
    }

    /// Whether this is the address of names that were not kept.
    pub(super) fn is_shared(address: IpAddr) -> bool {
        slot_of(address) == Some(SHARED)
    }

    /// Notes that a name which only a wildcard admits is about to be resolved; false
    /// where `most` others have been already.
    pub(super) fn may_resolve(&self, host: &Host, most: u64) -> bool {
        let mut inner = self.inner.borrow_mut();
        let resolved = &mut inner.resolved;
        if resolved.contains(host) {
            return true;
        }
        let number = resolved.len();
        let may = u64::try_from(number).is_ok_and(|so_far| so_far < most);
        if may {
            resolved.insert(host.clone());
            // The next worker counts on.
            if let Ok(number) = u32::try_from(number) {
                inner.write(RESOLVED + number, host);
            }
        }
        may
    }

    /// The host behind a virtual address.
    pub(super) fn host_of(&self, address: IpAddr) -> Option<Host> {
        let slot = slot_of(address)?;
        self.inner.borrow().by_slot.get(&slot).map(|entry| entry.host.clone())
    }

    /// Notes that a connection uses the name behind `address`, until dropped.
    pub(super) fn hold(&self, address: IpAddr) -> Held<'_> {
        let slot = slot_of(address);
        if let Some(entry) = slot.and_then(|slot| {
            self.inner.borrow_mut().by_slot.get_mut(&slot).map(|entry| {
                entry.connections += 1;
                entry.used = Instant::now();
            })
        }) {
            let () = entry;
        }
        Held { names: self, slot }
    }
}

/// A connection's hold on a name.
pub(super) struct Held<'a> {
    names: &'a Names,
    slot: Option<u32>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        if let Some(entry) = self.names.inner.borrow_mut().by_slot.get_mut(&slot) {
            entry.connections = entry.connections.saturating_sub(1);
            entry.used = Instant::now();
        }
    }
}

/// A place in the pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Virtual(u32);

impl Virtual {
    pub(super) fn v4(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(POOL_V4.0) + self.0)
    }

    pub(super) fn v6(self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(POOL_V6.0) + u128::from(self.0))
    }
}

/// The index of a virtual address; `None` for any other address.
pub(super) fn slot_of(address: IpAddr) -> Option<u32> {
    let slot = match address {
        IpAddr::V4(v4) => u32::from(v4).checked_sub(u32::from(POOL_V4.0))?,
        IpAddr::V6(v6) => u32::try_from(u128::from(v6).checked_sub(u128::from(POOL_V6.0))?).ok()?,
    };
    (1..=CAPACITY).contains(&slot).then_some(slot)
}

impl Inner {
    fn assign(&mut self, host: &Host, naming: Naming) -> Option<u32> {
        let now = Instant::now();
        if let Some(slot) = self.by_host.get(host) {
            if let Some(entry) = self.by_slot.get_mut(slot) {
                entry.used = now;
            }
            return Some(*slot);
        }
        let number = part_of(naming);
        let part = self.parts.get_mut(number)?;
        let slot = if part.next <= part.last {
            part.next += 1;
            part.next - 1
        } else if naming == Naming::Spelled {
            // A policy of so many names: the rest are kept like others.
            return self.assign(host, Naming::Wildcard);
        } else {
            self.recycle(number, now)?
        };
        self.write(slot, host);
        self.keep(number, slot, host.clone(), now);
        Some(slot)
    }

    fn keep(&mut self, part: usize, slot: u32, host: Host, now: Instant) {
        self.by_host.insert(host.clone(), slot);
        self.by_slot.insert(slot, Entry { host, used: now, connections: 0 });
        if let Some(part) = self.parts.get_mut(part).filter(|_| part > 0) {
            part.oldest.push_back((slot, now));
        }
    }

    /// Takes the slot of the name that rested longest; looks at a bounded
    /// number so that a flood of names cannot buy our time.
    fn recycle(&mut self, part: usize, now: Instant) -> Option<u32> {
        let part = self.parts.get_mut(part)?;
        for _ in 0..16 {
            let (slot, _) = part.oldest.pop_front()?;
            let Some(entry) = self.by_slot.get(&slot) else { continue };
            if entry.connections > 0 || now.duration_since(entry.used) < REST {
                part.oldest.push_back((slot, entry.used));
                continue;
            }
            let host = entry.host.clone();
            self.by_slot.remove(&slot);
            self.by_host.remove(&host);
            return Some(slot);
        }
        None
    }

    /// A table that cannot be written is only lost with this worker.
    fn write(&self, slot: u32, host: &Host) {
        let mut bytes = [0_u8; SLOT];
        let name = host.as_str().as_bytes();
        if let (Some(first), Some(rest)) = (bytes.get_mut(0), u8::try_from(name.len()).ok()) {
            *first = rest;
        }
        if let Some(place) = bytes.get_mut(1..=name.len().min(MAX_HOST_BYTES)) {
            place.copy_from_slice(name);
        }
        let _kept = self.file.write_all_at(&bytes, u64::from(slot) * SLOT as u64);
    }

    /// Reads each part to its first empty slot.
    fn read_back(&mut self) {
        let now = Instant::now();
        for number in 0..PARTS.len() {
            while let Some((slot, host)) = self.next_kept(number) {
                // A worker that was taken over may have written anything.
                if let Some(host) = host {
                    self.keep(number, slot, host, now);
                }
                if let Some(part) = self.parts.get_mut(number) {
                    part.next = slot + 1;
                }
            }
        }
        for number in RESOLVED.. {
            let Some(kept) = self.kept_at(number) else { break };
            self.resolved.extend(kept);
        }
    }

    /// The next slot of a part that was written to, and the name there.
    fn next_kept(&self, part: usize) -> Option<(u32, Option<Host>)> {
        let part = self.parts.get(part)?;
        let slot = (part.next <= part.last).then_some(part.next)?;
        Some((slot, self.kept_at(slot)?))
    }

    /// The name in a slot; `None` where nothing was written.
    #[expect(clippy::option_option, reason = "nothing there, nothing readable, a name")]
    fn kept_at(&self, slot: u32) -> Option<Option<Host>> {
        let mut bytes = [0_u8; SLOT];
        self.file.read_exact_at(&mut bytes, u64::from(slot) * SLOT as u64).ok()?;
        let length = bytes.first().map(|length| usize::from(*length)).filter(|n| *n > 0)?;
        let text = bytes.get(1..=length).and_then(|name| std::str::from_utf8(name).ok());
        Some(text.and_then(|text| Host::parse(text).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(file: &File) -> Names {
        Names::load(file.try_clone().unwrap(), true, &["corp.example".to_owned()])
    }

    fn table() -> File {
        File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
    }

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    #[test]
    fn a_name_keeps_its_address_and_maps_back() {
        let names = names(&table());
        let a = names.assign(&host("a.example"), Naming::Unknown).unwrap();
        let b = names.assign(&host("b.example"), Naming::Unknown).unwrap();
        assert_ne!(a, b);
        assert_eq!(names.assign(&host("A.example."), Naming::Unknown), Some(a));
        assert_eq!(names.host_of(a.v4().into()), Some(host("a.example")));
        assert_eq!(names.host_of(b.v6().into()), Some(host("b.example")));
        assert_eq!(names.host_of("11.22.9.9".parse().unwrap()), None);
        assert_eq!(names.host_of("10.0.0.1".parse().unwrap()), None);
        assert_eq!(names.host_of(POOL_V4.0.into()), None);
    }

    #[test]
    fn the_table_outlives_a_worker() {
        let file = table();
        let first = names(&file);
        let a = first.assign(&host("a.example"), Naming::Spelled).unwrap();
        let b =
            first.assign(&host(&format!("{}.example", "x".repeat(63))), Naming::Unknown).unwrap();
        drop(first);
        let second = names(&file);
        assert_eq!(second.host_of(a.v4().into()), Some(host("a.example")));
        assert_eq!(second.assign(&host("a.example"), Naming::Spelled), Some(a));
        let c = second.assign(&host("c.example"), Naming::Unknown).unwrap();
        assert!(c != a && c != b);
    }

    #[test]
    fn a_full_part_reuses_nothing_that_may_be_in_use() {
        let names = names(&table());
        for n in 0..PARTS[1] - PARTS[0] {
            assert!(names.assign(&host(&format!("n{n}.example")), Naming::Wildcard).is_some());
        }
        assert_eq!(names.assign(&host("late.example"), Naming::Wildcard), None);
        assert!(names.assign(&host("n5.example"), Naming::Wildcard).is_some());
        // Once rested, the oldest goes; a connection keeps a name.
        let long_ago = Instant::now().checked_sub(REST * 2).unwrap();
        for entry in names.inner.borrow_mut().by_slot.values_mut() {
            entry.used = long_ago;
        }
        let first = names.inner.borrow().by_host[&host("n0.example")];
        let held = names.hold(Virtual(first).v4().into());
        names.inner.borrow_mut().by_slot.get_mut(&first).unwrap().used = long_ago;
        let late = names.assign(&host("late.example"), Naming::Wildcard).unwrap();
        assert_ne!(late.0, first);
        drop(held);
    }

    #[test]
    fn a_flood_of_one_kind_leaves_the_others_alone() {
        let file = table();
        let names = names(&file);
        for n in 0..100_000 {
            let assigned = names.assign(&host(&format!("r{n}.example")), Naming::Unknown).unwrap();
            let kept = PARTS[2] - PARTS[1];
            assert_eq!(Names::is_shared(assigned.v4().into()), n >= kept, "{n}");
            assert_eq!(Names::is_shared(assigned.v6().into()), n >= kept);
        }
        assert_eq!(names.host_of(Virtual(SHARED).v4().into()), None);
        let wild = names.assign(&host("a.wild.example"), Naming::Wildcard).unwrap();
        let spelled = names.assign(&host("api.example"), Naming::Spelled).unwrap();
        assert!(spelled.0 <= PARTS[0] && wild.0 > PARTS[0] && wild.0 <= PARTS[1]);
        assert_eq!(names.inner.borrow().by_slot.len(), 2 + (PARTS[2] - PARTS[1]) as usize);
        // All of that is there for the next worker.
        let next = self::names(&file);
        assert_eq!(next.inner.borrow().by_slot.len(), names.inner.borrow().by_slot.len());
        assert_eq!(next.host_of(wild.v4().into()), Some(host("a.wild.example")));
        let more = next.assign(&host("b.wild.example"), Naming::Wildcard).unwrap();
        assert_eq!(more.0, wild.0 + 1);
    }

    #[test]
    fn so_many_names_of_wildcards_are_resolved_and_no_more() {
        let file = table();
        let names = names(&file);
        for n in 0..5 {
            let own = host(&format!("n{n}.wild.example"));
            names.assign(&own, Naming::Wildcard).unwrap();
            assert_eq!(names.may_resolve(&own, 3), n < 3);
        }
        assert!(names.may_resolve(&host("n1.wild.example"), 3));
        let next = self::names(&file);
        assert!(next.may_resolve(&host("n2.wild.example"), 3));
        assert!(!next.may_resolve(&host("n3.wild.example"), 3));
        assert!(!names.may_resolve(&host("never-asked.wild.example"), 3));
    }

    #[test]
    fn search_domains_are_recognised() {
        let names = names(&table());
        assert!(names.is_search_attempt(&host("api.example.com.corp.example")));
        assert!(!names.is_search_attempt(&host("corp.example")));
        assert!(!names.is_search_attempt(&host("evilcorp.example")));
    }
}
