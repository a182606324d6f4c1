//! Where fields lie in the running kernel's structures, from the kernel's own
//! description of its types (`/sys/kernel/btf/vmlinux`; the format is that of the
//! kernel's Documentation/bpf/btf.rst).

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Bytes of a type before what depends on its kind, and of a member.
const HEAD: usize = 12;
const MEMBER: usize = 12;
/// Most types looked at; a kernel of 2026 has 160,000.
const MAX_TYPES: usize = 2_000_000;
/// Structures without a name lie in one another no deeper than this.
const MAX_DEPTH: usize = 8;

/// The types of a kernel.
#[derive(Debug)]
pub(crate) struct Types<'a> {
    content: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; the first stands for `void`.
    places: Vec<usize>,
}

struct Type {
    name: usize,
    kind: u32,
    length: usize,
    /// Offsets of members are mixed with the sizes of bit fields.
    mixed: bool,
}

impl<'a> Types<'a> {
    /// Reads the description; `None` where it is none.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = word(bytes, 4)?;
        let part = |offset: usize, length: usize| {
            let from = header.checked_add(word(bytes, offset)?)?;
            bytes.get(from..from.checked_add(word(bytes, length)?)?)
        };
        let (types, strings) = (part(8, 12)?, part(16, 20)?);
        let mut places = vec![0];
        let mut at = 0;
        while at < types.len() {
            if places.len() >= MAX_TYPES {
                return None;
            }
            places.push(at);
            let own = Type::at(types, at)?;
            let more = match own.kind {
                // Integers, variables, and what a declaration is tagged with.
                1 | 14 | 17 => 4,
                3 => 12,
                STRUCT | UNION | 15 | 19 => own.length * MEMBER,
                6 | 13 => own.length * 8,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
            at = at.checked_add(HEAD)?.checked_add(more)?;
        }
        Some(Self { content: types, strings, places })
    }

    /// Where the fields lie in the structure of that name, in bytes; `None` unless one
    /// structure has them all.
    pub(crate) fn fields<const N: usize>(&self, name: &str, fields: [&str; N]) -> Option<[u32; N]> {
        self.places.iter().skip(1).find_map(|place| {
            let own = Type::at(self.content, *place)?;
            if own.kind != STRUCT || self.text(own.name)? != name.as_bytes() {
                return None;
            }
            let mut found = [0; N];
            for (offset, field) in found.iter_mut().zip(fields) {
                *offset = self.field(*place, field, 0)?;
            }
            Some(found)
        })
    }

    fn field(&self, place: usize, wanted: &str, depth: usize) -> Option<u32> {
        let own = Type::at(self.content, place)?;
        if depth > MAX_DEPTH || !matches!(own.kind, STRUCT | UNION) {
            return None;
        }
        (0..own.length).find_map(|number| {
            let at = place + HEAD + number * MEMBER;
            let name = self.text(word(self.content, at)?)?;
            let bits = u32::try_from(word(self.content, at + 8)?).ok()?;
            let bits = if own.mixed { bits & 0x00ff_ffff } else { bits };
            if name == wanted.as_bytes() {
                return Some(bits / 8);
            }
            if !name.is_empty() {
                return None;
            }
            let inner = *self.places.get(word(self.content, at + 4)?)?;
            self.field(inner, wanted, depth + 1)?.checked_add(bits / 8)
        })
    }

    fn text(&self, offset: usize) -> Option<&[u8]> {
        self.strings.get(offset..)?.split(|byte| *byte == 0).next()
    }
}

impl Type {
    fn at(types: &[u8], place: usize) -> Option<Self> {
        let info = word(types, place + 4)?;
        Some(Self {
            name: word(types, place)?,
            kind: u32::try_from((info >> 24) & 0x1f).ok()?,
            length: info & 0xffff,
            mixed: info >> 31 == 1,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_le_bytes(word.try_into().ok()?)).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Descriptions in the kernel's format.
    #[derive(Default)]
    pub(crate) struct Made {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Made {
        fn text(&mut self, text: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if text.is_empty() {
                return 0;
            }
            let at = u32::try_from(self.strings.len()).unwrap();
            self.strings.extend(text.bytes().chain([0]));
            at
        }

        /// A structure with members of (name, type, offset in bits).
        pub(crate) fn structure(&mut self, name: &str, mixed: bool, members: &[(&str, u32, u32)]) {
            let name = self.text(name);
            let length = u32::try_from(members.len()).unwrap();
            let info = u32::from(mixed) << 31 | STRUCT << 24 | length;
            let members: Vec<u32> =
                members.iter().flat_map(|(name, kind, at)| [self.text(name), *kind, *at]).collect();
            for word in [name, info, 64].into_iter().chain(members) {
                self.types.extend(word.to_le_bytes());
            }
        }

        pub(crate) fn bytes(&self) -> Vec<u8> {
            let (types, strings) = (self.types.len(), self.strings.len());
            let words = [24, 0, types, types, strings].map(|n| u32::try_from(n).unwrap());
            let mut bytes = vec![0x9f, 0xeb, 1, 0];
            bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            bytes.extend(&self.types);
            bytes.extend(&self.strings);
            bytes
        }
    }

    #[test]
    fn fields_are_found_in_structures_without_a_name_too() {
        let mut made = Made::default();
        made.structure("other", false, &[("a", 0, 8)]);
        made.structure("task", false, &[("a", 0, 64)]);
        made.structure("", false, &[("deep", 0, 32)]);
        made.structure("", true, &[("c", 0, 3 << 24 | 16), ("", 3, 64)]);
        made.structure("task", false, &[("a", 0, 128), ("", 4, 256)]);
        let bytes = made.bytes();
        let types = Types::parse(&bytes).unwrap();
        assert_eq!(types.fields("other", ["a"]), Some([1]));
        assert_eq!(types.fields("task", ["a"]), Some([8]));
        // The first structure of that name lacks them.
        assert_eq!(types.fields("task", ["deep", "c", "a"]), Some([44, 34, 16]));
        assert_eq!(types.fields("task", ["b"]), None);
        assert_eq!(types.fields("tas", ["a"]), None);
    }

    proptest! {
        #[test]
        fn whatever_stands_there_is_read_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            at in 24_usize..200,
            value in any::<u8>(),
        ) {
            let read = |bytes: &[u8]| Types::parse(bytes).map(|types| types.fields("task", ["deep"]));
            let _answer = read(&[&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0][..], &bytes].concat());
            let mut made = Made::default();
            made.structure("", false, &[("deep", 0, 32), ("", 2, 0)]);
            made.structure("task", true, &[("", 1, 0), ("", 2, 0)]);
            let mut bytes = made.bytes();
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            let _answer = read(&bytes);
        }
    }
}
