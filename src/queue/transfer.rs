//! Taking a queue from one machine to another, as JSON.
//!
//! ```json
//! {"version": 1, "timestamp": 1763700000000, "checkpoint": "…", "notes": {"claim": "…", …},
//!  "operations": [{"id": "…", "type": "insert", "collection": "shop.orders", "documentId": 1,
//!                  "data": {…}, "timestamp": 1763699999000, "retryCount": 0, "key": "…", "entry": "…"}]}
//! ```
//!
//! What a person reads is relaxed extended JSON, which does not tell every type. So each operation carries its
//! entry a second time, exactly as the queue holds it (`entry`, base64), and its `_id` (`key`, base64). Both
//! may be missing: such an operation brings its document up to date, as the local database has it.
//!
//! A *moved* queue keeps entries, checkpoint and notes (which agent it is, whose copy it keeps, what is owed): the
//! new place was never used, and the file was written while no agent ran, so all of it belongs together. Anywhere else an operation's content may be older than what was
//! read since. There only the keys are taken, as `Refresh`: never an old document over a newer one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{Read, Write},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Entry, EntrySummary, Incoming, QueueError, Work, body_json, codec,
    dead_letter::DeadLetter,
    layout::{CHECKPOINT, META, meta_key},
    note,
    state::StoreState,
    store::Store,
};
use crate::{
    model::{
        checkpoint::{Checkpoint, ClusterTime},
        document_key::DocumentKey,
        namespace::Namespace,
    },
    runtime::clock::now_ms,
};

/// The version of the file that this program writes and reads.
pub const EXPORT_VERSION: u64 = 1;

/// Entries, and bytes of them, that are written to the disk at a time.
const PART: usize = 1_000;
const PART_BYTES: usize = 8 << 20;

/// One operation of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Of the entry that it was; a new one is given where it lands.
    #[serde(default)]
    pub id: Value,
    #[serde(rename = "type")]
    pub kind: String,
    pub collection: Namespace,
    #[serde(default)]
    pub document_id: Value,
    #[serde(default)]
    pub data: Value,
    /// When the document first changed, milliseconds since 1970.
    #[serde(default)]
    pub timestamp: u64,
    #[serde(default)]
    pub retry_count: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
}

/// Everything in the file but its operations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    pub version: u64,
    pub checkpoint: Option<Checkpoint>,
    /// What is kept beside the entries.
    pub notes: BTreeMap<String, Vec<u8>>,
}

/// A person's pause stays where it was made, and every import notes for itself that it was one.
const NOT_MOVED: &[&str] = &["checkpoint", "format", "seal", note::PAUSED, note::MOVED];

/// Whether an export is one to move the queue with. Only of a queue that nobody works on: else entries and
/// checkpoint would not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    Yes,
    No,
}

/// What an operation asks of a queue that takes keys only.
#[derive(Clone, Debug, PartialEq)]
pub enum ImportEffect {
    /// Bring one document up to date.
    Refresh(Incoming),
    /// Compare these collections: what was changed of them cannot be repeated out of its order.
    Compare(BTreeSet<Namespace>),
}

impl Operation {
    fn of(entry: &Entry) -> Self {
        let summary = EntrySummary::from(entry);
        let key = match &entry.work {
            Work::Document { key, .. } => Some(BASE64.encode(key.filter().as_bytes())),
            Work::Schema(_) => None,
        };
        Self {
            id: json!(summary.id),
            kind: summary.kind,
            collection: entry.work.ns().clone(),
            document_id: summary.document_id,
            data: body_json(&entry.work),
            timestamp: summary.timestamp,
            retry_count: summary.retry_count,
            key,
            entry: Some(BASE64.encode(codec::encode_entry(entry))),
        }
    }

    /// The entry as it was exported.
    ///
    /// # Errors
    /// When it is damaged, or `data` was changed since.
    fn entry(&self, seq: u64) -> Result<Option<Entry>, String> {
        let Some(text) = &self.entry else { return Ok(None) };
        let bytes = BASE64.decode(text).map_err(|error| format!("`entry`: {error}"))?;
        let entry =
            codec::decode_entry(seq, &bytes).map_err(|error| format!("`entry`: {error}"))?;
        if Self::of(&entry) != *self {
            return Err(
                "its fields were changed since it was exported; without `entry`, the document \
                        is brought up to date as the local database has it"
                    .to_owned(),
            );
        }
        Ok(Some(entry))
    }

    fn document(&self) -> Result<DocumentKey, String> {
        if let Some(text) = &self.key {
            let bytes = BASE64.decode(text).map_err(|error| format!("`key`: {error}"))?;
            let key = DocumentKey::from_filter_bytes(&bytes).and_then(DocumentKey::checked);
            return key.map_err(|error| format!("`key`: {error}"));
        }
        DocumentKey::from_json(self.document_id.clone())
            .map_err(|error| format!("`documentId`: {error}"))
    }

    /// What is left of it where only keys are taken.
    ///
    /// # Errors
    /// When it names no document.
    pub fn effect(&self) -> Result<ImportEffect, String> {
        if self.collection.is_internal() {
            return Err(format!("`{}` is never replicated", self.collection));
        }
        match self.kind.as_str() {
            "insert" | "replace" | "update" | "merge" | "delete" | "refresh" => {
                self.entry(0)?;
                let (ns, key) = (self.collection.clone(), self.document()?);
                let work = Work::refresh(ns, key);
                let wall_ms = if self.timestamp == 0 { now_ms() } else { self.timestamp };
                Ok(ImportEffect::Refresh(Incoming {
                    work,
                    cluster_time: ClusterTime::default(),
                    wall_ms,
                }))
            }
            _ => match self.entry(0)?.map(|entry| entry.work) {
                Some(Work::Schema(change)) => {
                    Ok(ImportEffect::Compare(change.namespaces().into_iter().collect()))
                }
                Some(Work::Document { .. }) | None => {
                    Err(format!("`{}` is no type of operation that can be imported", self.kind))
                }
            },
        }
    }
}

impl Operation {
    /// The same without what only a queue of its own could use.
    #[must_use]
    pub fn key_only(self) -> Self {
        // A schema change is known by its entry alone.
        if self.key.is_some() { Self { data: Value::Null, entry: None, ..self } } else { self }
    }
}

impl PartialEq for Operation {
    fn eq(&self, other: &Self) -> bool {
        let view = |op: &Self| {
            (op.kind.clone(), op.collection.clone(), op.document_id.clone(), op.data.clone())
        };
        view(self) == view(other)
    }
}

/// See [`Queue::export`](super::Queue::export).
pub(super) fn export(
    store: &Store,
    entries: impl Iterator<Item = Result<Entry, QueueError>>,
    letters: impl Iterator<Item = Result<DeadLetter, QueueError>>,
    out: &mut impl Write,
    whole: Whole,
) -> Result<u64, QueueError> {
    let unwritten = QueueError::NotExported;
    let mut header = json!({ "version": EXPORT_VERSION, "timestamp": now_ms() });
    if whole == Whole::Yes
        && let Some(checkpoint) = store.get(CHECKPOINT)?
    {
        header["checkpoint"] = BASE64.encode(checkpoint).into();
        for note in store.scan(&[META]) {
            let (key, value) = note?;
            let name = String::from_utf8_lossy(&key[1..]).into_owned();
            if !NOT_MOVED.contains(&&*name) {
                header["notes"][name] = BASE64.encode(value).into();
            }
        }
    }
    let text = header.to_string();
    // The object goes on with the operations, one to a line.
    let open = text.strip_suffix('}').expect("an object ends so");
    write!(out, "{open},\"operations\":[").map_err(unwritten)?;
    let mut n = 0_u64;
    let mut put = |operation: &Operation| -> Result<(), QueueError> {
        let text = serde_json::to_string(operation).expect("an operation is JSON");
        write!(out, "{}\n{text}", if n == 0 { "" } else { "," }).map_err(unwritten)?;
        n += 1;
        Ok(())
    };
    for entry in entries {
        put(&Operation::of(&entry?))?;
    }
    for letter in letters {
        let letter = letter?;
        // A schema change that was given up is not repeated; its comparison is owed or done.
        if matches!(letter.entry.work, Work::Document { .. }) {
            let given_up = Operation::of(&letter.entry);
            let again =
                Operation { kind: "refresh".into(), data: Value::Null, entry: None, ..given_up };
            put(&again)?;
        }
    }
    writeln!(out, "\n]}}").map_err(unwritten)?;
    out.flush().map_err(unwritten)?;
    Ok(n)
}

/// See [`Queue::move_in`](super::Queue::move_in). `put` takes a part, and with the last one the header; the first
/// entry gets the number `seq`.
pub(super) fn move_in(
    file: impl Read,
    header: &Header,
    wanted: impl Fn(&Namespace) -> bool,
    mut seq: u64,
    mut put: impl FnMut(&mut Vec<Entry>, Option<&Header>) -> Result<(), QueueError>,
) -> Result<u64, QueueError> {
    let mut part = Vec::with_capacity(PART);
    let mut n = 0;
    let mut bytes = 0;
    read(file, |operation| {
        if !wanted(&operation.collection) {
            return Ok(());
        }
        let entry = match operation.entry(seq)? {
            Some(entry) => entry,
            None => match operation.effect()? {
                ImportEffect::Refresh(incoming) => incoming.into_entry(seq, Uuid::now_v7()),
                ImportEffect::Compare(_) => unreachable!("it needs an entry, and has none"),
            },
        };
        seq += 1;
        n += 1;
        bytes += operation.entry.as_ref().map_or(0, String::len);
        part.push(entry);
        if part.len() == PART || bytes > PART_BYTES {
            bytes = 0;
            put(&mut part, None)
        } else {
            Ok(())
        }
        .map_err(|error| error.to_string())
    })?;
    put(&mut part, Some(header))?;
    Ok(n)
}

/// Writes entries into a queue that nobody works with; with the last of them what came beside them.
pub(super) fn put_all(
    store: &Store,
    state: &mut StoreState,
    entries: &mut Vec<Entry>,
    last: Option<&Header>,
) -> Result<(), QueueError> {
    let mut edit = state.edit();
    for entry in entries.drain(..) {
        edit.add_entry(&entry);
    }
    let moved = last.map(|_| (note::MOVED.to_owned(), b"1".to_vec()));
    let notes = last.iter().flat_map(|header| header.notes.clone());
    for (name, note) in notes.chain(moved) {
        let key = meta_key(&name);
        let before = store.get(&key)?;
        edit.put(&key, note, before.as_deref());
    }
    if let Some(checkpoint) = last.and_then(|header| header.checkpoint.as_ref()) {
        edit.put(CHECKPOINT, codec::encode_checkpoint(checkpoint), None);
    }
    store.write(state, edit)
}

/// Removes all entries of a queue that nobody works with.
pub(super) fn clear(store: &Store, state: &mut StoreState) -> Result<u64, QueueError> {
    let mut removed = 0;
    loop {
        let mut edit = state.edit();
        let mut next = state.blocks.next_from(0);
        for _ in 0..PART {
            let Some((seq, place)) = next.filter(|_| edit.weight() < PART_BYTES) else { break };
            let block = state.blocks.get(place.block).expect("an entry is in a block");
            edit.remove_entry(seq, block.bytes as usize / usize::from(block.count));
            removed += 1;
            next = state.blocks.next_from(seq + 1);
        }
        store.write(state, edit)?;
        if next.is_none() {
            return Ok(removed);
        }
    }
}

/// Reads a file for a queue that takes keys only and has read up to `position`: hands to `each` what is asked of it for
/// the `wanted` collections, and returns how many operations were of others.
///
/// What is refreshed counts as changed just before that position, and never as newer than what is still to be read.
///
/// # Errors
/// As of [`read`].
pub fn read_keys(
    file: impl Read,
    position: ClusterTime,
    wanted: impl Fn(&Namespace) -> bool,
    mut each: impl FnMut(ImportEffect) -> Result<(), String>,
) -> Result<u64, QueueError> {
    let time = ClusterTime(position.0.saturating_sub(1));
    let mut left_out = 0;
    read(file, |operation| {
        if !wanted(&operation.collection) {
            left_out += 1;
            return Ok(());
        }
        let mut wish = operation.effect()?;
        if let ImportEffect::Refresh(incoming) = &mut wish {
            incoming.cluster_time = time;
        }
        each(wish)
    })?;
    Ok(left_out)
}

/// Reads a file: hands each operation to `each` as it comes, and returns the rest.
///
/// # Errors
/// [`QueueError::NotImported`], which names the operation, for a file that is none, or what `each` says.
pub fn read(
    file: impl Read,
    each: impl FnMut(Operation) -> Result<(), String>,
) -> Result<Header, QueueError> {
    let mut from = serde_json::Deserializer::from_reader(std::io::BufReader::new(file));
    let header = from.deserialize_map(File(each));
    let header = header.and_then(|header| from.end().map(|()| header));
    header.map_err(|error| QueueError::NotImported(error.to_string()))
}

/// Reads the object of a file.
struct File<F>(F);

impl<'de, F: FnMut(Operation) -> Result<(), String>> Visitor<'de> for File<F> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `version` and `operations`")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Header, A::Error> {
        use serde::de::Error;
        let mut header = Header::default();
        let mut has_operations = false;
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "version" => {
                    header.version = map.next_value()?;
                    if header.version != EXPORT_VERSION {
                        return Err(A::Error::custom(format!(
                            "version {} is not known to this program, which reads version {EXPORT_VERSION}",
                            header.version
                        )));
                    }
                }
                "checkpoint" => {
                    let text: String = map.next_value()?;
                    let bytes = BASE64.decode(text).map_err(A::Error::custom)?;
                    let checkpoint = codec::decode_checkpoint(&bytes).map_err(A::Error::custom)?;
                    header.checkpoint = Some(checkpoint);
                }
                "notes" => {
                    for (name, text) in map.next_value::<BTreeMap<String, String>>()? {
                        if NOT_MOVED.contains(&&*name) {
                            return Err(A::Error::custom(format!(
                                "`{name}` is no note that is moved"
                            )));
                        }
                        header.notes.insert(name, BASE64.decode(text).map_err(A::Error::custom)?);
                    }
                }
                "operations" => {
                    has_operations = true;
                    map.next_value_seed(Operations(&mut self.0))?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if header.version == 0 || !has_operations {
            return Err(A::Error::custom("`version` or `operations` is missing"));
        }
        Ok(header)
    }
}

/// Reads the list, one by one.
struct Operations<'a, F>(&'a mut F);

impl<'de, F: FnMut(Operation) -> Result<(), String>> DeserializeSeed<'de> for Operations<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(Operation) -> Result<(), String>> Visitor<'de> for Operations<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of operations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        use serde::de::Error;
        let mut n = 1_u64;
        while let Some(operation) = list.next_element::<Operation>()? {
            (self.0)(operation)
                .map_err(|error| A::Error::custom(format!("operation {n}: {error}")))?;
            n += 1;
        }
        Ok(())
    }
}
