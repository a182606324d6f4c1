//! Real clients against real servers, with no proxy variables: each works when
//! it is listed, and is refused within a second when it is not.

#![expect(clippy::indexing_slicing, reason = "a trial that panics has failed")]

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use nemoclaw_tests::docker::{Container, docker};
use nemoclaw_tests::{Outcome, eventually, repository};

const RUNTIME: &str = "nemoclaw-test";
const IMAGE: &str = "nemoclaw-test/clients";

/// One line of tests/upstream/clients.tsv.
#[derive(Debug, Clone)]
struct Client {
    name: String,
    binary: String,
    scheme: String,
    command: String,
}

fn main() -> ExitCode {
    let table = std::fs::read_to_string(repository().join("tests/upstream/clients.tsv"))
        .unwrap_or_default();
    let clients: Vec<Client> = table
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .filter_map(|line| {
            let mut fields = line.splitn(4, '\t').map(str::to_owned);
            Some(Client {
                name: fields.next()?,
                binary: fields.next()?,
                scheme: fields.next()?,
                command: fields.next()?,
            })
        })
        .collect();
    let count = clients.iter().map(|client| &client.name).collect::<BTreeSet<_>>().len();
    let root = rustix::process::geteuid().is_root();
    let ignored = !root && std::env::var_os("NEMOCLAW_CI").is_none();
    let mut trials: Vec<Trial> = clients
        .into_iter()
        .map(|client| {
            let name = format!(
                "{}_over_{}_works_when_listed_and_is_refused_when_not",
                client.name, client.scheme
            )
            .replace(' ', "_");
            Trial::test(name, move || check(&client)).with_ignored_flag(ignored)
        })
        .collect();
    trials.push(Trial::test("the_table_has_thirty_programs", move || {
        if count >= 30 {
            Ok(())
        } else {
            Err(format!("only {count} programs in clients.tsv").into())
        }
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn check(client: &Client) -> Outcome {
    let ca = std::env::var("NEMOCLAW_CA").unwrap_or_default();
    let mount = format!("{ca}:/ca.pem:ro");
    let container = Container::start(RUNTIME, IMAGE, &["-v", &mount])?;
    let run = |host: &str| {
        let command = client.command.replace("@HOST@", host).replace("@SCHEME@", &client.scheme);
        docker(&["exec", "-w", "/tmp", &container.name, "sh", "-c", &command])
    };
    let listed = run("files.test");
    if listed.code != 0 {
        return Err(format!("listed: {listed:?}\n{:#?}", container.audit()).into());
    }
    let refused = run("denied.test");
    let text = refused.text();
    if refused.code == 0 {
        return Err(format!("not refused: {refused:?}").into());
    }
    for word in ["not resolve", "ENOTFOUND", "getaddrinfo", "Name or service not known", "imed out"]
    {
        if text.contains(word) {
            return Err(format!("`{word}` in {refused:?}").into());
        }
    }
    let refusal = || {
        let mut records = container.audit().into_iter();
        records.find(|record| record["host"] == "denied.test" && record["decision"] == "deny")
    };
    // It is on its way before the client hears the refusal, and written a moment later.
    let _waited = eventually(Duration::from_secs(1), "a record", || refusal().is_some());
    let record =
        refusal().ok_or_else(|| format!("no record of the refusal in {:#?}", container.audit()))?;
    if record["binary"] != client.binary.as_str() {
        return Err(format!("recorded {} instead of {}", record["binary"], client.binary).into());
    }
    if record["allow_with"].as_str().is_none_or(|yaml| !yaml.contains(&client.binary))
        || record["port"].as_u64().is_none()
    {
        return Err(format!("the record does not say what would allow it: {record}").into());
    }
    if record["ms"].as_u64().is_none_or(|ms| ms > 1000) {
        return Err(format!("decided late: {record}").into());
    }
    // Interpreters take their time to start; the refusal itself must not.
    let limit = listed.took + Duration::from_secs(1);
    if refused.took > limit.max(Duration::from_secs(2)) {
        return Err(format!("took {:?}, {:?} when listed", refused.took, listed.took).into());
    }
    Ok(())
}
