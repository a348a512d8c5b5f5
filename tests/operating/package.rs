//! The Debian package: what is in it, what becomes of it, and what the program says of its own making.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use tempfile::TempDir;

use crate::support::proof::{Need, not_proved};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Of the debug build that is there, made once.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(built_package)
}

fn built_package() -> PathBuf {
    let output = Command::new(root().join("scripts/deb"))
        .arg("--debug")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "scripts/deb");
    root().join(String::from_utf8(output.stdout).unwrap().lines().last().unwrap())
}

/// An empty root that packages can be installed into.
struct Scratch {
    dir: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for file in ["var/lib/dpkg/status", "var/lib/dpkg/available"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        Self { dir }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn dpkg(&self, action: &str, what: impl AsRef<std::ffi::OsStr>) {
        let output = Command::new("dpkg")
            .arg(format!("--root={}", self.dir.path().display()))
            .args(["--force-not-root", "--force-script-chrootless", "--force-depends"])
            .arg("--log=/dev/null")
            .arg(action)
            .arg(what)
            .output()
            .unwrap();
        assert!(output.status.success(), "{action}: {}", said(&output));
    }

    /// Stands for debconf: whoever is asked gives this answer.
    fn answers(&self, answer: &str) {
        let asked = self.path("asked");
        let text = format!(
            "db_input() {{ echo \"$2\" > {}; }}\ndb_go() {{ :; }}\ndb_get() {{ RET={answer}; }}\ndb_purge() {{ :; }}\n",
            asked.display()
        );
        self.write("usr/share/debconf/confmodule", &text);
    }
}

#[test]
fn the_package_installs_into_an_empty_root_and_asks_at_its_purge_what_becomes_of_secrets() {
    let package = package();
    let scratch = Scratch::new();

    scratch.dpkg("--install", package);

    let status = std::fs::read_to_string(scratch.path("var/lib/dpkg/status")).unwrap();
    assert!(status.contains("Status: install ok installed"), "{status}");
    let program = scratch.path("usr/bin/outrigger");
    let version = Command::new(&program).arg("--version").output().unwrap();
    assert!(said(&version).starts_with("outrigger 0."), "{}", said(&version));
    for file in [
        "lib/systemd/system/outrigger.service",
        "etc/outrigger/config.toml",
        "usr/share/doc/outrigger/config.toml",
        "usr/share/doc/outrigger/README.md",
        "usr/share/doc/outrigger/docs/operate.md",
        "usr/share/doc/outrigger/docs/alerts/lag.md",
        "usr/share/doc/outrigger/docs/openapi.json",
        "usr/share/doc/outrigger/deploy/roles.js",
        "usr/share/doc/outrigger/changelog.gz",
        "usr/share/man/man1/outrigger.1.gz",
        "usr/share/bash-completion/completions/outrigger",
    ] {
        assert!(scratch.path(file).is_file(), "{file} is missing");
    }
    let mode = std::fs::metadata(&program).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o755);
    // The packaged configuration is one, and asks for what is not there yet.
    let config = scratch.path("etc/outrigger/config.toml");
    let check = Command::new(&program).arg("--config").arg(&config).arg("check").output().unwrap();
    assert_eq!(check.status.code(), Some(2));
    assert!(said(&check).contains("/etc/outrigger/local.uri"), "{}", said(&check));

    let (secret, queue) = ("etc/outrigger/local.uri", "var/lib/private/outrigger/queue/db");
    let token = "var/lib/private/outrigger/outrigger.token";
    for (answer, left) in [
        (None, [false, false, true]),
        (Some("keep"), [true, true, true]),
        (Some("secrets"), [false, false, true]),
        (Some("everything"), [false, false, false]),
    ] {
        if !program.exists() {
            scratch.dpkg("--install", package);
        }
        for file in [secret, token, queue] {
            scratch.write(file, "s3cret");
        }
        scratch.dpkg("--remove", "outrigger");
        assert!(!program.exists() && config.exists(), "the configuration stays until it is purged");
        assert!(scratch.path(secret).exists() && scratch.path(queue).exists());
        if let Some(answer) = answer {
            scratch.answers(answer);
        }
        scratch.dpkg("--purge", "outrigger");
        // dpkg's own doing, whatever the answer was, so that the question says it.
        assert!(!config.exists());
        let there = [secret, token, queue].map(|file| scratch.path(file).exists());
        assert_eq!(there, left, "{answer:?}");
        assert_eq!(scratch.path("asked").exists(), answer.is_some());
    }
}

#[test]
fn what_is_asked_at_the_purge_is_what_is_done() {
    let text = std::fs::read_to_string(root().join("deploy/debian/templates")).unwrap();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(!text.contains("nothing is deleted"), "dpkg deletes config.toml: {text}");
    assert!(text.contains("config.toml is deleted whichever is chosen"), "{text}");
    let pages = std::fs::read_to_string(root().join("docs/install.md")).unwrap();
    assert!(pages.contains("When it is purged, `/etc/outrigger/config.toml` goes"));
}

#[test]
fn lintian_has_nothing_against_the_package_but_what_is_named_with_its_reason() {
    if Command::new("lintian").arg("--version").output().is_err() {
        not_proved(Need::Lintian);
        return;
    }
    // A debug build is not stripped; what is published is.
    let check = Command::new("lintian")
        .args(["--allow-root", "--fail-on", "error,warning,info", "--display-info"])
        .args(["--suppress-tags", "unstripped-binary-or-object"])
        .arg(package())
        .output()
        .unwrap();

    assert!(check.status.success(), "{}", said(&check));
    let overrides =
        std::fs::read_to_string(root().join("deploy/debian/lintian-overrides")).unwrap();
    let mut before = "";
    for line in overrides.lines() {
        assert!(line.starts_with('#') || before.starts_with('#'), "no reason: {line}");
        before = line;
    }
}

#[test]
fn the_program_says_which_commit_it_is_of_wherever_its_source_came_from() {
    let dir = TempDir::new().unwrap();
    let script = dir.path().join("build-script");
    let built = Command::new("rustc")
        .args(["--edition", "2024", "-o"])
        .arg(&script)
        .arg(root().join("build.rs"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", said(&built));
    let told = |folder: &Path, profile: &str, named: &str| {
        let output = Command::new(&script)
            .current_dir(folder)
            .env("TARGET", "x86_64-unknown-linux-gnu")
            .env("PROFILE", profile)
            .env("OUTRIGGER_COMMIT", named)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let text = said(&output);
        let line =
            text.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=OUTRIGGER_BUILD="));
        line.unwrap().to_owned()
    };
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let plain = "release build for x86_64-unknown-linux-gnu";

    // An archive without anything, in a folder of somebody's repository.
    let has_git = Command::new("git").arg("init").arg(dir.path()).output().is_ok();
    assert_eq!(told(&source, "release", ""), plain);
    assert_eq!(told(&source, "release", "0123abc"), format!("commit 0123abc, {plain}"));
    assert_eq!(told(&source, "debug", ""), plain.replace("release", "debug"));
    // As cargo packages it.
    let noted =
        "{\n  \"git\": {\n    \"sha1\": \"3cbbfef0123456789abcdef0123456789abcdef0\"\n  }\n}";
    std::fs::write(source.join(".cargo_vcs_info.json"), noted).unwrap();
    assert_eq!(told(&source, "release", ""), format!("commit 3cbbfef01234, {plain}"));
    // A checkout. Without git its commit is not known.
    if !has_git {
        std::fs::create_dir(source.join(".git")).unwrap();
        assert_eq!(told(&source, "release", ""), plain);
        return;
    }
    let git = |args: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "user.name=a", "-c", "user.email=a@b"])
            .args(args)
            .current_dir(&source)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output).trim().to_owned()
    };
    git(&["init", "--quiet"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "--message", "first"]);
    let head = git(&["rev-parse", "--short=12", "HEAD"]);
    assert_eq!(told(&source, "release", ""), format!("commit {head}, {plain}"));
    std::fs::write(source.join(".cargo_vcs_info.json"), "{}").unwrap();
    assert_eq!(told(&source, "release", ""), format!("commit {head} with changes, {plain}"));
}

#[test]
fn a_version_in_full_names_the_build_and_in_short_the_number_alone() {
    let version = Command::new(env!("CARGO_BIN_EXE_outrigger")).arg("--version").output().unwrap();
    let version = said(&version);
    let number = env!("CARGO_PKG_VERSION");
    assert!(version.starts_with(&format!("outrigger {number} (")), "{version}");
    assert!(version.contains(" build for "), "{version}");
    let short = Command::new(env!("CARGO_BIN_EXE_outrigger")).arg("-V").output().unwrap();
    assert_eq!(said(&short), format!("outrigger {number}\n"));
}
