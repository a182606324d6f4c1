//! Virtual addresses: every name the sandbox asks for gets one that maps back
//! to exactly that name, without anybody outside being asked.
//!
//! The table lies in a memory file that outlives the worker. Names some rule
//! can match keep their address for the sandbox's life; others are forgotten,
//! oldest first, once no answer or connection can still use them.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use nemoclaw_spec::control::{POOL_V4, POOL_V6};
use nemoclaw_spec::name::{Host, MAX_HOST_BYTES};

/// Bytes of one slot: length, then the name.
const SLOT: usize = 256;
/// Addresses in the pool, less the first (the network's own).
const CAPACITY: u32 = (1 << (32 - POOL_V4.1)) - 2;
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
    /// Slots that may be forgotten, in the order of their last use.
    oldest: VecDeque<(u32, Instant)>,
    next: u32,
}

struct Entry {
    host: Host,
    used: Instant,
    pinned: bool,
    connections: u32,
}

impl Names {
    /// Reads what earlier workers gave out.
    pub(super) fn load(
        file: File,
        has_v6: bool,
        search: &[String],
        pinned: &dyn Fn(&Host) -> bool,
    ) -> Self {
        let mut inner = Inner {
            file,
            by_host: HashMap::new(),
            by_slot: HashMap::new(),
            oldest: VecDeque::new(),
            next: 1,
        };
        inner.read_back(pinned);
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

    /// The index behind a host's addresses; `None` when the pool is exhausted.
    /// `pinned` names are never forgotten.
    pub(super) fn assign(&self, host: &Host, pinned: bool) -> Option<Virtual> {
        self.inner.borrow_mut().assign(host, pinned).map(Virtual)
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
    fn assign(&mut self, host: &Host, pinned: bool) -> Option<u32> {
        let now = Instant::now();
        if let Some(slot) = self.by_host.get(host) {
            if let Some(entry) = self.by_slot.get_mut(slot) {
                entry.used = now;
            }
            return Some(*slot);
        }
        let slot = if self.next <= CAPACITY {
            self.next += 1;
            self.next - 1
        } else {
            self.recycle(now)?
        };
        self.write(slot, host);
        self.by_host.insert(host.clone(), slot);
        self.by_slot.insert(slot, Entry { host: host.clone(), used: now, pinned, connections: 0 });
        if !pinned {
            self.oldest.push_back((slot, now));
        }
        Some(slot)
    }

    /// Takes the slot of the name that rested longest; looks at a bounded
    /// number so that a flood of names cannot buy our time.
    fn recycle(&mut self, now: Instant) -> Option<u32> {
        for _ in 0..16 {
            let (slot, _) = self.oldest.pop_front()?;
            let Some(entry) = self.by_slot.get(&slot) else { continue };
            if entry.pinned {
                continue;
            }
            if entry.connections > 0 || now.duration_since(entry.used) < REST {
                self.oldest.push_back((slot, entry.used));
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

    fn read_back(&mut self, pinned: &dyn Fn(&Host) -> bool) {
        let length = self.file.metadata().map_or(0, |metadata| metadata.len());
        let slots = u32::try_from(length / SLOT as u64).unwrap_or(0).min(CAPACITY + 1);
        let now = Instant::now();
        for slot in 1..slots {
            let mut bytes = [0_u8; SLOT];
            if self.file.read_exact_at(&mut bytes, u64::from(slot) * SLOT as u64).is_err() {
                break;
            }
            self.next = slot + 1;
            let length = bytes.first().map_or(0, |length| usize::from(*length));
            let text = bytes.get(1..=length).and_then(|name| std::str::from_utf8(name).ok());
            // A worker that was taken over may have written anything.
            let Some(host) = text.and_then(|text| Host::parse(text).ok()) else { continue };
            let pinned = pinned(&host);
            self.by_host.insert(host.clone(), slot);
            self.by_slot.insert(slot, Entry { host, used: now, pinned, connections: 0 });
            if !pinned {
                self.oldest.push_back((slot, now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(file: &File) -> Names {
        Names::load(file.try_clone().unwrap(), true, &["corp.example".to_owned()], &|_| false)
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
        let a = names.assign(&host("a.example"), false).unwrap();
        let b = names.assign(&host("b.example"), false).unwrap();
        assert_ne!(a, b);
        assert_eq!(names.assign(&host("A.example."), false), Some(a));
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
        let a = first.assign(&host("a.example"), true).unwrap();
        let b = first.assign(&host(&format!("{}.example", "x".repeat(63))), false).unwrap();
        drop(first);
        let second = names(&file);
        assert_eq!(second.host_of(a.v4().into()), Some(host("a.example")));
        assert_eq!(second.assign(&host("a.example"), true), Some(a));
        let c = second.assign(&host("c.example"), false).unwrap();
        assert!(c != a && c != b);
    }

    #[test]
    fn a_full_pool_reuses_nothing_that_may_be_in_use() {
        let names = names(&table());
        for n in 0..CAPACITY {
            assert!(names.assign(&host(&format!("n{n}.example")), n == 0).is_some());
        }
        assert_eq!(names.assign(&host("late.example"), false), None);
        assert!(names.assign(&host("n5.example"), false).is_some());
        // Once rested, the oldest goes; a connection or a rule keeps a name.
        let long_ago = Instant::now().checked_sub(REST * 2).unwrap();
        for entry in names.inner.borrow_mut().by_slot.values_mut() {
            entry.used = long_ago;
        }
        let first = names.inner.borrow().by_host[&host("n0.example")];
        let second = names.inner.borrow().by_host[&host("n1.example")];
        let held = names.hold(Virtual(second).v4().into());
        names.inner.borrow_mut().by_slot.get_mut(&second).unwrap().used = long_ago;
        let late = names.assign(&host("late.example"), false).unwrap();
        assert!(late.0 != first && late.0 != second);
        drop(held);
    }

    #[test]
    fn search_domains_are_recognised() {
        let names = names(&table());
        assert!(names.is_search_attempt(&host("api.example.com.corp.example")));
        assert!(!names.is_search_attempt(&host("corp.example")));
        assert!(!names.is_search_attempt(&host("evilcorp.example")));
    }
}
