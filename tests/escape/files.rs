//! Files that are guarded from outside: a mounted workspace, what the person's own
//! tools run later, private modes, shields, and the image's digest.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Failed;
use nemoclaw_tests::docker::{Container, docker, run};
use nemoclaw_tests::{
    Done, Outcome, binary, contains, equal, eventually, run_command, unique, work,
};

const IMAGE: &str = "nemoclaw-test/base";
/// The person's user and group; the image's user is another.
const PERSON: (u32, u32) = (1500, 1501);

pub(super) const TRIALS: [crate::Named; 7] = [
    ("a_workspace_stays_the_person_s_for_every_user", exchanged),
    ("tool_files_cannot_be_changed_where_policy_says_so", locked),
    ("changed_tool_files_become_findings", watched),
    ("a_linked_tool_file_is_refused_where_it_should_be_locked", linked),
    ("private_files_keep_their_modes", private),
    ("shields_lock_and_unlock_a_running_sandbox", shields),
    ("an_image_is_known_by_its_digest", image),
];

/// A workspace of the person's, removed when dropped.
struct Workspace(PathBuf);

impl Workspace {
    fn new() -> Result<Self, Failed> {
        let place = std::env::temp_dir().join(unique("nc-workspace"));
        fs::create_dir_all(place.join(".git/hooks"))?;
        for (name, text) in [(".git/config", "[core]\n"), (".envrc", "a\n"), ("code.py", "1\n")] {
            fs::write(place.join(name), text)?;
        }
        for name in ["", ".git", ".git/hooks", ".git/config", ".envrc", "code.py"] {
            chown(place.join(name), Some(PERSON.0), Some(PERSON.1))?;
        }
        Ok(Self(place))
    }

    fn mounted(&self) -> String {
        format!("{}:/sandbox", self.0.display())
    }

    fn owner(&self, name: &str) -> Result<(u32, u32), Failed> {
        let metadata = fs::symlink_metadata(self.0.join(name))?;
        Ok((metadata.uid(), metadata.gid()))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _removed = fs::remove_dir_all(&self.0);
    }
}

fn nemoclaw(args: &[&str]) -> Done {
    run_command(Command::new(binary("nemoclaw")).args(args))
}

fn quiet(container: &Container) -> Outcome {
    let done = nemoclaw(&["verify", &container.id]);
    equal("verify", &done.code, &0).map_err(|_differs| done.text().into())
}

fn exchanged() -> Outcome {
    let script = "id -u; stat -c '%u %n' code.py; echo 2 >>code.py && echo made >made && mkdir d && stat -c '%u' made";
    for (user, uid) in [("0", "1500"), ("1000", "1000"), ("1500", "1500"), ("4321:77", "4321")] {
        let workspace = Workspace::new()?;
        let mount = workspace.mounted();
        let options = ["-v", &mount, "-w", "/sandbox", "--user", user];
        let done = run("nemoclaw", &options, IMAGE, &["sh", "-c", script]).ok()?;
        equal(user, &done.out, &format!("{uid}\n{uid} code.py\n{uid}\n"))?;
        for name in ["code.py", "made", "d"] {
            equal(name, &workspace.owner(name)?, &PERSON)?;
        }
        equal("the directory", &workspace.owner("")?, &PERSON)?;
    }
    // The host sees nothing of what was prepared.
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    equal("mounts left", &mounts.contains("nemoclaw-stage"), &false)
}

const CHANGES: &str = "
cd /sandbox
for f in .git/config .envrc; do
    (echo x >>$f) 2>/dev/null && echo wrote $f
    chmod 777 $f 2>/dev/null && echo mode of $f
    rm -f $f 2>/dev/null && echo removed $f
    mv code.py $f 2>/dev/null && echo replaced $f
done
(echo x >.git/hooks/pre-commit) 2>/dev/null && echo made a hook
mv .git .git2 2>/dev/null && echo moved .git
mv .git/hooks .git/hooks2 2>/dev/null && echo moved hooks
ln .envrc second 2>/dev/null && echo linked
echo head >.git/HEAD && echo 2 >>code.py && echo done";

fn locked() -> Outcome {
    for user in ["0", "1000"] {
        let workspace = Workspace::new()?;
        let mount = workspace.mounted();
        let options = ["-v", &mount, "-w", "/sandbox", "--user", user];
        let container = Container::start("nemoclaw-locked", IMAGE, &options)?;
        let done = container.sh(CHANGES).ok()?;
        equal("what could be changed", &done.out, &"done\n".to_owned())?;
        quiet(&container)?;
        equal("hooks", &fs::read_dir(workspace.0.join(".git/hooks"))?.count(), &0)?;
        // What the person mounts read-only deeper stays so.
        let hooks = format!("{}/.git/hooks:/sandbox/.git/hooks:ro", workspace.0.display());
        let deeper = [&options[..], &["-v", &hooks]].concat();
        let container = Container::start("nemoclaw-locked", IMAGE, &deeper)?;
        equal("deeper", &container.sh(CHANGES).ok()?.out, &"done\n".to_owned())?;
        quiet(&container)?;
        // The same where policy only watches.
        let other = Container::start("nemoclaw", IMAGE, &options)?;
        contains("positive control", &other.sh(CHANGES).out, "wrote .envrc")?;
    }
    Ok(())
}

fn findings(container: &Container) -> String {
    nemoclaw(&["logs", "--findings", "--sandbox", &container.id]).out
}

fn watched() -> Outcome {
    let workspace = Workspace::new()?;
    let mount = workspace.mounted();
    let container = Container::start("nemoclaw", IMAGE, &["-v", &mount])?;
    quiet(&container)?;
    container
        .sh("cd /sandbox; echo 2 >>code.py; printf 'evil\\033\\n' >>.git/config; echo h >.git/hooks/pre-push; mkdir .vscode; echo t >.vscode/tasks.json; ln -s /etc/passwd .mcp.json")
        .ok()?;
    let told = |path: &str, change: &str| {
        let (path, change) = (format!("\"path\":\"{path}\""), format!("\"change\":\"{change}\""));
        findings(&container).lines().any(|line| line.contains(&path) && line.contains(&change))
    };
    for (path, change) in [
        ("/sandbox/.git/config", "changed"),
        ("/sandbox/.git/hooks/pre-push", "created"),
        ("/sandbox/.vscode/tasks.json", "created"),
        ("/sandbox/.mcp.json", "created"),
    ] {
        eventually(Duration::from_secs(10), path, || told(path, change))?;
    }
    let text = findings(&container);
    equal("other files", &text.contains("code.py"), &false)?;
    contains("the change itself", &text, "evil\\\\u{1b}")?;
    // What leads git to another configuration.
    container.sh("echo ../.x >/sandbox/.git/commondir").ok()?;
    eventually(Duration::from_secs(10), "commondir", || {
        told("/sandbox/.git/commondir", "created")
    })?;
    // A store to a shared mapping: no time changes, and no event comes.
    let store = "python3 -c \"
import mmap, os, time
f = os.open('/sandbox/.git/config', os.O_RDWR); m = mmap.mmap(f, 0)
m[0:1] = m[0:1]; time.sleep(1); m[0:1] = b'X'; time.sleep(20)\"";
    docker(&["exec", "-d", &container.name, "sh", "-c", store]).ok()?;
    let changed = || {
        let text = findings(&container);
        text.lines().filter(|line| line.contains("/sandbox/.git/config\"")).count()
    };
    let before = changed();
    eventually(Duration::from_secs(20), "a shared mapping", || changed() > before)?;
    equal("what the link leads to", &text.contains("root:x"), &false)?;
    // What changes last is told although the sandbox ends at once.
    let last = "cd /sandbox; echo last >.envrc; kill -9 -1; kill 1";
    let quick = Container::start_with("nemoclaw", IMAGE, &["-v", &mount], &["sh", "-c", last])?;
    eventually(Duration::from_secs(10), "the last change", || {
        findings(&quick).contains("/sandbox/.envrc")
    })?;
    // The watcher goes with its container.
    let pid = |container: &Container| -> Option<PathBuf> {
        let directory =
            fs::read_dir("/run/nemoclaw/containers").ok()?.flatten().find_map(|root| {
                let file = root.path().join(&container.id).join("watcher.json");
                fs::read(file).ok()
            })?;
        let value: serde_json::Value = serde_json::from_slice(&directory).ok()?;
        Some(Path::new("/proc").join(value.get("pid")?.as_i64()?.to_string()))
    };
    let process = pid(&container).ok_or("there is no watcher")?;
    equal("the watcher", &process.exists(), &true)?;
    drop(container);
    eventually(Duration::from_secs(5), "the watcher ends", || !process.exists())?;
    // Without it `verify` says so.
    let container = Container::start("nemoclaw", IMAGE, &["-v", &mount])?;
    let process = pid(&container).ok_or("there is no watcher")?;
    let number = process.file_name().unwrap_or_default().to_string_lossy().into_owned();
    run_command(Command::new("kill").args(["-9", &number])).ok()?;
    eventually(Duration::from_secs(5), "the watcher is killed", || !process.exists())?;
    let done = nemoclaw(&["verify", &container.id]);
    equal("exit code", &done.code, &3)?;
    contains("what is told", &done.out, "the watcher of the sandbox's files does not run")
}

fn linked() -> Outcome {
    for (make, told) in [
        ("rm .envrc; ln -s /etc/passwd .envrc", "`/sandbox/.envrc` is a symbolic link"),
        ("ln .envrc second", "is or holds a file with another name"),
        ("echo x >.git/hooks/h; ln .git/hooks/h second", "`/sandbox/.git/hooks` is or holds"),
    ] {
        let workspace = Workspace::new()?;
        let made = run_command(Command::new("sh").arg("-c").arg(make).current_dir(&workspace.0));
        made.ok()?;
        let mount = workspace.mounted();
        let done = run("nemoclaw-locked", &["-v", &mount], IMAGE, &["echo", "ran"]);
        equal("it ran", &done.out.contains("ran\n"), &false)?;
        contains("words", &done.err, told)?;
    }
    Ok(())
}

fn private() -> Outcome {
    let workspace = Workspace::new()?;
    let at = |name: &str| workspace.0.join(name);
    let mode = |name: &str| fs::metadata(at(name)).map(|m| m.permissions().mode() & 0o7777);
    fs::create_dir_all(at("agents/one"))?;
    fs::write(at("agents/one/auth.json"), "token")?;
    for name in ["agents", "agents/one", "agents/one/auth.json"] {
        chown(at(name), Some(PERSON.0), Some(PERSON.1))?;
    }
    fs::set_permissions(at("agents/one/auth.json"), fs::Permissions::from_mode(0o644))?;
    let mount = workspace.mounted();
    let outside = at("outside");
    fs::write(&outside, "x")?;
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o644))?;
    std::os::unix::fs::symlink("../../outside", at("agents/one/link"))?;
    let script = "stat -c %a /sandbox/agents/one/auth.json";
    let first = run("nemoclaw-private", &["-v", &mount], IMAGE, &["sh", "-c", script]).ok()?;
    equal("at the start", &first.out, &"600\n".to_owned())?;
    let container = Container::start("nemoclaw-private", IMAGE, &["-v", &mount])?;
    container
        .sh("cd /sandbox; chmod 644 agents/one/auth.json; mkdir -p agents/two .config/x; echo t >agents/two/auth.json; echo t >.config/x/key; ln -s ../../outside agents/two/auth2; chmod 666 .config/x/key")
        .ok()?;
    for (name, wanted) in [
        ("agents/one/auth.json", 0o600),
        ("agents/two/auth.json", 0o600),
        (".config", 0o700),
        (".config/x", 0o700),
        (".config/x/key", 0o600),
    ] {
        eventually(Duration::from_secs(10), name, || mode(name).is_ok_and(|mode| mode == wanted))?;
    }
    equal("what links lead to", &mode("outside")?, &0o644)?;
    contains("findings", &findings(&container), "made private")
}

fn shields() -> Outcome {
    let workspace = Workspace::new()?;
    fs::create_dir_all(workspace.0.join("agent/config"))?;
    for name in ["agent", "agent/config"] {
        chown(workspace.0.join(name), Some(PERSON.0), Some(PERSON.1))?;
    }
    let mount = workspace.mounted();
    let container = Container::start("nemoclaw-shields", IMAGE, &["-v", &mount])?;
    let write = "(echo x >/sandbox/agent/config/x) 2>/dev/null && echo wrote; chmod 700 /sandbox/agent/config 2>/dev/null && echo mode; mv /sandbox/agent /sandbox/other 2>/dev/null && echo moved; echo done";
    let written = || container.sh(write).ok().map(|done| done.out);
    let locked = "done\n".to_owned();
    equal("up at the start", &written()?, &locked)?;
    quiet(&container)?;
    nemoclaw(&["shields", "down", &container.id]).ok()?;
    equal("down", &written()?, &"wrote\nmode\ndone\n".to_owned())?;
    quiet(&container)?;
    equal("status", &nemoclaw(&["shields", "status", &container.id]).code, &3)?;
    // While somebody writes they cannot rise, and say so.
    let writer = format!("{}-writer", container.name);
    docker(&[
        "exec",
        "-d",
        &container.name,
        "sh",
        "-c",
        "exec 9>/sandbox/agent/config/held; touch /sandbox/held; sleep 900",
    ])
    .ok()?;
    eventually(Duration::from_secs(10), &writer, || workspace.0.join("held").exists())?;
    let busy = nemoclaw(&["shields", "up", &container.id]);
    contains("busy", &busy.err, "open for writing")?;
    container.sh("pkill -f 'sleep 900'");
    eventually(Duration::from_secs(10), "up again", || {
        nemoclaw(&["shields", "up", &container.id]).code == 0
    })?;
    equal("up again", &written()?, &locked)?;
    // By force: who holds a file open can write that one, and nobody any other.
    nemoclaw(&["shields", "down", &container.id]).ok()?;
    docker(&[
        "exec",
        "-d",
        &container.name,
        "sh",
        "-c",
        "exec 9>/sandbox/agent/config/held2; touch /sandbox/held2; sleep 901",
    ])
    .ok()?;
    eventually(Duration::from_secs(10), "a writer", || workspace.0.join("held2").exists())?;
    nemoclaw(&["shields", "up", "--force", &container.id]).ok()?;
    equal("up by force", &written()?, &locked)?;
    quiet(&container)?;
    nemoclaw(&["shields", "down", &container.id]).ok()?;
    equal("down again", &written()?.contains("wrote"), &true)?;
    container.sh("pkill -f 'sleep 901'");
    // For a while only.
    nemoclaw(&["shields", "down", "--for", "1s", &container.id]).ok()?;
    equal("down for a while", &written()?.contains("wrote"), &true)?;
    eventually(Duration::from_secs(10), "they rise by themselves", || {
        nemoclaw(&["shields", "status", &container.id]).code == 0
    })?;
    equal("up by themselves", &written()?, &locked)?;
    quiet(&container)?;
    let text = findings(&container);
    contains("findings", &text, "shield down")?;
    contains("findings", &text, "shield up")?;
    let none = Container::start("nemoclaw", IMAGE, &[])?;
    contains("no shields", &nemoclaw(&["shields", "up", &none.id]).err, "names no directories")
}

/// The runtime reads the policy at every start: the digest is written into it.
fn image() -> Outcome {
    let policy = work().join("policy/images.yaml");
    let text = fs::read_to_string(&policy)?;
    let start = || run("nemoclaw-images", &[], IMAGE, &["echo", "ran"]);
    let refused = start();
    equal("it ran", &refused.out.contains("ran\n"), &false)?;
    contains("words", &refused.err, "which the policy does not name")?;
    let id = docker(&["image", "inspect", "-f", "{{.Id}}", IMAGE]).ok()?.out;
    let known = text.replace(&format!("sha256:{:0>64}", ""), id.trim());
    fs::write(&policy, &known)?;
    let done = start();
    fs::write(&policy, known.replace("docker_socket", "# docker_socket"))?;
    let unknown = start();
    fs::write(&policy, text)?;
    equal("the known image", &done.ok()?.out, &"ran\n".to_owned())?;
    contains("unknown", &unknown.err, "the engine does not tell the image's digest")
}
