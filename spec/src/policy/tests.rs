use std::fmt::Write as _;

use proptest::prelude::*;

use super::language::{FILE, Field, Kind, Section};
use super::*;

fn problems(text: &str) -> Vec<String> {
    match Policy::parse(text, "p.yaml") {
        Ok(policy) => panic!("it is fine: {policy:?}\n{text}"),
        Err(invalid) => invalid.problems.iter().map(ToString::to_string).collect(),
    }
}

fn fine(text: &str) -> Policy {
    Policy::parse(text, "p.yaml").unwrap_or_else(|invalid| panic!("{invalid}\n{text}"))
}

fn unenforced(policy: &Policy) -> Vec<&str> {
    policy.unenforced.0.iter().map(|finding| finding.message.as_str()).collect()
}

#[test]
fn the_baseline_allows_no_egress() {
    let policy = Policy::baseline().unwrap();
    assert!(policy.rules.is_empty());
    assert!(policy.ours);
    assert_eq!(policy.landlock, LandlockMode::HardRequirement);
    assert!(policy.unenforced.0.is_empty());
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let found = problems(
        "version: 2\nprocess: {run_as_user: root}\nfilesystem_policy: {read_write: [/, x]}\nnetwork_policies:\n  a:\n    endpoints:\n      - host: '*'\n        port: 443\n      - {host: ok.example}\n    binaries: [{path: /usr/../curl}, {pth: x}]\nnemoclaw: {pids: 3}\n",
    );
    assert_eq!(found.len(), 10, "{found:#?}");
    for start in [
        "p.yaml:1:10: `version` must be 1, not `2`",
        "p.yaml:2:24: `run_as_user: root` is not a user",
        "p.yaml:3:34: a writable `/`",
        "p.yaml:3:37: a path must start with `/`",
        "p.yaml:7:15: `*` is no host",
        "p.yaml:9:16: an endpoint has no port",
        "p.yaml:10:16: `/usr/../curl` is no path of a program",
        "p.yaml:10:39: unknown key `pth` in a binary",
        "p.yaml:11:12: unknown key `pids` in nemoclaw",
    ] {
        assert!(found.iter().any(|text| text.starts_with(start)), "{start}\n{found:#?}");
    }
}

#[test]
fn unknown_and_repeated_keys_are_errors() {
    let unknown = problems("version: 1\nnetwork_polices: {}\n");
    assert!(unknown[0].contains("p.yaml:2:1: unknown key `network_polices`"), "{unknown:?}");
    assert!(unknown[0].contains("did you mean `network_policies`?"), "{unknown:?}");
    let twice = problems("version: 1\nnetwork_policies:\n  a: {}\n  a: {}\n");
    assert!(twice[0].starts_with("p.yaml:4:3: the key `a` stands here twice"), "{twice:?}");
    assert!(problems("version: 1\nversion: 1\n")[0].contains("twice"));
    assert!(problems("network_policies: {}\n")[0].contains("lacks the key `version`"));
}

#[test]
fn ports_are_plain_numbers() {
    for port in ["\"443\"", "0", "70000", "4_43", "-1", "x", "4.5", "true", "[443]"] {
        let text = format!(
            "version: 1\nnetwork_policies: {{a: {{endpoints: [{{host: a.example, port: {port}}}]}}}}\n"
        );
        assert!(Policy::parse(&text, "p").is_err(), "{port}");
    }
}

#[test]
fn hostile_files_end_quickly() {
    let texts = [
        "[".repeat(200_000),
        "{a: ".repeat(50_000),
        "- ".repeat(100_000),
        "version: 1\nx: &a [1]\ny: *a\n".to_owned(),
        format!("version: 1\nnetwork_policies: {}", "{a: ".repeat(100)),
        format!("version: 1\n{}", "a: 1\n".repeat(200_000)),
        "x".repeat(MAX_POLICY_BYTES + 1),
        "x".repeat(10 * 1024 * 1024),
        "version: !evil 1\n".to_owned(),
        String::new(),
        "\0".to_owned(),
    ];
    for text in texts {
        assert!(Policy::parse(&text, "p").is_err(), "{}", text.get(..20).unwrap_or(&text));
    }
}

#[test]
fn an_omitted_list_of_binaries_means_what_its_language_says() {
    let body = "network_policies: {a: {endpoints: [{host: a.example, port: 443}]}}\n";
    let theirs = fine(&format!("version: 1\n{body}"));
    assert!(matches!(&theirs.rules[0].binaries, Binaries::Listed(list) if list.is_empty()));
    let ours = fine(&format!("version: 1\nnemoclaw: {{}}\n{body}"));
    assert!(matches!(ours.rules[0].binaries, Binaries::Any));
    let empty = "version: 1\nnemoclaw: {}\nnetwork_policies: {a: {endpoints: [], binaries: []}}\n";
    assert!(problems(empty)[0].contains("matches no program"));
}

#[test]
fn what_is_not_enforced_is_named() {
    let policy = fine(
        "version: 1\nnetwork_policies:\n  a:\n    endpoints:\n      - {host: a.example, port: 443, protocol: rest, access: read-only}\n      - {host: b.example, port: 443, protocol: tcp, tls: skip}\n    binaries: [{path: /usr/bin/curl}]\nnemoclaw:\n  resources: {pids: 5, memory: 1GiB}\n  seccomp: {allow: [ptrace]}\n  isolate_exec: true\n  approvals: {mode: hold}\n  userns: auto\n",
    );
    let mut names = unenforced(&policy);
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "`nemoclaw.approvals.mode: hold` is not enforced by this version",
            "`nemoclaw.userns` is not enforced by this version",
            "`protocol: rest` is not enforced by this version",
        ]
    );
    assert_eq!(policy.options.pids, 5);
    assert_eq!(policy.options.memory, Some(1 << 30));
}

#[test]
fn lint_speaks_of_the_usual_mistakes() {
    let policy = fine(
        "version: 1\nlandlock: {compatibility: best_effort}\nnemoclaw: {resources: {pids: 4096}, allow_root: true}\nfilesystem_policy: {read_write: [/home]}\nnetwork_policies:\n  a: {endpoints: [{host: '*.a.example', port: 443}]}\n  b: {endpoints: [{host: b.example, port: 1}, {host: 127.0.0.1, port: 9}, {host: localhost, port: 9}], binaries: [{path: /sandbox/x}]}\n  c: {endpoints: [{host: c.example, port: 9, protocol: rest, enforcement: audit, access: full}], binaries: [{path: /**}]}\n  d: {endpoints: [{host: b.example, port: 1}], binaries: [{path: /sandbox/x}]}\n  e: {endpoints: [{host: '*.co.uk', port: 9}], binaries: [{path: /usr/bin/x}]}\n",
    );
    let said: Vec<String> =
        lint::lint(&policy).iter().map(|finding| finding.message.clone()).collect();
    for words in [
        "`best_effort` lets",
        "`pids: 4096` is more than 1024",
        "`allow_root` lets",
        "`/home` is writable as a whole",
        "a rule without `binaries`",
        "`*.a.example` lets data out",
        "`*.a.example` usually speaks HTTP and is not inspected",
        "`/sandbox/x` covers paths",
        "`127.0.0.1` is loopback",
        "`localhost` is the sandbox itself",
        "`/**` is every program",
        "`enforcement: audit` lets",
        "`access: full` allows",
        "rule `d` adds nothing for b.example",
        "covers names that anybody can register",
    ] {
        assert!(said.iter().any(|message| message.contains(words)), "{words}\n{said:#?}");
    }
    assert!(lint::lint(&Policy::baseline().unwrap()).is_empty());
}

/// OpenShell's own table of what its validators say, with what we say.
#[test]
fn files_that_openshell_refuses_or_takes() {
    let endpoint = |text: &str| {
        format!(
            "version: 1\nnetwork_policies: {{x: {{endpoints: [{{{text}}}], binaries: [{{path: /usr/bin/curl}}]}}}}\n"
        )
    };
    let rest = "host: a.example, port: 443, protocol: rest";
    for (text, words) in [
        ("network_policies: {}\n".to_owned(), "lacks the key `version`"),
        // Ours: their documents say 1, their code takes anything.
        ("version: 9\n".to_owned(), "`version` must be 1"),
        ("version: 1\ninference: {}\n".to_owned(), "unknown key `inference`"),
        (endpoint("host: a.example, prot: 443"), "unknown key `prot`"),
        (endpoint("host: a.example"), "has no port"),
        (endpoint("host: a.example, port: 0"), "`port` must be a port number"),
        (endpoint("port: 443"), "has no host"),
        (endpoint("host: a.example, port: 443, protocol: http"), "`protocol: http` is unknown"),
        (endpoint(&format!("{rest}, access: full, rules: [{{allow: {{method: GET, path: /**}}}}]")), "exclude each other"),
        (endpoint(rest), "needs rules or access"),
        (endpoint(&format!("{rest}, rules: []")), "would deny all traffic"),
        (endpoint(&format!("{rest}, deny_rules: [{{method: GET, path: /**}}]")), "`deny_rules` only take from"),
        (endpoint("host: a.example, port: 1, protocol: sql, enforcement: enforce, rules: [{allow: {command: SELECT}}]"), "cannot be enforced"),
        (endpoint("host: a.example, port: 1, protocol: tcp, path: /x"), "takes no `path`"),
        (endpoint("host: 203.0.113.1, port: 1, protocol: tcp"), "needs a host name"),
        (endpoint("host: '*', port: 1"), "covers every host"),
        (endpoint("host: '*.com', port: 1"), "covers every host"),
        (endpoint("host: 'a.**.com', port: 1"), "whole first label"),
        (endpoint("host: 'a**.x.com', port: 1"), "whole first label"),
        (endpoint("host: 'foo.us-*.x.com', port: 1"), "a label of its own"),
        ("version: 1\nprocess: {run_as_user: root}\n".to_owned(), "not a user"),
        ("version: 1\nprocess: {run_as_user: '0'}\n".to_owned(), "not an id"),
        ("version: 1\nfilesystem_policy: {read_only: [/a/../b]}\n".to_owned(), "must not contain `..`"),
        ("version: 1\nfilesystem_policy: {read_only: [a]}\n".to_owned(), "must start with `/`"),
        ("version: 1\nfilesystem_policy: {read_write: [//]}\n".to_owned(), "a writable `/`"),
        (
            format!("version: 1\nnetwork_middlewares: {{{}}}\n", (0..11).map(|n| format!("m{n}: {{middleware: a/b, order: {n}, endpoints: {{include: [a.example]}}}}")).collect::<Vec<_>>().join(", ")),
            "at most 10",
        ),
        ("version: 1\nnetwork_policies: {_provider_x: {}}\n".to_owned(), "is reserved"),
        (
            "version: 1\nnetwork_policies: {a: {endpoints: [{host: a.b.example, port: 1, tls: skip}]}, b: {endpoints: [{host: '*.b.example', port: 1}]}}\n".to_owned(),
            "disagree on tls",
        ),
    ] {
        let found = problems(&text);
        assert!(found.iter().any(|message| message.contains(words)), "{words}\n{found:#?}\n{text}");
    }
    for text in [
        endpoint("host: a.example, port: 1, allowed_ips: [127.0.0.0/8]"),
        endpoint("host: a.example, port: 1, ports: [2]"),
        endpoint("host: a.example, port: 1, tls: nonsense"),
        endpoint(&format!("{rest}, access: nonsense, enforcement: nonsense")),
        endpoint("host: 'http://a.b', port: 1"),
        endpoint("host: 10.0.0.0/8, port: 1"),
        endpoint("host: '*api.example', port: 1"),
        "version: 1\nnetwork_policies: {a: {binaries: [{path: curl}]}}\n".to_owned(),
    ] {
        let policy = fine(&text);
        let ours = text.replacen("version: 1\n", "version: 1\nnemoclaw: {}\n", 1);
        let told = !policy.advice.0.is_empty() || !lint::lint(&policy).is_empty();
        assert!(told, "no advice about {text}");
        assert!(Policy::parse(&ours, "p").is_err() || text.contains("*api"), "{ours}");
    }
}

/// The file that holds every field of OpenShell's language.
const EVERY_FIELD: &str = include_str!("tests/every-field.yaml");

#[test]
fn a_file_with_every_field_is_read_and_printed() {
    let policy = fine(EVERY_FIELD);
    assert!(!policy.ours);
    assert_eq!(policy.rules.len(), 10);
    let printed = print::yaml(&policy, false);
    assert_eq!(fine(&printed), policy, "{printed}");
    let (exported, lost) = print::openshell(&policy);
    assert_eq!(fine(&exported), policy, "{exported}");
    assert!(lost.is_empty(), "{lost:?}");
}

fn sections() -> Vec<&'static Section> {
    fn inner(kind: Kind) -> Option<&'static Section> {
        match kind {
            Kind::Section(section) => Some(section),
            Kind::List(kind) | Kind::Map(kind) | Kind::Or(_, kind) => inner(*kind),
            _ => None,
        }
    }
    let mut found: Vec<&Section> = vec![&FILE];
    let mut next = 0;
    while let Some(section) = found.get(next) {
        for inner in section.fields.iter().filter_map(|field| inner(field.kind)) {
            if !found.iter().any(|own| own.name == inner.name) {
                found.push(inner);
            }
        }
        next += 1;
    }
    found
}

fn each_field(check: impl Fn(&'static Section, &'static Field)) {
    for section in sections() {
        section.fields.iter().for_each(|field| check(section, field));
    }
}

#[test]
fn every_example_of_the_reference_is_a_policy_that_prints_and_parses() {
    each_field(|section, field| {
        let text = reference::example(section, field);
        let policy = fine(&text);
        let printed = print::yaml(&policy, true);
        assert_eq!(fine(&printed), policy, "{text}{printed}");
    });
}

#[test]
fn every_mistake_of_the_reference_is_refused_with_its_key_or_value() {
    each_field(|section, field| {
        if field.wrong.is_empty() {
            return;
        }
        let failure = reference::failure(section, field);
        let failure = failure.unwrap_or_else(|| panic!("{}.{} is fine", section.name, field.key));
        assert!(failure.contains("; "), "no fix: {}.{}: {failure}", section.name, field.key);
    });
}

#[test]
fn the_reference_and_the_schema_in_the_tree_are_the_current_ones() {
    let markdown = include_str!("../../../policies/REFERENCE.md");
    assert!(
        markdown == reference::markdown(),
        "run: nemoclaw policy reference > policies/REFERENCE.md"
    );
    let schema: serde_json::Value =
        serde_json::from_str(include_str!("../../../policies/schema.json")).unwrap();
    assert!(schema == reference::schema(), "run: nemoclaw policy schema > policies/schema.json");
}

/// Forty mistakes and what is said about them, compared with the tree's copy.
#[test]
fn forty_errors_name_place_text_and_fix() {
    let mut shown = String::new();
    let mut count = 0;
    for (n, text) in include_str!("tests/mistakes.yaml").split("---\n").enumerate().skip(1) {
        let found = problems(text);
        count += found.len();
        writeln!(shown, "# {n}\n{}", found.join("\n")).unwrap();
        for problem in &found {
            assert!(problem.starts_with("p.yaml:"), "no place: {problem}");
            assert!(problem.contains("; "), "no fix: {problem}");
            assert!(problem.contains("(here: `"), "no text: {problem}");
        }
    }
    assert!(count >= 40, "{count}");
    let expected = include_str!("tests/mistakes.txt");
    assert!(shown == expected, "now:\n{shown}");
}

struct Shelf;

impl Library for Shelf {
    fn policy(&self, name: &str) -> Option<(String, String)> {
        let text = match name {
            "base" => {
                "version: 1\nnemoclaw: {extends: [deeper], resources: {pids: 100}, toolchain: visible}\nnetwork_policies: {a: {endpoints: [{host: base.example, port: 1}], binaries: any}}\n"
            }
            "deeper" => "version: 1\nnemoclaw: {resources: {pids: 50}, allow_root: true}\n",
            "bad" => "version: 1\nnemoclaw: {x: 1}\n",
            "one" => "version: 1\nnemoclaw: {extends: [two]}\n",
            "two" => "version: 1\nnemoclaw: {extends: [one]}\n",
            _ => return None,
        };
        Some((text.to_owned(), format!("/policies/{name}.yaml")))
    }

    fn preset(&self, name: &str) -> Option<(String, String)> {
        if name == "loose" {
            let text = "nemoclaw: {allow_root: true}\nnetwork_policies: {}\n".to_owned();
            return Some((
                text.replacen("nemo", "preset: {}\nnemo", 1),
                "/presets/loose.yaml".to_owned(),
            ));
        }
        (name == "own").then(|| {
            ("preset: {name: own}\nnemoclaw: {}\nnetwork_policies: {a: {endpoints: [{host: own.example, port: 1}], binaries: any}}\n".to_owned(), "/presets/own.yaml".to_owned())
        })
    }
}

#[test]
fn layers_add_rules_and_the_nearest_word_counts() {
    let text = "version: 1\nnemoclaw: {extends: [base], presets: [own], resources: {pids: 10}}\nnetwork_policies: {a: {endpoints: [{host: top.example, port: 1}], binaries: any}}\n";
    let policy = Policy::parse_with(text, "top.yaml", &Shelf).unwrap();
    assert_eq!(policy.options.pids, 10);
    assert!(policy.options.allow_root);
    assert!(policy.options.keep_toolchain);
    let rules: Vec<(String, String)> =
        policy.rules.iter().map(|rule| (rule.key.to_string(), rule.at.to_string())).collect();
    let expected =
        [("a", "/policies/base.yaml:3"), ("a-2", "/presets/own.yaml:3"), ("a-3", "top.yaml:3")];
    assert_eq!(rules, expected.map(|(key, at)| (key.to_owned(), at.to_owned())));
    let unknown = problems("version: 1\nnemoclaw: {presets: [pipy]}\n");
    assert!(unknown[0].contains("p.yaml:2:22: there is no preset `pipy`"), "{unknown:?}");
    assert!(unknown[0].contains("did you mean `pypi`?"), "{unknown:?}");
    let loose = Policy::parse_with("version: 1\nnemoclaw: {presets: [loose]}\n", "p", &Shelf);
    assert!(loose.unwrap_err().to_string().contains("a preset holds rules only"));
    let circle = Policy::parse_with("version: 1\nnemoclaw: {extends: [one]}\n", "p", &Shelf);
    assert!(circle.unwrap_err().to_string().contains("would start from itself"));
    let bad = Policy::parse_with("version: 1\nnemoclaw: {extends: [bad]}\n", "p", &Shelf);
    assert!(bad.unwrap_err().to_string().starts_with("/policies/bad.yaml:2:12: unknown key `x`"));
}

#[test]
fn a_narrower_policy_takes_away_and_never_gives() {
    let wide = fine(
        "version: 1\nnemoclaw: {resources: {pids: 100}, allow_root: true, sockets: [/a, /b], environment: {keep: [A, B]}}\nfilesystem_policy: {read_only: [/usr, /etc], read_write: [/sandbox, /tmp]}\n",
    );
    let narrow = fine(
        "version: 1\nnemoclaw: {resources: {pids: 500}, sockets: [/b, /c], environment: {keep: [B, C]}, toolchain: visible}\nfilesystem_policy: {read_only: [/usr, /sandbox], read_write: [/tmp, /home]}\n",
    );
    let both = wide.narrowed_by(&narrow);
    assert_eq!(both.options.pids, 100);
    assert!(!both.options.allow_root && !both.options.keep_toolchain);
    assert_eq!(both.options.sockets, ["/b"]);
    assert_eq!(both.options.keep_environment, ["B"]);
    assert_eq!(both.filesystem.read_write, ["/tmp"]);
    assert_eq!(both.filesystem.read_only, ["/usr", "/sandbox"]);
}

#[test]
fn endpoints_that_contradict_each_other_are_refused() {
    let policy = |a: &str, b: &str| {
        Policy::parse(
            &format!(
                "version: 1\nnemoclaw: {{}}\nnetwork_policies:\n  a: {{endpoints: [{{{a}}}], binaries: any}}\n  b: {{endpoints: [{{{b}}}], binaries: any}}\n"
            ),
            "p",
        )
    };
    for (a, b, what) in [
        (
            "host: a.example, port: 1, path: '/a/**', protocol: rest, access: full",
            "host: a.example, port: 1, protocol: graphql, access: full",
            "protocol",
        ),
        ("host: a.example, port: 1, tls: skip", "host: a.example, port: 1", "tls"),
        (
            "host: '*.a.example', port: 1, allowed_ips: [10.0.0.0/8]",
            "host: x.a.example, ports: [1, 2]",
            "allowed_ips",
        ),
        (
            "host: '*.a.example', port: 1, allowed_ips: [10.0.0.0/8]",
            "host: 'x*.a.example', port: 1",
            "allowed_ips",
        ),
        (
            "host: '**.a.example', port: 1, allowed_ips: [10.0.0.0/8]",
            "host: 'x.*.a.example', port: 1",
            "allowed_ips",
        ),
        (
            "host: a.example, port: 1, protocol: rest, access: full",
            "host: a.example, port: 1, protocol: graphql, access: full",
            "protocol",
        ),
        (
            "host: a.example, port: 1, protocol: rest, access: full, enforcement: audit",
            "host: a.example, port: 1, protocol: rest, access: full",
            "enforcement",
        ),
        (
            "host: a.example, port: 1, path: '/a/*', protocol: rest, access: full, allow_encoded_slash: true",
            "host: a.example, port: 1, path: '/*/b', protocol: rest, access: full",
            "allow_encoded_slash",
        ),
    ] {
        let error = policy(a, b).unwrap_err().to_string();
        assert!(error.contains(&format!("disagree on {what}")), "{error}");
    }
    for (a, b) in [
        ("host: a.example, port: 1, tls: skip", "host: a.example, port: 2"),
        ("host: a.example, port: 1, tls: skip", "host: b.example, port: 1"),
        ("host: '*.a.example', port: 1, tls: skip", "host: '*.b.example', port: 1"),
        (
            "host: a.example, port: 1, path: '/a/*', protocol: graphql, access: full",
            "host: a.example, port: 1, path: '/b/*', protocol: rest, access: full",
        ),
    ] {
        policy(a, b).unwrap();
    }
}

/// What a red team got past the reader once.
#[test]
fn what_would_lose_a_restriction_is_refused() {
    let ours = |text: &str| {
        format!(
            "version: 1\nnemoclaw: {{}}\nnetwork_policies: {{web: {{endpoints: [{{host: api.example.com, port: 443, protocol: rest, {text}}}], binaries: any}}}}\n"
        )
    };
    let denies = vec!["{method: GET, path: /x}"; 10_001].join(", ");
    for (text, words) in [
        (ours("access: full, deny_rules: [{method: POST, path: /x, query: {force: }}]"), "a pattern"),
        (ours("access: full, deny_rules: "), "`deny_rules` has no value"),
        (ours(&format!("access: full, deny_rules: [{denies}]")), "at most 10000"),
        (ours("access: full, deny_rules: [{method: POST, path: /a%2fb}]"), "an escape"),
        (ours("access: full, deny_rules: [{method: POST, path: /caf\u{e9}}]"), "requests escape"),
        (ours("access: full, deny_rules: [{method: POST, path: '/%7Eroot/**'}]"), "an escape"),
        (ours("access: full, deny_rules: [{method: POST, path: /a//b}]"), "empty segments"),
        (ours("access: full, deny_rules: [{method: POST, path: /a/./b}]"), "dot segments"),
        (ours("access: full, deny_rules: [{method: POST, path: '/a;x/b'}]"), "parameters"),
        (ours("access: full, deny_rules: [{method: POST, path: '/export?all=1'}]"), "use `query`"),
        ("version: 1\nnemoclaw: {ingress: }\n".to_owned(), "`ingress` has no value"),
        ("version: 1\nnemoclaw: {}\nnetwork_policies: {a: {binaries: }}\n".to_owned(), "`binaries` has no value"),
        ("version: 1\nnemoclaw: {}\nnetwork_policies: {a: {binaries: [{path: /usr/bin/curl/}]}}\n".to_owned(), "no path that the kernel"),
        ("version: 1\nnemoclaw: {}\nnetwork_policies: {a: {binaries: any, endpoints: [{host: \u{201c}a.example\u{201d}, port: 1}]}}\n".to_owned(), "typographic"),
        ("version: 1\nnemoclaw: {}\nnetwork_policies: {a: {binaries: any, endpoints: [{host: '[!a-z]*.example.com', port: 1, allowed_ips: [10.0.5.0/24]}, {host: '*[!a-z].example.com', port: 1}]}}\n".to_owned(), "disagree on allowed_ips"),
        ("version: 1\nnemoclaw: {}\nnetwork_policies: {a: {binaries: any, endpoints: [{host: 10.0.0.5, port: 1, tls: skip}, {host: '::ffff:10.0.0.5', port: 1}]}}\n".to_owned(), "disagree on tls"),
    ] {
        let found = problems(&text);
        assert!(found.iter().any(|message| message.contains(words)), "{words}\n{found:#?}");
    }
    for host in ["?*.com", "[!-]*.com", "{*,a.b}.com", "*{,x}.com", "?*.*"] {
        let text = format!(
            "version: 1\nnemoclaw: {{}}\nnetwork_policies: {{a: {{binaries: any, endpoints: [{{host: '{host}', port: 1}}]}}}}\n"
        );
        assert!(Policy::parse(&text, "p").is_err(), "{host}");
    }
}

/// Text of policies in their own language, sometimes almost right.
fn text() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "version: 1",
        "nemoclaw:",
        "network_policies:",
        "a:",
        "endpoints:",
        "- {host: a.example, port: 443}",
        "binaries: any",
        "[",
        "{",
        "}",
        "]",
        ": ",
        ", ",
        "'",
        "*",
        "&a",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "presets: [npm]",
        "protocol: rest",
        "rules: [{allow: {method: GET, path: /**}}]",
        "\u{e9}",
        "\t",
        "#",
        "|",
        ">",
        "!x",
        "<<: *a",
    ]);
    prop::collection::vec(word, 0..30).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn nothing_makes_the_reader_panic(text in text()) {
        if let Ok(policy) = Policy::parse(&text, "fuzz") {
            let printed = print::yaml(&policy, true);
            prop_assert_eq!(Policy::parse(&printed, "again").unwrap(), policy);
        }
    }
}
