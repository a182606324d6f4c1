use super::*;

fn problems(text: &str) -> Vec<String> {
    Policy::parse(text, "p.yaml").unwrap_err().problems.iter().map(ToString::to_string).collect()
}

#[test]
fn the_baseline_allows_no_egress() {
    let policy = Policy::baseline().unwrap();
    assert!(policy.rules.is_empty());
    assert!(policy.ours);
    assert_eq!(policy.landlock, LandlockMode::HardRequirement);
    assert!(policy.unenforced.is_empty());
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let found = problems(
        "version: 2\nprocess: {run_as_user: root}\nfilesystem_policy: {read_write: [/, x]}\nnetwork_policies:\n  a:\n    endpoints:\n      - host: '*'\n        port: 443\n      - {host: ok.example}\n    binaries: [{path: curl}]\n",
    );
    let lines: Vec<&str> = found.iter().map(|text| text.split(": ").next().unwrap()).collect();
    assert_eq!(lines.len(), 7, "{found:#?}");
    assert!(found[0].starts_with("p.yaml:1:10: version 2 is unknown"), "{found:#?}");
    assert!(found.iter().any(|text| text.starts_with("p.yaml:7:15: `*` is no host")), "{found:#?}");
    assert!(
        found.iter().any(|text| text.starts_with("p.yaml:9:16: an endpoint has no port")),
        "{found:#?}"
    );
}

#[test]
fn unknown_and_repeated_keys_are_errors() {
    let unknown = problems("version: 1\nnetwork_polices: {}\n");
    assert!(unknown[0].contains("p.yaml:2:1: unknown key `network_polices`"), "{unknown:?}");
    assert!(unknown[0].contains("did you mean `network_policies`?"), "{unknown:?}");
    let twice = problems("version: 1\nnetwork_policies:\n  a: {}\n  a: {}\n");
    assert!(twice[0].starts_with("p.yaml:4:3: the key `a` stands here twice"), "{twice:?}");
    assert!(problems("version: 1\nversion: 1\n")[0].contains("twice"));
    assert!(problems("network_policies: {}\n")[0].contains("`version` is missing"));
}

#[test]
fn ports_are_plain_numbers() {
    for port in ["\"443\"", "0", "70000", "4_43", "-1", "x"] {
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
        "version: 1\nx: &a [1]\ny: *a\n".to_owned(),
        format!("version: 1\nnetwork_policies: {}", "{a: ".repeat(100)),
        "x".repeat(MAX_POLICY_BYTES + 1),
        "version: !evil 1\n".to_owned(),
    ];
    for text in texts {
        assert!(Policy::parse(&text, "p").is_err(), "{}", text.get(..20).unwrap_or(&text));
    }
}

#[test]
fn an_omitted_list_of_binaries_means_what_its_language_says() {
    let body = "network_policies: {a: {endpoints: [{host: a.example, port: 443}]}}\n";
    let theirs = Policy::parse(&format!("version: 1\n{body}"), "p").unwrap();
    assert!(matches!(&theirs.rules[0].binaries, Binaries::Listed(list) if list.is_empty()));
    let ours = Policy::parse(&format!("version: 1\nnemoclaw: {{}}\n{body}"), "p").unwrap();
    assert!(matches!(ours.rules[0].binaries, Binaries::Any));
    let empty = "version: 1\nnemoclaw: {}\nnetwork_policies: {a: {endpoints: [], binaries: []}}\n";
    assert!(problems(empty)[0].contains("matches no program"));
}

#[test]
fn what_is_not_enforced_is_named() {
    let policy = Policy::parse(
        "version: 1\nnetwork_policies:\n  a:\n    endpoints:\n      - {host: a.example, port: 443, protocol: rest, access: read-only, rules: [{allow: {method: GET}}]}\n      - {host: b.example, port: 443, protocol: tcp, tls: skip, access: full, enforcement: enforce}\n    binaries: [{path: /usr/bin/curl}]\n",
        "p",
    )
    .unwrap();
    let names: Vec<&str> =
        policy.unenforced.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(
        names,
        [
            "`protocol: rest` is not enforced by this version",
            "`access: read-only` is not enforced by this version",
            "`rules` is not enforced by this version"
        ]
    );
    assert_eq!(policy.unenforced[0].line, 5);
}

#[test]
fn lint_speaks_of_the_usual_mistakes() {
    let policy = Policy::parse(
        "version: 1\nlandlock: {compatibility: best_effort}\nnemoclaw: {pids: 4096, allow_root: true}\nfilesystem_policy: {read_write: [/home]}\nnetwork_policies:\n  a: {endpoints: [{host: '*.a.example', port: 443}]}\n  b: {endpoints: [{host: b.example, port: 1}], binaries: [{path: /sandbox/x}]}\n",
        "p",
    )
    .unwrap();
    assert_eq!(lint::lint(&policy).len(), 7);
    assert!(lint::lint(&Policy::baseline().unwrap()).is_empty());
}
