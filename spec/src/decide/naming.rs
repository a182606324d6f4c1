//! What a name itself may tell whoever serves it. Rules with wildcards admit names of
//! the sandbox's own making, and each one that is resolved reaches the servers of its
//! domain: a label of 52 random characters carries 32 bytes out. Names of services are
//! shorter or plainer.

use crate::name::Host;

/// How rules come to admit a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// No rule has it.
    Unknown,
    /// Only rules with wildcards do.
    Wildcard,
    /// A rule spells it out.
    Spelled,
}

/// How many bits the labels of a name carry, by the frequency of their characters
/// (Shannon): all of them together, and the most of one label.
pub(super) fn carried(host: &Host) -> (u64, u64) {
    host.as_str().split('.').map(bits).fold((0, 0), |(sum, most), own| (sum + own, most.max(own)))
}

fn bits(label: &str) -> u64 {
    let mut counts = [0_u32; 256];
    for byte in label.bytes() {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let length = f64::from(u32::try_from(label.len()).unwrap_or(u32::MAX));
    let sum: f64 = counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| f64::from(*count) * (length / f64::from(*count)).log2())
        .sum();
    // A label has at most 63 characters: a few hundred bits.
    let counted = (0_u32..1024).find(|bits| f64::from(*bits) >= sum).unwrap_or(1024);
    // Which characters they are is a choice as well: short labels count by it.
    let chosen = 5 * u32::try_from(label.len().min(4)).unwrap_or(4);
    u64::from(counted.max(chosen))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(name: &str) -> u64 {
        carried(&Host::parse(name).unwrap()).1
    }

    #[test]
    fn what_is_random_carries_more_than_what_services_are_called() {
        assert_eq!(most("aaaa.b"), 20);
        let many = vec!["a"; 110].join(".");
        assert_eq!(carried(&Host::parse(&many).unwrap()).0, 550);
        assert_eq!(most("0123456789abcdef.a"), 64);
        for ordinary in [
            "d111111abcdef8.cdn.example",
            "ec2-192-0-2-17.us-west-2.compute.cloud.example",
            "123e4567-e89b-12d3-a456-426614174000.app.example",
            "da39a3ee5e6b4b0d3255bfef95601890afd80709.blobs.example",
            "a0123456789abcdef0123456789abcdef-1234567890.us-east-1.elb.cloud.example",
            "pr-1234-feature-branch-of-the-team-preview.pages.example",
        ] {
            assert!(most(ordinary) <= 200, "{ordinary}: {}", most(ordinary));
        }
        let random = "mfrggzdfmztwq2lknnwg23tpobyxe43uov3ho6dzpiytcnbvgy3tq.wild.example";
        assert!(most(random) > 200, "{}", most(random));
    }
}
