//! What `outrigger --version` says beyond the number: the commit, and how it was built.
//!
//! The commit is what the builder names (`OUTRIGGER_COMMIT`), or that of the checkout, or what cargo noted in the
//! packaged crate; a source that came by other ways names none. Nothing here depends on the time or the machine, so
//! that the same source builds the same program. A debug build names no commit: each new one would build it anew.

use std::{env, path::Path, process::Command};

fn main() {
    let target = env::var("TARGET").unwrap_or_default();
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let of = if is_release { commit() } else { None };
    let kind = if is_release { "release" } else { "debug" };
    let commit = of.map(|commit| format!("commit {commit}, ")).unwrap_or_default();
    println!("cargo::rustc-env=OUTRIGGER_BUILD={commit}{kind} build for {target}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=OUTRIGGER_COMMIT");
}

fn commit() -> Option<String> {
    if let Some(named) = env::var("OUTRIGGER_COMMIT").ok().filter(|named| !named.is_empty()) {
        return Some(named);
    }
    // The checkout's own, not that of a folder somewhere above it.
    if Path::new(".git").exists() {
        let head = git(&["rev-parse", "--short=12", "HEAD"])?;
        let is_changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        for path in ["src", "Cargo.toml", "Cargo.lock"] {
            println!("cargo::rerun-if-changed={path}");
        }
        // Told of every commit and every checkout.
        println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
        return Some(head + if is_changed { " with changes" } else { "" });
    }
    let noted = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let hash = noted.split_once("\"sha1\"")?.1.split('"').nth(1)?;
    hash.get(..12).map(str::to_owned)
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
