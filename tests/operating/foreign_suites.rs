//! Suites that somebody else wrote for replicators run against the program: `scripts/foreign`.

use std::{path::Path, process::Command};

use tempfile::TempDir;

use crate::support::{
    agent::program,
    proof::{Need, not_proved},
};

/// A suite as somebody might bring it: what is replicated, also over an end of the agent, and two differences that nobody may miss.
const SUITE: &str = r#"
from bson import Int64


def begin(replicator):
    replicator.source.shop.orders.insert_many({"_id": n} for n in range(100))
    replicator.start()
    replicator.wait_until_ready()


def test_what_changes_arrives(replicator):
    begin(replicator)
    replicator.source.shop.orders.delete_many({"_id": {"$lt": 50}})
    replicator.source.shop.orders.rename("old")
    replicator.source.shop.orders.create_index("n", unique=True)
    replicator.flush()
    assert replicator.target.shop.old.count_documents({}) == 50
    assert replicator.compare() == []


def test_it_goes_on_where_it_ended(replicator):
    begin(replicator)
    replicator.stop()
    replicator.source.shop.orders.update_one({"_id": 7}, {"$set": {"meanwhile": True}})
    replicator.start()
    replicator.flush()
    assert replicator.target.shop.orders.find_one({"_id": 7}) == {"_id": 7, "meanwhile": True}
    assert replicator.compare() == []


def test_a_document_that_differs_is_found(replicator):
    begin(replicator)
    replicator.target.shop.orders.update_one({"_id": 7}, {"$set": {"kind": Int64(1)}})
    assert replicator.compare() == []


def test_an_index_that_is_missing_is_found(replicator):
    replicator.source.shop.orders.create_index("n")
    begin(replicator)
    replicator.target.shop.orders.drop_index("n_1")
    assert replicator.compare() == []
"#;

#[test]
fn a_foreign_suite_runs_against_the_program_and_its_failures_are_told() {
    let suite = TempDir::new().unwrap();
    std::fs::write(suite.path().join("test_shop.py"), SUITE).unwrap();
    let program = program();
    let equal = program.parent().unwrap().join("examples/equal");

    let run = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/foreign/run"))
        .args(["--verbose", "--timeout", "240"])
        .arg(suite.path())
        .env("OUTRIGGER_BIN", &program)
        .env("OUTRIGGER_EQUAL", equal)
        .output()
        .unwrap();

    if run.status.code() == Some(69) {
        not_proved(Need::Pytest);
        return;
    }
    let told = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    // As pytest says that tests have failed, and nothing else has.
    assert_eq!(run.status.code(), Some(1), "{told}");
    for (test, ending) in [
        ("test_what_changes_arrives", "PASSED"),
        ("test_it_goes_on_where_it_ended", "PASSED"),
        ("test_a_document_that_differs_is_found", "FAILED"),
        ("test_an_index_that_is_missing_is_found", "FAILED"),
    ] {
        assert!(told.contains(&format!("{test} {ending}")), "{test}: {told}");
    }
    assert!(told.contains("shop.orders") && told.contains("2 failed, 2 passed"), "{told}");
    let left: Vec<_> = std::fs::read_dir(suite.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "the suite stays as it was: {left:?}");
}
