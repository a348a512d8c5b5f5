//! Commands of raw bytes, for what no driver writes: fields that are named twice, text that is no UTF-8.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use mongodb::bson::{Document, RawDocument, RawDocumentBuf, rawdoc};
use outrigger::model::raw::{Builder, Field, fields, kind, lossy};

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
    let reply = ask(server.port, db, command).unwrap();
    assert_eq!(reply.get_f64("ok").ok(), Some(1.0), "{}", text(&reply, "errmsg"));
    reply
}

/// As [`ask`]; a refusal is an error, too.
pub fn answered(port: u16, db: &str, command: &RawDocument) -> io::Result<RawDocumentBuf> {
    let reply = ask(port, db.as_bytes(), command)?;
    match reply.get_f64("ok") {
        Ok(1.0) => Ok(reply),
        _ => Err(io::Error::other(text(&reply, "errmsg"))),
    }
}

/// The server's answer, whatever it says; an error where there is none.
pub fn ask(port: u16, db: &[u8], command: &RawDocument) -> io::Result<RawDocumentBuf> {
    ask_within(Duration::from_secs(30), port, db, command)
}

/// As [`ask`], of a server that may be stopped.
pub fn ask_within(
    patience: Duration,
    port: u16,
    db: &[u8],
    command: &RawDocument,
) -> io::Result<RawDocumentBuf> {
    let body = joined(command, &string("$db", db));
    // `OP_MSG`, with one section of the kind 0.
    let len = i32::try_from(16 + 4 + 1 + body.as_bytes().len()).unwrap();
    let mut message = Vec::new();
    for part in [len, 1, 0, 2013, 0] {
        message.extend_from_slice(&part.to_le_bytes());
    }
    message.push(0);
    message.extend_from_slice(body.as_bytes());
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&message)?;
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let mut rest = vec![0; usize::try_from(i32::from_le_bytes(len)).unwrap() - 4];
    stream.read_exact(&mut rest)?;
    Ok(RawDocumentBuf::from_bytes(rest.split_off(12 + 4 + 1)).unwrap())
}

/// A field's text, with a mark for what is none.
pub fn text(document: &RawDocument, name: &str) -> String {
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

/// A document as bytes, where a name in it is not known when the test is compiled.
pub fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
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
