//! Landlock (landlock(7)): the process and all it starts can reach only the
//! plan's paths. A self-test proves it before the user's program runs.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus,
};
use nemoclaw_spec::plan::LandlockPlan;
use rustix::fs::FileType;

use crate::report::CodedError;
use crate::sys;

/// The first ABI with scopes.
const SCOPES: u32 = 6;

/// Restricts this process and says what is enforced; `scoped` keeps its signals
/// and abstract sockets within its own domain.
pub(super) fn restrict(plan: &LandlockPlan, scoped: bool) -> Result<String, CodedError> {
    restrict_as(plan, scoped, sys::landlock_abi())
}

/// The same for a kernel with this ABI, which the running one has at least.
fn restrict_as(plan: &LandlockPlan, scoped: bool, kernel: u32) -> Result<String, CodedError> {
    if kernel == 0 && !plan.required {
        return Ok(
            "Landlock: not enforced (this kernel has none; the policy accepts that)".to_owned()
        );
    }
    let abi = match kernel {
        0 => {
            return Err(failed(
                "this kernel has no Landlock, or it is off",
                "boot with `lsm=landlock,...`",
            ));
        }
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        6 => ABI::V6,
        _ => ABI::V7,
    };
    let level = if plan.required { CompatLevel::HardRequirement } else { CompatLevel::BestEffort };
    let test = SelfTest::before(plan);
    let ruleset = Ruleset::default()
        .set_compatibility(level)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|ruleset| {
            // Since ABI 6; planning has refused what cannot be had.
            if scoped && kernel >= SCOPES {
                ruleset.scope(landlock::Scope::from_all(abi))
            } else {
                Ok(ruleset)
            }
        })
        .and_then(Ruleset::create)
        .map_err(|error| {
            failed(&format!("the ruleset cannot be made: {error}"), "see `dmesg | grep landlock`")
        })?;
    let readable = AccessFs::from_read(abi);
    let ruleset = allow(ruleset, &plan.read_only, readable, abi)?;
    let mut writable = AccessFs::from_all(abi);
    if plan.system_only {
        writable.remove(AccessFs::Execute);
    }
    let ruleset = allow(ruleset, &plan.read_write, writable, abi)?;
    let status = ruleset.restrict_self().map_err(|error| {
        failed(&format!("restricting the process failed: {error}"), "see `dmesg | grep landlock`")
    })?;
    if plan.required && status.ruleset != RulesetStatus::FullyEnforced {
        return Err(failed(
            &format!("the kernel enforces only a part ({:?})", status.ruleset),
            "use a newer kernel, or write `landlock: {compatibility: best_effort}` in the policy",
        ));
    }
    test.after(plan.required)?;
    Ok(format!("Landlock: ABI {kernel}, {:?}, self-test passed", status.ruleset))
}

fn allow(
    mut ruleset: RulesetCreated,
    paths: &[String],
    access: BitFlags<AccessFs>,
    abi: ABI,
) -> Result<RulesetCreated, CodedError> {
    for path in paths {
        // A path this user cannot even name needs no rule: it stays closed.
        let Ok(fd) = PathFd::new(path) else { continue };
        let directory = rustix::fs::fstat(&fd)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        let access = if directory { access } else { access & AccessFs::from_file(abi) };
        ruleset = ruleset.add_rule(PathBeneath::new(fd, access)).map_err(|error| {
            failed(
                &format!("no rule can be made for `{}`: {error}", path.escape_debug()),
                "take the path out of the policy",
            )
        })?;
    }
    Ok(ruleset)
}

/// A path that could be opened before and must not be after.
struct SelfTest(Option<&'static str>);

impl SelfTest {
    /// Directories that images have and policies leave closed.
    const CANDIDATES: [&str; 6] = ["/", "/root", "/home", "/mnt", "/media", "/boot"];

    fn before(plan: &LandlockPlan) -> Self {
        let open =
            |path: &str| plan.read_only.iter().chain(&plan.read_write).any(|known| known == path);
        Self(Self::CANDIDATES.into_iter().find(|path| !open(path) && can_list(path).is_ok()))
    }

    fn after(&self, required: bool) -> Result<(), CodedError> {
        let Some(path) = self.0 else {
            return if required {
                Err(failed(
                    "the self-test finds no closed path to try",
                    "leave `/` out of the policy and make the image's root directory readable (mode 755)",
                ))
            } else {
                Ok(())
            };
        };
        match can_list(path) {
            Err(ErrorKind::PermissionDenied) => Ok(()),
            _ if !required => Ok(()),
            _ => Err(failed(
                &format!("the self-test could still open `{path}`, which no rule opens"),
                "report this kernel; nothing was started",
            )),
        }
    }
}

fn can_list(path: &str) -> Result<(), ErrorKind> {
    OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY)
        .open(path)
        .map(|_directory| ())
        .map_err(|error| error.kind())
}

fn failed(cause: &str, fix: &str) -> CodedError {
    CodedError { code: 1, message: format!("Landlock: {cause}; {fix}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(required: bool) -> LandlockPlan {
        LandlockPlan {
            required,
            read_only: ["/usr", "/etc", "/proc"].map(str::to_owned).to_vec(),
            read_write: ["/dev/shm"].map(str::to_owned).to_vec(),
            ..LandlockPlan::default()
        }
    }

    /// What a thread of its own can do after being restricted: a domain is a thread's.
    fn under<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    #[test]
    fn every_abi_is_enforced_as_far_as_it_goes() {
        let kernel = sys::landlock_abi();
        assert!(kernel >= 1, "this kernel has no Landlock");
        let file = std::env::temp_dir().join(format!("nc-landlock-{}", std::process::id()));
        std::fs::write(&file, "whole").unwrap();
        for abi in 1..=kernel.min(7) {
            for scoped in [false, true] {
                let (told, listed, wrote, cut) = under(|| {
                    let told = restrict_as(&plan(true), scoped, abi).map_err(|e| e.message);
                    let listed =
                        std::fs::read_dir("/usr").is_ok() && std::fs::read_dir("/").is_ok();
                    let wrote = std::fs::write(&file, "x").is_ok();
                    let path = std::ffi::CString::new(file.to_str().unwrap()).unwrap();
                    (told, listed, wrote, nix::unistd::truncate(path.as_c_str(), 4).is_ok())
                });
                assert!(
                    told.as_ref().is_ok_and(|t| t.contains(&format!("ABI {abi},"))),
                    "{told:?}"
                );
                assert!(!listed && !wrote, "ABI {abi}");
                // truncate(2) came with ABI 3: an older one cannot refuse it.
                assert_eq!(cut, abi < 3, "ABI {abi}");
            }
        }
        std::fs::remove_file(&file).unwrap();
        let none = restrict_as(&plan(true), false, 0).unwrap_err();
        assert!(none.message.contains("no Landlock"), "{}", none.message);
        assert!(restrict_as(&plan(false), false, 0).unwrap().contains("not enforced"));
    }
}
