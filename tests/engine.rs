//! One way to run containers on every test engine, from inside its namespaces.

use std::process::Command;

use libtest_mimic::Failed;

use super::{Done, binary, repository, run_command, unique, work};

/// A test engine of `hack/engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Docker 20.10.
    Docker20,
    /// Docker 26.1.
    Docker26,
    /// podman 5.
    Podman5,
    /// containerd 1.6, through `ctr`.
    Containerd,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Docker20, Self::Docker26, Self::Podman5, Self::Containerd];

    /// Its name for `hack/engine`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker20 => "docker20",
            Self::Docker26 => "docker26",
            Self::Podman5 => "podman5",
            Self::Containerd => "containerd",
        }
    }

    fn client(self) -> &'static str {
        match self {
            Self::Docker20 | Self::Docker26 => "docker",
            Self::Podman5 => "podman",
            Self::Containerd => "ctr",
        }
    }

    fn image(self, name: &str) -> String {
        match self {
            Self::Docker20 | Self::Docker26 => format!("nemoclaw-test/{name}"),
            Self::Podman5 => format!("localhost/nemoclaw-test/{name}:latest"),
            Self::Containerd => format!("nemoclaw-test/{name}:latest"),
        }
    }

    /// Runs a command where the engine lives.
    pub fn inside(self, args: &[&str]) -> Done {
        let mut command = Command::new(repository().join("hack/engine"));
        command.args(["exec", self.name()]).args(args);
        run_command(&mut command)
    }

    /// The words that start a container: the runtime is `nemoclaw`, or
    /// `nemoclaw-NAME` for tests/policies/NAME.yaml.
    fn start_words(self, runtime: &str, id: &str, detached: bool) -> Vec<String> {
        let kind = if detached { "-d" } else { "--rm" };
        if self == Self::Containerd {
            let program = if runtime == "nemoclaw" {
                binary("nemoclaw")
            } else {
                work().join("bin").join(runtime)
            };
            let program = program.display().to_string();
            return ["ctr", "run", kind, "--runc-binary", &program].map(str::to_owned).to_vec();
        }
        [self.client(), "run", kind, "--network", "none", "--runtime", runtime, "--name", id]
            .map(str::to_owned)
            .to_vec()
    }

    /// Runs a container to its end.
    pub fn run(self, runtime: &str, image: &str, command: &[&str]) -> Done {
        let id = unique("c");
        self.started(runtime, &id, image, command, false)
    }

    fn started(
        self,
        runtime: &str,
        id: &str,
        image: &str,
        command: &[&str],
        detached: bool,
    ) -> Done {
        let mut words = self.start_words(runtime, id, detached);
        words.push(self.image(image));
        if self == Self::Containerd {
            words.push(id.to_owned());
        }
        words.extend(command.iter().map(|word| (*word).to_owned()));
        self.inside(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// A running container, removed when dropped.
#[derive(Debug)]
pub struct Running {
    engine: Engine,
    /// Its id for the runtime.
    pub id: String,
    name: String,
}

impl Running {
    /// Starts a container.
    ///
    /// # Errors
    /// With the engine's own words.
    pub fn start(
        engine: Engine,
        runtime: &str,
        image: &str,
        command: &[&str],
    ) -> Result<Self, Failed> {
        let name = unique("c");
        let done = engine.started(runtime, &name, image, command, true).ok()?;
        let printed = done.out.lines().last().unwrap_or_default().trim().to_owned();
        let id = if engine == Engine::Containerd { name.clone() } else { printed };
        Ok(Self { engine, id, name })
    }

    /// Runs a program in it, asking for every privilege the client knows.
    pub fn exec(&self, user: &str, command: &[&str]) -> Done {
        let exec = unique("e");
        let mut words = match self.engine {
            // With --user, ctr mounts the container's overlay a second time to look
            // into its accounts, and writing fails; root is what it asks for anyway.
            Engine::Containerd if user == "0" => vec!["ctr", "t", "exec", "--exec-id", &exec],
            Engine::Containerd => vec!["ctr", "t", "exec", "--exec-id", &exec, "--user", user],
            _ => vec![self.engine.client(), "exec", "--privileged", "-u", user],
        };
        words.push(&self.name);
        words.extend(command);
        self.engine.inside(&words)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        match self.engine {
            Engine::Containerd => {
                self.engine.inside(&["ctr", "t", "rm", "-f", &self.name]);
                self.engine.inside(&["ctr", "c", "rm", &self.name]);
            }
            Engine::Podman5 => {
                self.engine.inside(&["podman", "rm", "-f", "-t", "0", &self.name]);
            }
            Engine::Docker20 | Engine::Docker26 => {
                self.engine.inside(&["docker", "rm", "-f", &self.name]);
            }
        }
    }
}
