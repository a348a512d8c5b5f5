//! Write commands as raw BSON: documents go from the queue, or from a reply, to the wire without being
//! decoded, and are copied once on the way: into the command's body.

use std::time::Duration;

use bson::{RawDocument, RawDocumentBuf};

use crate::{
    model::{
        delta::UpdateCommand,
        document_key::DocumentKey,
        raw::{self, Builder, kind},
    },
    sink::Write,
};

/// Most bytes of documents in one command. The server takes 16 MiB and some overhead.
pub const BYTES_MAX: usize = 15 << 20;

/// Most writes in one command (`maxWriteBatchSize`).
pub const OPS_MAX: usize = 100_000;

/// The three write commands. In this order they are sent, so that a delete frees a unique value
/// before an insert takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommandKind {
    Delete,
    Update,
    Insert,
}

/// One command, and which of the writes it carries.
pub struct Command<'a> {
    pub kind: CommandKind,
    /// The places of its writes among all.
    pub places: Vec<usize>,
    writes: &'a [Write<'a>],
    bytes: usize,
    ids: Ids,
}

/// When two `_id`s are one to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// When they are of one value, which is what the queue goes by as well.
    Plain,
    /// Also where a collation makes no difference between them. Then a filter for the one finds the other, which
    /// was written in its place since, so it has to compare their bytes too.
    Folded,
}

impl Command<'_> {
    /// Bytes of its statements, about.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// The command's body for `collection`.
    pub fn body(
        &self,
        collection: &str,
        bypass_validation: bool,
        server_time_max: Duration,
    ) -> RawDocumentBuf {
        let (command, statements) = match self.kind {
            CommandKind::Delete => ("delete", "deletes"),
            CommandKind::Update => ("update", "updates"),
            CommandKind::Insert => ("insert", "documents"),
        };
        let names = self.places.len() * ITEM_NAME;
        let mut body = Builder::with_capacity(self.bytes + names + collection.len() + ENVELOPE);
        body.push_str(command, collection);
        body.array(statements, |items| {
            for &place in &self.places {
                match self.writes[place] {
                    Write::Insert(document) if self.kind == CommandKind::Insert => {
                        items.push(kind::DOCUMENT, document.as_bytes());
                    }
                    write => items.document(|statement| fill(statement, write, self.ids)),
                }
            }
        });
        body.push_bool("ordered", false);
        let max_time_ms = i64::try_from(server_time_max.as_millis()).unwrap_or(i64::MAX);
        body.push_i64("maxTimeMS", max_time_ms);
        body.document("writeConcern", |concern| concern.push_str("w", "majority"));
        if bypass_validation && self.kind != CommandKind::Delete {
            body.push_bool("bypassDocumentValidation", true);
        }
        body.finish()
    }
}

/// Bytes of a command without its statements and its collection's name, at the most.
const ENVELOPE: usize = 192;

/// Bytes of a statement without its documents, at the most: of a delete or a change, of an upsert (as a
/// literal), and of each path that must be absent.
const STATEMENT: usize = 20;
const UPSERT: usize = 64;
const ABSENT: usize = 24;
/// What a merge has beside what an upsert has.
const MERGE: usize = 64;

/// Bytes that a filter takes to compare the bytes of an `_id`, without the `_id` itself.
const EXACT: usize = 128;

/// Bytes of a type and a name in a list, as `"99999"`.
const ITEM_NAME: usize = 7;

/// Sorts writes into commands of one kind, of `ops_max` writes and `bytes_max` bytes at the most; a
/// single write may be larger.
pub fn commands<'a>(
    writes: &'a [Write<'a>],
    ids: Ids,
    ops_max: usize,
    bytes_max: usize,
) -> Vec<Command<'a>> {
    let mut places = [Vec::new(), Vec::new(), Vec::new()];
    for (place, write) in writes.iter().enumerate() {
        places[kind_of(write) as usize].push(place);
    }
    let mut commands: Vec<Command<'_>> = Vec::new();
    for (kind, places) in
        [CommandKind::Delete, CommandKind::Update, CommandKind::Insert].into_iter().zip(places)
    {
        let mut rest = places.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |place: &&usize| {
                let len = len_of(kind, &writes[**place], ids);
                let fits = bytes == 0 || bytes + len <= bytes_max;
                bytes += if fits { len } else { 0 };
                fits
            };
            let count = rest.iter().take(ops_max.max(1)).take_while(fits).count();
            let (part, behind) = rest.split_at(count);
            commands.push(Command { kind, places: part.to_vec(), writes, bytes, ids });
            rest = behind;
        }
    }
    commands
}

fn kind_of(write: &Write<'_>) -> CommandKind {
    match write {
        Write::Delete(_) => CommandKind::Delete,
        Write::Insert(document) if !needs_literal(document) => CommandKind::Insert,
        Write::Insert(_) | Write::Upsert { .. } | Write::Change { .. } | Write::Merge { .. } => {
            CommandKind::Update
        }
    }
}

/// Bytes of a write's statement in a command of this kind, at the most.
fn len_of(kind: CommandKind, write: &Write<'_>, ids: Ids) -> usize {
    let len = |document: &RawDocument| document.as_bytes().len();
    let filter = |key: &DocumentKey| match ids {
        Ids::Folded if may_be_folded(key) => 2 * len(key.filter()) + EXACT,
        Ids::Folded | Ids::Plain => len(key.filter()),
    };
    match write {
        Write::Delete(key) => filter(key) + STATEMENT,
        Write::Insert(document) if kind == CommandKind::Insert => len(document),
        // As a literal: its key once more, which is a part of it.
        Write::Insert(document) => 2 * len(document) + UPSERT,
        Write::Upsert { key, document } => len(key.filter()) + len(document) + UPSERT,
        Write::Merge { key, fields } => len(key.filter()) + len(fields) + UPSERT + MERGE,
        Write::Change { key, command } => {
            let absent: usize = command.absent.iter().map(|path| path.len() + ABSENT).sum();
            filter(key) + len(&command.update) + absent + STATEMENT
        }
    }
}

fn fill(statement: &mut Builder, write: Write<'_>, ids: Ids) {
    match write {
        Write::Delete(key) => {
            statement.document("q", |filter| find(filter, key, ids));
            statement.push(kind::INT32, "limit", &1_i32.to_le_bytes());
        }
        Write::Insert(document) => {
            let key = DocumentKey::of(document).expect("what the server stores has an `_id`");
            upsert(statement, &key, document);
        }
        Write::Upsert { key, document } => upsert(statement, key, document),
        Write::Merge { key, fields } => merge(statement, key, fields),
        Write::Change { key, command } => change(statement, key, command, ids),
    }
}

/// The filter for this document and no other.
fn find(filter: &mut Builder, key: &DocumentKey, ids: Ids) {
    for element in raw::elements(key.filter()).flatten() {
        filter.push(element.kind, element.name, element.value);
        if ids == Ids::Folded && may_be_folded(key) {
            // The hash is that of the bytes, whatever the collation.
            filter.document("$expr", |equal| {
                equal.array("$eq", |sides| {
                    sides.document(|side| side.push_str("$toHashedIndexKey", "$_id"));
                    sides.document(|side| {
                        side.document("$toHashedIndexKey", |of| {
                            of.push(element.kind, "$literal", element.value);
                        });
                    });
                });
            });
        }
    }
}

/// True for an `_id` that is, or may hold, a text: nothing else knows a collation.
pub fn may_be_folded(key: &DocumentKey) -> bool {
    let is_text =
        |of| matches!(of, kind::STRING | kind::SYMBOL | kind::DOCUMENT | kind::CODE_WITH_SCOPE);
    raw::elements(key.filter()).flatten().any(|element| is_text(element.kind))
}

fn upsert(statement: &mut Builder, key: &DocumentKey, document: &RawDocument) {
    statement.push(kind::DOCUMENT, "q", key.filter().as_bytes());
    if needs_literal(document) {
        statement.array("u", |stages| {
            stages.document(|stage| {
                stage.document("$replaceWith", |with| {
                    with.push(kind::DOCUMENT, "$literal", document.as_bytes());
                });
            });
        });
    } else {
        statement.push(kind::DOCUMENT, "u", document.as_bytes());
    }
    statement.push_bool("upsert", true);
}

/// As a pipeline: `$set` reads a dot in a name as a path, and takes no `$` in front of one.
fn merge(statement: &mut Builder, key: &DocumentKey, fields: &RawDocument) {
    let mut without_id = Builder::with_capacity(fields.as_bytes().len());
    for field in raw::elements(fields).flatten().filter(|field| field.name != "_id") {
        without_id.push(field.kind, field.name, field.value);
    }
    let without_id = without_id.finish();
    statement.push(kind::DOCUMENT, "q", key.filter().as_bytes());
    statement.array("u", |stages| {
        stages.document(|stage| {
            stage.document("$replaceWith", |with| {
                with.array("$mergeObjects", |objects| {
                    objects.push(kind::STRING, b"\x07\0\0\0$$ROOT\0");
                    objects.document(|literal| {
                        literal.push(kind::DOCUMENT, "$literal", without_id.as_bytes());
                    });
                });
            });
        });
    });
    statement.push_bool("upsert", true);
}

fn change(statement: &mut Builder, key: &DocumentKey, command: &UpdateCommand, ids: Ids) {
    statement.document("q", |filter| {
        find(filter, key, ids);
        for path in &command.absent {
            filter.document(path, |condition| condition.push_bool("$exists", false));
        }
    });
    statement.push(kind::DOCUMENT, "u", command.update.as_bytes());
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
    use bson::{Bson, Document, Timestamp, bson, doc, rawdoc};

    use super::*;

    fn key(id: i32) -> DocumentKey {
        DocumentKey::of(&rawdoc! { "_id": id }).unwrap()
    }

    /// The statements of a command's body, decoded; and the rest of it.
    fn body_of(command: &Command<'_>, statements: &str) -> (Vec<Bson>, Document) {
        let body = command.body("orders", true, Duration::from_secs(2));
        let mut body = Document::try_from(body).unwrap();
        let Some(Bson::Array(statements)) = body.remove(statements) else { panic!("{body}") };
        (statements, body)
    }

    #[test]
    fn deletes_go_before_updates_and_updates_before_inserts() {
        let documents = [1, 2, 4].map(|id| rawdoc! { "_id": id });
        let keys = [key(2), key(3)];
        let writes = [
            Write::Insert(&documents[0]),
            Write::Upsert { key: &keys[0], document: &documents[1] },
            Write::Delete(&keys[1]),
            Write::Insert(&documents[2]),
        ];

        let commands = commands(&writes, Ids::Plain, OPS_MAX, BYTES_MAX);

        let order: Vec<_> = commands.iter().map(|c| (c.kind, c.places.clone())).collect();
        assert_eq!(
            order,
            [
                (CommandKind::Delete, vec![2]),
                (CommandKind::Update, vec![1]),
                (CommandKind::Insert, vec![0, 3])
            ]
        );
    }

    #[test]
    fn a_command_stays_below_what_the_server_takes() {
        let large = "x".repeat(6 << 20);
        let documents = [0, 1, 2, 3, 4].map(|id| rawdoc! { "_id": id, "x": large.as_str() });
        let keys = [0, 1, 2, 3, 4].map(key);
        let inserts: Vec<_> = documents.iter().map(|document| Write::Insert(document)).collect();
        let upserts = documents.iter().zip(&keys);
        let upserts: Vec<_> =
            upserts.map(|(document, key)| Write::Upsert { key, document }).collect();

        for writes in [inserts, upserts] {
            let in_bytes = commands(&writes, Ids::Plain, OPS_MAX, BYTES_MAX);
            let in_ops = commands(&writes, Ids::Plain, 1, BYTES_MAX);
            let alone = commands(&writes, Ids::Plain, OPS_MAX, 1_000);

            assert_eq!(in_bytes.iter().map(|c| c.places.len()).collect::<Vec<_>>(), [2, 2, 1]);
            for single in [in_ops, alone] {
                assert_eq!(single.iter().map(|c| c.places.len()).collect::<Vec<_>>(), [1; 5]);
            }
        }
    }

    #[test]
    fn what_the_server_would_change_or_refuse_goes_as_a_literal() {
        let empty = Timestamp { time: 0, increment: 0 };
        let stamped = rawdoc! { "_id": 1, "at": empty };

        assert!(needs_literal(&stamped));
        assert!(needs_literal(&rawdoc! { "_id": 1, "$x": 1 }));
        assert!(!needs_literal(&rawdoc! { "_id": empty, "o": { "$x": 1 }, "n": { "at": empty } }));
        let writes = [Write::Insert(&stamped)];
        let commands = commands(&writes, Ids::Plain, OPS_MAX, BYTES_MAX);
        assert_eq!(commands[0].kind, CommandKind::Update);
        let literal = bson!([{ "$replaceWith": { "$literal": { "_id": 1, "at": empty } } }]);
        let (updates, _) = body_of(&commands[0], "updates");
        assert_eq!(updates, [bson!({ "q": { "_id": 1 }, "u": literal, "upsert": true })]);
    }

    #[test]
    fn a_merge_sets_its_fields_and_makes_what_is_not_there() {
        let fields = rawdoc! { "_id": 1, "a.b": 1, "$c": 2 };
        let key = key(1);
        let writes = [Write::Merge { key: &key, fields: &fields }];

        let commands = commands(&writes, Ids::Plain, OPS_MAX, BYTES_MAX);

        let literal = bson!({ "$literal": { "a.b": 1, "$c": 2 } });
        let stages = bson!([{ "$replaceWith": { "$mergeObjects": ["$$ROOT", literal] } }]);
        let (updates, _) = body_of(&commands[0], "updates");
        assert_eq!(updates, [bson!({ "q": { "_id": 1 }, "u": stages, "upsert": true })]);
        let body = commands[0].body("orders", false, Duration::MAX);
        assert!(body.as_bytes().len() <= commands[0].len() + ITEM_NAME + "orders".len() + ENVELOPE);
    }

    #[test]
    fn a_body_is_what_the_server_expects() {
        let document = rawdoc! { "_id": 1, "x": [1, { "y": 2 }] };
        let update = rawdoc! { "$set": { "a": 1 } };
        let command = UpdateCommand { update, absent: vec!["a".into(), "b.c".into()] };
        let key = key(1);
        let writes = [
            Write::Insert(&document),
            Write::Insert(&document),
            Write::Upsert { key: &key, document: &document },
            Write::Change { key: &key, command: &command },
            Write::Delete(&key),
        ];
        let rest = |name: &str| {
            doc! {
                name: "orders", "ordered": false, "maxTimeMS": 2_000_i64,
                "writeConcern": { "w": "majority" },
            }
        };
        let bypassing = |name: &str| {
            let mut rest = rest(name);
            rest.insert("bypassDocumentValidation", true);
            rest
        };
        let written = bson!({ "_id": 1, "x": [1, { "y": 2 }] });
        let absent = bson!({ "$exists": false });

        let commands = commands(&writes, Ids::Plain, OPS_MAX, BYTES_MAX);
        let [deletes, updates, inserts] = &commands[..] else { panic!("one command of each kind") };

        for command in &commands {
            let body = command.body("orders", true, Duration::MAX);
            let names = command.places.len() * ITEM_NAME;
            assert!(body.as_bytes().len() <= command.len() + names + "orders".len() + ENVELOPE);
        }
        let expected = vec![bson!({ "q": { "_id": 1 }, "limit": 1 })];
        assert_eq!(body_of(deletes, "deletes"), (expected, rest("delete")));
        let expected = vec![
            bson!({ "q": { "_id": 1 }, "u": written.clone(), "upsert": true }),
            bson!({ "q": { "_id": 1, "a": absent.clone(), "b.c": absent }, "u": { "$set": { "a": 1 } } }),
        ];
        assert_eq!(body_of(updates, "updates"), (expected, bypassing("update")));
        assert_eq!(body_of(inserts, "documents"), (vec![written; 2], bypassing("insert")));
        let plain = inserts.body("orders", false, Duration::ZERO);
        assert_eq!(plain.get("bypassDocumentValidation").unwrap(), None);
    }
}
