//! Who a container's processes run as. Root is mapped, never kept silently.

use oci_spec::runtime::Spec;

use super::{HostFacts, ImageView, Refusal, Refusals, RunAs, Target, beneath, mount_targets};
use crate::control::{WORKER_UID_BASE, WORKER_UID_END};
use crate::policy::{Identity, Policy};

/// Identity of a root image without a better one.
const FALLBACK_ID: u32 = 10_001;
/// Owners of workspaces below this id are system accounts, not people.
pub(super) const FIRST_PERSON: u32 = 1000;

/// One line of an image's passwd file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    home: String,
}

pub(super) fn resolve(
    spec: &Spec,
    policy: &Policy,
    image: &dyn ImageView,
    host: &HostFacts,
    refusals: &mut Refusals,
) -> Option<RunAs> {
    let Some(process) = spec.process() else {
        refusals.add(
            "user",
            "the spec has no process".to_owned(),
            "give config.json a process section",
        );
        return None;
    };
    let accounts = accounts(&image.read("/etc/passwd").unwrap_or_default());
    let asked = process.user();
    let extra = asked.additional_gids().as_deref();
    if let Err(refusal) = check_worker_range(asked.uid(), asked.gid(), extra) {
        refusals.0.push(refusal);
        return None;
    }
    let named = match &policy.process.user {
        Some(identity) => Some(from_policy(identity, &accounts, refusals)?),
        None => None,
    };
    let chosen = match named {
        Some(account) => Choice {
            origin: "run_as_user of the policy",
            mapped: asked.uid() != account.0,
            account,
        },
        None if asked.uid() != 0 || policy.options.allow_root => Choice {
            origin: "the image or --user",
            mapped: false,
            account: (asked.uid(), asked.gid()),
        },
        None => root_replacement(spec, host, &accounts),
    };
    let (uid, mut gid) = chosen.account;
    if let Some(group) = &policy.process.group {
        gid = group_id(group, image, refusals)?;
    }
    // Group 0 opens files that images leave group-writable for root.
    let mapped_group = gid == 0 && uid != 0;
    if mapped_group {
        gid = accounts
            .iter()
            .find(|account| account.uid == uid && account.gid != 0)
            .map_or(uid, |account| account.gid);
    }
    if let Err(refusal) = check_worker_range(uid, gid, None) {
        refusals.0.push(refusal);
        return None;
    }
    let mapped = chosen.mapped || mapped_group;
    let home =
        home(uid, &accounts, image, process.env().as_deref().unwrap_or_default(), chosen.mapped);
    let groups = named_groups(&policy.options.groups, image, refusals);
    Some(RunAs { uid, gid, groups, home, mapped, origin: chosen.origin.to_owned() })
}

struct Choice {
    account: (u32, u32),
    origin: &'static str,
    mapped: bool,
}

fn root_replacement(spec: &Spec, host: &HostFacts, accounts: &[Account]) -> Choice {
    if let Some(workspace) = workspace(spec, host) {
        return Choice {
            account: (workspace.uid, workspace.gid),
            origin: "root is mapped to the owner of the mounted workspace",
            mapped: true,
        };
    }
    let sandbox = accounts.iter().find(|account| account.name == "sandbox" && account.uid != 0);
    if let Some(account) = sandbox {
        return Choice {
            account: (account.uid, account.gid),
            origin: "root is mapped to the image's user sandbox",
            mapped: true,
        };
    }
    Choice {
        account: (FALLBACK_ID, FALLBACK_ID),
        origin: "root is mapped to a fixed unprivileged user",
        mapped: true,
    }
}

/// The bind mount that holds the working directory, else /sandbox, if it belongs
/// to a person.
pub(super) fn workspace(spec: &Spec, host: &HostFacts) -> Option<Target> {
    let cwd = spec.process().as_ref().map(|p| p.cwd().display().to_string()).unwrap_or_default();
    let person = |path: &str| {
        mount_targets(spec, host)
            .into_iter()
            .filter(|mount| mount.named_bind && beneath(path, &mount.path))
            .max_by_key(|mount| mount.path.len())
            .filter(|mount| {
                mount.uid >= FIRST_PERSON && mount.uid != u32::MAX && mount.gid != u32::MAX
            })
            .filter(|mount| check_worker_range(mount.uid, mount.gid, None).is_ok())
    };
    person(&cwd).or_else(|| person("/sandbox"))
}

fn from_policy(
    identity: &Identity,
    accounts: &[Account],
    refusals: &mut Refusals,
) -> Option<(u32, u32)> {
    match identity {
        Identity::Id(uid) => {
            let known = accounts.iter().find(|account| account.uid == *uid);
            Some((*uid, known.map_or(*uid, |account| account.gid)))
        }
        Identity::Name(name) => {
            let known = accounts.iter().find(|account| account.name == *name);
            match known {
                Some(account) if account.uid != 0 => Some((account.uid, account.gid)),
                Some(_) => {
                    // An image's passwd file may call uid 0 anything.
                    Some((FALLBACK_ID, FALLBACK_ID))
                }
                None => {
                    refusals.add(
                        "user",
                        format!(
                            "the policy says `run_as_user: {name}`, and the image has no such user"
                        ),
                        "add the user to the image, or write a number in the policy",
                    );
                    None
                }
            }
        }
    }
}

/// Supplementary groups that policy names; root's own only where root may be.
fn named_groups(names: &[String], image: &dyn ImageView, refusals: &mut Refusals) -> Vec<u32> {
    let mut groups = Vec::new();
    for name in names {
        let identity =
            name.parse::<u32>().map_or_else(|_name| Identity::Name(name.clone()), Identity::Id);
        let Some(gid) = group_id(&identity, image, refusals) else { continue };
        if let Err(refusal) = check_worker_range(gid, gid, None) {
            refusals.0.push(refusal);
        } else if gid == 0 {
            refusals.add(
                "user",
                "the policy's `groups` name root's group".to_owned(),
                "take it out of the policy",
            );
        } else {
            groups.push(gid);
        }
    }
    groups
}

fn group_id(group: &Identity, image: &dyn ImageView, refusals: &mut Refusals) -> Option<u32> {
    match group {
        Identity::Id(gid) => Some(*gid),
        Identity::Name(name) => {
            let text = image.read("/etc/group").unwrap_or_default();
            let found = text.lines().find_map(|line| {
                let mut fields = line.split(':');
                (fields.next() == Some(name))
                    .then(|| fields.nth(1).and_then(|gid| gid.parse().ok()))?
            });
            if found.is_none() {
                refusals.add(
                    "user",
                    format!(
                        "the policy names the group `{}`, and the image has no such group",
                        name.escape_debug()
                    ),
                    "add the group to the image, or write a number in the policy",
                );
            }
            found
        }
    }
}

/// HOME of the effective user: what the engine said when nobody was mapped,
/// else the account's own home where it exists and is the user's, else
/// /sandbox.
fn home(
    uid: u32,
    accounts: &[Account],
    image: &dyn ImageView,
    env: &[String],
    mapped: bool,
) -> String {
    let said = env.iter().rev().find_map(|entry| entry.strip_prefix("HOME="));
    if let (Some(said), false) = (said, mapped) {
        return said.to_owned();
    }
    accounts
        .iter()
        .find(|account| account.uid == uid)
        .map(|account| account.home.clone())
        .filter(|home| {
            let own =
                uid == 0 || image.look(home).is_some_and(|fact| fact.directory && fact.uid == uid);
            home.starts_with('/') && (own || (mapped && home == "/sandbox"))
        })
        .unwrap_or_else(|| "/sandbox".to_owned())
}

/// The home directory that an account file (passwd(5)) gives to `uid`.
pub fn home_of(passwd: &str, uid: u32) -> Option<String> {
    accounts(passwd)
        .into_iter()
        .find(|account| account.uid == uid)
        .map(|account| account.home)
        .filter(|home| home.starts_with('/'))
}

/// Identities of the proxies' workers must not be a container's: files and
/// signals go by uid.
pub(super) fn check_worker_range(uid: u32, gid: u32, extra: Option<&[u32]>) -> Result<(), Refusal> {
    let range = WORKER_UID_BASE..WORKER_UID_END;
    let own = [uid, gid];
    // setresuid(2) reads it as "leave as it is", which is root.
    if own.iter().chain(extra.unwrap_or_default()).any(|id| *id == u32::MAX) {
        return Err(Refusal {
            step: "user",
            cause: "4294967295 is no id".to_owned(),
            fix: "choose a smaller one".to_owned(),
        });
    }
    let taken = own.iter().chain(extra.unwrap_or_default()).find(|id| range.contains(id));
    taken.map_or(Ok(()), |id| {
        Err(Refusal {
            step: "user",
            cause: format!("the id {id} belongs to nemoclaw's proxies"),
            fix: format!("choose one outside {WORKER_UID_BASE} to {}", WORKER_UID_END - 1),
        })
    })
}

pub(super) fn accounts(text: &str) -> Vec<Account> {
    text.lines()
        .take(10_000)
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1)?.to_owned();
            (!name.is_empty() && uid != u32::MAX && gid != u32::MAX).then_some(Account {
                name,
                uid,
                gid,
                home,
            })
        })
        .collect()
}
