//! What a server tells of its collections and indexes.

use bson::{RawDocument, RawDocumentBuf, doc, rawdoc};

use super::{
    Mongo, MongoError,
    class::{NAMESPACE_NOT_FOUND, is_no_collection},
    documents,
};
use crate::{
    model::namespace::{Namespace, is_internal_db},
    schema::{
        Description, Kind,
        value::{Value, get},
    },
};

impl Mongo {
    /// Names of the databases that hold anything, without the server's own. One name of signs that stand for what
    /// is no text is among them when some database's name holds such.
    ///
    /// # Errors
    /// [`MongoError`].
    pub async fn list_databases(&self) -> Result<Vec<String>, MongoError> {
        let command = rawdoc! { "listDatabases": 1, "nameOnly": true };
        let mut names = names_of(&self.command("admin", command.clone()).await?);
        let mut odd = None;
        if names.iter().any(|name| name.contains(char::REPLACEMENT_CHARACTER)) {
            // It may be no text, or have that sign in it. A regular expression takes text alone: what holds anything
            // else does not match.
            let mut textual = command;
            textual.append(bson::raw::cstr!("filter"), rawdoc! { "name": { "$regex": "^" } });
            let textual = names_of(&self.command("admin", textual).await?);
            odd = names
                .iter()
                .any(|name| !textual.contains(name))
                .then(|| char::REPLACEMENT_CHARACTER.to_string());
            names = textual;
        }
        Ok(names.into_iter().filter(|name| !is_internal_db(name)).chain(odd).collect())
    }

    /// A collection or view with its options and indexes; `None` where the name is free.
    ///
    /// # Errors
    /// [`MongoError`].
    pub async fn describe(&self, ns: &Namespace) -> Result<Option<Description>, MongoError> {
        let Some(mut description) = self.describe_options(ns).await? else { return Ok(None) };
        if description.kind == Kind::Collection {
            description.indexes = self.list_indexes(ns).await?;
            // A collection always has the index on `_id`. None at all means that it was dropped between the two
            // answers: as it is described, it never was.
            if description.indexes.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(description))
    }

    /// As [`describe`](Self::describe), without the indexes.
    ///
    /// # Errors
    /// [`MongoError`].
    pub async fn describe_options(
        &self,
        ns: &Namespace,
    ) -> Result<Option<Description>, MongoError> {
        // The server looks for this one name alone.
        let command = rawdoc! {
            "listCollections": 1, "filter": { "name": ns.coll() }, "cursor": {},
        };
        Ok(self.items(ns.db(), command).await?.pop().map(|item| Description::of(&item)))
    }

    /// `listIndexes`, without those that are still being built; nothing where there is no collection.
    ///
    /// # Errors
    /// [`MongoError`].
    pub async fn list_indexes(&self, ns: &Namespace) -> Result<Vec<RawDocumentBuf>, MongoError> {
        let (ready, _) = self.list_builds(ns).await?;
        Ok(ready)
    }

    /// The indexes that are ready, and those that are being built.
    ///
    /// # Errors
    /// [`MongoError`].
    pub async fn list_builds(
        &self,
        ns: &Namespace,
    ) -> Result<(Vec<RawDocumentBuf>, Vec<RawDocumentBuf>), MongoError> {
        // Without the option both look alike (6.0.5), and an index that is never finished would count.
        let mut command = rawdoc! {
            "listIndexes": ns.coll(), "cursor": { "batchSize": 1_000 }, "includeBuildUUIDs": true,
        };
        let mut listed = self.items(ns.db(), command).await;
        if listed.as_ref().is_err_and(|error| error.code() != Some(NAMESPACE_NOT_FOUND)) {
            command = rawdoc! { "listIndexes": ns.coll(), "cursor": { "batchSize": 1_000 } };
            listed = self.items(ns.db(), command).await;
        }
        let listed = match listed {
            Err(error) if is_no_collection(&error) => Vec::new(),
            listed => listed?,
        };
        let (mut ready, mut building) = (Vec::new(), Vec::new());
        for item in listed {
            if get(&item, "buildUUID").is_some() {
                let spec = get(&item, "spec").and_then(Value::document);
                building.extend(spec.map(RawDocument::to_owned));
            } else {
                ready.push(item);
            }
        }
        Ok((ready, building))
    }

    /// How many documents a collection holds, as its statistics say.
    ///
    /// # Errors
    /// [`MongoError`].
    pub async fn estimated_count(&self, ns: &Namespace) -> Result<u64, MongoError> {
        let reply = self.command(ns.db(), rawdoc! { "count": ns.coll() }).await?;
        let count = match reply.get("n") {
            Some(bson::Bson::Int32(n)) => i64::from(*n),
            Some(bson::Bson::Int64(n)) => *n,
            _ => 0,
        };
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// How far the builds of a collection's indexes are, in percent, where the user may know.
    pub async fn build_progress(&self, ns: &Namespace) -> Option<u8> {
        let command = doc! {
            "currentOp": 1, "ns": ns.as_str(), "progress.total": { "$gt": 0 },
            "msg": { "$regex": "^Index Build" },
        };
        let command = bson::RawDocumentBuf::try_from(&command).ok()?;
        let reply = self.command("admin", command).await.ok()?;
        let operation = reply.get_array("inprog").ok()?.first()?.as_document()?;
        let progress = operation.get_document("progress").ok()?;
        let number = |name: &str| match progress.get(name) {
            Some(bson::Bson::Int32(n)) => Some(f64::from(*n)),
            Some(bson::Bson::Int64(n)) => Some(*n as f64),
            Some(bson::Bson::Double(n)) => Some(*n),
            _ => None,
        };
        Some((number("done")? / number("total")? * 100.0).clamp(0.0, 100.0) as u8)
    }

    /// All documents of a cursor, as they came: what they tell of may hold what a [`bson::Document`] cannot.
    pub(super) async fn items(
        &self,
        db: &str,
        command: bson::RawDocumentBuf,
    ) -> Result<Vec<RawDocumentBuf>, MongoError> {
        let mut cursor = self.cursor(db, command).await?;
        let mut items = Vec::new();
        while let Some(batch) = cursor.next().await? {
            items.extend(documents(&batch)?.into_iter().map(ToOwned::to_owned));
        }
        Ok(items)
    }
}

fn names_of(databases: &bson::Document) -> Vec<String> {
    let names = databases.get_array("databases").map(Vec::as_slice).unwrap_or_default().iter();
    names.filter_map(|db| db.as_document()?.get_str("name").ok()).map(str::to_owned).collect()
}
