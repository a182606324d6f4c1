//! The operator's command line.

#![expect(clippy::indexing_slicing, reason = "a trial that panics has failed")]

use std::process::{Command, ExitCode};

use nemoclaw_tests::{Done, Outcome, binary, contains, equal, run_as_anyone, run_command};

fn main() -> ExitCode {
    run_as_anyone(vec![
        ("policy_test_allows_a_listed_program_with_exit_0", allows),
        ("policy_test_denies_with_exit_3_and_the_remedy", denies),
        ("policy_test_takes_ancestors_and_prints_json", ancestors_and_json),
        ("policy_test_of_a_bad_file_fails_with_its_place", bad_file),
        ("policy_lint_exits_0_for_advice_and_1_for_errors", lint),
        ("the_shipped_policies_pass_lint", shipped),
        ("unknown_verbs_are_usage_errors", usage),
        ("version_and_features_are_printed", version),
    ])
}

const POLICY: &str = "version: 1\nnemoclaw: {}\nnetwork_policies:\n  web:\n    endpoints: [{host: api.example, port: 443}]\n    binaries: [{path: /usr/bin/curl}]\n";

fn nemoclaw(args: &[&str]) -> Done {
    run_command(Command::new(binary("nemoclaw")).args(args))
}

fn file(text: &str) -> Result<tempfile::NamedTempFile, std::io::Error> {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    std::fs::write(file.path(), text)?;
    Ok(file)
}

fn test(text: &str, args: &[&str]) -> Result<Done, std::io::Error> {
    let file = file(text)?;
    let path = file.path().display().to_string();
    Ok(nemoclaw(&[&["policy", "test", "--policy", &path], args].concat()))
}

fn allows() -> Outcome {
    let done = test(
        POLICY,
        &[
            "--binary",
            "/usr/bin/curl",
            "--host",
            "API.example.",
            "--port",
            "443",
            "--method",
            "GET",
            "--path",
            "/",
        ],
    )?;
    equal("exit code", &done.code, &0)?;
    contains("rule", &done.out, "allow: web (")?;
    contains("line", &done.out, ".yaml:5)")
}

fn denies() -> Outcome {
    let done =
        test(POLICY, &["--binary", "/usr/bin/wget", "--host", "api.example", "--port", "443"])?;
    equal("exit code", &done.code, &3)?;
    contains("reason", &done.out, "binary_not_allowed")?;
    contains("remedy", &done.out, "binaries: [{path: \"/usr/bin/wget\"}]")?;
    let done =
        test(POLICY, &["--binary", "/usr/bin/curl", "--host", "169.254.169.254", "--port", "80"])?;
    equal("exit code", &done.code, &3)?;
    contains("reason", &done.out, "address_never")
}

fn ancestors_and_json() -> Outcome {
    let done = test(
        POLICY,
        &[
            "--binary",
            "/bin/x",
            "--ancestor",
            "/bin/y",
            "--ancestor",
            "/usr/bin/curl",
            "--host",
            "api.example",
            "--port",
            "443",
            "--json",
        ],
    )?;
    let value: serde_json::Value = serde_json::from_str(&done.out)?;
    equal("decision", &value["decision"], &serde_json::json!("allow"))
}

fn bad_file() -> Outcome {
    let done = test(
        "version: 1\nnetwork_polices: {}\n",
        &["--binary", "/x", "--host", "a.example", "--port", "1"],
    )?;
    equal("exit code", &done.code, &1)?;
    contains("place", &done.err, ".yaml:2:1: unknown key `network_polices`")?;
    contains("fix", &done.err, "did you mean `network_policies`?")
}

fn lint() -> Outcome {
    let advice =
        file("version: 1\nnetwork_policies: {a: {endpoints: [{host: a.example, port: 1}]}}\n")?;
    let broken = file("version: 1\nx: 1\n")?;
    let (advice, broken) =
        (advice.path().display().to_string(), broken.path().display().to_string());
    let done = nemoclaw(&["policy", "lint", &advice]);
    equal("advice only", &done.code, &0)?;
    contains("advice", &done.out, "matches nothing")?;
    let done = nemoclaw(&["policy", "lint", &advice, &broken]);
    equal("with an error", &done.code, &1)?;
    equal("a missing file", &nemoclaw(&["policy", "lint", "/no/such"]).code, &1)
}

fn shipped() -> Outcome {
    let baseline = nemoclaw_tests::repository().join("policies/baseline.yaml");
    let done = nemoclaw(&["policy", "lint", &baseline.display().to_string()]);
    equal("exit code", &done.code, &0)?;
    equal("findings", &done.out, &String::new())
}

fn usage() -> Outcome {
    equal("unknown verb", &nemoclaw(&["frobnicate"]).code, &2)?;
    equal("missing id", &nemoclaw(&["state"]).code, &2)
}

fn version() -> Outcome {
    contains("version", &nemoclaw(&["--version"]).ok()?.out, "nemoclaw 0.1.0")?;
    let features: serde_json::Value = serde_json::from_str(&nemoclaw(&["features"]).ok()?.out)?;
    equal("seccomp", &features["linux"]["seccomp"]["enabled"], &serde_json::json!(true))
}
