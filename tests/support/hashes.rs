//! What a server says of its documents without sending them: `dbHash`, an MD5 for each collection over the bytes of its
//! documents by `_id`, of a capped one in its own order. Options, indexes and views are not in it. So two that differ are a
//! difference, which is cheap to wait for; that two are equal, the comparison itself has to find.

use std::collections::BTreeMap;

use mongodb::{
    Client,
    bson::{Document, doc},
    error::Result,
};

/// Of one collection.
#[derive(Debug, PartialEq, Eq)]
pub struct Hash {
    md5: String,
    is_capped: bool,
}

/// The databases that are replicated.
pub async fn databases(client: &Client) -> Result<Vec<String>> {
    // A regular expression takes text alone.
    let mut found = client.list_database_names().filter(doc! { "name": { "$regex": "^" } }).await?;
    found.retain(|db| !matches!(db.as_str(), "admin" | "config" | "local" | "outrigger"));
    Ok(found)
}

/// MD5 of one collection.
pub async fn hash(client: &Client, db: &str, name: &str) -> Result<String> {
    let of = doc! { "dbHash": 1, "collections": [name] };
    let told = client.database(db).run_command(of).await?;
    Ok(told.get_document("collections").and_then(|of| of.get_str(name)).unwrap_or("none").into())
}

/// Namespace → what the server says of it.
///
/// # Errors
/// What the driver says; also of a name that is no text, and of a router, which has no such command.
async fn hashes(client: &Client, counts: &impl Fn(&str) -> bool) -> Result<BTreeMap<String, Hash>> {
    let mut found = BTreeMap::new();
    for db in databases(client).await? {
        let told = client.database(&db).run_command(doc! { "dbHash": 1 }).await?;
        let capped = told.get_array("capped").cloned().unwrap_or_default();
        for (name, md5) in told.get_document("collections").unwrap_or(&Document::new()) {
            let ns = format!("{db}.{name}");
            if !name.starts_with("system.") && counts(&ns) {
                let is_capped = capped.iter().any(|of| of.as_str() == Some(name));
                let md5 = md5.as_str().unwrap_or_default().to_owned();
                found.insert(ns, Hash { md5, is_capped });
            }
        }
    }
    Ok(found)
}

/// The first of the collections that count of which both servers say that they differ. Of a capped one it may be the order, where
/// that does not count. `None` where they do not say so, or say nothing.
pub async fn first_difference(
    (local, atlas): (&Client, &Client),
    counts: &impl Fn(&str) -> bool,
    order_counts: bool,
) -> Option<String> {
    let (here, there) = tokio::join!(hashes(local, counts), hashes(atlas, counts));
    let (Ok(here), Ok(there)) = (here, there) else { return None };
    let differs = |ns: &&String| match (here.get(*ns), there.get(*ns)) {
        (Some(here), Some(there)) if here.is_capped || there.is_capped => {
            order_counts && here != there
        }
        (here, there) => here != there,
    };
    here.keys().chain(there.keys()).find(differs).cloned()
}
