//! What earlier builds have written. `tests/fixtures` has a queue as build 22d8421 of 0.1.0 has left it, with Atlas away: every kind
//! of entry that a MongoDB makes, a dead letter, and a checkpoint. Whatever changes in the codec, it opens and drains, or
//! the version of the format is another one.

use super::*;

fn earlier() -> TempDir {
    let from =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/queue-22d8421");
    let dir = TempDir::new().unwrap();
    copy_dir(&from, &dir.path().join("queue"));
    // Empty, so that no repository has it.
    std::fs::create_dir_all(dir.path().join("queue/blobs")).unwrap();
    dir
}

/// What an entry is, in a word, with its collection and the `_id`.
fn told(entry: &Entry) -> String {
    let (what, id) = match &entry.work {
        Work::Document { op, key, .. } => (
            op.name(),
            format!(
                " {:?}",
                bson::Bson::try_from(key.filter().get("_id").unwrap().unwrap()).unwrap()
            ),
        ),
        Work::Schema(SchemaChange::Create { .. }) => ("create", String::new()),
        Work::Schema(SchemaChange::Drop { .. }) => ("drop", String::new()),
        Work::Schema(SchemaChange::DropIfGone { .. }) => ("drop if gone", String::new()),
        Work::Schema(SchemaChange::Reconcile { .. }) => ("reconcile", String::new()),
        Work::Schema(SchemaChange::Rename { to, .. }) => ("rename", format!(" to {to}")),
    };
    format!("{what} {}{id}", entry.work.ns())
}

/// In the order of the stream.
const WAITED: [&str; 18] = [
    "insert shop.orders Int32(10)",
    r#"insert shop.orders Document({"shop": Int32(1), "n": Int64(7)})"#,
    "update shop.orders Int32(0)",
    "update shop.orders Int32(1)",
    "replace shop.orders Int32(2)",
    "delete shop.orders Int32(3)",
    "create shop.log",
    "insert shop.log Int32(0)",
    "insert shop.log Int32(1)",
    "insert shop.log Int32(2)",
    "update shop.tmp Int32(1)",
    "rename shop.tmp to shop.kept",
    "refresh shop.kept Int32(1)",
    "reconcile shop.kept",
    "insert shop.kept Int32(3)",
    "drop shop.gone",
    "create crm.people",
    r#"insert crm.people ObjectId("00000000000000000000000a")"#,
];

#[test]
fn a_queue_of_an_earlier_build_opens_and_drains_whole() {
    let dir = earlier();
    let queue = open(&dir);
    let at = queue.checkpoint().unwrap().expect("a checkpoint");
    assert_eq!((at.kind, at.source_id.is_empty()), (PositionKind::CLUSTER_TIME, false));
    let letters: Vec<_> = queue.letters().map(Result::unwrap).collect();
    assert_eq!((letters.len(), letters[0].entry.attempts), (1, 6));
    assert!(letters[0].reason.contains("DocumentValidationFailure"), "{}", letters[0].reason);

    let mut drained = Vec::new();
    while queue.pending().0 > 0 {
        let entries = lease(&queue);
        assert!(!entries.is_empty(), "{} wait and none can be leased", queue.pending().0);
        ack(&queue, &entries, &Outcome::Applied);
        drained.extend(entries);
    }
    drained.sort_by_key(|entry| entry.seq);
    assert_eq!(drained.iter().map(told).collect::<Vec<_>>(), WAITED);
    let delta = rawdoc! { "u": { "total": 5 }, "i": { "changes": 1 }, "slines": { "a": true, "u2": { "n": 3 } } };
    assert_eq!(*op(&drained[2]), WriteOp::Update(Delta::from_diff(&delta).unwrap()));
    let large = rawdoc! { "_id": 10, "total": 1, "text": "x".repeat(50_000) };
    assert_eq!(*op(&drained[0]), WriteOp::Insert(large));
    assert!(queue.entries().next().is_none() && queue.letters().count() == 1);
}

/// As if another build had written the queue. Past the seal, which is not of the format's number alone.
pub(super) fn set_format(options: &QueueOptions, format: u8) {
    let db = files::open_sled(options).unwrap();
    db.insert(layout::FORMAT, &[format]).unwrap();
    db.flush().unwrap();
}

/// A queue of a later build that was moved aside: the program that has written it finds everything there.
pub(super) fn has_all_of_it(moved_to: std::path::PathBuf) {
    let options = QueueOptions::new(moved_to);
    set_format(&options, codec::LAYOUT_VERSION);
    let queue = Queue::open(&options).unwrap();
    assert_eq!(ids(&queue.entries().map(Result::unwrap).collect::<Vec<_>>()), [1]);
}
