//! Both sides, byte for byte.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use mongodb::{
    Client,
    bson::{Bson, Document, RawDocumentBuf, doc},
};
use outrigger::model::document_key::DocumentKey;

/// Collection → canonical `_id` → the document's bytes. Without what is not replicated.
pub type Contents = BTreeMap<String, BTreeMap<Vec<u8>, RawDocumentBuf>>;

/// Reads everything that a server holds.
pub async fn contents(client: &Client) -> mongodb::error::Result<Contents> {
    let mut contents = Contents::new();
    for db in client.list_database_names().await? {
        if matches!(db.as_str(), "admin" | "config" | "local" | "outrigger") {
            continue;
        }
        for name in client.database(&db).list_collection_names().await? {
            if name.starts_with("system.") {
                continue;
            }
            let collection = client.database(&db).collection::<RawDocumentBuf>(&name);
            let documents: Vec<_> = collection.find(doc! {}).await?.try_collect().await?;
            let by_key = documents.into_iter().map(|document| {
                (DocumentKey::of(&document).expect("an _id").canonical(), document)
            });
            contents.insert(format!("{db}.{name}"), by_key.collect());
        }
    }
    Ok(contents)
}

/// The first few differences, in words; empty when both are equal.
pub fn differences(local: &Contents, atlas: &Contents) -> Vec<String> {
    let mut found = Vec::new();
    for name in local.keys().chain(atlas.keys()).collect::<std::collections::BTreeSet<_>>() {
        match (local.get(name), atlas.get(name)) {
            (Some(here), Some(there)) => {
                for (key, document) in here {
                    match there.get(key) {
                        None => found.push(format!("{name}: missing in Atlas: {document:?}")),
                        Some(copy) if copy.as_bytes() != document.as_bytes() => {
                            found
                                .push(format!("{name}: local {document:?}\n   but Atlas {copy:?}"));
                        }
                        Some(_) => {}
                    }
                }
                for (key, copy) in there {
                    if !here.contains_key(key) {
                        found.push(format!("{name}: only in Atlas: {copy:?}"));
                    }
                }
            }
            (Some(here), None) if here.is_empty() => {}
            (Some(_), None) => found.push(format!("{name}: collection missing in Atlas")),
            (None, _) => found.push(format!("{name}: collection only in Atlas")),
        }
    }
    found
}

/// Waits until Atlas equals the local database, byte for byte.
///
/// # Panics
/// When it does not within `patience`; the message names the first differences.
pub async fn converge(local: &Client, atlas: &Client, patience: Duration) {
    let give_up = Instant::now() + patience;
    loop {
        let found = match (contents(local).await, contents(atlas).await) {
            (Ok(here), Ok(there)) => differences(&here, &there),
            (Err(error), _) | (_, Err(error)) => vec![format!("cannot be read: {error}")],
        };
        if found.is_empty() {
            return;
        }
        assert!(
            Instant::now() < give_up,
            "{} differences after {patience:?}, the first:\n{}",
            found.len(),
            found.iter().take(5).map(|text| brief(text)).collect::<Vec<_>>().join("\n")
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The numbers `n` of a collection's documents in their natural order, as runs without a gap.
pub async fn natural_order(client: &Client, name: &str) -> Vec<RangeInclusive<i32>> {
    let collection = client.database("shop").collection::<RawDocumentBuf>(name);
    let found = collection.find(doc! {}).sort(doc! { "$natural": 1 }).await.unwrap();
    let found: Vec<_> = found.try_collect().await.unwrap();
    let mut runs: Vec<RangeInclusive<i32>> = Vec::new();
    for document in found {
        let n = document.get_i32("n").unwrap();
        match runs.last_mut() {
            Some(last) if *last.end() + 1 == n => *last = *last.start()..=n,
            _ => runs.push(n..=n),
        }
    }
    runs
}

/// Collection → its options, and its indexes by name.
pub type Schemas = BTreeMap<String, (Document, BTreeMap<String, Document>)>;

/// Waits until options and indexes in Atlas equal the local ones.
///
/// # Panics
/// When they do not within `patience`; the message names the first differences.
pub async fn schemas_converge(local: &Client, atlas: &Client, patience: Duration) {
    let give_up = Instant::now() + patience;
    loop {
        let (here, there) = (schema(local).await, schema(atlas).await);
        if here == there {
            return;
        }
        let names = here.keys().chain(there.keys()).collect::<std::collections::BTreeSet<_>>();
        let differ = names.into_iter().filter(|name| here.get(*name) != there.get(*name));
        let nothing = (Document::new(), BTreeMap::new());
        let found: Vec<_> = differ
            .map(|name| {
                let of = |all: &Schemas| all.get(name).unwrap_or(&nothing).clone();
                let (mut here, mut there) = (of(&here), of(&there));
                let all = here.1.clone();
                here.1.retain(|name, spec| there.1.get(name) != Some(spec));
                there.1.retain(|name, spec| all.get(name) != Some(spec));
                format!("{name}: local {here:?}\n   but Atlas {there:?}")
            })
            .collect();
        assert!(
            Instant::now() < give_up,
            "{} schemas differ after {patience:?}, the first:\n{}",
            found.len(),
            found.iter().take(3).map(|text| brief(text)).collect::<Vec<_>>().join("\n")
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Options and indexes of every replicated collection, without what says nothing.
pub async fn schema(client: &Client) -> Schemas {
    let mut found = BTreeMap::new();
    for db in client.list_database_names().await.unwrap() {
        if matches!(db.as_str(), "admin" | "config" | "local" | "outrigger") {
            continue;
        }
        let db = client.database(&db);
        let list = db.run_cursor_command(doc! { "listCollections": 1 }).await.unwrap();
        let collections: Vec<Document> = list.try_collect().await.unwrap();
        for collection in collections {
            let name = collection.get_str("name").unwrap();
            if name.starts_with("system.") {
                continue;
            }
            let kind = collection.get_str("type").unwrap();
            if kind == "timeseries" {
                continue;
            }
            let mut indexes: Vec<Document> = Vec::new();
            if kind == "collection" {
                // One that is dropped just now has none.
                let list = doc! { "listIndexes": name, "includeBuildUUIDs": true };
                if let Ok(list) = db.run_cursor_command(list).await {
                    indexes = list.try_collect().await.unwrap_or_default();
                }
                // Those that are not finished yet.
                indexes.retain(|spec| !spec.contains_key("buildUUID"));
            }
            let by_name = indexes.into_iter().map(|mut spec| {
                // Each version has its own words for the same projection.
                if let Ok(projection) = spec.get_document_mut("wildcardProjection") {
                    let fields = std::mem::take(projection).into_iter();
                    let taken = fields.map(|(name, value)| {
                        (name, value != Bson::Boolean(false) && value != Bson::Int32(0))
                    });
                    let sorted: BTreeMap<_, _> = taken.filter(|(name, _)| name != "_id").collect();
                    projection.extend(sorted.into_iter().map(|(name, on)| (name, on.into())));
                }
                // 6.0.27 repeats the collection's option here.
                if spec.get_bool("clustered").unwrap_or(false) {
                    spec.remove("expireAfterSeconds");
                }
                in_order(&mut spec, &["key", "partialFilterExpression"]);
                (spec.get_str("name").unwrap().to_owned(), spec)
            });
            let mut options = collection.get_document("options").unwrap().clone();
            in_order(&mut options, &["validator", "pipeline"]);
            // Once a validator was changed they are told, though they say nothing.
            for (name, default) in [("validationLevel", "strict"), ("validationAction", "error")] {
                if options.get_str(name).is_ok_and(|value| value == default) {
                    options.remove(name);
                }
            }
            found.insert(format!("{}.{name}", db.name()), (options, by_name.collect()));
        }
    }
    found
}

/// What a server holds, with options and indexes.
pub struct Snapshot {
    pub contents: Contents,
    pub schemas: Schemas,
}

impl Snapshot {
    pub async fn of(client: &Client) -> Self {
        Self { contents: contents(client).await.unwrap(), schemas: schema(client).await }
    }
}

/// What in Atlas is neither as it was there (`before`) nor as the local database last had it, in words: of each
/// document, of each collection's options, of each index. What waits in the queue may still be delivered, in part
/// or as a whole; nothing else may come. Empty when all is well.
pub fn strays(before: &Snapshot, last: &Snapshot, now: &Snapshot) -> Vec<String> {
    let mut found = Vec::new();
    let names = before.contents.keys().chain(now.contents.keys());
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let of = |snapshot: &Snapshot, key: &Vec<u8>| {
            let document = snapshot.contents.get(name).and_then(|all| all.get(key));
            document.map(|document| document.as_bytes().to_vec())
        };
        let keys = [before, now].into_iter().filter_map(|of| of.contents.get(name));
        for key in keys.flat_map(BTreeMap::keys).collect::<std::collections::BTreeSet<_>>() {
            let is = of(now, key);
            if is != of(before, key) && is != of(last, key) {
                let text = |of: &Snapshot| {
                    format!("{:?}", of.contents.get(name).and_then(|all| all.get(key)))
                };
                let (was, had, is) = (text(before), text(last), text(now));
                found.push(format!("{name}: was {was}\n   local {had}\n   now {is}"));
            }
        }
        let nothing = BTreeMap::new();
        let [was, had, is] = [before, last, now].map(|of| of.schemas.get(name));
        let options = |of: Option<&(Document, _)>| of.map(|(options, _)| options.clone());
        if options(is) != options(was) && options(is) != options(had) {
            found.push(format!("{name}: was {was:?}\n   local {had:?}\n   now {is:?}"));
        }
        let [was, had, is] = [was, had, is].map(|of| of.map_or(&nothing, |(_, indexes)| indexes));
        for index in was.keys().chain(is.keys()) {
            let is = is.get(index);
            if is != was.get(index) && is != had.get(index) {
                found.push(format!("{name}: index {index}: was {:?}, now {is:?}", was.get(index)));
            }
        }
    }
    found
}

/// Makes the order of fields count in these, which `==` of documents does not see.
fn in_order(document: &mut Document, fields: &[&str]) {
    for field in fields {
        if let Some(value) = document.get_mut(*field) {
            *value = format!("{value:?}").into();
        }
    }
}

/// A text that a person can still read.
pub fn brief(text: &str) -> String {
    text.chars().take(2_000).collect()
}
