//! What a tag makes: the workflows are understood, and the scripts that they run do what they say, as far as one machine can
//! tell.

use std::{
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::support::{
    proof::{Need, not_proved},
    root, write_program,
};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// By its shell: a file that was just written may be open still in a process that another test starts, and is busy then.
fn release(folder: &Path) -> Command {
    let mut command = Command::new("bash");
    command.arg(folder.join("scripts/release"));
    command
}

fn release_in(folder: &Path, args: &[&str]) -> Output {
    release(folder).args(args).output().unwrap()
}

#[test]
fn the_workflows_are_understood_and_run_what_is_there() {
    let folder = root().join(".github/workflows");
    let usage = said(&release_in(root(), &[]));
    let mut found = 0;
    for file in std::fs::read_dir(&folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for (_, rest) in text.split('\n').filter_map(|line| line.split_once("scripts/release ")) {
            let verb = rest.split_whitespace().next().unwrap();
            assert!(usage.contains(&format!("scripts/release {verb}")), "{verb}: {usage}");
            found += 1;
        }
        // Of a script within an argument the shell does not ask how it has ended: fewer servers would be tested, and all be well.
        let asks_late = |line: &&str| line.contains("make ") && line.contains("$(");
        assert_eq!(text.lines().find(asks_late), None);
        // What was never run is said where it is read.
        assert!(text.contains("ever run"), "{text}");
    }
    assert!(found >= 6, "{found}");
    let tool = Command::new(root().join("scripts/actionlint")).output().unwrap();
    if !tool.status.success() {
        not_proved(Need::Actionlint);
        return;
    }
    let lint = String::from_utf8(tool.stdout).unwrap();
    let check = Command::new(lint.trim())
        .args([folder.join("ci.yml"), folder.join("release.yml")])
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", said(&check));
}

#[test]
fn a_release_is_refused_while_tag_version_and_changelog_say_different_things() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("scripts")).unwrap();
    for name in ["scripts/release", "Cargo.toml"] {
        std::fs::copy(root().join(name), dir.path().join(name)).unwrap();
    }
    let version = env!("CARGO_PKG_VERSION");
    let changes = |text: &str| std::fs::write(dir.path().join("CHANGELOG.md"), text).unwrap();
    let check = |tag: &str| release_in(dir.path(), &["check", tag]);
    changes("# Changelog\n\n## Unreleased\n\n- later\n");
    assert!(said(&check(&format!("v{version}"))).contains("has no part"), "not written yet");

    changes(&format!(
        "# Changelog\n\n## Unreleased\n\n- later\n\n## {version} - 2026-12-01\n\n### Added\n\n- this\n\n## 0.0.9\n\n- before\n"
    ));
    assert!(check(&format!("v{version}")).status.success());
    assert!(!check("v9.9.9").status.success() && !check(version).status.success());
    let notes = release_in(dir.path(), &["notes", version]);
    assert_eq!(said(&notes).trim_end(), "### Added\n\n- this");
}

/// A folder with these programs of the system alone.
fn path_of(names: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for name in names {
        std::os::unix::fs::symlink(format!("/usr/bin/{name}"), dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn what_a_build_for_other_machines_lacks_is_named_with_the_package_that_has_it() {
    // No compiler of any kind, and no cargo that could begin.
    let path = path_of(&["bash", "dirname"]);
    let machine = path.path().join("uname");
    write_program(&machine, "#!/bin/sh\necho x86_64\n");
    let script =
        || Command::new(root().join("scripts/aarch64")).env("PATH", path.path()).output().unwrap();
    let run = script();
    assert_eq!(run.status.code(), Some(1), "{}", said(&run));
    let packages = "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross";
    assert!(said(&run).contains(packages), "{}", said(&run));
    // A compiler without the library that its programs are built with, as Debian has them: two packages.
    let compiler = path.path().join("aarch64-linux-gnu-gcc");
    write_program(&compiler, "#!/bin/sh\nexit 1\n");
    let run = said(&script());
    assert!(run.contains("hint: apt-get install libc6-dev-arm64-cross\n"), "{run}");
}

#[test]
fn what_a_static_build_lacks_is_named_with_the_package_that_has_it() {
    let path = path_of(&["bash", "dirname", "sed", "head", "stat"]);
    let script = || {
        let script = root().join("scripts/release");
        said(
            &Command::new(script)
                .args(["archive", "--static"])
                .env("PATH", path.path())
                .output()
                .unwrap(),
        )
    };
    let run = script();
    assert!(run.contains("hint: apt-get install musl-tools\n"), "{run}");
    for program in ["musl-gcc", "rustc"] {
        let program = path.path().join(program);
        write_program(&program, "#!/bin/bash\necho /nowhere\n");
    }
    let run = script();
    assert!(run.contains("hint: rustup target add x86_64-unknown-linux-musl\n"), "{run}");
}

/// cargo-cyclonedx writes beside each manifest of the workspace.
#[test]
fn a_list_of_what_it_is_built_of_leaves_nothing_in_the_tree() {
    let dir = TempDir::new().unwrap();
    for folder in ["scripts", "demo", "bin"] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
    }
    for name in ["scripts/release", "Cargo.toml", "CHANGELOG.md"] {
        std::fs::copy(root().join(name), dir.path().join(name)).unwrap();
    }
    let tool = dir.path().join("bin/cargo-cyclonedx");
    let path = format!("{}:{}", dir.path().join("bin").display(), std::env::var("PATH").unwrap());
    for (ends, files) in [("exit 1", 0), ("exit 0", 1)] {
        let text = format!(
            "#!/bin/sh\nname=\"$6.json\"\necho '{{}}' | tee \"$name\" > demo/\"$name\"\n{ends}\n"
        );
        write_program(&tool, &text);
        let run = release(dir.path()).arg("sbom").env("PATH", &path).output().unwrap();
        assert_eq!(run.status.success(), files == 1, "{}", said(&run));
        let left = |folder: &str| {
            let entries = std::fs::read_dir(dir.path().join(folder)).into_iter().flatten();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.contains(".cdx.")).count()
        };
        assert_eq!((left("."), left("demo"), left("target/release-files")), (0, 0, files));
    }
}

#[test]
fn the_archive_holds_a_program_that_begins_and_what_belongs_to_it() {
    let made = release_in(root(), &["archive", "--debug"]);
    assert!(made.status.success(), "{}", said(&made));
    let archive = root().join(String::from_utf8(made.stdout).unwrap().trim());
    let dir = TempDir::new().unwrap();
    let unpacked = Command::new("tar")
        .args(["--strip-components", "1", "-xzf"])
        .arg(&archive)
        .arg("-C")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(unpacked.status.success(), "{}", said(&unpacked));

    for name in [
        "README.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "config.toml",
        "outrigger.1",
        "completions/outrigger.zsh",
        "docs/start.md",
        "deploy/outrigger.service",
        "deploy/kubernetes/outrigger.yaml",
    ] {
        assert!(dir.path().join(name).is_file(), "{name} is missing");
    }
    let version = Command::new(dir.path().join("outrigger")).arg("--version").output().unwrap();
    assert!(said(&version).starts_with("outrigger "), "{}", said(&version));

    let sums = release_in(root(), &["sums", "--debug"]);
    let name = archive.file_name().unwrap().to_str().unwrap();
    assert!(said(&sums).contains(name), "{}", said(&sums));
}
