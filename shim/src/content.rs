//! Files as a container's processes will see them, before it exists: in the
//! image, or in what the spec mounts over it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use nemoclaw_spec::hex;
use nemoclaw_spec::plan::{ContentView, HostFacts, MISSING};
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::image::{Image, open_regular};

/// Largest JSON file examined, in bytes; a larger one is refused, never cut: its
/// tree takes many times as much memory, which no container's limit bounds.
const MAX_BYTES: u64 = 1024 * 1024;
/// Largest file digested, in bytes.
const MAX_DIGESTED: u64 = 1024 * 1024 * 1024;

/// The image and the mounts of one container.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    image: &'a Image,
    /// Destination, and the source on the host; none for what is no bind.
    mounts: Vec<(PathBuf, Option<PathBuf>)>,
}

impl<'a> Contents<'a> {
    /// `host` has a fact for each mount of `spec`, in order.
    pub(crate) fn new(image: &'a Image, spec: &Spec, host: &HostFacts) -> Self {
        let mounts = spec.mounts().iter().flatten().zip(&host.mounts);
        let mounts = mounts
            .map(|(mount, fact)| {
                let source = (!fact.source.is_empty()).then(|| PathBuf::from(&fact.source));
                (mount.destination().clone(), source)
            })
            .collect();
        Self { image, mounts }
    }

    /// The root to look below, and the path in it.
    fn place(&self, path: &Path) -> Result<(PathBuf, PathBuf), String> {
        // The last mount that covers the path hides those before it.
        match self.mounts.iter().rev().find(|(destination, _)| path.starts_with(destination)) {
            None => Ok((self.image.path().to_owned(), path.to_owned())),
            Some((_, None)) => Err("is in a file system that is empty at the start".to_owned()),
            Some((destination, Some(source))) => {
                let rest = path.strip_prefix(destination).unwrap_or(path);
                match (rest.as_os_str().is_empty(), source.parent(), source.file_name()) {
                    // The mount is the file itself.
                    (true, Some(parent), Some(name)) => Ok((parent.to_owned(), name.into())),
                    _ => Ok((source.clone(), rest.to_owned())),
                }
            }
        }
    }
}

impl Contents<'_> {
    /// Opens a regular file as the container will see it.
    fn open(&self, path: &str) -> Result<File, String> {
        let (root, path) = self.place(Path::new(path))?;
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&root, directory, Mode::empty())
            .map_err(|error| format!("cannot be looked for: {error}"))?;
        let relative = path.strip_prefix("/").unwrap_or(&path);
        // SECURITY: the container would follow a link across mounts, where this
        // look cannot go: another file would be examined than the one it reads.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found =
            openat2(&root, relative, flags, Mode::empty(), resolve).map_err(
                |error| match error {
                    Errno::NOENT => MISSING.to_owned(),
                    Errno::LOOP => "is reached by a symbolic link; name the real path".to_owned(),
                    other => format!("cannot be read: {other}"),
                },
            )?;
        open_regular(&found)
            .map_err(|error| format!("cannot be read: {error}"))?
            .ok_or_else(|| "is no regular file".to_owned())
    }
}

impl ContentView for Contents<'_> {
    fn content(&self, path: &str) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        self.open(path)?
            .take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("cannot be read: {error}"))?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err("is larger than 1 MiB".to_owned());
        }
        Ok(bytes)
    }

    fn sha256(&self, path: &str) -> Result<String, String> {
        let mut file = self.open(path)?.take(MAX_DIGESTED + 1);
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut read = 0;
        loop {
            let length =
                file.read(&mut buffer).map_err(|error| format!("cannot be read: {error}"))?;
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
            digest.update(bytes);
            read += length as u64;
        }
        if read > MAX_DIGESTED {
            return Err("is larger than 1 GiB".to_owned());
        }
        Ok(hex::lower(&digest.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_where_the_container_will_see_it() {
        let temporary = std::env::temp_dir().join(format!("nc-content-{}", std::process::id()));
        let (rootfs, source) = (temporary.join("rootfs"), temporary.join("source"));
        std::fs::create_dir_all(rootfs.join("app")).unwrap();
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(rootfs.join("app/a"), "image").unwrap();
        std::fs::write(source.join("a"), "mounted").unwrap();
        std::fs::write(temporary.join("outside"), "outside").unwrap();
        std::os::unix::fs::symlink("../outside", source.join("link")).unwrap();
        let image = Image::open(&rootfs).unwrap();
        let contents = Contents {
            image: &image,
            mounts: vec![
                (PathBuf::from("/data"), Some(source.clone())),
                (PathBuf::from("/etc/one"), Some(source.join("a"))),
                (PathBuf::from("/scratch"), None),
            ],
        };
        let text = |path: &str| contents.content(path).map(|b| String::from_utf8(b).unwrap());
        assert_eq!(text("/app/a").unwrap(), "image");
        assert_eq!(text("/data/a").unwrap(), "mounted");
        assert_eq!(text("/etc/one").unwrap(), "mounted");
        assert!(text("/data/link").unwrap_err().contains("symbolic link"));
        assert!(text("/scratch/a").unwrap_err().contains("empty"));
        assert_eq!(text("/data").unwrap_err(), "is no regular file");
        std::fs::write(source.join("abc"), "abc").unwrap();
        assert_eq!(
            contents.sha256("/data/abc").unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let over = Contents {
            image: &image,
            mounts: vec![(PathBuf::from("/data/x"), Some(source)), (PathBuf::from("/data"), None)],
        };
        assert!(over.content("/data/x/a").unwrap_err().contains("empty"));
        std::fs::remove_dir_all(&temporary).unwrap();
    }
}
