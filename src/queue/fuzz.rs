//! The codec's entrance for [`fuzz`](crate::fuzz).

use bson::rawdoc;

use super::{Entry, Work, codec};
use crate::{
    model::{
        checkpoint::{Checkpoint, ClusterTime, PositionKind, ResumeToken},
        document_key::DocumentKey,
        event::SchemaChange,
        namespace::Namespace,
        write_op::WriteOp,
    },
    queue::dead_letter::DeadLetter,
};

/// Decodes `payload` as everything that is stored, with an envelope that fits, so that it is looked at.
/// What can be decoded can be encoded again, and is the same then. True when it was something.
pub(crate) fn decode(payload: &[u8]) -> bool {
    let mut bytes = vec![codec::FORMAT_VERSION];
    bytes.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    let (entry, letter, checkpoint) = (
        codec::decode_entry(1, &bytes),
        codec::decode_dead_letter(1, &bytes),
        codec::decode_checkpoint(&bytes),
    );
    if let Ok(entry) = &entry {
        assert_eq!(codec::decode_entry(1, &codec::encode_entry(entry)).as_ref(), Ok(entry));
    }
    if let Ok(letter) = &letter {
        let again = codec::encode_dead_letter(letter);
        assert_eq!(codec::decode_dead_letter(1, &again).as_ref(), Ok(letter));
    }
    if let Ok(checkpoint) = &checkpoint {
        let again = codec::encode_checkpoint(checkpoint);
        assert_eq!(codec::decode_checkpoint(&again).as_ref(), Ok(checkpoint));
    }
    entry.is_ok() || letter.is_ok() || checkpoint.is_ok()
}

/// Payloads as they are stored, for mutation.
pub fn samples() -> Vec<Vec<u8>> {
    let ns = Namespace::new("shop", "orders");
    let document = |op| {
        let key = DocumentKey::of(&rawdoc! { "_id": { "a": 1 } }).expect("it has an `_id`");
        Work::Document { ns: ns.clone(), key, op, collection: None }
    };
    let works = [
        document(WriteOp::Insert(rawdoc! { "_id": { "a": 1 }, "x": [1, "two", 3.0] })),
        document(WriteOp::Refresh),
        Work::Schema(SchemaChange::Rename { from: ns.clone(), to: ns, drop_target: true }),
    ];
    let entries = works.map(|work| Entry {
        again: matches!(work, Work::Document { op: WriteOp::Insert(_), .. }),
        seq: 1,
        id: uuid::Uuid::nil(),
        work,
        first_time: ClusterTime(1),
        last_time: ClusterTime(2),
        first_ms: 3,
        last_ms: 4,
        changes: 5,
        version: 6,
        attempts: 7,
        due_ms: 8,
        error: Some("because".to_owned()),
    });
    let checkpoint = Checkpoint {
        token: ResumeToken(rawdoc! { "_data": "82" }),
        kind: PositionKind::CLUSTER_TIME,
        anchor: ClusterTime(1),
        cluster_time: ClusterTime(2),
        source_id: "id".to_owned(),
        pipeline: "1".to_owned(),
    };
    let mut samples: Vec<_> = entries.iter().map(codec::encode_entry).collect();
    samples.extend(entries.map(|entry| {
        codec::encode_dead_letter(&DeadLetter { entry, reason: "so".to_owned(), died_ms: 9 })
    }));
    samples.push(codec::encode_checkpoint(&checkpoint));
    // Without the envelope.
    samples.into_iter().map(|bytes| bytes[5..].to_vec()).collect()
}
