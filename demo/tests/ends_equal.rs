//! `make demo`: what somebody sees of Outrigger first. Here its program is built as all else is for tests; `make demo` itself
//! builds it once more, without what a demo can do without.

use std::process::Command;

#[test]
fn the_demo_loses_the_line_catches_up_and_ends_with_both_sides_equal() {
    let demo = std::path::Path::new(env!("CARGO_BIN_EXE_demo"));
    let agent = demo.with_file_name("outrigger");
    assert!(agent.exists(), "{} is not built: cargo build --workspace", agent.display());

    let run = Command::new(demo).env("OUTRIGGER_BIN", &agent).output().expect("it starts");

    let text = String::from_utf8_lossy(&run.stdout);
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{text}{told}");
    for part in ["<- the line to Atlas is cut", "open", "Both sides are equal, byte for byte."] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains("dead letters                 0"), "{text}");
}

/// Without starting it: the target of the Makefile names packages, a profile and programs that there are.
#[test]
fn make_demo_builds_what_it_runs() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let make = Command::new("make").args(["-n", "demo"]).current_dir(root).output().expect("make");
    let lines = String::from_utf8_lossy(&make.stdout);
    assert!(make.status.success(), "{lines}");
    let manifest = std::fs::read_to_string(format!("{root}/Cargo.toml")).expect("a manifest");
    assert!(lines.contains("--profile demo") && manifest.contains("[profile.demo]"));
    assert!(
        lines.contains("--package outrigger-demo") && manifest.contains("members = [\"demo\"]")
    );
    assert!(lines.contains("target/demo/demo") && lines.contains("target/demo/outrigger"));
}
