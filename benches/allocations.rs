//! Allocations on the way of a change, counted: from the event to the queue, and from the queue to the ack.
//! Prints a table. The figures do not depend on the machine.
//!
//! `cargo bench --bench allocations`

use allocation_counter::{AllocationInfo, measure};
use bson::{RawDocumentBuf, Timestamp, oid::ObjectId, rawdoc, spec::BinarySubtype};
use outrigger::{
    model::{
        checkpoint::ClusterTime,
        event::{Change, ChangeEvent},
        namespace::Interner,
    },
    queue::{Ack, Entry, Incoming, Outcome, Queue, QueueOptions, Work},
};
use tempfile::TempDir;

/// Changes of one batch.
const BATCH: u32 = 1_000;

fn main() {
    let dir = TempDir::new().expect("a folder");
    let queue = Queue::open(&QueueOptions::new(dir.path().join("queue"))).expect("a queue");
    println!("| step | allocations per change | bytes per change |\n| --- | ---: | ---: |");
    // What the first batches make once is no cost of a change.
    for round in 0..3 {
        for (kind, event) in [("insert", insert as fn(u32) -> RawDocumentBuf), ("update", update)] {
            let first = round * BATCH;
            let events: Vec<_> = (first..first + BATCH).map(event).collect();
            pass(&queue, &format!("{kind}: "), &events, round == 2);
        }
    }
}

/// Takes events through the queue, one step after the other.
fn pass(queue: &Queue, kind: &str, events: &[RawDocumentBuf], is_shown: bool) {
    let show = |step: &str, info: AllocationInfo| {
        if is_shown {
            let per = |n: u64| n as f64 / f64::from(BATCH);
            println!(
                "| {kind}{step} | {:.2} | {:.0} |",
                per(info.count_total),
                per(info.bytes_total)
            );
        }
    };
    let mut parsed = Vec::with_capacity(events.len());
    let mut namespaces = Interner::default();
    show(
        "parse the event",
        measure(|| {
            let parse =
                |event| ChangeEvent::parse_one_of(event, &mut namespaces).expect("an event");
            parsed.extend(events.iter().map(|event| &**event).map(parse));
        }),
    );
    let incoming: Vec<_> = parsed.into_iter().map(incoming).collect();
    let commit = || assert_eq!(queue.commit(incoming, None).expect("a commit").coalesced, 0);
    show("commit", measure(commit));
    let mut batch = None;
    show(
        "lease",
        measure(|| batch = Some(queue.lease(BATCH as usize, usize::MAX, 0).expect("a lease"))),
    );
    let entries = batch.map(|batch| batch.entries).unwrap_or_default();
    assert_eq!(entries.len(), events.len(), "each event has an entry of its own");
    let acks: Vec<_> = entries.iter().map(applied).collect();
    show("settle", measure(|| queue.ack(&acks).expect("settled")));
}

fn incoming(event: ChangeEvent) -> Incoming {
    let Change::Document { ns, key, op } = event.change else {
        unreachable!("only documents change here")
    };
    let work = Work::Document { ns, key, op, collection: event.collection };
    Incoming { work, cluster_time: ClusterTime(1), wall_ms: event.wall_ms }
}

fn applied(entry: &Entry) -> Ack {
    Ack { seq: entry.seq, version: entry.version, outcome: Outcome::Applied }
}

fn id(n: u32) -> ObjectId {
    let mut bytes = [7; 12];
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    ObjectId::from_bytes(bytes)
}

fn insert(n: u32) -> RawDocumentBuf {
    let document =
        rawdoc! { "_id": id(n), "number": i64::from(n), "status": "open", "text": "x".repeat(260) };
    event(n, "insert", rawdoc! { "fullDocument": document })
}

fn update(n: u32) -> RawDocumentBuf {
    let diff = rawdoc! { "$v": 2, "diff": { "u": { "status": "paid" }, "i": { "paid": true } } };
    event(n, "update", rawdoc! { "rawUpdateDescription": diff })
}

/// As a 6.0 server tells it.
fn event(n: u32, kind: &str, with: RawDocumentBuf) -> RawDocumentBuf {
    let uuid = bson::Binary { subtype: BinarySubtype::Uuid, bytes: vec![5; 16] };
    let mut event = rawdoc! {
        "_id": { "_data": "82".repeat(90) }, "operationType": kind,
        "clusterTime": Timestamp { time: 1, increment: n }, "collectionUUID": uuid,
        "wallTime": bson::DateTime::from_millis(1), "ns": { "db": "shop", "coll": "orders" },
        "documentKey": { "_id": id(n) },
    };
    for (name, value) in with.iter().flatten() {
        event.append(name, bson::RawBson::from(value));
    }
    event
}
