//! What files must hold when a container starts: digests and values.

use serde_json::Value as Json;

use super::Refusals;
use crate::policy::{Assertion, Options};

/// What [`ContentView`] says of a file that does not exist.
pub const MISSING: &str = "is not there";

/// A file of the container, as its processes will see it: in the image, or in
/// what is mounted over it. Never follows a link out of either, and bounds what
/// it reads: every byte is hostile.
pub trait ContentView {
    /// The whole of a small file (1 MiB), or why it cannot be read.
    ///
    /// # Errors
    /// A sentence without its beginning.
    fn content(&self, path: &str) -> Result<Vec<u8>, String>;
    /// SHA-256 of a file, in lower-case hexadecimal.
    ///
    /// # Errors
    /// A sentence without its beginning.
    fn sha256(&self, path: &str) -> Result<String, String>;
}

pub(super) fn check(
    options: &Options,
    view: &dyn ContentView,
    refusals: &mut Refusals,
    notes: &mut Vec<String>,
) {
    for (path, wanted) in &options.integrity {
        let why = match view.sha256(path) {
            Ok(digest) if digest == *wanted => continue,
            Ok(digest) => format!("has the digest {digest}, not {wanted}"),
            Err(why) => why,
        };
        refusals.add(
            "integrity",
            format!("`{}` {why}", path.escape_debug()),
            "restore the file, or write its new digest in the policy",
        );
    }
    // Without the key, neighbours may connect in.
    let reachable = options.ingress.as_ref().is_none_or(|ingress| {
        ingress.iter().any(|entry| {
            let loopback = |range: &ipnet::IpNet| range.network().is_loopback();
            entry.from.is_empty() || !entry.from.iter().all(loopback)
        })
    });
    for assertion in &options.assertions {
        if assertion.when_ingress && !reachable {
            continue;
        }
        let Some(why) = fails(assertion, view) else { continue };
        let text = format!("`{}` {why}", assertion.file.escape_debug());
        if assertion.warn {
            notes.push(format!("assertion: {text}"));
        } else {
            refusals.add(
                "assertion",
                text,
                "correct the file, or write `otherwise: warn` in the policy",
            );
        }
    }
}

/// Whether the image is one of those that policy names by digest.
pub(super) fn check_image(
    options: &Options,
    known: &[String],
    refusals: &mut Refusals,
    notes: &mut Vec<String>,
) {
    let unknown = "the engine does not tell the image's digest";
    let named = known.iter().any(|digest| options.image_digests.contains(digest));
    if named || options.image_digests.is_empty() {
        // As it should be.
    } else if !known.is_empty() {
        let shown: Vec<String> =
            known.iter().take(4).map(|digest| digest.escape_debug().to_string()).collect();
        refusals.add(
            "image",
            format!(
                "the image has the digest {}, which the policy does not name",
                shown.join(", ")
            ),
            "start an image that the policy names, or add the digest to `images: {digests: [...]}`",
        );
    } else if options.unknown_image_refused {
        refusals.add(
            "image",
            unknown.to_owned(),
            "write `images: {docker_socket: /run/docker.sock}` under Docker or `images: {cri: true}` under Kubernetes, or `unknown: warn`",
        );
    } else {
        notes.push(format!("image: {unknown}, so it was not compared with the policy's"));
    }
}

/// Why an assertion does not hold. Values of the file are never repeated: they
/// may be secrets.
fn fails(assertion: &Assertion, view: &dyn ContentView) -> Option<String> {
    let bytes = match view.content(&assertion.file) {
        Ok(bytes) => bytes,
        Err(why) if assertion.optional && why == MISSING => return None,
        Err(why) => return Some(why),
    };
    let Ok(mut value) = serde_json::from_slice::<Json>(&bytes) else {
        return Some("is not JSON".to_owned());
    };
    for key in assertion.path.split('.') {
        let next = match &mut value {
            Json::Object(map) => map.remove(key),
            Json::Array(list) => {
                let index = key.parse::<usize>().ok().filter(|index| *index < list.len());
                index.map(|index| list.swap_remove(index))
            }
            _ => None,
        };
        match next {
            Some(next) => value = next,
            None => return Some(format!("does not say `{}`", assertion.path.escape_debug())),
        }
    }
    let path = assertion.path.escape_debug();
    if let Some(wanted) = &assertion.equals {
        let fine = same(&value, wanted);
        return (!fine).then(|| format!("says something else at `{path}` than {wanted}"));
    }
    let known = |value: &Json| assertion.within.iter().any(|wanted| same(value, wanted));
    let fine = match &value {
        Json::Array(list) => list.iter().all(known),
        other => known(other),
    };
    let wanted = || Json::Array(assertion.within.clone());
    (!fine).then(|| format!("says something at `{path}` that is none of {}", wanted()))
}

/// YAML writes 1 where JSON may have 1.0.
fn same(a: &Json, b: &Json) -> bool {
    a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    struct Files;

    impl ContentView for Files {
        fn content(&self, path: &str) -> Result<Vec<u8>, String> {
            match path {
                "/app/c.json" => {
                    Ok(br#"{"gateway":{"auth":true,"origins":["a","b"],"n":1.0}}"#.to_vec())
                }
                "/app/text" => Ok(b"text".to_vec()),
                _ => Err(MISSING.to_owned()),
            }
        }
        fn sha256(&self, path: &str) -> Result<String, String> {
            self.content(path).map(|bytes| format!("{:0>64}", bytes.len()))
        }
    }

    fn checked(nemoclaw: &str) -> (Vec<String>, Vec<String>) {
        let text = format!("version: 1\nnemoclaw: {nemoclaw}\n");
        let policy = Policy::parse(&text, "test").unwrap();
        assert!(policy.unenforced.0.is_empty(), "{:?}", policy.unenforced);
        let (mut refusals, mut notes) = (Refusals::default(), Vec::new());
        check(&policy.options, &Files, &mut refusals, &mut notes);
        (refusals.0.iter().map(ToString::to_string).collect(), notes)
    }

    fn assertion(path: &str, equals: &str) -> usize {
        let (refused, notes) = checked(&format!(
            "{{assertions: [{{file: /app/c.json, path: {path}, equals: {equals}}}]}}"
        ));
        assert!(notes.is_empty());
        refused.len()
    }

    #[test]
    fn a_value_that_is_not_as_asserted_stops_the_start() {
        assert_eq!(assertion("gateway.auth", "true"), 0);
        assert_eq!(assertion("gateway.n", "1"), 0);
        assert_eq!(assertion("gateway.origins.1", "b"), 0);
        assert_eq!(assertion("gateway.origins", "[a, b]"), 0);
        for (path, equals) in [
            ("gateway.auth", "false"),
            ("gateway.auth", "'true'"),
            ("gateway.origins.2", "b"),
            ("gateway.missing", "true"),
            ("gateway.auth.deeper", "true"),
        ] {
            assert_eq!(assertion(path, equals), 1, "{path} {equals}");
        }
        let (refused, _) = checked("{assertions: [{file: /app/text, path: a, equals: 1}]}");
        assert!(refused[0].contains("is not JSON"), "{refused:?}");
        let (refused, _) = checked("{assertions: [{file: /none, path: a, equals: 1}]}");
        assert!(refused[0].contains("is not there"), "{refused:?}");
    }

    #[test]
    fn every_entry_of_a_list_must_be_one_of_those_named() {
        let entry = |more: &str| {
            checked(&format!("{{assertions: [{{file: /app/c.json, {more}}}]}}")).0.len()
        };
        assert_eq!(entry("path: gateway.origins, within: [a, b, c]"), 0);
        assert_eq!(entry("path: gateway.origins, within: [a]"), 1);
        assert_eq!(entry("path: gateway.n, within: [1]"), 0);
    }

    #[test]
    fn an_assertion_about_ingress_is_asked_where_something_may_connect_in() {
        let with = |ingress: &str| {
            checked(&format!(
                "{{assertions: [{{file: /app/c.json, path: gateway.auth, equals: false, when: ingress}}]{ingress}}}"
            ))
            .0
            .len()
        };
        assert_eq!(with(""), 1);
        assert_eq!(with(", ingress: []"), 0);
        assert_eq!(with(", ingress: [{port: 8080}]"), 1);
        assert_eq!(with(", ingress: [{port: 8080, from: [127.0.0.0/8]}]"), 0);
        assert_eq!(with(", ingress: [{port: 8080, from: [127.0.0.1, 192.0.2.0/24]}]"), 1);
        let missing = |more: &str| {
            let entry = format!("{{file: /none, path: a, equals: 1{more}}}");
            checked(&format!("{{assertions: [{entry}]}}")).0.len()
        };
        assert_eq!((missing(""), missing(", optional: true")), (1, 0));
    }

    #[test]
    fn a_warning_lets_the_container_start_and_repeats_no_value() {
        let (refused, notes) = checked(
            "{assertions: [{file: /app/c.json, path: gateway.origins, equals: x, otherwise: warn}]}",
        );
        assert!(refused.is_empty());
        assert!(notes[0].contains("gateway.origins") && !notes[0].contains("\"a\""), "{notes:?}");
    }

    #[test]
    fn a_file_must_have_the_digest_that_policy_names() {
        let with = |path: &str, digest: u32| {
            checked(&format!("{{integrity: [{{path: {path}, sha256: '{digest:0>64}'}}]}}")).0
        };
        assert_eq!(with("/app/text", 4), Vec::<String>::new());
        assert!(with("/app/text", 5)[0].contains("not 0"), "{:?}", with("/app/text", 5));
        assert!(with("/none", 4)[0].contains("is not there"));
    }
}
