use globset::GlobBuilder;
use proptest::prelude::*;

use super::*;

fn path(pattern: &str, text: &str) -> bool {
    Pattern::parse(pattern, Kind::Path).unwrap().matches(text)
}

fn dotted(pattern: &str, text: &str) -> bool {
    Pattern::parse(pattern, Kind::Dotted).unwrap().matches(text)
}

#[test]
fn paths_mean_what_openshell_was_measured_to_mean() {
    for (pattern, text, expected) in [
        ("/repos/*/issues", "/repos/a/issues", true),
        ("/repos/*/issues", "/repos/a/b/issues", false),
        ("/repos/**", "/repos", false),
        ("/repos/**", "/repos/", true),
        ("/repos/**", "/repos/a/b", true),
        ("/a**", "/abc", true),
        ("/a**", "/ab/c", false),
        ("/x/{b,c}", "/x/c", true),
        ("/x/{b,c}", "/x/d", false),
        ("/v[0-9]/x", "/v1/x", true),
        ("/v[!0]/x", "/v0/x", false),
        ("/v[!0]/x", "/v1/x", true),
        ("/usr/**/python*", "/usr/python3", true),
        ("/usr/**/python*", "/usr/lib/x/python3.11", true),
        ("/**", "/anything/at/all", true),
        ("**", "/anything/at/all", true),
        ("*", "/usr/bin/x", false),
        ("/opt/*", "/opt/.hidden", true),
        ("/bot*/**", "/bot123:abc/sendMessage", true),
        ("/bot*/**", "/bot123", false),
        ("/**/git-upload-pack", "/a/b.git/git-upload-pack", true),
        ("/x/\\*", "/x/*", true),
        ("/x/\\*", "/x/y", false),
        ("", "", true),
        ("", "/", false),
    ] {
        assert_eq!(path(pattern, text), expected, "{pattern} on {text}");
    }
}

#[test]
fn dotted_values_mean_what_openshell_was_measured_to_mean() {
    for (pattern, text, expected) in [
        ("v1.*", "v1.2", true),
        ("v1.*", "v1.2.3", false),
        ("v1.**", "v1.2.3", true),
        ("*", "a.b", false),
        ("**", "a.b", true),
        ("a/b*", "a/b/c", true),
        ("**.example.com", "example.com", false),
        ("**.example.com", "a.b.example.com", true),
        ("api*.x.com", "api.x.com", true),
        ("*.{com,org}.x.net", "a.org.x.net", true),
        ("*[0-9].x.com", "a7.x.com", true),
        ("*[0-9].x.com", "ab.x.com", false),
        ("a.**.b", "a.b", false),
        ("a.**.b", "a.x.y.b", true),
    ] {
        assert_eq!(dotted(pattern, text), expected, "{pattern} on {text}");
    }
}

#[test]
fn what_cannot_be_understood_is_refused() {
    for (pattern, error) in [
        ("/a[", InvalidPattern::Set),
        ("/a[z-a]", InvalidPattern::Set),
        ("/{a", InvalidPattern::Braces),
        ("/a}", InvalidPattern::Braces),
        ("/\\", InvalidPattern::Escape),
        ("{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}", InvalidPattern::TooMany),
    ] {
        assert_eq!(Pattern::parse(pattern, Kind::Path), Err(error), "{pattern}");
    }
    assert_eq!(Pattern::parse(&"a".repeat(5000), Kind::Path), Err(InvalidPattern::TooLong));
}

#[test]
fn no_pattern_takes_exponential_time() {
    let pattern = format!("/{}b", "*a".repeat(60));
    assert!(!path(&pattern, &format!("/{}", "a".repeat(4000))));
    let deep = "/**/a".repeat(60);
    assert!(!path(&format!("{deep}/b"), &"/a".repeat(2000)));
}

/// A pattern out of a small alphabet, so that matches happen.
fn pattern() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("a"),
        Just("b"),
        Just("ab"),
        Just("*"),
        Just("**"),
        Just("?"),
        Just("/"),
        Just("/"),
        Just("/**/"),
        Just("{a,bb}"),
        Just("[ab]"),
        Just("[!a]"),
    ];
    prop::collection::vec(piece, 1..7).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    /// The peer's library is the reference for everything but sets, which ours
    /// never lets match a separator.
    #[test]
    fn globset_agrees(pattern in pattern(), text in "/[ab/]{0,8}") {
        prop_assume!(!pattern.contains("[!a]") && !pattern.contains("***") && !pattern.contains("**/**"));
        let theirs = GlobBuilder::new(&pattern).literal_separator(true).build().unwrap().compile_matcher();
        prop_assert_eq!(path(&pattern, &text), theirs.is_match(&text), "{} on {}", pattern, text);
    }

    #[test]
    fn the_trie_agrees_with_its_patterns(
        patterns in prop::collection::vec(pattern(), 1..12),
        text in "/[ab/]{0,8}",
    ) {
        let patterns: Vec<Pattern> =
            patterns.iter().map(|text| Pattern::parse(text, Kind::Path).unwrap()).collect();
        let mut trie = Trie::new(Kind::Path);
        for (n, pattern) in patterns.iter().enumerate() {
            trie.insert(pattern, n);
        }
        let one_by_one: Vec<usize> =
            (0..patterns.len()).filter(|n| patterns[*n].matches(&text)).collect();
        prop_assert_eq!(trie.find(&text), one_by_one);
    }

    #[test]
    fn every_text_has_its_class(
        patterns in prop::collection::vec(pattern(), 1..5),
        text in "(/[ab]{1,3}){1,4}/?",
    ) {
        let patterns: Vec<Pattern> =
            patterns.iter().map(|text| Pattern::parse(text, Kind::Path).unwrap()).collect();
        let all: Vec<&Pattern> = patterns.iter().collect();
        let classes = classes(&all, Texts::RequestPaths, 20_000).unwrap();
        let matching = |text: &str| -> Vec<usize> {
            (0..all.len()).filter(|n| all[*n].matches(text)).collect()
        };
        for (example, signature) in &classes {
            prop_assert_eq!(&matching(example), signature, "example {}", example);
        }
        let own = matching(&text);
        prop_assert!(classes.iter().any(|(_, signature)| *signature == own), "{:?}", own);
    }
}
