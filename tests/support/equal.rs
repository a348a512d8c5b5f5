//! The one comparison of every suite: both sides as raw bytes. Documents with their counts, options, indexes, views, and the
//! order of capped collections; a field that is named twice, an empty collection that is missing, and what cannot be read
//! count. An equality is believed while the agents between both sides are at rest, and when a second look agrees. While they are
//! not, or the servers themselves say that documents differ (`hashes`), nothing is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mongodb::{
    Client,
    bson::{RawDocument, RawDocumentBuf, doc, rawdoc},
    error::Result,
};
use outrigger::model::raw::{Builder, Field, fields, lossy};

use super::{
    agent::Agent,
    ends::{End, unrest},
    hashes,
    mongod::Mongod,
    odd::{self, text},
};

/// Between the look that finds no difference and the one that must agree.
const MOMENT: Duration = Duration::from_millis(100);
/// Of a database with more bytes of documents than this, the server's hash is compared in their place: the test holds both sides.
const HELD_MAX: i64 = 256 << 20;

/// What a test says may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayDiffer {
    Nothing,
    /// Of documents in capped collections: a comparison has brought what was missing (docs/limits.md).
    Order,
    /// Options and indexes: what the test has made different on purpose, or what one of both servers does not have.
    Schema,
    /// Documents: somebody writes.
    Documents,
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
    /// In place of documents that are too many to be held.
    hash: Option<String>,
    is_capped: bool,
}

/// Namespace → what it holds. Without what is not replicated: time series, `system.*`, the agent's own database, and
/// names that are no text.
pub type Everything = BTreeMap<String, Held>;

/// All documents of a command's cursor.
async fn all(client: &Client, db: &str, command: RawDocumentBuf) -> Result<Vec<RawDocumentBuf>> {
    let mut cursor = client.database(db).run_raw_cursor_command(command).await?;
    let mut found = Vec::new();
    while cursor.advance().await? {
        found.push(cursor.current().to_owned());
    }
    Ok(found)
}

/// Once a validator was changed they are told, though they say nothing.
fn says_nothing(field: &Field<'_>) -> bool {
    (field.name == b"validationLevel" && lossy(field.value) == "strict")
        || (field.name == b"validationAction" && lossy(field.value) == "error")
}

/// As the server tells an index, but for what 6.0.27 repeats of the collection's options, and for the words of a projection,
/// of which each version has its own.
fn spec(told: &RawDocument) -> Vec<u8> {
    let is_clustered = told.get_bool("clustered").unwrap_or(false);
    let mut spec = Builder::default();
    for field in fields(told).flatten() {
        match field.name {
            b"expireAfterSeconds" if is_clustered => {}
            b"wildcardProjection" => spec.document("wildcardProjection", |words| {
                let projection = RawDocument::from_bytes(field.value).expect("a projection");
                let mut taken: Vec<_> = projection.iter().flatten().collect();
                taken.retain(|(name, _)| name.as_str() != "_id");
                taken.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
                for (name, value) in taken {
                    let is_out = value.as_bool() == Some(false) || value.as_i32() == Some(0);
                    words.push_bool(name.as_str(), !is_out);
                }
            }),
            _ => spec.push_field(field),
        }
    }
    spec.finish().into_bytes()
}

async fn held(
    client: &Client,
    (db, is_large): (&str, bool),
    name: &str,
    listed: &RawDocument,
) -> Result<Held> {
    let kind = text(listed, "type");
    let told = fields(listed).flatten().find(|field| field.name == b"options");
    let told = told.and_then(|field| RawDocument::from_bytes(field.value).ok()).expect("options");
    let mut options = Builder::default();
    fields(told).flatten().filter(|of| !says_nothing(of)).for_each(|of| options.push_field(of));
    let is_capped = told.get_bool("capped").unwrap_or(false);
    let (mut indexes, mut documents, mut hash) = (Vec::new(), Vec::new(), None);
    if kind == "collection" {
        let list = rawdoc! { "listIndexes": name, "includeBuildUUIDs": true };
        let mut finished = all(client, db, list).await?;
        finished.retain(|spec| !fields(spec).flatten().any(|field| field.name == b"buildUUID"));
        indexes.extend(finished.iter().map(|told| spec(told)));
        indexes.sort();
        if is_large {
            hash = Some(hashes::hash(client, db, name).await?);
        } else {
            let find = rawdoc! { "find": name, "sort": { "$natural": 1 } };
            let found = all(client, db, find).await?;
            documents.extend(found.into_iter().map(RawDocumentBuf::into_bytes));
        }
        if !is_capped {
            documents.sort();
        }
    }
    Ok(Held { kind, options: options.finish().into_bytes(), indexes, documents, hash, is_capped })
}

/// Everything that a server holds.
///
/// # Errors
/// What the driver says; also when a collection goes away meanwhile.
pub async fn everything(server: &impl End) -> Result<Everything> {
    held_by(server.reader(), i64::MAX).await
}

async fn held_by(client: &Client, held_max: i64) -> Result<Everything> {
    let mut found = Everything::new();
    for db in hashes::databases(client).await? {
        let stats = client.database(&db).run_command(doc! { "dbStats": 1 }).await?;
        // It tells a double, whatever its size.
        let is_large = stats.get_f64("dataSize").is_ok_and(|size| size as i64 > held_max);
        for listed in all(client, &db, rawdoc! { "listCollections": 1 }).await? {
            let name = text(&listed, "name");
            let is_left_out = name.starts_with("system.") || name.contains('\u{FFFD}');
            if !is_left_out && text(&listed, "type") != "timeseries" {
                let held = held(client, (&db, is_large), &name, &listed).await?;
                found.insert(format!("{db}.{name}"), held);
            }
        }
    }
    Ok(found)
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
pub fn differences(local: &Everything, atlas: &Everything, may: MayDiffer) -> Vec<String> {
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
        if may != MayDiffer::Schema && here.options != there.options {
            let (here, there) = (shown(&here.options), shown(&there.options));
            say(&format!("options {here}\n   but in Atlas {there}"));
        }
        if may != MayDiffer::Documents && here.hash != there.hash {
            say(&format!(
                "documents of which the hash is {:?}, in Atlas {:?}",
                here.hash, there.hash
            ));
        }
        for (what, here, there) in [
            ("index", &here.indexes, &there.indexes),
            ("document", &here.documents, &there.documents),
        ] {
            let is_left_out = match may {
                MayDiffer::Schema => what == "index",
                MayDiffer::Documents => what == "document",
                MayDiffer::Nothing | MayDiffer::Order => false,
            };
            if is_left_out {
                continue;
            }
            let (missing, extra) = (unmatched(here, there), unmatched(there, here));
            for text in &missing {
                say(&format!("{what} missing in Atlas: {text}"));
            }
            for text in &extra {
                say(&format!("{what} only in Atlas: {text}"));
            }
            let is_order = missing.is_empty() && extra.is_empty() && here != there;
            if is_order && may != MayDiffer::Order {
                let [here, there] = [here, there].map(|documents| {
                    documents.iter().map(|bytes| shown(bytes)).collect::<Vec<_>>().join("\n")
                });
                say(&format!(
                    "the order of a capped collection differs:\n{here}\n   but in Atlas\n{there}"
                ));
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
/// new collection can (docs/limits.md). Such collections are dropped in Atlas, and a full sync is
/// asked for, as the book says; all others must become equal by themselves first. Returns how many there were.
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
            let found = differences(&here, &there, MayDiffer::Order);
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
        let reply = odd::ask(atlas.port, db.as_bytes(), &rawdoc! { "drop": name }).unwrap();
        // It may have gone since it was looked at.
        let is_gone =
            reply.get_f64("ok").ok() == Some(1.0) || reply.get_i32("code").ok() == Some(26);
        assert!(is_gone, "{reply:?}");
    }
    if !anew.is_empty() {
        loop {
            let synced = agent.cli(&["sync", "--wait", "--allow-mass-delete"]);
            if synced.status.success() {
                break;
            }
            // One of the agent's own, of a collection that was just made anew.
            let is_another = String::from_utf8_lossy(&synced.stderr).contains("runs already");
            assert!(is_another && Instant::now() < give_up, "{synced:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    equal_but(MayDiffer::Order, local, atlas, patience).await;
    anew.len()
}

/// What a server's oplog tells last of the database of a namespace: which collections came, went and changed names.
async fn became(client: &Client, ns: &str) -> String {
    let Some((db, _)) = ns.split_once('.') else { return String::new() };
    let of = doc! { "$or": [
        { "op": "c", "ns": format!("{db}.$cmd") }, { "ns": format!("{db}.system.views") },
    ] };
    let find = doc! {
        "find": "oplog.rs", "filter": of, "sort": { "$natural": -1 }, "limit": 40,
        "projection": { "_id": 0, "wall": 1, "op": 1, "ui": 1, "o": 1 },
    };
    match all(client, "local", odd::raw(&find)).await {
        Ok(mut found) => {
            found.reverse();
            let shown = found.iter().map(|entry| brief(&shown(entry.as_bytes())));
            shown.collect::<Vec<_>>().join("\n")
        }
        Err(error) => error.to_string(),
    }
}

/// Waits until Atlas equals the local database in everything, and the agents between both are at rest.
///
/// # Panics
/// When it does not within `patience`; the message names the first differences.
pub async fn equal(local: &impl End, atlas: &impl End, patience: Duration) {
    wait(local, atlas, MayDiffer::Nothing, |_| true, patience).await;
}

/// As [`equal`], in all but what `may` differ.
pub async fn equal_but(may: MayDiffer, local: &impl End, atlas: &impl End, patience: Duration) {
    wait(local, atlas, may, |_| true, patience).await;
}

/// As [`equal`], of one database: the local server has others, which somebody else copies.
pub async fn equal_in(db: &str, local: &impl End, atlas: &impl End, patience: Duration) {
    let prefix = format!("{db}.");
    wait(local, atlas, MayDiffer::Nothing, |name| name.starts_with(&prefix), patience).await;
}

async fn wait(
    local: &impl End,
    atlas: &impl End,
    may: MayDiffer,
    counts: impl Fn(&str) -> bool,
    patience: Duration,
) {
    let give_up = Instant::now() + patience;
    let mut agreed = false;
    loop {
        let began = Instant::now();
        let is_late = began > give_up;
        // First, so that what is read is what was there at rest.
        let mut found =
            if may == MayDiffer::Documents { Vec::new() } else { unrest(local, atlas).await };
        // Where options may differ, so may what the hash follows from: the order of a capped collection, or of its keys.
        let has_hashes = matches!(may, MayDiffer::Nothing | MayDiffer::Order);
        if has_hashes && found.is_empty() && !agreed {
            let both = (local.reader(), atlas.reader());
            let order_counts = may == MayDiffer::Nothing;
            let differs = hashes::first_difference(both, &counts, order_counts).await;
            found.extend(differs.map(|ns| format!("{ns}: its hash differs")));
        }
        // In the end what differs is to be told.
        if found.is_empty() || is_late {
            let here = held_by(local.reader(), HELD_MAX).await;
            match (here, held_by(atlas.reader(), HELD_MAX).await) {
                (Ok(mut here), Ok(mut there)) => {
                    here.retain(|name, _| counts(name));
                    there.retain(|name, _| counts(name));
                    found.retain(|text| !text.ends_with(": its hash differs"));
                    found.extend(differences(&here, &there, may));
                }
                (Err(error), _) | (_, Err(error)) => found.push(format!("cannot be read: {error}")),
            }
        }
        if found.is_empty() && agreed {
            return;
        }
        agreed = found.is_empty();
        if !agreed && is_late {
            let first: Vec<_> = found.iter().take(5).map(|text| brief(text)).collect();
            let ns = found.iter().find_map(|text| Some(text.split_once(": ")?.0)).unwrap_or("");
            panic!(
                "{} differences after {patience:?}, the first:\n{}\n--- locally ---\n{}\n--- in Atlas ---\n{}",
                found.len(),
                first.join("\n"),
                became(local.reader(), ns).await,
                became(atlas.reader(), ns).await
            );
        }
        // A hash holds up who writes, for as long as it takes.
        tokio::time::sleep(if agreed { MOMENT } else { began.elapsed().max(MOMENT) }).await;
    }
}

/// What in Atlas is neither as it was there (`before`) nor as the local database last had it, in words: of each
/// document, of each collection's options, of each index. What waits in the queue may still be delivered, in part
/// or as a whole; nothing else may come. Empty when all is well.
pub fn strays(before: &Everything, last: &Everything, now: &Everything) -> Vec<String> {
    let mut found = Vec::new();
    for name in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        let [was, had, is] = [before, last, now].map(|of| of.get(name));
        let options = |of: Option<&Held>| of.map(|held| (held.kind.clone(), held.options.clone()));
        if options(is) != options(was) && options(is) != options(had) {
            found.push(format!("{name}: was {was:?}\n   local {had:?}\n   now {is:?}"));
        }
        for (what, parts) in [("document", Held::by_id as Parts), ("index", Held::by_name as Parts)]
        {
            let [was, had, is] = [was, had, is].map(|of| of.map(parts).unwrap_or_default());
            for key in was.keys().chain(is.keys()).collect::<BTreeSet<_>>() {
                let [was, had, is] = [&was, &had, &is].map(|of| of.get(key));
                if is != was && is != had {
                    let [was, had, is] = [was, had, is].map(|of| of.map(|bytes| shown(bytes)));
                    found.push(format!(
                        "{name}: {what}: was {was:?}\n   local {had:?}\n   now {is:?}"
                    ));
                }
            }
        }
    }
    found
}

type Parts = fn(&Held) -> BTreeMap<Vec<u8>, &[u8]>;

impl Held {
    /// The bytes of `_id` → those of the document.
    pub fn by_id(&self) -> BTreeMap<Vec<u8>, &[u8]> {
        by("_id", &self.documents)
    }

    /// The bytes of the name → those of the index.
    pub fn by_name(&self) -> BTreeMap<Vec<u8>, &[u8]> {
        by("name", &self.indexes)
    }

    /// How many documents.
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// Names of its indexes.
    pub fn indexes(&self) -> Vec<String> {
        let spec = |bytes| RawDocument::from_bytes(bytes).expect("an index");
        self.indexes.iter().map(|bytes| text(spec(bytes), "name")).collect()
    }
}

fn by<'a>(name: &str, all: &'a [Vec<u8>]) -> BTreeMap<Vec<u8>, &'a [u8]> {
    let key = |bytes: &'a Vec<u8>| {
        let document = RawDocument::from_bytes(bytes).expect("a document");
        let field = fields(document).flatten().find(|field| field.name == name.as_bytes());
        let field = field.expect("each has one");
        ([&[field.kind][..], field.value].concat(), &bytes[..])
    };
    all.iter().map(key).collect()
}

/// A text that a person can still read.
pub fn brief(text: &str) -> String {
    text.chars().take(2_000).collect()
}
