//! `make demo`: what somebody sees of Outrigger first. Here its program is built as all else is for tests; `make demo` itself
//! builds it once more, without what a demo can do without.

use std::process::Command;

/// Runs it; returns what it shows.
fn shows(args: &[&str]) -> String {
    let demo = std::path::Path::new(env!("CARGO_BIN_EXE_demo"));
    let agent = demo.with_file_name("outrigger");
    assert!(agent.exists(), "{} is not built: cargo build --workspace", agent.display());

    let run = Command::new(demo).args(args).env("OUTRIGGER_BIN", &agent).output();

    let run = run.expect("it starts");
    let text = String::from_utf8_lossy(&run.stdout);
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{text}{told}");
    assert!(text.contains("dead letters                 0"), "{text}");
    text.into_owned()
}

#[test]
fn the_demo_loses_the_line_catches_up_and_ends_with_both_sides_equal() {
    let text = shows(&[]);
    for part in ["<- the line to Atlas is cut", "open", "Both sides are equal, byte for byte."] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn the_demo_of_postgres_answers_in_sql_over_an_outage_and_ends_with_every_row_equal() {
    let text = shows(&["postgres"]);
    for part in [
        "<- the line to PostgreSQL is cut",
        "open",
        "SELECT status, count(*), sum(total) FROM shop.orders",
        "    sent  ",
        "    SKU-",
        "    Customer ",
        "Every row equals its document.",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn the_demo_of_an_outbox_carries_sql_into_mongodb_over_an_outage_and_ends_with_every_document_equal()
 {
    let text = shows(&["outbox"]);
    for part in [
        "outrigger outbox init | psql",
        "<- the line to MongoDB is cut",
        "open",
        "Every document equals its row.",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Without starting them: what the Makefile names, packages, a profile and programs, is there.
#[test]
fn make_demo_builds_what_it_runs() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let manifest = std::fs::read_to_string(format!("{root}/Cargo.toml")).expect("a manifest");
    assert!(manifest.contains("[profile.demo]") && manifest.contains("members = [\"demo\"]"));
    for (target, runs) in [
        ("demo", "target/demo/demo\n"),
        ("demo-postgres", "demo postgres\n"),
        ("demo-outbox", "demo outbox\n"),
    ] {
        let make = Command::new("make").args(["-n", target]).current_dir(root).output();
        let make = make.expect("make");
        let lines = String::from_utf8_lossy(&make.stdout);
        assert!(make.status.success(), "{lines}");
        for part in ["--profile demo", "--package outrigger-demo", "target/demo/outrigger", runs] {
            assert!(lines.contains(part), "{part}: {lines}");
        }
    }
}
