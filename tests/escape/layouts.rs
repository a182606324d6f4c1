//! Images that are laid out unlike Debian start, do their work, and are as
//! closed as the others.

use std::process::Command;

use nemoclaw_tests::docker::{Container, docker, run};
use nemoclaw_tests::{Outcome, binary, equal, run_command};

pub(super) const TRIALS: [crate::Named; 4] = [
    ("a_musl_image_starts_and_is_closed", musl),
    ("an_image_with_bin_and_lib64_of_its_own_starts_and_is_closed", split),
    ("an_image_of_one_static_program_starts_and_is_closed", single),
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
