//! Commands of raw bytes, for what no driver writes: fields that are named twice, text that is no UTF-8.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use mongodb::bson::{RawDocument, RawDocumentBuf, rawdoc};
use outrigger::raw::{Builder, Field, fields, kind, lossy};

use super::mongod::Mongod;

/// Runs a command; the raw reply. The server is spoken to without a driver.
///
/// # Panics
/// When the server is away, or refuses.
pub fn run(server: &Mongod, db: &str, command: &RawDocument) -> RawDocumentBuf {
    run_in(server, db.as_bytes(), command)
}

/// As [`run`], in a database whose name need not be text.
pub fn run_in(server: &Mongod, db: &[u8], command: &RawDocument) -> RawDocumentBuf {
    let body = joined(command, &string("$db", db));
    // `OP_MSG`, with one section of the kind 0.
    let len = i32::try_from(16 + 4 + 1 + body.as_bytes().len()).unwrap();
    let mut message = Vec::new();
    for part in [len, 1, 0, 2013, 0] {
        message.extend_from_slice(&part.to_le_bytes());
    }
    message.push(0);
    message.extend_from_slice(body.as_bytes());
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.write_all(&message).unwrap();
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut rest = vec![0; usize::try_from(i32::from_le_bytes(len)).unwrap() - 4];
    stream.read_exact(&mut rest).unwrap();
    let reply = RawDocumentBuf::from_bytes(rest.split_off(12 + 4 + 1)).unwrap();
    assert_eq!(reply.get_f64("ok").ok(), Some(1.0), "{}", text(&reply, "errmsg"));
    reply
}

fn text(document: &RawDocument, name: &str) -> String {
    let field = fields(document).flatten().find(|field| field.name == name.as_bytes());
    field.map(|field| lossy(field.value).into_owned()).unwrap_or_default()
}

/// `{NAME: {a: {$gte: 10}, a: {$lte: 20}}}` and what else is given.
pub fn twice(name: &str) -> RawDocumentBuf {
    let mut document = Builder::default();
    document.document(name, |filter| {
        filter.document("a", |a| a.push(kind::INT32, "$gte", &10_i32.to_le_bytes()));
        filter.document("a", |a| a.push(kind::INT32, "$lte", &20_i32.to_le_bytes()));
    });
    document.finish()
}

/// A document of all elements of both.
pub fn joined(first: &RawDocument, second: &RawDocument) -> RawDocumentBuf {
    let mut document = Builder::default();
    document.extend(first);
    document.extend(second);
    document.finish()
}

/// A string of these bytes.
pub fn string(name: &str, bytes: &[u8]) -> RawDocumentBuf {
    let len = i32::try_from(bytes.len() + 1).unwrap();
    let value = [&len.to_le_bytes(), bytes, &[0][..]].concat();
    let mut document = Builder::default();
    document.push_field(Field { kind: kind::STRING, name: name.as_bytes(), value: &value });
    document.finish()
}

/// An array of one document.
pub fn array_of(name: &str, document: &RawDocument) -> RawDocumentBuf {
    let mut whole = Builder::default();
    whole.array(name, |items| items.push(kind::DOCUMENT, document.as_bytes()));
    whole.finish()
}

/// `createIndexes` of one index.
pub fn create_index(server: &Mongod, db: &str, coll: &str, spec: &RawDocument) {
    let command = joined(&rawdoc! { "createIndexes": coll }, &array_of("indexes", spec));
    run(server, db, &command);
}

/// Options of every collection and view of a database, and the indexes of the collections, byte for byte.
pub fn schema_bytes(server: &Mongod, db: &str) -> Vec<(String, Vec<Vec<u8>>)> {
    let list = |command: RawDocumentBuf| -> Vec<RawDocumentBuf> {
        let reply = run(server, db, &command);
        let batch = reply.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        let batch = RawDocument::from_bytes(batch.as_bytes()).unwrap();
        fields(batch)
            .map(|item| RawDocumentBuf::from_bytes(item.unwrap().value.to_vec()).unwrap())
            .collect()
    };
    let all = rawdoc! { "listCollections": 1, "cursor": { "batchSize": 10_000 } };
    let mut found = Vec::new();
    for item in list(all) {
        let name = text(&item, "name");
        if name.starts_with("system.") || name.contains('\u{FFFD}') {
            continue;
        }
        let options = fields(&item).flatten().find(|field| field.name == b"options").unwrap();
        // Once a validator was changed they are told, though they say nothing.
        let says_nothing = |field: &Field<'_>| {
            (field.name == b"validationLevel" && lossy(field.value) == "strict")
                || (field.name == b"validationAction" && lossy(field.value) == "error")
        };
        let mut said = Builder::default();
        let options = RawDocument::from_bytes(options.value).unwrap();
        fields(options).flatten().filter(|of| !says_nothing(of)).for_each(|of| said.push_field(of));
        let mut bytes = vec![said.finish().into_bytes()];
        if text(&item, "type") == "collection" {
            let listed = list(rawdoc! { "listIndexes": &*name, "cursor": { "batchSize": 10_000 } });
            let mut indexes: Vec<_> = listed.into_iter().map(RawDocumentBuf::into_bytes).collect();
            indexes.sort();
            bytes.extend(indexes);
        }
        found.push((name, bytes));
    }
    found.sort();
    found
}
