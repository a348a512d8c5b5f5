//! Collections, views and indexes of every kind, and changes to them.

use mongodb::{
    Client,
    bson::{Document, doc},
};

/// A command, and the database that it goes to.
pub type Command = (&'static str, Document);

/// Runs commands in turn; each must work.
pub async fn run_all(client: &Client, commands: impl IntoIterator<Item = Command>) {
    for (db, command) in commands {
        let text = command.to_string();
        if let Err(error) = client.database(db).run_command(command).await {
            panic!("{db}: {text}: {error}");
        }
    }
}

/// Makes collections and views with every option that a server of this major version knows.
pub fn collections(major: u32) -> Vec<Command> {
    let mut all = vec![
        doc! { "create": "plain" },
        doc! { "create": "checked", "validator": { "n": { "$gte": 0 } }, "validationLevel": "moderate", "validationAction": "warn" },
        doc! { "create": "json", "validator": { "$jsonSchema": { "required": ["n"] } } },
        doc! { "create": "german", "collation": { "locale": "de", "strength": 2 } },
        doc! { "create": "capped", "capped": true, "size": 1 << 20, "max": 1_000 },
        doc! { "create": "stored", "storageEngine": { "wiredTiger": { "configString": "block_compressor=zlib" } } },
        doc! { "create": "seen", "viewOn": "plain", "pipeline": [{ "$match": { "n": { "$gte": 5 } } }] },
        doc! { "create": "seen twice", "viewOn": "seen", "pipeline": [{ "$addFields": { "twice": { "$multiply": ["$n", 2] } } }] },
        doc! { "create": "seen in German", "viewOn": "german", "pipeline": [], "collation": { "locale": "de", "strength": 2 } },
        doc! { "create": "seen too early", "viewOn": "not there", "pipeline": [] },
    ];
    if major >= 6 {
        all.extend([
            doc! { "create": "imaged", "changeStreamPreAndPostImages": { "enabled": true } },
            doc! { "create": "clustered", "clusteredIndex": { "key": { "_id": 1 }, "unique": true, "name": "by id" } },
            doc! { "create": "clustered ttl", "clusteredIndex": { "key": { "_id": 1 }, "unique": true }, "expireAfterSeconds": 86_400 },
        ]);
    }
    all.into_iter().map(|command| ("shop", command)).collect()
}

/// Makes an index of each kind, on `plain` and `german`, and on the others where they have rules of their
/// own.
pub fn indexes() -> Vec<Command> {
    let of =
        |coll: &str, indexes: Vec<Document>| doc! { "createIndexes": coll, "indexes": indexes };
    [
        of(
            "plain",
            vec![
                doc! { "key": { "u": 1 }, "name": "unique", "unique": true, "sparse": true },
                doc! { "key": { "s": -1 }, "name": "sparse", "sparse": true },
                doc! { "key": { "p": 1 }, "name": "partial", "partialFilterExpression": { "n": { "$gt": 3 } } },
                doc! { "key": { "h": 1 }, "name": "hidden", "hidden": true },
                doc! { "key": { "at": 1 }, "name": "ttl", "expireAfterSeconds": 86_400 },
                doc! { "key": { "n": "hashed" }, "name": "hashed" },
                doc! { "key": { "tags": 1, "n": -1, "o.a": 1 }, "name": "compound and multikey" },
                doc! { "key": { "$**": 1 }, "name": "wildcard", "wildcardProjection": { "secret": 0, "plain": 0 } },
                doc! { "key": { "o.$**": 1 }, "name": "wildcard below" },
                doc! { "key": { "title": "text", "body": "text" }, "name": "text",
                       "weights": { "title": 10 }, "default_language": "german", "language_override": "lang" },
                doc! { "key": { "flat": "2d" }, "name": "2d", "bits": 20, "min": -500.0, "max": 500.0 },
                doc! { "key": { "place": "2dsphere", "n": 1 }, "name": "2dsphere" },
                doc! { "key": { "c": 1 }, "name": "own collation", "collation": { "locale": "fr", "strength": 1 } },
            ],
        ),
        of(
            "german",
            vec![
                doc! { "key": { "c": 1 }, "name": "inherited collation" },
                doc! { "key": { "c": 1 }, "name": "another collation", "collation": { "locale": "sv" } },
                doc! { "key": { "c": 1 }, "name": "simple collation", "collation": { "locale": "simple" } },
                doc! { "key": { "u": 1 }, "name": "unique", "unique": true, "sparse": true },
            ],
        ),
        of("capped", vec![doc! { "key": { "n": 1 }, "name": "n" }]),
    ]
    .into_iter()
    .map(|command| ("shop", command))
    .collect()
}

/// Changes what [`collections`] and [`indexes`] have made, in each way that a server of this major version
/// knows.
pub fn changes(major: u32) -> Vec<Command> {
    let index = |coll: &str, index: Document| doc! { "collMod": coll, "index": index };
    let mut all = vec![
        doc! { "collMod": "checked", "validator": { "n": { "$gte": 1 } }, "validationLevel": "strict" },
        doc! { "collMod": "json", "validator": { "o": { "$ne": { "a": 1, "b": 2 } } } },
        doc! { "collMod": "json", "validator": { "o": { "$ne": { "b": 2, "a": 1 } } } },
        doc! { "collMod": "capped", "validator": { "n": { "$ne": f64::NAN } } },
        doc! { "collMod": "stored", "validator": { "n": { "$exists": true } } },
        doc! { "collMod": "stored", "validator": {} },
        doc! { "collMod": "german", "validator": { "n": { "$exists": true } }, "validationAction": "warn" },
        index("plain", doc! { "name": "ttl", "expireAfterSeconds": 43_200 }),
        index("plain", doc! { "name": "hidden", "hidden": false }),
        index("plain", doc! { "name": "sparse", "hidden": true }),
        doc! { "collMod": "seen", "viewOn": "german", "pipeline": [{ "$match": { "n": 7 } }],  },
        doc! { "drop": "seen too early" },
        doc! { "drop": "seen in German" },
        doc! { "create": "seen in German", "viewOn": "german", "pipeline": [{ "$sort": { "c": 1 } }], "collation": { "locale": "de", "strength": 2 } },
        doc! { "dropIndexes": "plain", "index": "wildcard" },
        doc! { "dropIndexes": "plain", "index": ["2d", "text"] },
        doc! { "dropIndexes": "capped", "index": "*" },
        // The same name for another index.
        doc! { "dropIndexes": "plain", "index": "partial" },
        doc! { "createIndexes": "plain", "indexes": [{ "key": { "p": -1 }, "name": "partial", "partialFilterExpression": { "n": { "$lt": 3 } } }] },
        // An index that makes its collection.
        doc! { "createIndexes": "made by an index", "indexes": [{ "key": { "a": 1 }, "name": "a" }] },
        doc! { "create": "short-lived" },
        doc! { "drop": "short-lived" },
    ];
    if major >= 6 {
        all.extend([
            doc! { "createIndexes": "plain", "indexes": [{ "key": { "will": 1 }, "name": "will be unique", "sparse": true }] },
            index("plain", doc! { "name": "will be unique", "prepareUnique": true }),
            index("plain", doc! { "name": "will be unique", "unique": true }),
            index("german", doc! { "name": "another collation", "prepareUnique": true }),
            index("plain", doc! { "name": "own collation", "expireAfterSeconds": 86_400 }),
            doc! { "collMod": "capped", "cappedSize": 2 << 20, "cappedMax": 2_000 },
            doc! { "collMod": "imaged", "changeStreamPreAndPostImages": { "enabled": false } },
            doc! { "collMod": "plain", "changeStreamPreAndPostImages": { "enabled": true } },
            doc! { "collMod": "clustered ttl", "expireAfterSeconds": 43_200 },
            doc! { "collMod": "clustered", "expireAfterSeconds": 86_400 },
        ]);
    }
    all.into_iter().map(|command| ("shop", command)).collect()
}

/// A document that every one of these collections takes, and that is in most of the indexes.
pub fn document(n: i32) -> Document {
    doc! {
        "_id": n, "n": n, "s": n, "p": n, "h": n, "tags": ["a", n], "o": { "a": n },
        "title": format!("Titel {n}"), "body": "und so weiter", "flat": [n % 100, -n % 100],
        "place": { "type": "Point", "coordinates": [n % 90, n % 45] }, "c": format!("ä{n}"), "u": n, "will": n,
    }
}

/// The collections that hold documents.
pub fn names(major: u32) -> Vec<&'static str> {
    let mut names = vec!["plain", "checked", "json", "german", "capped", "stored"];
    if major >= 6 {
        names.extend(["imaged", "clustered", "clustered ttl"]);
    }
    names
}
