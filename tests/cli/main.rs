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
        ("policy_explain_names_the_smallest_change", explains),
        ("policy_diff_tells_what_is_newly_allowed_and_denied", differs),
        ("policy_show_export_and_schema_print_what_parses_again", prints),
        ("requests_are_decided_by_method_and_path", requests),
        ("presets_are_listed_and_shown", presets),
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

const REST: &str = "version: 1\nnemoclaw: {}\nnetwork_policies:\n  api:\n    endpoints: [{host: api.example, port: 443, protocol: rest, access: read-only}]\n    binaries: [{path: /usr/bin/curl}]\n";

fn explains() -> Outcome {
    let file = file(POLICY)?;
    let path = file.path().display().to_string();
    let ask = |binary: &str, port: &str| {
        nemoclaw(&[
            "policy",
            "explain",
            "--policy",
            &path,
            "--binary",
            binary,
            "--host",
            "api.example",
            "--port",
            port,
        ])
    };
    let done = ask("/usr/bin/wget", "443");
    equal("exit code", &done.code, &3)?;
    contains("change", &done.out, "add to binaries: {path: \"/usr/bin/wget\"}")?;
    contains(
        "change",
        &ask("/usr/bin/curl", "444").out,
        "add port 444 to the endpoint api.example",
    )?;
    contains("change", &ask("/usr/bin/curl", "443").out, "to refuse it: in rule `web`")
}

fn differs() -> Outcome {
    let (before, after) = (file(POLICY)?, file(REST)?);
    let (before, after) = (before.path().display().to_string(), after.path().display().to_string());
    let done = nemoclaw(&["policy", "diff", &before, &after]).ok()?;
    contains("a loss", &done.out, "- /usr/bin/curl -> api.example:443 POST **")?;
    let done = nemoclaw(&["policy", "diff", "--json", &after, &before]).ok()?;
    let changes: serde_json::Value = serde_json::from_str(&done.out)?;
    equal("a gain", &changes["egress"][0]["allowed"], &serde_json::json!(true))?;
    contains(
        "none",
        &nemoclaw(&["policy", "diff", &after, &after]).ok()?.out,
        "both let the same out",
    )
}

fn prints() -> Outcome {
    let file_ = file(REST)?;
    let path = file_.path().display().to_string();
    for args in
        [["policy", "show", "--effective", &path], ["policy", "export", "--openshell", &path]]
    {
        let done = nemoclaw(&args).ok()?;
        let again = file(&done.out)?;
        let again = again.path().display().to_string();
        contains(
            "no difference",
            &nemoclaw(&["policy", "diff", &path, &again]).ok()?.out,
            "both let the same out",
        )?;
    }
    let schema = nemoclaw(&["policy", "schema"]).ok()?.out;
    let schema: serde_json::Value = serde_json::from_str(&schema)?;
    equal("type", &schema["type"], &serde_json::json!("object"))?;
    contains("reference", &nemoclaw(&["policy", "reference"]).ok()?.out, "### `deny_rules`")
}

fn requests() -> Outcome {
    let ask = |more: &[&str]| {
        let base = ["--binary", "/usr/bin/curl", "--host", "api.example", "--port", "443"];
        test(REST, &[&base, more].concat())
    };
    let done = ask(&[])?;
    equal("a connection", &done.code, &0)?;
    contains("a connection", &done.out, "inspect: api")?;
    contains("a start", &done.out, "containers with this policy do not start yet")?;
    equal("GET", &ask(&["--method", "GET", "--path", "/a/../b?c"])?.code, &0)?;
    let done = ask(&["--method", "DELETE", "--path", "/a"])?;
    equal("DELETE", &done.code, &3)?;
    contains("reason", &done.out, "request_not_allowed")?;
    equal("a bad path", &ask(&["--path", "/../x"])?.code, &1)
}

fn presets() -> Outcome {
    let done = nemoclaw(&["presets", "ls"]).ok()?;
    for name in ["npm", "locked-down", "balanced"] {
        contains("name", &done.out, name)?;
    }
    contains("rules", &nemoclaw(&["presets", "show", "pypi"]).ok()?.out, "network_policies:")?;
    equal("an unknown one", &nemoclaw(&["presets", "show", "nosuch"]).code, &1)
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
