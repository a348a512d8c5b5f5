//! Write commands as raw BSON: documents go from the queue to the wire without being decoded.

use std::time::Duration;

use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, rawdoc};

use super::Write;
use crate::{
    delta::UpdateCommand,
    document_key::DocumentKey,
    raw::{self, kind},
};

/// Most bytes of documents in one command. The server takes 16 MiB and some overhead.
pub const BYTES_MAX: usize = 15 << 20;

/// Most writes in one command (`maxWriteBatchSize`).
pub const OPS_MAX: usize = 100_000;

/// The three write commands. In this order they are sent, so that a delete frees a unique value
/// before an insert takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Delete,
    Update,
    Insert,
}

/// One command, and which of the writes it carries.
pub struct Command {
    pub kind: Kind,
    statements: RawArrayBuf,
    pub writes: Vec<usize>,
}

impl Command {
    /// Bytes of its statements.
    pub fn len(&self) -> usize {
        self.statements.as_bytes().len()
    }

    /// The command's body for `collection`.
    pub fn body(
        &self,
        collection: &str,
        bypass_validation: bool,
        server_time_max: Duration,
    ) -> RawDocumentBuf {
        let mut body = match self.kind {
            Kind::Delete => rawdoc! { "delete": collection, "deletes": self.statements.clone() },
            Kind::Update => rawdoc! { "update": collection, "updates": self.statements.clone() },
            Kind::Insert => rawdoc! { "insert": collection, "documents": self.statements.clone() },
        };
        body.append(bson::raw::cstr!("ordered"), false);
        let max_time_ms = i64::try_from(server_time_max.as_millis()).unwrap_or(i64::MAX);
        body.append(bson::raw::cstr!("maxTimeMS"), max_time_ms);
        body.append(bson::raw::cstr!("writeConcern"), rawdoc! { "w": "majority" });
        if bypass_validation && self.kind != Kind::Delete {
            body.append(bson::raw::cstr!("bypassDocumentValidation"), true);
        }
        body
    }
}

/// Sorts writes into commands of one kind, of `ops_max` writes and `bytes_max` bytes at the most; a
/// single write may be larger.
pub fn commands(writes: &[Write], ops_max: usize, bytes_max: usize) -> Vec<Command> {
    let mut commands: Vec<Command> = Vec::new();
    for wanted in [Kind::Delete, Kind::Update, Kind::Insert] {
        let mut bytes = 0;
        let mut open: Option<Command> = None;
        for (n, write) in writes.iter().enumerate() {
            if kind_of(write) != wanted {
                continue;
            }
            let statement = statement(write);
            let len = statement.as_bytes().len();
            let is_full = |open: &Command| open.writes.len() >= ops_max || bytes + len > bytes_max;
            if open.as_ref().is_some_and(is_full)
                && let Some(full) = open.take()
            {
                commands.push(full);
                bytes = 0;
            }
            let command = open.get_or_insert_with(|| Command {
                kind: wanted,
                statements: RawArrayBuf::new(),
                writes: Vec::new(),
            });
            command.statements.push(statement);
            command.writes.push(n);
            bytes += len;
        }
        commands.extend(open);
    }
    commands
}

fn kind_of(write: &Write) -> Kind {
    match write {
        Write::Delete(_) => Kind::Delete,
        Write::Insert(document) if !needs_literal(document) => Kind::Insert,
        Write::Insert(_) | Write::Upsert { .. } | Write::Change { .. } => Kind::Update,
    }
}

fn statement(write: &Write) -> RawDocumentBuf {
    match write {
        Write::Delete(key) => rawdoc! { "q": key.filter().to_owned(), "limit": 1 },
        Write::Insert(document) if !needs_literal(document) => document.clone(),
        Write::Insert(document) => {
            let key = DocumentKey::of(document).expect("what the server stores has an `_id`");
            upsert(&key, document)
        }
        Write::Upsert { key, document } => upsert(key, document),
        Write::Change { key, command } => change(key, command),
    }
}

fn upsert(key: &DocumentKey, document: &RawDocument) -> RawDocumentBuf {
    let mut statement = raw::Builder::with_capacity(document.as_bytes().len() + 128);
    statement.push(kind::DOCUMENT, "q", key.filter().as_bytes());
    if needs_literal(document) {
        let mut pipeline = RawArrayBuf::new();
        pipeline.push(rawdoc! { "$replaceWith": { "$literal": document.to_owned() } });
        statement.push(kind::ARRAY, "u", pipeline.as_bytes());
    } else {
        statement.push(kind::DOCUMENT, "u", document.as_bytes());
    }
    statement.push(kind::BOOL, "upsert", &[1]);
    statement.finish()
}

fn change(key: &DocumentKey, command: &UpdateCommand) -> RawDocumentBuf {
    let mut filter = raw::Builder::default();
    for element in raw::elements(key.filter()).flatten() {
        filter.push(element.kind, element.name, element.value);
    }
    for path in &command.absent {
        filter.push(kind::DOCUMENT, path, rawdoc! { "$exists": false }.as_bytes());
    }
    rawdoc! { "q": filter.finish(), "u": command.update.clone() }
}

/// True for a document that the server would not store as it is when it comes in an insert or a
/// replacement: an empty timestamp at the top level is filled in with the current time, and a
/// replacement of an existing document refuses `$`-prefixed names there (code 52). As a literal in a
/// pipeline both are left alone.
fn needs_literal(document: &RawDocument) -> bool {
    raw::elements(document).flatten().any(|element| {
        element.name.starts_with('$')
            || (element.kind == kind::TIMESTAMP && element.name != "_id" && element.value == [0; 8])
    })
}

#[cfg(test)]
mod tests {
    use bson::Timestamp;

    use super::*;

    fn key(id: i32) -> DocumentKey {
        DocumentKey::of(&rawdoc! { "_id": id }).unwrap()
    }

    #[test]
    fn deletes_go_before_updates_and_updates_before_inserts() {
        let writes = [
            Write::Insert(rawdoc! { "_id": 1 }),
            Write::Upsert { key: key(2), document: rawdoc! { "_id": 2 } },
            Write::Delete(key(3)),
            Write::Insert(rawdoc! { "_id": 4 }),
        ];

        let commands = commands(&writes, OPS_MAX, BYTES_MAX);

        let order: Vec<_> = commands.iter().map(|c| (c.kind, c.writes.clone())).collect();
        assert_eq!(
            order,
            [(Kind::Delete, vec![2]), (Kind::Update, vec![1]), (Kind::Insert, vec![0, 3])]
        );
    }

    #[test]
    fn a_command_stays_below_what_the_server_takes() {
        let large = "x".repeat(6 << 20);
        let writes: Vec<_> =
            (0..5).map(|id| Write::Insert(rawdoc! { "_id": id, "x": large.as_str() })).collect();

        let commands = commands(&writes, OPS_MAX, BYTES_MAX);

        assert_eq!(commands.iter().map(|c| c.writes.len()).collect::<Vec<_>>(), [2, 2, 1]);
    }

    #[test]
    fn what_the_server_would_change_or_refuse_goes_as_a_literal() {
        let empty = Timestamp { time: 0, increment: 0 };

        assert!(needs_literal(&rawdoc! { "_id": 1, "at": empty }));
        assert!(needs_literal(&rawdoc! { "_id": 1, "$x": 1 }));
        assert!(!needs_literal(&rawdoc! { "_id": empty, "o": { "$x": 1 }, "n": { "at": empty } }));
        assert_eq!(kind_of(&Write::Insert(rawdoc! { "_id": 1, "at": empty })), Kind::Update);
    }
}
