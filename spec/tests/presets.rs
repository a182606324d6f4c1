//! Every built-in preset against a table of its clients' real calls.

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the crate is pure, its tests read tables")]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    use nemoclaw_spec::decide::{Caller, Decision, Destination, Engine, Intent, Process};
    use nemoclaw_spec::http::{Content, Method, Request, Target};
    use nemoclaw_spec::name::Host;
    use nemoclaw_spec::policy::{Policy, lint, preset};

    fn directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/presets")
    }

    fn engine(name: &str) -> Engine {
        let text = format!("version: 1\nnemoclaw: {{presets: [{name}]}}\n");
        Engine::new(Policy::parse(&text, "test").unwrap(), HashMap::new())
    }

    fn ask(engine: &Engine, row: &[&str]) -> (String, String) {
        let [binary, host, port, method, target, ..] = row else { panic!("{row:?}") };
        let destination = match host.parse() {
            Ok(address) => Destination::Address { address, names: Vec::new() },
            Err(_) => Destination::Host(Host::parse(host).unwrap()),
        };
        let mut intent = Intent::connect(destination, port.parse().unwrap());
        intent.request = Some(Request {
            method: Method::parse(method).unwrap(),
            target: Target::parse(target).unwrap(),
            content: Content::Opaque,
        });
        let holder = Process::new((*binary).to_owned(), Vec::new());
        match engine.decide(&intent, &Caller { holders: vec![holder] }) {
            Decision::Allow(permit) => ("allow".to_owned(), permit.rule().key.to_string()),
            Decision::Deny(denial) => ("deny".to_owned(), denial.reason.code().to_owned()),
            Decision::Inspect(_) => ("inspect".to_owned(), String::new()),
        }
    }

    #[test]
    fn calls_are_decided_as_their_tables_say() {
        for (name, _) in preset::PRESETS {
            let path = directory().join(format!("{name}.calls.tsv"));
            let table = fs::read_to_string(&path).unwrap();
            let engine = engine(name);
            let mut counts = (0, 0);
            for line in table.lines().skip(1) {
                let row: Vec<&str> = line.split('\t').collect();
                let (decision, rule) = ask(&engine, &row);
                assert_eq!((decision.as_str(), rule.as_str()), (row[5], row[6]), "{name}: {line}");
                if decision == "allow" { counts.0 += 1 } else { counts.1 += 1 }
            }
            assert!(
                counts.0 >= 8 && counts.1 >= 5 && counts.0 + counts.1 >= 15,
                "{name} {counts:?}"
            );
        }
    }

    #[test]
    fn everything_built_in_parses_and_presets_go_together() {
        let names: Vec<&str> = preset::PRESETS.iter().map(|(name, _)| *name).collect();
        let text = format!("version: 1\nnemoclaw: {{presets: [{}]}}\n", names.join(", "));
        Policy::parse(&text, "all presets").unwrap();
        Policy::parse(preset::OPENCLAW, "openclaw").unwrap();
        for (name, _) in preset::POSTURES {
            Policy::parse(&format!("version: 1\nnemoclaw: {{posture: {name}}}\n"), name).unwrap();
        }
        for (name, _) in preset::TIERS {
            Policy::parse(&format!("version: 1\nnemoclaw: {{tier: {name}}}\n"), name).unwrap();
        }
    }

    #[test]
    fn every_file_of_the_directory_is_built_in() {
        let mut files: Vec<String> = fs::read_dir(directory())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        let names: Vec<String> =
            preset::PRESETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(files, names);
    }

    #[test]
    fn presets_have_no_endpoint_that_is_passed_on_untouched() {
        for (name, _) in preset::PRESETS {
            let found = lint::lint(engine(name).policy());
            let words = ["not inspected", "audit", "access: full", "never reachable"];
            let bad: Vec<&String> = found
                .iter()
                .map(|finding| &finding.message)
                .filter(|message| words.iter().any(|word| message.contains(word)))
                .collect();
            assert!(bad.is_empty(), "{name}: {bad:#?}");
        }
    }
}
