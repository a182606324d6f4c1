//! create, start and run.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nemoclaw_spec::control::{MAX_PROGRAMS, Member, Names, SandboxConfig};
use nemoclaw_spec::plan::{HostFacts, Ids, ImageView as _, Plan, harden, has_user_namespace};
use nemoclaw_spec::policy::Policy;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::delete;
use crate::cli::{Create, Invocation, Run};
use crate::content::Contents;
use crate::image::Image;
use crate::init::{ConfinedInit, Filters, Outcome};
use crate::policy::{self, Selected};
use crate::proxy::{self, Starting};
use crate::report::{CodedError, Report};
use crate::stage::Stage;
use crate::store::{self, Entry, Executor, Record, VERSION};
use crate::{bundle, cgroups, exec, facts, guard, mounts, net, reexec, stdio, steps, weaken};

/// Creates a container; on any failure nothing is left of it.
pub(super) fn create(invocation: &Invocation, args: &Create) -> Result<()> {
    reexec::protect()?;
    launch(invocation, args, true).map(|_pid| ())
}

fn launch(invocation: &Invocation, args: &Create, detached: bool) -> Result<i32> {
    let report = invocation.report();
    let entry = Entry::new(&invocation.root, &args.id)?;
    let spec = bundle::read(&args.bundle)?;
    steps::reached("create:parsed");
    // A sandbox that exists has its proxy; another one starts while we plan.
    let joins = match joined_namespace(&spec) {
        Some(path) => proxy::alive(&proxy::directory(proxy::inode(&path)?)),
        None => false,
    };
    let (planned, starting) = std::thread::scope(|scope| {
        let starting = (!joins).then(|| scope.spawn(Starting::spawn));
        // It comes to its execve(2) first, even where both share a processor.
        std::thread::yield_now();
        let planned = Planned::new(invocation, args, &spec);
        let ended = |_panic| bail!("the thread that starts the proxy ended early");
        (planned, starting.map(|starting| starting.join().unwrap_or_else(ended)))
    });
    let Planned { selected, image, host, mut plan } = planned?;
    let recorded = weaken::plan(&plan, &spec).map(|weak| std::mem::replace(&mut plan, weak));
    steps::reached("create:planned");
    let starting = starting.transpose()?;
    steps::reached("create:proxy-spawned");
    entry.make()?;
    steps::reached("create:entry");
    let sandbox =
        Sandbox { entry, report, args, spec, selected, image, host, plan, recorded, detached };
    let result = sandbox.create(invocation, starting);
    if result.is_err() {
        sandbox.undo(&invocation.root);
    }
    result
}

/// What is decided before anything is made.
struct Planned {
    selected: Selected,
    image: Image,
    host: HostFacts,
    plan: Plan,
}

impl Planned {
    fn new(invocation: &Invocation, args: &Create, spec: &Spec) -> Result<Self> {
        let selected = policy::select(invocation.policy.as_deref())?;
        let named = selected.policy.programs().len();
        if named > MAX_PROGRAMS {
            bail!(CodedError {
                code: 3,
                message: format!(
                    "refused: policy: it names {named} programs by their whole path, and at most {MAX_PROGRAMS} can be watched; use patterns"
                ),
            });
        }
        steps::reached("create:policy");
        let image = Image::open(&bundle::rootfs(&args.bundle, spec)?)?.seen_with(Ids::of(spec));
        let host = facts::gather(spec, &selected.policy, &image, &args.id);
        image.refuse_linked_mount_points()?;
        let plan = if invocation.observes() {
            Plan::observe(spec)
        } else {
            let contents = Contents::new(&image, spec, &host);
            Plan::resolve(spec, &selected.policy, &image, &host, &contents).map_err(|invalid| {
                anyhow!(CodedError { code: 3, message: format!("refused: {invalid}") })
            })?
        };
        Ok(Self { selected, image, host, plan })
    }
}

/// A container on its way into existence.
struct Sandbox<'a> {
    entry: Entry,
    report: Report,
    args: &'a Create,
    spec: Spec,
    selected: Selected,
    image: Image,
    host: HostFacts,
    plan: Plan,
    /// The plan that is recorded, where a test carries out a weaker one.
    recorded: Option<Plan>,
    detached: bool,
}

impl Sandbox<'_> {
    /// Path (a) of the product, from plan to a container that waits for start.
    fn create(&self, invocation: &Invocation, starting: Option<Starting>) -> Result<i32> {
        let id = &self.entry.id;
        if let Some(starting) = &starting {
            starting.configure(&self.configuration())?;
        }
        let filters = Filters::compile(&self.plan).context("seccomp")?;
        steps::reached("create:filters");
        for directory in &self.plan.make_directories {
            self.image.make_directory(directory)?;
        }
        steps::reached("create:directories");
        let staged = self.stage()?;
        let shadow = self.shadow(staged.as_ref())?;
        steps::reached("create:bundle");
        self.entry.save_plan(self.recorded.as_ref().unwrap_or(&self.plan))?;
        steps::reached("create:plan-saved");
        let mut record = self.record(invocation, self.image.path().to_owned())?;
        self.entry.save(&record)?;
        steps::reached("create:record-saved");
        self.refuse_foreign_namespace()?;
        let built = self.build(invocation, &shadow, filters);
        let left = staged.map_or(Ok(()), Stage::leave);
        let (pid, landlock) = built.and_then(|built| left.map(|()| built))?;
        steps::reached("create:built");
        record.born(pid);
        self.give_terminal(pid)?;
        let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let inode = proxy::inode(&netns)?;
        record.sandbox = (inode != proxy::inode(Path::new("/proc/self/ns/net"))?)
            .then(|| proxy::directory(inode));
        self.entry.save(&record)?;
        steps::reached("create:pid-saved");
        record.first = starting.is_some();
        let check = Check {
            pid,
            start_time: record.start_time,
            entry: &self.entry,
            spec: &self.spec,
            host: &self.host,
            plan: &self.plan,
            landlock,
        };
        self.take_charge(invocation, &record, inode, starting, &check)?;
        if let Some(name) = record.sandbox.as_deref().and_then(Path::file_name) {
            guard::start(&self.entry, pid, &name.to_string_lossy(), &self.plan.guard)
                .context("files: they cannot be watched")?;
        }
        record.locked = true;
        self.entry.save(&record)?;
        if let Some(socket) = &self.args.pidfd_socket {
            exec::send_pidfd(socket, pid)?;
        }
        for note in &self.plan.notes {
            self.report.note(&format!("nemoclaw {id}: {note}"));
        }
        steps::reached("create:done");
        Ok(pid)
    }

    /// Puts a proxy in charge of the container's network namespace.
    fn take_charge(
        &self,
        invocation: &Invocation,
        record: &Record,
        inode: u64,
        starting: Option<Starting>,
        check: &Check<'_>,
    ) -> Result<()> {
        match &record.sandbox {
            Some(directory) => self.attach(inode, directory, starting, check),
            // Nothing can be recorded in a namespace that is the host's.
            None if invocation.observes() => check.run(),
            None => bail!(
                "the container shares the host's network namespace; start it without --network host"
            ),
        }
    }

    fn record(&self, invocation: &Invocation, rootfs: PathBuf) -> Result<Record> {
        let bundle = fs::canonicalize(&self.args.bundle).context("cannot find the bundle")?;
        Ok(Record {
            version: VERSION,
            id: self.entry.id.clone(),
            bundle,
            rootfs,
            pid: 0,
            start_time: 0,
            created: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            sandbox: None,
            confined: self.plan.confined,
            first: false,
            locked: false,
            cgroup: None,
            pids_group: None,
            systemd_cgroup: invocation.systemd_cgroup,
            annotations: self.spec.annotations().clone().unwrap_or_default(),
        })
    }

    /// Refuses a network namespace that runs somebody else's processes: they would
    /// be neither confined nor expecting to be cut off.
    fn refuse_foreign_namespace(&self) -> Result<()> {
        let Some(path) = joined_namespace(&self.spec).filter(|_| self.plan.confined) else {
            return Ok(());
        };
        let refused = |message: String| {
            bail!(CodedError { code: 3, message: format!("refused: network: {message}") })
        };
        let directory = proxy::directory(proxy::inode(&path)?);
        if path.starts_with("/proc") && !proxy::alive(&directory) {
            return refused(format!(
                "{} belongs to a container that nemoclaw does not confine; start both with this runtime",
                path.display()
            ));
        }
        if proxy::observes(&directory) {
            return refused("the container to join is only observed, not confined".to_owned());
        }
        Ok(())
    }

    /// Prepares sources of mounts in a namespace of our own, where libcontainer
    /// could not take them as they are: under a user namespace its init cannot pass
    /// every directory on the way to them, and it exchanges no ids.
    fn stage(&self) -> Result<Option<Stage>> {
        let namespace = has_user_namespace(&self.spec);
        if !self.plan.confined || !(namespace || self.plan.guard.id_map.is_some()) {
            return Ok(None);
        }
        let mut stage = Stage::enter().context("mounts")?;
        if namespace {
            stage.prepare(self.image.path(), None).context("mounts")?;
        }
        let map = self.plan.guard.id_map.as_ref();
        for (mount, fact) in self.spec.mounts().iter().flatten().zip(&self.host.mounts) {
            let map = map.filter(|map| mount.destination() == Path::new(&map.path));
            if fact.source.is_empty() || !(namespace || map.is_some()) {
                continue;
            }
            let source = Path::new(&fact.source);
            if !stage.prepare(source, map).context("mounts")? {
                self.report.note(&format!(
                    "nemoclaw {}: the file system of {} cannot exchange ids: its files stay those of their owners",
                    self.entry.id,
                    source.display(),
                ));
            }
        }
        Ok(Some(stage))
    }

    /// The hardened spec, where libcontainer will read it.
    fn shadow(&self, staged: Option<&Stage>) -> Result<PathBuf> {
        let rootfs = self.image.path();
        let mut hardened = harden(
            self.spec.clone(),
            &self.plan,
            &rootfs.display().to_string(),
            &format!("/nemoclaw-containers/{}", self.entry.id),
            facts::cgroup_v1(),
        );
        cgroups::mount_by_hand(&mut hardened);
        weaken::spec(&mut hardened);
        let mut seen = rootfs.to_owned();
        if let Some(staged) = staged {
            staged.redirect(&mut hardened);
            seen = staged.place_of(rootfs, Path::new("/")).unwrap_or(seen);
        }
        bundle::write(&self.entry, hardened, &seen)
    }

    /// Lets libcontainer make the container; init waits at the end of it.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the builders' types are private to libcontainer"
    )]
    fn build(
        &self,
        invocation: &Invocation,
        shadow: &Path,
        filters: Filters,
    ) -> Result<(i32, Option<String>)> {
        stdio::give_pipes(self.owner());
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let executor = ConfinedInit::new(&self.entry.id, self.plan.clone(), filters, writer);
        // libcontainer changes directory for its sockets; its paths must be absolute.
        let console = self.args.console_socket.as_ref().map(std::path::absolute).transpose()?;
        let pid_file = self.args.pid_file.as_ref().map(std::path::absolute).transpose()?;
        let root = std::path::absolute(&invocation.root)?;
        let built = ContainerBuilder::new(self.entry.id.clone(), SyscallType::default())
            .with_executor(executor)
            .with_root_path(root)
            .and_then(|builder| builder.with_pid_file(pid_file))
            .map(|builder| {
                builder.with_console_socket(console).with_preserved_fds(self.args.preserve_fds)
            })
            .and_then(|builder| builder.validate_id())
            .map(|builder| {
                builder
                    .as_init(shadow)
                    .with_systemd(invocation.systemd_cgroup)
                    .with_detach(self.detached)
                    .with_no_pivot(self.args.no_pivot)
            })
            .and_then(|builder| builder.build());
        match built {
            Ok(container) => {
                let pid = container.pid().context("libcontainer tells no pid")?;
                Ok((pid.as_raw(), hear(reader).and_then(|outcome| outcome.landlock)))
            }
            Err(error) => Err(explain(anyhow!(error), hear(reader))),
        }
    }

    /// Locks the namespace and puts the proxy in charge of it.
    fn attach(
        &self,
        inode: u64,
        directory: &Path,
        starting: Option<Starting>,
        check: &Check<'_>,
    ) -> Result<()> {
        let observe = !self.plan.confined;
        let pid = check.pid;
        let Some(starting) = starting else {
            check.run()?;
            // The sandbox's policy decides for this container too.
            let named = proxy::named(directory).context("cannot ask the sandbox")?;
            let member = self.member(pid, named.iter().map(String::as_str))?;
            return proxy::join(directory, &member).context("cannot join the sandbox");
        };
        let netns = File::open(format!("/proc/{pid}/ns/net"))
            .context("cannot open the container's network namespace")?;
        steps::reached("create:namespace");
        let kind = if observe {
            net::Kind::Observed
        } else {
            net::Kind::Locked {
                engine_resolver: !self.plan.allow_root,
                ingress: self.selected.policy.options.ingress.clone(),
            }
        };
        // SECURITY: before the proxy listens there: neighbours must not reach it.
        let locked = net::lock(&netns, &kind)?;
        if !locked.at_devices && !observe {
            self.report.note(&format!(
                "nemoclaw {}: this kernel stops nothing at the devices themselves (no netdev egress chain; Linux 5.16 with CONFIG_NETFILTER_EGRESS has it): all other rules hold, and no process of the sandbox may open a packet socket",
                self.entry.id
            ));
        }
        steps::reached("create:locked");
        proxy::make_directory(directory)?;
        steps::reached("create:sandbox-directory");
        let meanwhile = || {
            store::write_file(&directory.join("rules"), &locked.rules)?;
            check.run()?;
            self.member(pid, self.selected.policy.programs())
        };
        starting
            .serve(proxy::place(inode, names(&self.spec)), &netns, meanwhile)
            .context("cannot start the sandbox's proxy")
    }

    /// The container's user as the host sees it.
    fn owner(&self) -> u32 {
        self.plan.ids.outside(self.plan.identity.uid, 0).0
    }

    /// The terminal belongs to who types into it; libcontainer leaves it root's.
    fn give_terminal(&self, pid: i32) -> Result<()> {
        let terminal = self.spec.process().as_ref().and_then(oci_spec::runtime::Process::terminal);
        if !terminal.unwrap_or_default() {
            return Ok(());
        }
        stdio::give_terminal(&format!("/proc/{pid}/fd/0"), self.owner())
            .context("cannot give the terminal to the container's user")
    }

    /// What the proxy has to know about the container: these programs as they are now.
    fn member<'a>(&self, pid: i32, named: impl IntoIterator<Item = &'a str>) -> Result<Member> {
        let root = mounts::root_of(pid)?;
        let found = named.into_iter().map(|path| mounts::program(&root, path));
        let found = found.filter_map(Result::transpose).collect::<Result<_>>()?;
        Ok(Member { id: self.entry.id.clone(), pid, programs: found })
    }

    fn configuration(&self) -> SandboxConfig {
        let aliases = aliases(&self.selected.policy, &self.image);
        proxy::configuration(&self.entry.id, &self.selected, aliases, !self.plan.confined)
    }

    /// Removes everything that was made; the first error is the one told.
    fn undo(&self, root: &Path) {
        if let Err(error) = delete::delete(root, &self.entry.id, true) {
            self.report.note(&format!("cleaning up after the failure: {error:#}"));
        }
    }
}

/// What the engine's files say of names by now.
fn names(spec: &Spec) -> Names {
    let (resolvers, search) = facts::resolvers(spec);
    Names { hosts: facts::hosts(spec), resolvers, search }
}

/// Path of a network namespace that the engine wants joined.
fn joined_namespace(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces
        .filter(|namespace| namespace.typ() == LinuxNamespaceType::Network)
        .find_map(|namespace| namespace.path().clone())
}

/// What is checked and done before anything of the user's can run, while the proxy
/// takes charge of the network.
struct Check<'a> {
    pid: i32,
    start_time: u64,
    entry: &'a Entry,
    spec: &'a Spec,
    host: &'a HostFacts,
    plan: &'a Plan,
    landlock: Option<String>,
}

impl Check<'_> {
    fn run(&self) -> Result<()> {
        if !self.plan.confined {
            return Ok(());
        }
        mounts::verify(self.pid, self.spec, self.host, &self.plan.masked)?;
        mounts::verify_own(self.pid, &self.plan.guard.own_mounts)?;
        if !weaken::left_away("devices") {
            cgroups::restrict_devices(self.pid, self.spec)?;
        }
        mounts::restrict_root(self.pid, &self.plan.read_only_mounts)?;
        self.remember()
    }

    /// What `verify` compares with later: Landlock's proof, and the mounts.
    fn remember(&self) -> Result<()> {
        let (pid, start_time) = (self.pid, self.start_time);
        if !weaken::left_away("landlock") {
            let landlock =
                self.landlock.clone().context("Landlock: init did not report its self-test")?;
            self.entry.add_executor(&Executor { pid, start_time, landlock })?;
        }
        let path = format!("/proc/{pid}/mountinfo");
        let mounts = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
        store::write_file(&self.entry.directory.join("mountinfo"), &mounts)
    }
}

/// Paths of policy that are symbolic links in the image, and their targets.
fn aliases(policy: &Policy, image: &Image) -> HashMap<String, String> {
    let mut aliases = HashMap::new();
    for path in policy.paths() {
        let real = image.look(path).map(|fact| fact.real);
        // What the sandbox can write must not come to mean what policy names.
        let writable = ["/tmp/", "/var/tmp/", "/sandbox/", "/home/", "/dev/", "/run/", "/proc/"];
        let listed = &policy.filesystem.read_write;
        let real = real.filter(|real| {
            !writable.iter().any(|place| real.starts_with(place))
                && !listed.iter().any(|place| Path::new(real).starts_with(place))
        });
        if let Some(real) = real.filter(|real| real != path) {
            aliases.insert(path.to_owned(), real);
        }
    }
    aliases
}

/// What init told; it has written before libcontainer's builder returns, and is
/// never waited for.
fn hear(reader: OwnedFd) -> Option<Outcome> {
    let mut text = vec![0; 16 * 1024];
    let ready = rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).is_ok();
    let length = if ready { rustix::io::read(&reader, &mut text).unwrap_or(0) } else { 0 };
    text.truncate(length);
    drop(reader);
    serde_json::from_slice::<Outcome>(&text).ok()
}

/// Init's own words for a failure are better than libcontainer's.
fn explain(error: anyhow::Error, outcome: Option<Outcome>) -> anyhow::Error {
    match outcome
        .and_then(|outcome| outcome.error.map(|message| CodedError { code: outcome.code, message }))
    {
        Some(coded) => anyhow!(coded),
        None => error.context("unable to create the container"),
    }
}

/// Lets init run the user's program.
pub(super) fn start(root: &Path, id: &str) -> Result<()> {
    let entry = Entry::new(root, id)?;
    let mut container = entry.load()?;
    let record = entry.record()?;
    record.require_locked()?;
    if !container.can_start() {
        bail!(
            "cannot start a container in the {} state",
            container.status().to_string().to_ascii_lowercase()
        );
    }
    if let Some(sandbox) = record.sandbox.filter(|_| record.first) {
        // podman writes these files between create and start.
        let spec = bundle::read(&entry.directory.join("bundle"))?;
        proxy::rename(&sandbox, names(&spec)).context("cannot reach the sandbox's proxy")?;
    }
    container.start().context("cannot start the container")
}

/// create, start, and unless detached wait and delete.
pub(super) fn run(invocation: &Invocation, args: &Run) -> Result<ExitCode> {
    reexec::protect()?;
    let root = &invocation.root;
    let id = &args.create.id;
    if !args.detach {
        let terminal = bundle::read(&args.create.bundle)?
            .process()
            .as_ref()
            .and_then(oci_spec::runtime::Process::terminal)
            .unwrap_or_default();
        if terminal && args.create.console_socket.is_none() {
            bail!(
                "a foreground run with a terminal needs --console-socket; or set `terminal: false` in config.json"
            );
        }
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("cannot become the parent of the container's processes")?;
    }
    let pid = launch(invocation, &args.create, args.detach)?;
    if let Err(error) = start(root, id) {
        let _removed = delete::delete(root, id, true);
        return Err(error);
    }
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let code = exec::wait_for(pid)?;
    if !args.keep {
        delete::delete(root, id, true)?;
    }
    Ok(ExitCode::from(code))
}
