//! Both sides as raw bytes, asked without a driver: documents, options, indexes, views, and the order of capped
//! collections. What every random suite ends with.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use mongodb::bson::{RawDocument, RawDocumentBuf, doc, rawdoc};
use outrigger::model::raw::{Builder, Field, fields, lossy};

use super::{
    agent::Agent,
    compare::brief,
    mongod::Mongod,
    odd::{self, text},
};

/// Whether the documents of capped collections must stand as they do locally. They need not where a comparison has
/// brought what was missing (README, "What it does not do").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Counts,
    MayDiffer,
}

/// A collection or view.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    kind: String,
    options: Vec<u8>,
    /// Sorted.
    indexes: Vec<Vec<u8>>,
    /// Sorted, but for a capped collection's, which stand in its own order.
    documents: Vec<Vec<u8>>,
    is_capped: bool,
}

/// Namespace → what it holds. Without what is not replicated: time series, `system.*`, the agent's own database, and
/// names that are no text.
pub type Everything = BTreeMap<String, Held>;

/// All documents of a command's cursor.
fn all(port: u16, db: &str, command: &RawDocument) -> io::Result<Vec<RawDocumentBuf>> {
    let mut found = Vec::new();
    let mut reply = odd::answered(port, db, command)?;
    loop {
        let bad = |what: &dyn std::fmt::Display| io::Error::other(what.to_string());
        let cursor = reply.get_document("cursor").map_err(|error| bad(&error))?;
        let batch = cursor.get_array("firstBatch").or_else(|_| cursor.get_array("nextBatch"));
        let batch = batch.map_err(|error| bad(&error))?.as_bytes().to_vec();
        let batch = RawDocumentBuf::from_bytes(batch).map_err(|error| bad(&error))?;
        for item in fields(&batch) {
            let item = item.map_err(|error| bad(&error))?.value.to_vec();
            found.push(RawDocumentBuf::from_bytes(item).map_err(|error| bad(&error))?);
        }
        let id = cursor.get_i64("id").map_err(|error| bad(&error))?;
        if id == 0 {
            return Ok(found);
        }
        let (_, name) = cursor.get_str("ns").map_err(|error| bad(&error))?.split_once('.').unwrap();
        reply = odd::answered(port, db, &rawdoc! { "getMore": id, "collection": name })?;
    }
}

/// Once a validator was changed they are told, though they say nothing.
fn says_nothing(field: &Field<'_>) -> bool {
    (field.name == b"validationLevel" && lossy(field.value) == "strict")
        || (field.name == b"validationAction" && lossy(field.value) == "error")
}

fn held(port: u16, db: &str, name: &str, listed: &RawDocument) -> io::Result<Held> {
    let kind = text(listed, "type");
    let told = fields(listed).flatten().find(|field| field.name == b"options");
    let told = told.and_then(|field| RawDocument::from_bytes(field.value).ok()).expect("options");
    let mut options = Builder::default();
    fields(told).flatten().filter(|of| !says_nothing(of)).for_each(|of| options.push_field(of));
    let is_capped = told.get_bool("capped").unwrap_or(false);
    let (mut indexes, mut documents) = (Vec::new(), Vec::new());
    if kind == "collection" {
        let bytes = |all: Vec<RawDocumentBuf>| all.into_iter().map(RawDocumentBuf::into_bytes);
        let list = rawdoc! { "listIndexes": name, "includeBuildUUIDs": true };
        let mut finished = all(port, db, &list)?;
        finished.retain(|spec| !fields(spec).flatten().any(|field| field.name == b"buildUUID"));
        indexes.extend(bytes(finished));
        indexes.sort();
        let find = rawdoc! { "find": name, "sort": { "$natural": 1 } };
        documents.extend(bytes(all(port, db, &find)?));
        if !is_capped {
            documents.sort();
        }
    }
    Ok(Held { kind, options: options.finish().into_bytes(), indexes, documents, is_capped })
}

fn read(port: u16) -> io::Result<Everything> {
    let mut found = Everything::new();
    let list = odd::answered(port, "admin", &rawdoc! { "listDatabases": 1, "nameOnly": true })?;
    let list = list.get_array("databases").expect("databases").as_bytes().to_vec();
    let list = RawDocumentBuf::from_bytes(list).expect("an array is a document");
    for db in fields(&list).flatten() {
        let db = text(RawDocument::from_bytes(db.value).expect("a database"), "name");
        let is_text = !db.contains('\u{FFFD}');
        if matches!(db.as_str(), "admin" | "config" | "local" | "outrigger") || !is_text {
            continue;
        }
        for listed in all(port, &db, &rawdoc! { "listCollections": 1 })? {
            let name = text(&listed, "name");
            let is_left_out = name.starts_with("system.") || name.contains('\u{FFFD}');
            if !is_left_out && text(&listed, "type") != "timeseries" {
                found.insert(format!("{db}.{name}"), held(port, &db, &name, &listed)?);
            }
        }
    }
    Ok(found)
}

/// Everything that a server holds.
pub async fn everything(server: &Mongod) -> io::Result<Everything> {
    let port = server.port;
    tokio::task::spawn_blocking(move || read(port)).await.expect("it does not panic")
}

fn shown(bytes: &[u8]) -> String {
    RawDocument::from_bytes(bytes)
        .ok()
        .and_then(|raw| mongodb::bson::Document::try_from(raw).ok())
        .map_or_else(
            || String::from_utf8_lossy(bytes).into_owned(),
            |document| format!("{document:?}"),
        )
}

/// What one of two lists has more often than the other.
fn unmatched(these: &[Vec<u8>], others: &[Vec<u8>]) -> Vec<String> {
    let mut left: BTreeMap<&[u8], i64> = BTreeMap::new();
    for bytes in these {
        *left.entry(bytes).or_default() += 1;
    }
    for bytes in others {
        *left.entry(bytes).or_default() -= 1;
    }
    left.into_iter().filter(|(_, n)| *n > 0).map(|(bytes, _)| shown(bytes)).collect()
}

/// Every difference, in words; empty when both are equal.
pub fn differences(local: &Everything, atlas: &Everything, order: Order) -> Vec<String> {
    let mut found = Vec::new();
    for name in local.keys().chain(atlas.keys()).collect::<BTreeSet<_>>() {
        let (here, there) = match (local.get(name), atlas.get(name)) {
            (Some(here), Some(there)) => (here, there),
            (Some(here), None) => {
                found.push(format!("{name}: {} missing in Atlas", here.kind));
                continue;
            }
            (None, there) => {
                let kind = there.map_or("nothing", |there| &there.kind);
                found.push(format!("{name}: {kind} only in Atlas"));
                continue;
            }
        };
        let mut say = |what: &str| found.push(format!("{name}: {what}"));
        if here.kind != there.kind {
            say(&format!("a {} locally, a {} in Atlas", here.kind, there.kind));
        }
        if here.options != there.options {
            let (here, there) = (shown(&here.options), shown(&there.options));
            say(&format!("options {here}\n   but in Atlas {there}"));
        }
        for (what, here, there) in [
            ("index", &here.indexes, &there.indexes),
            ("document", &here.documents, &there.documents),
        ] {
            let (missing, extra) = (unmatched(here, there), unmatched(there, here));
            for text in &missing {
                say(&format!("{what} missing in Atlas: {text}"));
            }
            for text in &extra {
                say(&format!("{what} only in Atlas: {text}"));
            }
            let is_order = missing.is_empty() && extra.is_empty() && here != there;
            if is_order && order == Order::Counts {
                say("the order of a capped collection differs");
            }
        }
    }
    found
}

/// Names of what Atlas can have as it is locally only when it is made anew, and of nothing else.
fn to_be_made_anew(local: &Everything, atlas: &Everything) -> Vec<String> {
    let only_new = |held: &Held| {
        let options = RawDocument::from_bytes(&held.options).expect("options");
        let of = |name: &str| {
            let field = fields(options).flatten().find(|field| field.name == name.as_bytes());
            field.map(|field| field.value.to_vec())
        };
        (held.kind.clone(), ["collation", "capped", "clusteredIndex"].map(of))
    };
    let both = atlas.iter().filter_map(|(name, there)| Some((name, local.get(name)?, there)));
    let differ = both.filter(|(_, here, there)| only_new(here) != only_new(there));
    differ.map(|(name, ..)| name.clone()).collect()
}

/// As [`equal`] once a history was lost, or another database was adopted: a comparison cannot change what only a
/// new collection can (README, "What it does not do"). Such collections are dropped in Atlas, and a full sync is
/// asked for, as the README says; all others must become equal by themselves first. Returns how many there were.
pub async fn equal_by_hand(
    local: &Mongod,
    atlas: &Mongod,
    agent: &Agent,
    patience: Duration,
) -> usize {
    // A full sync waits up to a minute for a view that a collection stands in the way of.
    let give_up = Instant::now() + 2 * patience;
    let anew = loop {
        let is_idle = agent
            .health()
            .is_some_and(|health| health["queueSize"] == 0 && health["phase"] == "streaming");
        if let (true, Ok(mut here), Ok(mut there)) =
            (is_idle, everything(local).await, everything(atlas).await)
        {
            let anew = to_be_made_anew(&here, &there);
            for name in &anew {
                here.remove(name);
                there.remove(name);
            }
            let found = differences(&here, &there, Order::MayDiffer);
            if found.is_empty() {
                break anew;
            }
            assert!(Instant::now() < give_up, "{found:#?}");
        }
        assert!(Instant::now() < give_up, "the agent does not come to rest: {:?}", agent.health());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    for name in &anew {
        println!("to be made anew: {name}");
        let (db, name) = name.split_once('.').expect("a namespace");
        odd::run(atlas, db, &rawdoc! { "drop": name });
    }
    if !anew.is_empty() {
        let synced = agent.cli(&["sync", "--wait", "--allow-mass-delete"]);
        assert!(synced.status.success(), "{synced:?}");
    }
    equal(local, atlas, Order::MayDiffer, patience).await;
    anew.len()
}

/// What a server's oplog tells last of the database of a namespace: which collections came, went and changed names.
async fn became(server: &Mongod, ns: &str) -> String {
    let Some((db, _)) = ns.split_once('.') else { return String::new() };
    let of = doc! { "$or": [
        { "op": "c", "ns": format!("{db}.$cmd") }, { "ns": format!("{db}.system.views") },
    ] };
    let find = doc! {
        "find": "oplog.rs", "filter": of, "sort": { "$natural": -1 }, "limit": 40,
        "projection": { "_id": 0, "wall": 1, "op": 1, "ui": 1, "o": 1 },
    };
    let port = server.port;
    let asked = tokio::task::spawn_blocking(move || all(port, "local", &odd::raw(&find)));
    match asked.await.expect("it does not panic") {
        Ok(mut found) => {
            found.reverse();
            let shown = found.iter().map(|entry| brief(&shown(entry.as_bytes())));
            shown.collect::<Vec<_>>().join("\n")
        }
        Err(error) => error.to_string(),
    }
}

/// Waits until Atlas equals the local database in everything.
///
/// # Panics
/// When it does not within `patience`; the message names the first differences.
pub async fn equal(local: &Mongod, atlas: &Mongod, order: Order, patience: Duration) {
    let give_up = Instant::now() + patience;
    loop {
        let found = match (everything(local).await, everything(atlas).await) {
            (Ok(here), Ok(there)) => differences(&here, &there, order),
            (Err(error), _) | (_, Err(error)) => vec![format!("cannot be read: {error}")],
        };
        if found.is_empty() {
            return;
        }
        if Instant::now() > give_up {
            let first: Vec<_> = found.iter().take(5).map(|text| brief(text)).collect();
            let ns = found[0].split_once(": ").map_or("", |(ns, _)| ns);
            panic!(
                "{} differences after {patience:?}, the first:\n{}\n--- locally ---\n{}\n--- in Atlas ---\n{}",
                found.len(),
                first.join("\n"),
                became(local, ns).await,
                became(atlas, ns).await
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
