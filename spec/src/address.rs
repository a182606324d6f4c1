//! Which addresses an upstream connection may go to.
//!
//! Sources: the IANA special-purpose address registries (RFC 6890 and its
//! updates), RFC 6052 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 4291
//! section 2.5.5 (mapped and compatible addresses), and the clouds' metadata
//! endpoints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// How an address is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressClass {
    /// Never reachable, whatever policy says: loopback, link-local (metadata
    /// services live there), unspecified, multicast, broadcast.
    Never,
    /// Reachable only where policy says so: private, shared, benchmark and
    /// documentation ranges.
    Private,
    /// The public Internet.
    Global,
}

/// The address a packet to `address` would really reach: embedded IPv4 forms
/// are unwrapped.
pub fn unwrap(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| {
        let [hh, hl] = high.to_be_bytes();
        let [lh, ll] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(hh, hl, lh, ll))
    };
    match [a, b, c, d, e, f] {
        // :: and ::1 are themselves, the rest of ::/96 is IPv4-compatible.
        [0, 0, 0, 0, 0, 0] if g == 0 && h <= 1 => address,
        // IPv4-compatible and IPv4-mapped (RFC 4291), translated (RFC 2765),
        // NAT64 (RFC 6052), NAT64 of local use with its /96 layout (RFC 8215).
        [0, 0, 0, 0, 0, 0 | 0xffff]
        | [0, 0, 0, 0, 0xffff, 0]
        | [0x64, 0xff9b, 0, 0, 0, 0]
        | [0x64, 0xff9b, 1, _, _, _] => v4(g, h),
        [0x2002, high, low, _, _, _] => v4(high, low),
        // Teredo keeps the client's address inverted in the last 32 bits.
        [0x2001, 0, _, _, _, _] => v4(!g, !h),
        _ => address,
    }
}

/// The IPv4 address inside an IPv4-mapped one (RFC 4291 section 2.5.5.2), which
/// dual-stack sockets report; other addresses as they are.
pub fn unwrap_mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// How `address` is treated, after unwrapping.
pub fn classify(address: IpAddr) -> AddressClass {
    match unwrap(address) {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => classify_v6(v6),
    }
}

const NEVER_V4: [(u32, u8); 7] = [
    (0x0000_0000, 8),  // this network (RFC 791)
    (0x7f00_0000, 8),  // loopback (RFC 1122)
    (0xa9fe_0000, 16), // link-local, metadata (RFC 3927)
    (0xe000_0000, 4),  // multicast (RFC 5771)
    (0xf000_0000, 4),  // reserved, broadcast (RFC 1112)
    (0x6464_64c8, 32), // 100.100.100.200, a cloud's metadata service
    (0xc000_00c0, 32), // 192.0.0.192, a cloud's metadata service
];

const PRIVATE_V4: [(u32, u8); 10] = [
    (0x0a00_0000, 8),  // RFC 1918
    (0xac10_0000, 12), // RFC 1918
    (0xc0a8_0000, 16), // RFC 1918
    (0x6440_0000, 10), // shared address space (RFC 6598)
    (0xc000_0000, 24), // IETF protocol assignments (RFC 6890)
    (0xc000_0200, 24), // documentation (RFC 5737)
    (0xc633_6400, 24), // documentation (RFC 5737)
    (0xcb00_7100, 24), // documentation (RFC 5737)
    (0xc612_0000, 15), // benchmarking (RFC 2544)
    (0xc058_6300, 24), // 6to4 relay anycast (RFC 7526)
];

const NEVER_V6: [(u128, u8); 6] = [
    (0, 128),                                         // unspecified
    (1, 128),                                         // loopback
    (0xfe80 << 112, 10),                              // link-local
    (0xff00 << 112, 8),                               // multicast
    (0xfd00_0ec2_0000_0000_0000_0000_0000_0254, 128), // a cloud's metadata service
    (0xfd20_00ce_0000_0000_0000_0000_0000_0254, 128), // a cloud's metadata service
];

const PRIVATE_V6: [(u128, u8); 6] = [
    (0xfc00 << 112, 7),      // unique local (RFC 4193)
    (0xfec0 << 112, 10),     // site-local, deprecated (RFC 3879)
    (0x2001_0db8 << 96, 32), // documentation (RFC 3849)
    (0x3fff << 112, 20),     // documentation (RFC 9637)
    (0x0100 << 112, 64),     // discard only (RFC 6666)
    (0x2001_0002 << 96, 48), // benchmarking (RFC 5180)
];

fn classify_v4(address: Ipv4Addr) -> AddressClass {
    let bits = u32::from(address);
    let within = |&(network, prefix): &(u32, u8)| {
        let shift = 32 - u32::from(prefix);
        (bits ^ network).checked_shr(shift).unwrap_or(0) == 0
    };
    if NEVER_V4.iter().any(within) {
        AddressClass::Never
    } else if PRIVATE_V4.iter().any(within) {
        AddressClass::Private
    } else {
        AddressClass::Global
    }
}

fn classify_v6(address: Ipv6Addr) -> AddressClass {
    let bits = u128::from(address);
    let within = |&(network, prefix): &(u128, u8)| {
        let shift = 128 - u32::from(prefix);
        (bits ^ network).checked_shr(shift).unwrap_or(0) == 0
    };
    if NEVER_V6.iter().any(within) {
        AddressClass::Never
    } else if PRIVATE_V6.iter().any(within) {
        AddressClass::Private
    } else if bits >> 125 == 1 {
        AddressClass::Global
    } else {
        // Outside 2000::/3 nothing is assigned for global unicast.
        AddressClass::Never
    }
}

/// True when `range` contains an address that is never reachable.
pub(crate) fn overlaps_never(range: &IpNet) -> bool {
    let overlaps = |other: IpNet| range.contains(&other) || other.contains(range);
    match range {
        IpNet::V4(_) => NEVER_V4.iter().any(|&(network, prefix)| {
            Ipv4Net::new(Ipv4Addr::from(network), prefix).is_ok_and(|net| overlaps(IpNet::V4(net)))
        }),
        IpNet::V6(net) => {
            classify(IpAddr::V6(net.network())) == AddressClass::Never
                || NEVER_V6.iter().any(|&(network, prefix)| {
                    Ipv6Net::new(Ipv6Addr::from(network), prefix)
                        .is_ok_and(|net| overlaps(IpNet::V6(net)))
                })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(text: &str) -> AddressClass {
        classify(text.parse().unwrap())
    }

    #[test]
    fn what_must_never_be_reached() {
        for text in [
            "127.0.0.1",
            "127.255.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "192.0.0.192",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "64:ff9b:1::7f00:1",
            "::ffff:0:127.0.0.1",
            "2001:0:1:2:3:4:80ff:fffe",
            "4000::1",
        ] {
            assert_eq!(class(text), AddressClass::Never, "{text}");
        }
    }

    #[test]
    fn what_policy_must_name() {
        for text in [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "198.18.0.1",
            "203.0.113.9",
            "198.51.100.1",
            "192.0.2.1",
            "fc00::1",
            "fd12::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
        ] {
            assert_eq!(class(text), AddressClass::Private, "{text}");
        }
    }

    #[test]
    fn the_public_internet() {
        for text in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1", "11.22.0.1"] {
            assert_eq!(class(text), AddressClass::Global, "{text}");
        }
    }

    #[test]
    fn a_range_over_a_never_address_is_seen() {
        for text in
            ["0.0.0.0/0", "127.0.0.0/30", "169.254.169.254/32", "::/0", "fe80::/64", "fc00::/7"]
        {
            assert!(overlaps_never(&text.parse().unwrap()), "{text}");
        }
        for text in ["10.0.0.0/8", "203.0.113.0/24", "2001:db8::/32"] {
            assert!(!overlaps_never(&text.parse().unwrap()), "{text}");
        }
    }
}
