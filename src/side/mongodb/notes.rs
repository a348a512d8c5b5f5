//! A restore's notes, in a collection of their own.

use std::collections::BTreeMap;

use bson::{RawDocumentBuf, doc, rawdoc};

use super::MongoSide;
use crate::{
    model::namespace::Namespace,
    mongo::documents,
    side::{Answer, Notes},
};

impl Notes for MongoSide {
    fn read<'a>(&'a self, at: &'a Namespace) -> Answer<'a, BTreeMap<String, String>> {
        self.ask(async move {
            let command = rawdoc! { "find": at.coll() };
            let mut cursor = self.mongo.cursor(at.db(), command).await?;
            let mut notes = BTreeMap::new();
            while let Some(reply) = cursor.next().await? {
                for note in documents(&reply)? {
                    if let (Ok(name), Ok(text)) = (note.get_str("_id"), note.get_str("note")) {
                        notes.insert(name.to_owned(), text.to_owned());
                    }
                }
            }
            Ok(notes)
        })
    }

    fn write<'a>(&'a self, at: &'a Namespace, name: &'a str, text: &'a str) -> Answer<'a, bool> {
        let update =
            doc! { "q": { "_id": name }, "u": { "_id": name, "note": text }, "upsert": true };
        let command = doc! {
            "update": at.coll(), "updates": [update], "writeConcern": { "w": "majority" },
        };
        let command = RawDocumentBuf::try_from(&command).expect("names and text");
        self.ask(async move {
            let reply = self.mongo.command(at.db(), command).await?;
            Ok(reply.get_array("writeErrors").is_err() && !reply.contains_key("writeConcernError"))
        })
    }

    fn drop<'a>(&'a self, at: &'a Namespace) -> Answer<'a, ()> {
        let command = rawdoc! { "drop": at.coll(), "writeConcern": { "w": "majority" } };
        self.ask(async move { self.mongo.command(at.db(), command).await.map(|_| ()) })
    }
}
