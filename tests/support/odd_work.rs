//! An application whose collections, indexes and views are odd, and change: filters that name a field twice, text that
//! is no UTF-8, indexes that are prepared to become unique over values that are there twice, views in the place of
//! others, a database that comes again in other capitals.

use std::io;

use mongodb::bson::{RawDocumentBuf, doc, rawdoc};
use outrigger::model::raw::{Builder, kind};
use rand::{
    Rng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};

use super::odd::{self, array_of, joined, string, twice};

/// One at a time: a server holds no two that differ in capitals alone.
const DATABASES: [&str; 3] = ["odd", "Odd", "ODD"];
const COLLECTIONS: [&str; 3] = ["plain", "checked", "grün"];
const VIEWS: [&str; 2] = ["seen", "seen too"];

/// `{NAME: FILTER}`, a filter that drivers would not write, as a rule.
fn filter(name: &str, rng: &mut StdRng) -> RawDocumentBuf {
    match rng.random_range(0..4) {
        0 | 1 => twice(name),
        2 => {
            let text = string("$gt", if rng.random() { b"gr\xfc\xdfe" } else { b"\xe9t\xe9" });
            let mut filter = Builder::default();
            filter.document(name, |it| it.document("a", |a| a.extend(&text)));
            filter.finish()
        }
        _ => odd::raw(&doc! { name: { "a": { "$gte": rng.random_range(0..9) } } }),
    }
}

fn index(rng: &mut StdRng) -> RawDocumentBuf {
    let field = *["a", "same", "mail"].choose(rng).unwrap();
    let plain =
        |name: &str| odd::raw(&doc! { "key": { field: 1 }, "name": format!("{name} {field}") });
    match rng.random_range(0..6) {
        0 => joined(&plain("partial"), &filter("partialFilterExpression", rng)),
        1 => joined(&plain("hidden"), &rawdoc! { "hidden": rng.random::<bool>() }),
        2 => joined(&plain("french"), &rawdoc! { "collation": { "locale": "fr" } }),
        3 => joined(&plain("sparse"), &rawdoc! { "sparse": true, "unique": true }),
        _ => plain("ready"),
    }
}

/// Changes an index that may be there.
fn index_change(rng: &mut StdRng) -> RawDocumentBuf {
    let field = *["a", "same", "mail"].choose(rng).unwrap();
    let name = format!("{} {field}", ["hidden", "ready", "ready"].choose(rng).unwrap());
    match rng.random_range(0..5) {
        0 | 1 => rawdoc! { "index": { "name": name, "prepareUnique": true } },
        2 => rawdoc! { "index": { "name": name, "unique": true } },
        3 => rawdoc! { "index": { "name": name, "prepareUnique": false } },
        _ => rawdoc! { "index": { "name": name, "hidden": rng.random::<bool>() } },
    }
}

/// One command of it, and the database that it goes to.
fn command(rng: &mut StdRng) -> RawDocumentBuf {
    let coll = *COLLECTIONS.choose(rng).unwrap();
    let (view, of) = (*VIEWS.choose(rng).unwrap(), *COLLECTIONS.choose(rng).unwrap());
    match rng.random_range(0..40) {
        0..4 => joined(&rawdoc! { "create": coll }, &filter("validator", rng)),
        4 => rawdoc! { "create": coll, "collation": { "locale": "de", "strength": 2 } },
        5..9 => joined(&rawdoc! { "collMod": coll }, &filter("validator", rng)),
        9 => rawdoc! { "collMod": coll, "validator": {}, "validationLevel": "moderate" },
        10..16 => joined(&rawdoc! { "createIndexes": coll }, &array_of("indexes", &index(rng))),
        16..20 => joined(&rawdoc! { "collMod": coll }, &index_change(rng)),
        20 => rawdoc! { "dropIndexes": coll, "index": "*" },
        21..25 => {
            let pipeline = array_of("pipeline", &filter("$match", rng));
            joined(&rawdoc! { "create": view, "viewOn": of }, &pipeline)
        }
        25 | 26 => {
            let pipeline = array_of("pipeline", &filter("$match", rng));
            joined(&rawdoc! { "collMod": view, "viewOn": of }, &pipeline)
        }
        27 | 28 => rawdoc! { "drop": view },
        29 => rawdoc! { "drop": coll },
        30 => {
            let name: &[u8] = if rng.random() { b"caf\xe9" } else { b"na\xefve" };
            let document = array_of("documents", &rawdoc! { "_id": rng.random_range(0..100) });
            joined(&string("insert", name), &document)
        }
        31 if rng.random_bool(0.3) => rawdoc! { "dropDatabase": 1 },
        31 => {
            // Documents that no driver writes: a field twice, text that is no UTF-8; and ids that are no numbers.
            let mut document = Builder::default();
            if rng.random() {
                document.push_str("_id", ["a", "b", "c"].choose(rng).unwrap());
            } else {
                let n = [0, 1, 2].choose(rng).unwrap();
                let uuid = [&16_i32.to_le_bytes()[..], &[4], &[*n; 16]].concat();
                document.push(kind::BINARY, "_id", &uuid);
            }
            document.push(kind::INT32, "a", &rng.random_range(0..6_i32).to_le_bytes());
            document.push(kind::INT32, "a", &7_i32.to_le_bytes());
            document.extend(&string("text", b"gr\xfc\xdfe"));
            let insert = array_of("documents", &document.finish());
            let insert = joined(&rawdoc! { "insert": coll }, &insert);
            joined(&insert, &rawdoc! { "bypassDocumentValidation": true })
        }
        32..36 => {
            // Values that are there twice as a rule; where an index forbids it by now, the server does.
            let (id, value) = (rng.random_range(0..40), rng.random_range(0..6));
            let document = rawdoc! { "_id": id, "a": value, "same": 1, "mail": value };
            let insert = joined(&rawdoc! { "insert": coll }, &array_of("documents", &document));
            joined(&insert, &rawdoc! { "bypassDocumentValidation": true })
        }
        36 => {
            let delete = rawdoc! { "q": { "_id": rng.random_range(0..40) }, "limit": 1 };
            joined(&rawdoc! { "delete": coll }, &array_of("deletes", &delete))
        }
        _ => {
            let change = rawdoc! { "$set": { "a": rng.random_range(0..6) } };
            let update = rawdoc! { "q": { "_id": rng.random_range(0..40) }, "u": change };
            let update = joined(&rawdoc! { "update": coll }, &array_of("updates", &update));
            joined(&update, &rawdoc! { "bypassDocumentValidation": true })
        }
    }
}

/// One step of it. What the server refuses changes nothing; an error where it does not answer.
pub async fn step(port: u16, rng: &mut StdRng) -> io::Result<()> {
    // Another name of the database counts where this one is not there, or cannot be for the other's sake.
    const NOT_FOUND: i32 = 26;
    const OTHER_CAPITALS: i32 = 13_297;
    let mut names = DATABASES;
    names.shuffle(rng);
    let command = command(rng);
    let asked = tokio::task::spawn_blocking(move || {
        for db in names {
            let reply = odd::ask(port, db.as_bytes(), &command)?;
            let code = reply.get_i32("code").unwrap_or_default();
            if code != NOT_FOUND && code != OTHER_CAPITALS {
                break;
            }
        }
        Ok(())
    });
    asked.await.expect("it does not panic")
}
