//! Layers: a policy and the files it starts from, made into one.
//!
//! Rules add up, and every rule keeps the file and line it came from. Of
//! everything else, the layer that is nearest to the policy itself counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::check::{self, Base, Layer};
use super::diagnostic::{Diagnostic, Findings, InvalidPolicy, Severity};
use super::{
    BASELINE_READ_ONLY, BASELINE_READ_WRITE, Filesystem, LandlockMode, NEEDED_READ_ONLY,
    NEEDED_READ_WRITE, Notes, Options, Policy, ProcessIdentity, Rule, Source, overlap, preset,
    tree,
};

/// Most files one policy may be made of.
const MAX_LAYERS: usize = 64;

/// The operator's other files, by name. Names come from root-owned files.
pub trait Library {
    /// The policy that `extends: [name]` means: its text, and what messages
    /// call it.
    fn policy(&self, name: &str) -> Option<(String, String)>;
    /// The preset that `presets: [name]` means where no built-in one has the
    /// name.
    fn preset(&self, name: &str) -> Option<(String, String)>;
}

/// Files that were found by name, to be found again without a file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Files {
    /// Policies by name: text, and what messages call the file.
    pub policies: BTreeMap<String, (String, String)>,
    /// Presets, in the same way.
    pub presets: BTreeMap<String, (String, String)>,
}

impl Library for Files {
    fn policy(&self, name: &str) -> Option<(String, String)> {
        self.policies.get(name).cloned()
    }

    fn preset(&self, name: &str) -> Option<(String, String)> {
        self.presets.get(name).cloned()
    }
}

/// Nothing beyond what is built in.
#[derive(Debug, Clone, Copy)]
pub struct NoLibrary;

impl Library for NoLibrary {
    fn policy(&self, _: &str) -> Option<(String, String)> {
        None
    }

    fn preset(&self, _: &str) -> Option<(String, String)> {
        None
    }
}

/// Reads a policy with everything it extends.
pub(super) fn load(text: &str, name: &str, library: &dyn Library) -> Result<Policy, InvalidPolicy> {
    let mut stack = Stack { library, seen: BTreeSet::new(), open: Vec::new(), layers: Vec::new() };
    stack.add(text, name, false)?;
    let mut policy = stack.merge(name);
    if policy.options.refuse_uninspected_http {
        let found = super::lint::lint(&policy);
        let strict = found.into_iter().filter(|finding| {
            finding.severity == Severity::Error && finding.help == super::lint::INSPECT
        });
        policy.unenforced.0.extend(strict.collect::<Vec<_>>());
    }
    overlap::check(&policy).map_err(|mut problems| {
        for problem in problems.iter_mut().filter(|problem| problem.file == name) {
            problem.text = super::diagnostic::line_of(text, problem.line);
        }
        InvalidPolicy { problems }
    })?;
    Ok(policy)
}

struct Stack<'a> {
    library: &'a dyn Library,
    seen: BTreeSet<Base>,
    /// Files that are being read: one of them cannot start from another.
    open: Vec<String>,
    /// Nearest to the policy itself last.
    layers: Vec<Layer>,
}

impl Stack<'_> {
    /// Adds a file after everything it starts from.
    fn add(&mut self, text: &str, name: &str, preset: bool) -> Result<(), InvalidPolicy> {
        let tree = tree::read(text, name)?;
        let mut layer =
            check::layer(&tree, text, name).map_err(|problems| InvalidPolicy { problems })?;
        self.open.push(name.to_owned());
        let mut problems: Vec<Diagnostic> = Vec::new();
        if preset && layer.says_more_than_rules() {
            let mut findings = Findings::new(name, text);
            findings.error(
                tree.at,
                "a preset holds rules only".to_owned(),
                "keep `preset`, `nemoclaw: {}` and `network_policies`; what else a policy says goes into one that others extend",
            );
            problems.append(&mut findings.found);
        }
        for (base, at) in std::mem::take(&mut layer.bases) {
            let found = self.find(&base);
            let circle = found.as_ref().is_some_and(|(_, file)| self.open.contains(file));
            // Named twice is named once.
            if !circle && !self.seen.insert(base.clone()) {
                continue;
            }
            let message = match found {
                _ if circle => "this policy would start from itself".to_owned(),
                _ if self.seen.len() > MAX_LAYERS => {
                    format!("more than {MAX_LAYERS} files make up this policy")
                }
                Some((text, file)) => {
                    let preset = matches!(base, Base::Preset(_));
                    if let Err(invalid) = self.add(&text, &file, preset) {
                        problems.extend(invalid.problems);
                    }
                    continue;
                }
                None => unknown(&base),
            };
            let mut findings = Findings::new(name, text);
            findings.error(at, message, &known(&base));
            problems.append(&mut findings.found);
        }
        self.open.pop();
        if !problems.is_empty() {
            return Err(InvalidPolicy { problems });
        }
        self.layers.push(layer);
        Ok(())
    }

    fn find(&self, base: &Base) -> Option<(String, String)> {
        let built_in = |text: &str, kind: &str, name: &str| {
            (text.to_owned(), format!("built-in {kind} {name}"))
        };
        match base {
            // The operator's own file is the one that is meant.
            Base::Preset(name) => self
                .library
                .preset(name)
                .or_else(|| preset::preset(name).map(|text| built_in(text, "preset", name))),
            Base::Posture(name) => {
                preset::posture(name).map(|text| built_in(text, "posture", name))
            }
            Base::Tier(name) => preset::tier(name).map(|text| built_in(text, "tier", name)),
            Base::Policy(name) => self.library.policy(name),
        }
    }

    fn merge(self, name: &str) -> Policy {
        let mut policy = Policy {
            origin: Source(Arc::from(name)),
            ours: false,
            filesystem: baseline_paths(),
            landlock: LandlockMode::HardRequirement,
            process: ProcessIdentity::default(),
            options: Options::default(),
            rules: Vec::new(),
            middlewares: Vec::new(),
            unenforced: Notes::default(),
            advice: Notes::default(),
        };
        let mut keys = BTreeSet::new();
        for layer in self.layers {
            policy.ours |= layer.ours;
            policy.filesystem = layer.filesystem.unwrap_or(policy.filesystem);
            policy.landlock = layer.landlock.unwrap_or(policy.landlock);
            policy.process = layer.process.unwrap_or(policy.process);
            policy.options = policy.options.under(layer.options);
            policy.middlewares.extend(layer.middlewares);
            policy.unenforced.0.extend(layer.unenforced);
            policy.advice.0.extend(layer.advice);
            add_rules(&mut policy.rules, &mut keys, layer.rules);
        }
        policy
    }
}

/// What a policy without `filesystem_policy` gives.
pub(super) fn baseline_paths() -> Filesystem {
    let both = |needed: &[&str], more: &[&str]| {
        needed.iter().chain(more).map(|path| (*path).to_owned()).collect()
    };
    Filesystem {
        include_workdir: true,
        read_only: both(&NEEDED_READ_ONLY, &BASELINE_READ_ONLY),
        read_write: both(&NEEDED_READ_WRITE, &BASELINE_READ_WRITE),
        named: false,
    }
}

fn unknown(base: &Base) -> String {
    let (kind, name) = match base {
        Base::Policy(name) => ("policy", name),
        Base::Preset(name) => ("preset", name),
        Base::Posture(name) => ("posture", name),
        Base::Tier(name) => ("tier", name),
    };
    format!("there is no {kind} `{}`", super::options::shown(name))
}

fn known(base: &Base) -> String {
    match base {
        Base::Policy(_) => "put it into /etc/nemoclaw/policies/NAME.yaml".to_owned(),
        Base::Preset(name) => {
            super::diagnostic::nearest(name, &preset::PRESETS.map(|(name, _)| name)).map_or_else(
                || {
                    format!(
                        "built in are {}; others go into /etc/nemoclaw/presets/NAME.yaml",
                        preset::PRESETS.map(|(name, _)| name).join(", ")
                    )
                },
                |near| format!("did you mean `{near}`?"),
            )
        }
        Base::Posture(_) | Base::Tier(_) => String::new(),
    }
}

impl Policy {
    /// This policy with the rules of `other` added: how approvals and further
    /// presets join a policy in force. Everything but rules stays.
    ///
    /// # Errors
    /// [`InvalidPolicy`] where endpoints of both contradict each other.
    pub fn with_rules_of(mut self, other: &Self) -> Result<Self, InvalidPolicy> {
        let mut keys = self.rules.iter().map(|rule| rule.key.to_string()).collect();
        add_rules(&mut self.rules, &mut keys, other.rules.clone());
        overlap::check(&self).map_err(|problems| InvalidPolicy { problems })?;
        Ok(self)
    }

    /// The stricter of two policies in everything but rules, which
    /// [`crate::decide::Engine::narrowed_by`] intersects. Nothing of `other`
    /// can widen: paths are kept only where both policies give them.
    #[must_use]
    pub fn narrowed_by(mut self, other: &Self) -> Self {
        let both = |own: &mut Vec<String>, allowed: &[&[String]]| {
            own.retain(|path| allowed.iter().copied().flatten().any(|other| below(path, other)));
        };
        let (read, write) = (&other.filesystem.read_only, &other.filesystem.read_write);
        // What only one of them lets be written can still be read, where both
        // let it be read.
        let kept: Vec<String> = self
            .filesystem
            .read_write
            .iter()
            .filter(|path| !write.iter().any(|other| below(path, other)))
            .cloned()
            .collect();
        both(&mut self.filesystem.read_write, &[write]);
        self.filesystem.read_only.extend(kept);
        both(&mut self.filesystem.read_only, &[read, write]);
        self.filesystem.include_workdir &= other.filesystem.include_workdir;
        if other.landlock == LandlockMode::HardRequirement {
            self.landlock = LandlockMode::HardRequirement;
        }
        self.options = self.options.narrowed(&other.options);
        self
    }
}

/// Adds rules under keys of their own: rules of two files may share a name,
/// records must not.
fn add_rules(into: &mut Vec<Rule>, keys: &mut BTreeSet<String>, rules: Vec<Rule>) {
    for mut rule in rules {
        let mut key = rule.key.to_string();
        let mut count = 2;
        while !keys.insert(key.clone()) {
            key = format!("{}-{count}", rule.key);
            count += 1;
        }
        rule.key = Arc::from(key);
        into.push(rule);
    }
}

/// Whether `path` is `directory` or lies in it.
fn below(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    path.trim_end_matches('/') == directory
        || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}
