//! Which image a container is made of, as far as its engine tells.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nemoclaw_spec::policy::Options;
use oci_spec::runtime::Spec;
use serde_json::Value;

/// How long Docker may take to answer, twice.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer read, in bytes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// What containerd's CRI plugin writes into specs.
const CRI_IMAGE: &str = "io.kubernetes.cri.image-name";

/// Digests of the image, where policy compares them; empty where nobody tells.
pub(crate) fn digests(spec: &Spec, options: &Options, id: &str) -> Vec<String> {
    if options.image_digests.is_empty() {
        return Vec::new();
    }
    let mut digests = Vec::new();
    if options.image_by_cri {
        let name = spec.annotations().as_ref().and_then(|annotations| annotations.get(CRI_IMAGE));
        digests.extend(name.and_then(|name| digest_in(name)));
    }
    if let Some(socket) = &options.docker_socket {
        digests.extend(of_docker(Path::new(socket), id).unwrap_or_default());
    }
    digests
}

/// The digest of an image's name, `NAME@sha256:...`, or of its id. (A tag may read
/// like a digest.)
fn digest_in(name: &str) -> Option<String> {
    let digest = name.rsplit_once('@').map_or(name, |(_, digest)| digest);
    let digits = digest.strip_prefix("sha256:")?;
    let fine = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    fine.then(|| format!("sha256:{}", digits.to_ascii_lowercase()))
}

/// Id and repository digests of the image of a container that Docker is starting.
/// The list of containers is answered from a copy; asked about the one container,
/// Docker would wait for its start.
fn of_docker(socket: &Path, id: &str) -> Option<Vec<String>> {
    if !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let filters = format!("%7B%22id%22%3A%5B%22{id}%22%5D%7D");
    let listed = ask(socket, &format!("/containers/json?all=1&filters={filters}"))?;
    let entry = listed.as_array()?.iter().find(|entry| entry.get("Id") == Some(&id.into()))?;
    let image = digest_in(entry.get("ImageID")?.as_str()?)?;
    let told = ask(socket, &format!("/images/{image}/json"));
    let names = told.as_ref().and_then(|told| told.get("RepoDigests")?.as_array());
    let named = names.into_iter().flatten().filter_map(|name| digest_in(name.as_str()?));
    Some(std::iter::once(image).chain(named).collect())
}

fn ask(socket: &Path, path: &str) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    // HTTP/1.0: the answer ends with the connection and is not chunked.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    (head.split_whitespace().nth(1) == Some("200")).then(|| serde_json::from_str(body).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_from_the_end_of_a_name() {
        let digits = "a".repeat(64);
        let wanted = Some(format!("sha256:{digits}"));
        assert_eq!(digest_in(&format!("registry.example/a@sha256:{digits}")), wanted);
        assert_eq!(digest_in(&format!("sha256:{}", digits.to_uppercase())), wanted);
        assert_eq!(digest_in(&format!("a@sha256:{digits}x")), None);
        assert_eq!(digest_in(&format!("evil.example/sha256:{digits}")), None);
        assert_eq!(digest_in("registry.example/a:latest"), None);
    }
}
