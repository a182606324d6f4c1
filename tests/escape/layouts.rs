//! Images that are laid out unlike Debian start, do their work, and are as
//! closed as the others.

use std::process::Command;
use std::time::Duration;

use nemoclaw_tests::docker::{Container, docker, docker_for, run};
use nemoclaw_tests::{Outcome, binary, contains, equal, repository, run_command, unique};

pub(super) const TRIALS: [crate::Named; 5] = [
    ("a_musl_image_starts_and_is_closed", musl),
    ("an_image_with_bin_and_lib64_of_its_own_starts_and_is_closed", split),
    ("an_image_of_one_static_program_starts_and_is_closed", single),
    ("language_runtimes_do_their_work_and_compilers_are_hidden", runtimes),
    ("verify_is_quiet_on_every_layout", verify),
];

fn musl() -> Outcome {
    let done = run("nemoclaw", &[], "nemoclaw-test/musl", &["whoami-musl"]).ok()?;
    equal("its work", &done.out, &"root 10001\n".to_owned())?;
    let script = "for f in /bin/x /etc/x /lib/x /usr/bin/x; do (: >$f) 2>/dev/null && echo wrote $f; done; ls /root 2>/dev/null; echo done";
    let done = run("nemoclaw", &[], "nemoclaw-test/musl", &["sh", "-c", script]).ok()?;
    equal("what was open", &done.out, &"done\n".to_owned())
}

fn split() -> Outcome {
    let script = "
for f in /bin/x /lib64/x /etc/x /usr/bin/x; do (: >$f) 2>/dev/null && echo wrote $f; done
for f in /bin/cat /lib64/ld-linux-x86-64.so.2; do chmod 777 $f 2>/dev/null && echo chmod $f; touch $f 2>/dev/null && echo times of $f; done
/bin/nc.openbsd -h 2>&1 | grep usage
id -u; python3 -c 'print(6 * 7)'";
    let done = run("nemoclaw", &[], "nemoclaw-test/split", &["sh", "-c", script]).ok()?;
    equal("what was open", &done.out, &"10001\n42\n".to_owned())
}

fn single() -> Outcome {
    let busybox = |words: &[&str]| {
        let mut all = vec!["/app/busybox"];
        all.extend(words);
        run("nemoclaw", &[], "nemoclaw-test/static", &all)
    };
    equal("its work", &busybox(&["id", "-u"]).ok()?.out, &"10001\n".to_owned())?;
    equal("its place", &busybox(&["touch", "/app/x"]).code, &1)?;
    equal("another place", &busybox(&["touch", "/x"]).code, &1)?;
    equal("work place", &busybox(&["touch", "/tmp/x"]).code, &0)?;
    equal("home", &busybox(&["touch", "/sandbox/x"]).code, &0)
}

/// The same script under runc and under us prints the same, as the same user.
fn runtimes() -> Outcome {
    let image = "nemoclaw-test/runtimes";
    let script = repository().join("tests/escape/runtimes.sh");
    let mount = format!("{}:/runtimes.sh:ro", script.display());
    let start = |runtime: &str| {
        let name = unique("runtimes");
        let options = ["-v", &mount, "--shm-size", "256m", "--user", "10001"];
        let mut args = vec!["run", "--rm", "--name", &name, "--runtime", runtime];
        args.extend(options);
        args.extend([image, "sh", "/runtimes.sh"]);
        docker_for(&args, Duration::from_mins(4)).ok()
    };
    let wanted = "node 42 node child\nthreads 10\npython ok 42 child\njava 4950 child\ngo 499500 child\n<nil>\nchromium 42\n";
    equal("under runc", &start("runc")?.out, &wanted.to_owned())?;
    equal("under nemoclaw", &start("nemoclaw")?.out, &wanted.to_owned())?;
    let tools = "for t in gcc cc as ld gcc-12 x86_64-linux-gnu-gcc; do $t --version 2>/dev/null | head -n 1; done; echo done";
    let found = run("nemoclaw", &[], image, &["sh", "-c", tools]).ok()?;
    equal("compilers", &found.out, &"done\n".to_owned())?;
    let found = run("runc", &[], image, &["sh", "-c", tools]).ok()?;
    contains("under runc", &found.out, "Free Software Foundation, Inc.")
        .or_else(|_other| contains("under runc", &found.out, "gcc"))?;
    let container = Container::start("nemoclaw", image, &[])?;
    let done = run_command(Command::new(binary("nemoclaw")).args(["verify", &container.id]));
    equal("verify", &done.code, &0).map_err(|_differs| done.text().into())
}

fn verify() -> Outcome {
    for (image, program) in [
        ("nemoclaw-test/musl", &["sleep", "900"][..]),
        ("nemoclaw-test/split", &["sleep", "900"]),
        ("nemoclaw-test/static", &["/app/busybox", "sleep", "900"]),
        ("nemoclaw-test/tiny", &["sleep", "900"]),
    ] {
        let container = Container::start_with("nemoclaw", image, &[], program)?;
        if image != "nemoclaw-test/static" {
            docker(&["exec", &container.name, "true"]).ok()?;
        }
        let done = run_command(Command::new(binary("nemoclaw")).args(["verify", &container.id]));
        equal(image, &done.code, &0).map_err(|_differs| done.text())?;
    }
    Ok(())
}
