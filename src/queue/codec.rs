//! Entries as bytes.
//!
//! ```text
//! entry = format version (1 byte) · CRC-32 of the rest (4 bytes, little-endian) · bincode
//! ```
//!
//! Documents are raw BSON inside. The version comes first and alone, so that any later form can be
//! told apart (I6); the checksum turns a flipped bit into an error where sled would hand it out.

use bincode::config::{Configuration, standard};
use bson::{RawDocument, RawDocumentBuf};
use uuid::Uuid;

use super::entry::{Entry, Work};
use crate::{
    model::{
        checkpoint::{Checkpoint, ClusterTime, PositionKind, ResumeToken},
        delta::Delta,
        document_key::DocumentKey,
        event::{CollectionId, SchemaChange},
        namespace::Namespace,
        write_op::WriteOp,
    },
    queue::dead_letter::DeadLetter,
};

/// The version that this program writes, and the only one it reads.
pub const FORMAT_VERSION: u8 = 1;

/// The layout of blocks that this program writes, and the only one it reads (I6).
pub const LAYOUT_VERSION: u8 = 2;

/// Bytes in the queue that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by another version of Outrigger.
    #[error(
        "format version {0} is not known to this program, which writes version {FORMAT_VERSION}"
    )]
    UnknownVersion(u8),
    /// Likewise: entries are put together in another way.
    #[error("layout {0} is not known to this program, which writes layout {LAYOUT_VERSION}")]
    UnknownLayout(u8),
    /// Damaged on the disk, or not Outrigger's at all.
    #[error("damaged value: {0}")]
    Damaged(String),
}

fn damaged(error: impl std::fmt::Display) -> CodecError {
    CodecError::Damaged(error.to_string())
}

#[derive(bincode::Encode, bincode::BorrowDecode)]
struct StoredEntry<'a> {
    id: [u8; 16],
    kind: u8,
    ns: &'a str,
    to: &'a str,
    key: &'a [u8],
    body: &'a [u8],
    collection: Option<[u8; 16]>,
    first_time: u64,
    last_time: u64,
    first_ms: u64,
    last_ms: u64,
    changes: u32,
    version: u32,
    attempts: u32,
    due_ms: u64,
    error: Option<&'a str>,
}

#[derive(bincode::Encode, bincode::BorrowDecode)]
struct StoredDeadLetter<'a> {
    entry: StoredEntry<'a>,
    reason: &'a str,
    died_ms: u64,
}

#[derive(bincode::Encode, bincode::BorrowDecode)]
struct StoredCheckpoint<'a> {
    token: &'a [u8],
    cluster_time: u64,
    source_id: &'a str,
    pipeline: &'a str,
}

/// Numbers on the disk: never reuse one.
mod kind {
    pub const INSERT: u8 = 1;
    pub const REPLACE: u8 = 2;
    pub const UPDATE: u8 = 3;
    pub const DELETE: u8 = 4;
    pub const REFRESH: u8 = 5;
    pub const MERGE: u8 = 6;
    pub const CREATE: u8 = 16;
    pub const DROP: u8 = 17;
    pub const RENAME: u8 = 18;
    pub const RENAME_DROPPING_TARGET: u8 = 19;
    pub const DROP_IF_GONE: u8 = 20;
    pub const RECONCILE: u8 = 21;
}

/// In place of a document's new name: see [`Entry::again`]. An older program takes it for nothing.
const AGAIN: &str = "again";

pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    seal(stored(entry))
}

/// Appends the entry's bytes.
pub fn encode_entry_into(entry: &Entry, bytes: &mut Vec<u8>) {
    seal_into(stored(entry), bytes);
}

pub fn decode_entry(seq: u64, bytes: &[u8]) -> Result<Entry, CodecError> {
    decode_entry_of(seq, bytes, &mut Namespaces::default())
}

/// As [`decode_entry`], for one of many entries.
pub fn decode_entry_of(
    seq: u64,
    bytes: &[u8],
    namespaces: &mut Namespaces,
) -> Result<Entry, CodecError> {
    restored(seq, open::<StoredEntry<'_>>(bytes)?, namespaces)
}

/// What an entry is about, without the rest of it.
pub enum Subject {
    Document(Namespace, DocumentKey),
    Schema(SchemaChange),
}

/// What an entry is about, after the same checks of its bytes as [`decode_entry`] makes.
pub fn subject_of(bytes: &[u8], namespaces: &mut Namespaces) -> Result<Subject, CodecError> {
    let stored = open::<StoredEntry<'_>>(bytes)?;
    let body = stored.body;
    match stored.kind {
        kind::INSERT | kind::REPLACE | kind::UPDATE | kind::MERGE => {
            RawDocument::from_bytes(body).map_err(damaged)?;
        }
        kind::DELETE | kind::REFRESH => {}
        _ => {
            return match restored(0, stored, namespaces)?.work {
                Work::Schema(change) => Ok(Subject::Schema(change)),
                Work::Document { .. } => Err(damaged("of two kinds")),
            };
        }
    }
    let key = DocumentKey::from_filter_bytes(stored.key).map_err(damaged)?;
    Ok(Subject::Document(namespaces.parse(stored.ns)?, key))
}

pub fn encode_dead_letter(letter: &DeadLetter) -> Vec<u8> {
    seal(StoredDeadLetter {
        entry: stored(&letter.entry),
        reason: &letter.reason,
        died_ms: letter.died_ms,
    })
}

pub fn decode_dead_letter(seq: u64, bytes: &[u8]) -> Result<DeadLetter, CodecError> {
    let letter = open::<StoredDeadLetter<'_>>(bytes)?;
    Ok(DeadLetter {
        reason: letter.reason.to_owned(),
        died_ms: letter.died_ms,
        entry: restored(seq, letter.entry, &mut Namespaces::default())?,
    })
}

pub fn encode_checkpoint(checkpoint: &Checkpoint) -> Vec<u8> {
    let stored = StoredCheckpoint {
        token: checkpoint.token.0.as_bytes(),
        cluster_time: checkpoint.cluster_time.0,
        source_id: &checkpoint.source_id,
        pipeline: &checkpoint.pipeline,
    };
    // A MongoDB's is written as it was before there were others: an older program goes on with it.
    if checkpoint.kind == PositionKind::CLUSTER_TIME {
        return seal((stored, checkpoint.anchor.0));
    }
    seal((stored, checkpoint.anchor.0, checkpoint.kind.as_str()))
}

pub fn decode_checkpoint(bytes: &[u8]) -> Result<Checkpoint, CodecError> {
    // One of 0.1.0 ends before the anchor, a MongoDB's before the kind.
    let (stored, anchor, kind) = open::<(StoredCheckpoint<'_>, u64, &str)>(bytes)
        .map(|(stored, anchor, kind)| (stored, anchor, PositionKind::noted(kind)))
        .or_else(|_| {
            open::<(StoredCheckpoint<'_>, u64)>(bytes)
                .map(|(stored, anchor)| (stored, anchor, PositionKind::CLUSTER_TIME))
        })
        .or_else(|_| {
            open::<StoredCheckpoint<'_>>(bytes)
                .map(|stored| (stored, 0, PositionKind::CLUSTER_TIME))
        })?;
    Ok(Checkpoint {
        token: ResumeToken(document(stored.token)?),
        kind,
        anchor: ClusterTime(anchor),
        cluster_time: ClusterTime(stored.cluster_time),
        source_id: stored.source_id.to_owned(),
        pipeline: stored.pipeline.to_owned(),
    })
}

fn seal(value: impl bincode::Encode) -> Vec<u8> {
    let mut bytes = Vec::new();
    seal_into(value, &mut bytes);
    bytes
}

fn seal_into(value: impl bincode::Encode, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    bytes.extend_from_slice(&[FORMAT_VERSION, 0, 0, 0, 0]);
    bincode::encode_into_std_write(value, bytes, standard())
        .expect("encoding into memory cannot fail");
    let checksum = crc32fast::hash(&bytes[start + 5..]);
    bytes[start + 1..start + 5].copy_from_slice(&checksum.to_le_bytes());
}

fn open<'a, T: bincode::BorrowDecode<'a, ()>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let (&version, rest) = bytes.split_first().ok_or_else(|| damaged("empty"))?;
    if version != FORMAT_VERSION {
        return Err(CodecError::UnknownVersion(version));
    }
    let (checksum, payload) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("truncated"))?;
    if crc32fast::hash(payload) != u32::from_le_bytes(*checksum) {
        return Err(damaged("checksum does not match"));
    }
    let (value, read) = bincode::borrow_decode_from_slice::<T, Configuration>(payload, standard())
        .map_err(damaged)?;
    if read != payload.len() {
        return Err(damaged("trailing bytes"));
    }
    Ok(value)
}

fn stored(entry: &Entry) -> StoredEntry<'_> {
    let (kind, key, collection, to) = match &entry.work {
        Work::Document { key, op, collection, .. } => {
            let kind = match op {
                WriteOp::Insert(_) => kind::INSERT,
                WriteOp::Replace(_) => kind::REPLACE,
                WriteOp::Update(_) => kind::UPDATE,
                WriteOp::Merge(_) => kind::MERGE,
                WriteOp::Delete => kind::DELETE,
                WriteOp::Refresh => kind::REFRESH,
            };
            let again = if entry.again { AGAIN } else { "" };
            (kind, key.filter().as_bytes(), collection.map(|id| id.0), again)
        }
        Work::Schema(SchemaChange::Create { .. }) => (kind::CREATE, &[][..], None, ""),
        Work::Schema(SchemaChange::Drop { .. }) => (kind::DROP, &[][..], None, ""),
        Work::Schema(SchemaChange::DropIfGone { .. }) => (kind::DROP_IF_GONE, &[][..], None, ""),
        Work::Schema(SchemaChange::Reconcile { collection, .. }) => {
            (kind::RECONCILE, &[][..], collection.map(|id| id.0), "")
        }
        Work::Schema(SchemaChange::Rename { to, drop_target, .. }) => {
            let kind = if *drop_target { kind::RENAME_DROPPING_TARGET } else { kind::RENAME };
            (kind, &[][..], None, to.as_str())
        }
    };
    StoredEntry {
        id: *entry.id.as_bytes(),
        kind,
        ns: entry.work.ns().as_str(),
        to,
        key,
        body: entry.work.body().map_or(&[], |body| body.as_bytes()),
        collection,
        first_time: entry.first_time.0,
        last_time: entry.last_time.0,
        first_ms: entry.first_ms,
        last_ms: entry.last_ms,
        changes: entry.changes,
        version: entry.version,
        attempts: entry.attempts,
        due_ms: entry.due_ms,
        error: entry.error.as_deref(),
    }
}

fn restored(
    seq: u64,
    stored: StoredEntry<'_>,
    namespaces: &mut Namespaces,
) -> Result<Entry, CodecError> {
    let ns = namespaces.parse(stored.ns)?;
    let op = |op: WriteOp| -> Result<Work, CodecError> {
        let key = DocumentKey::from_filter_bytes(stored.key).map_err(damaged)?;
        Ok(Work::Document {
            ns: ns.clone(),
            key,
            op,
            collection: stored.collection.map(CollectionId),
        })
    };
    let work = match stored.kind {
        kind::INSERT => op(WriteOp::Insert(document(stored.body)?))?,
        kind::REPLACE => op(WriteOp::Replace(document(stored.body)?))?,
        kind::UPDATE => op(WriteOp::Update(Delta::from_checked(document(stored.body)?)))?,
        kind::MERGE => op(WriteOp::Merge(document(stored.body)?))?,
        kind::DELETE => op(WriteOp::Delete)?,
        kind::REFRESH => op(WriteOp::Refresh)?,
        kind::CREATE => Work::Schema(SchemaChange::Create { ns, options: document(stored.body)? }),
        kind::DROP => Work::Schema(SchemaChange::Drop { ns }),
        kind::DROP_IF_GONE => Work::Schema(SchemaChange::DropIfGone { ns }),
        kind::RECONCILE => Work::Schema(SchemaChange::Reconcile {
            ns,
            collection: stored.collection.map(CollectionId),
        }),
        kind::RENAME | kind::RENAME_DROPPING_TARGET => Work::Schema(SchemaChange::Rename {
            from: ns,
            to: stored.to.parse().map_err(damaged)?,
            drop_target: stored.kind == kind::RENAME_DROPPING_TARGET,
        }),
        other => return Err(damaged(format!("unknown kind {other}"))),
    };
    Ok(Entry {
        seq,
        id: Uuid::from_bytes(stored.id),
        again: matches!(work, Work::Document { .. }) && stored.to == AGAIN,
        work,
        first_time: ClusterTime(stored.first_time),
        last_time: ClusterTime(stored.last_time),
        first_ms: stored.first_ms,
        last_ms: stored.last_ms,
        changes: stored.changes,
        version: stored.version,
        attempts: stored.attempts,
        due_ms: stored.due_ms,
        error: stored.error.map(str::to_owned),
    })
}

/// Names that were met, so that neighbours share theirs.
#[derive(Default)]
pub struct Namespaces(crate::model::namespace::Interner);

impl Namespaces {
    fn parse(&mut self, name: &str) -> Result<Namespace, CodecError> {
        self.0.parse(name).map_err(damaged)
    }
}

fn document(bytes: &[u8]) -> Result<RawDocumentBuf, CodecError> {
    RawDocumentBuf::from_bytes(bytes.to_vec()).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;
    use proptest::prelude::*;

    use super::*;

    fn entry(work: Work) -> Entry {
        Entry {
            seq: 7,
            id: Uuid::now_v7(),
            work,
            first_time: ClusterTime(1),
            last_time: ClusterTime(2),
            first_ms: 3,
            last_ms: 4,
            changes: 5,
            version: 6,
            again: false,
            attempts: 1,
            due_ms: 9,
            error: Some("why".into()),
        }
    }

    fn samples() -> Vec<Entry> {
        let document = |op| Work::Document {
            ns: Namespace::new("shop", "orders.eu"),
            key: DocumentKey::of(&rawdoc! { "_id": { "a": 1.5 } }).unwrap(),
            op,
            collection: Some(CollectionId([3; 16])),
        };
        let delta = Delta::from_diff(&rawdoc! { "u": { "a.b": 1 } }).unwrap();
        let ns = Namespace::new("shop", "orders");
        let to = Namespace::new("archive", "orders");
        [
            document(WriteOp::Insert(rawdoc! { "_id": { "a": 1.5 }, "x": [1, 2] })),
            document(WriteOp::Replace(rawdoc! { "_id": { "a": 1.5 } })),
            document(WriteOp::Update(delta)),
            document(WriteOp::Merge(rawdoc! { "_id": 1, "x": 1 })),
            document(WriteOp::Delete),
            document(WriteOp::Refresh),
            Work::Schema(SchemaChange::Create {
                ns: ns.clone(),
                options: rawdoc! { "capped": true },
            }),
            Work::Schema(SchemaChange::Drop { ns: ns.clone() }),
            Work::Schema(SchemaChange::DropIfGone { ns: ns.clone() }),
            Work::Schema(SchemaChange::Reconcile { ns: ns.clone(), collection: None }),
            Work::Schema(SchemaChange::Reconcile {
                ns: ns.clone(),
                collection: Some(CollectionId([4; 16])),
            }),
            Work::Schema(SchemaChange::Rename {
                from: ns.clone(),
                to: to.clone(),
                drop_target: false,
            }),
            Work::Schema(SchemaChange::Rename { from: ns, to, drop_target: true }),
        ]
        .map(entry)
        .into()
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let again = |entry: &Entry| Entry { again: true, ..entry.clone() };
        let documents = |entry: &Entry| matches!(entry.work, Work::Document { .. });
        let all = samples();
        for entry in all.iter().filter(|of| documents(of)).map(again).chain(all.clone()) {
            assert_eq!(decode_entry(7, &encode_entry(&entry)).unwrap(), entry);
            let letter = DeadLetter { entry, reason: "because".into(), died_ms: 11 };
            assert_eq!(decode_dead_letter(7, &encode_dead_letter(&letter)).unwrap(), letter);
        }
    }

    fn checkpoint(kind: PositionKind) -> Checkpoint {
        Checkpoint {
            token: ResumeToken(rawdoc! { "_data": "82" }),
            anchor: ClusterTime(1),
            kind,
            cluster_time: ClusterTime(2),
            source_id: "rs".into(),
            pipeline: "p".into(),
        }
    }

    #[test]
    fn a_checkpoint_of_any_kind_comes_back_as_it_was() {
        for kind in [PositionKind::CLUSTER_TIME, PositionKind::named("row of an outbox")] {
            let checkpoint = checkpoint(kind);

            assert_eq!(decode_checkpoint(&encode_checkpoint(&checkpoint)).unwrap(), checkpoint);
        }
    }

    /// As bytes that were written by programs before there were kinds, with an anchor and without.
    #[test]
    fn a_checkpoint_from_before_there_were_kinds_is_one_of_cluster_times() {
        let with_anchor = b"\x01\xb8\x18<\x0f\x13\x13\x00\x00\x00\x02_data\x00\x03\x00\x00\x0082\x00\x00\x02\x02rs\x01p\x01";
        let without_anchor = b"\x01n\xfc\x8b3\x13\x13\x00\x00\x00\x02_data\x00\x03\x00\x00\x0082\x00\x00\x02\x02rs\x01p";
        let expected = checkpoint(PositionKind::CLUSTER_TIME);

        assert_eq!(decode_checkpoint(with_anchor).unwrap(), expected);
        assert_eq!(encode_checkpoint(&expected), with_anchor, "and such a program reads ours");
        let expected = Checkpoint { anchor: ClusterTime(0), ..expected };
        assert_eq!(decode_checkpoint(without_anchor).unwrap(), expected);
    }

    #[test]
    fn i6_an_unknown_format_version_is_refused() {
        let mut bytes = encode_entry(&samples()[0]);
        bytes[0] = 2;

        assert_eq!(decode_entry(7, &bytes), Err(CodecError::UnknownVersion(2)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn a_flipped_bit_or_a_cut_is_noticed(sample in 0..12_usize, at: prop::sample::Index, bit in 0..8_u32, cut: bool) {
            let mut bytes = encode_entry(&samples()[sample]);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at); } else { bytes[at] ^= 1_u8 << bit; }
            prop_assert!(decode_entry(7, &bytes).is_err());
        }

        #[test]
        fn random_bytes_never_panic(payload: Vec<u8>) {
            let mut bytes = vec![FORMAT_VERSION];
            bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
            bytes.extend_from_slice(&payload);
            let _ = decode_entry(1, &bytes);
            let _ = decode_dead_letter(1, &bytes);
            let _ = decode_checkpoint(&bytes);
        }
    }
}
