//! What a test cannot prove on this machine, since something is missing here: never passed over in silence.
//!
//! In CI (`CI` is set) it is a failure, but for what `OUTRIGGER_MAY_LACK` names, which `.ci/run` sets and gives its reason
//! for. Elsewhere, and for the exceptions, the test says `NOT PROVED`, and `scripts/test` counts it among the skipped.

use std::io::Write;

/// What some tests need and no package of this project brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Both programs; `scripts/chromium` installs them where it may.
    Chromium,
    /// `cc`, which Rust itself needs as its linker.
    CCompiler,
    SystemdAnalyze,
    /// A mount namespace of one's own, which some containers forbid.
    Mounts,
    /// To be root, for what only root can be seen to do.
    Root,
    /// A control group of one's own with a limit of memory, which few containers allow.
    ControlGroup,
    /// Debian's checker of packages.
    Lintian,
    /// What finds in a page what somebody who sees or moves badly cannot use; `scripts/axe` fetches it where there is npm.
    Axe,
    /// Grafana's own models of a board, from PyPI.
    Grafana,
    /// The checker of GitHub's workflows; `scripts/actionlint` builds it where there is Go.
    Actionlint,
    /// A pooler in front of a PostgreSQL; `scripts/pgbouncer` fetches Debian's.
    Pgbouncer,
    /// What a foreign suite is run by, from PyPI; `scripts/foreign/run` fetches it.
    Pytest,
}

impl Need {
    const ALL: [Self; 12] = [
        Self::Chromium,
        Self::CCompiler,
        Self::SystemdAnalyze,
        Self::Mounts,
        Self::Root,
        Self::ControlGroup,
        Self::Lintian,
        Self::Axe,
        Self::Grafana,
        Self::Actionlint,
        Self::Pgbouncer,
        Self::Pytest,
    ];

    /// As `OUTRIGGER_MAY_LACK` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chromium => "chromium",
            Self::CCompiler => "cc",
            Self::SystemdAnalyze => "systemd-analyze",
            Self::Mounts => "mounts",
            Self::Root => "root",
            Self::ControlGroup => "control-group",
            Self::Lintian => "lintian",
            Self::Axe => "axe",
            Self::Grafana => "grafana",
            Self::Actionlint => "actionlint",
            Self::Pgbouncer => "pgbouncer",
            Self::Pytest => "pytest",
        }
    }
}

/// Whether a test may end without its proof: not in CI, but for the exceptions. What they name must exist.
///
/// # Errors
/// Why it may not, for a person.
pub fn may_lack(need: Need, is_ci: bool, exceptions: &str) -> Result<(), String> {
    let named = exceptions.split(',').map(str::trim).filter(|name| !name.is_empty());
    let mut is_excepted = false;
    for name in named {
        // `advisories` is of scripts/deny.
        let is_known = name == "advisories" || Need::ALL.iter().any(|need| need.name() == name);
        if !is_known {
            return Err(format!("OUTRIGGER_MAY_LACK names `{name}`, which no test asks for"));
        }
        is_excepted |= name == need.name();
    }
    let name = need.name();
    if is_ci && !is_excepted {
        return Err(format!(
            "NOT PROVED, and CI proves everything: there is no {name} here. \
             Install it, or name it in OUTRIGGER_MAY_LACK, with a reason in .ci/run"
        ));
    }
    Ok(())
}

/// Says that the test that calls it proves nothing here, for want of `need`; the test then returns.
///
/// # Panics
/// In CI, unless `OUTRIGGER_MAY_LACK` names it.
pub fn not_proved(need: Need) {
    let exceptions = super::from_env::<String>("OUTRIGGER_MAY_LACK").unwrap_or_default();
    let is_ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    if let Err(why) = may_lack(need, is_ci, &exceptions) {
        panic!("{why}");
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Past the harness, which keeps what a passed test prints to itself.
    let line = format!("NOT PROVED: {test}: there is no {} here\n", need.name());
    let _ = std::io::stderr().write_all(line.as_bytes());
}
