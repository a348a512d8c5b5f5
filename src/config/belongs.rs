//! Keys that say something of one kind of end alone, and why they say nothing of another.

/// Of Atlas, where the target is PostgreSQL.
const OF_ATLAS: &[(&str, &str)] = &[
    ("atlas.uri", "the address of PostgreSQL is `postgres.uri`"),
    ("atlas.uri_file", "the address of PostgreSQL is in `postgres.uri_file`"),
    (
        "atlas.allow_insecure",
        "TLS is left out by `sslmode=disable` in PostgreSQL's connection string",
    ),
    ("atlas.compressors", "PostgreSQL's protocol has no compression"),
    ("atlas.state_database", "in PostgreSQL the mark of ownership is in the schema `outrigger`"),
    ("worker.update_mode", "a row of PostgreSQL is written whole"),
];

/// Of PostgreSQL, where the target is Atlas.
const OF_POSTGRES: &[(&str, &str)] = &[
    ("postgres.uri", "`kind = \"postgres\"` in `[target]` is what makes it the target"),
    ("postgres.uri_file", "`kind = \"postgres\"` in `[target]` is what makes it the target"),
    ("postgres.exact", "in Atlas every document is kept as it is"),
];

/// Of a MongoDB, where the source is an outbox.
const OF_MONGODB: &[(&str, &str)] = &[
    ("local.uri", "the address of the outbox is `outbox.uri`"),
    ("local.uri_file", "the address of the outbox is in `outbox.uri_file`"),
    ("alerts.oplog_window", "an outbox has no oplog: its rows wait until they are read"),
];

/// Of an outbox, where the source is a MongoDB.
const OF_OUTBOX: &[(&str, &str)] = &[
    ("outbox.uri", "`kind = \"outbox\"` in `[source]` is what makes it the source"),
    ("outbox.uri_file", "`kind = \"outbox\"` in `[source]` is what makes it the source"),
    ("outbox.table", "a MongoDB has no such table"),
    ("outbox.columns", "a MongoDB has no such table"),
    ("outbox.retention", "a MongoDB keeps what has happened in its oplog"),
];

/// The key, and why it does not go with these kinds of ends, each as the file names it; `None` where it does.
pub(super) fn misplaced(key: &str, source: &str, target: &str) -> Option<(&'static str, String)> {
    let (of_source, of_target) = (
        if source == "outbox" { OF_MONGODB } else { OF_OUTBOX },
        if target == "postgres" { OF_ATLAS } else { OF_POSTGRES },
    );
    [("source.kind", source, of_source), ("target.kind", target, of_target)].into_iter().find_map(
        |(end, kind, keys)| {
            let (key, reason) = keys.iter().find(|(name, _)| *name == key)?;
            Some((*key, format!("does not go with `{end} = \"{kind}\"`: {reason}")))
        },
    )
}
