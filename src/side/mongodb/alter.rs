//! Options and indexes of a server's collections: told, and altered.

use std::time::Duration;

use bson::{RawDocumentBuf, rawdoc};
use futures_util::future::BoxFuture;

use super::{MongoSide, Role};
use crate::{
    model::namespace::Namespace,
    mongo::{
        MongoError,
        class::{Class, class_of, is_change_of_state, is_missing_privilege},
    },
    schema::{BUILD_ABORTED, Description},
    side::{Answer, Because, SchemaSide, Unaltered},
    sink::{
        SinkError,
        classify::{BUILD_IN_PROGRESS, INDEX_NOT_FOUND, schema_error},
    },
};

/// `CollectionUUIDMismatch` (6.0+).
const OTHER_COLLECTION: i32 = 361;

impl SchemaSide for MongoSide {
    fn describe<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Option<Description>> {
        self.ask(self.mongo.describe(ns))
    }

    fn list_indexes<'a>(&'a self, ns: &'a Namespace) -> Answer<'a, Vec<RawDocumentBuf>> {
        self.ask(self.mongo.list_indexes(ns))
    }

    fn alter<'a>(
        &'a self,
        ns: &'a Namespace,
        mut command: RawDocumentBuf,
        patience: Duration,
    ) -> BoxFuture<'a, Result<(), Unaltered>> {
        command.append(bson::raw::cstr!("writeConcern"), rawdoc! { "w": "majority" });
        Box::pin(async move {
            match self.mongo.command_within(ns.db(), command, patience).await {
                Ok(reply) if reply.contains_key("writeConcernError") => Err(no_majority()),
                Ok(_) => Ok(()),
                // Done by an attempt whose answer was lost.
                Err(error) if error.code() == Some(INDEX_NOT_FOUND) => Ok(()),
                Err(error) => Err(self.unaltered(ns, error)),
            }
        })
    }

    fn build_progress<'a>(&'a self, ns: &'a Namespace) -> BoxFuture<'a, Option<u8>> {
        Box::pin(self.mongo.build_progress(ns))
    }

    fn is_there(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { self.mongo.hello().await.is_ok() })
    }
}

impl MongoSide {
    fn unaltered(&self, ns: &Namespace, error: MongoError) -> Unaltered {
        let reason = without_values(&error.to_string());
        let because = match error.code() {
            Some(_) if is_missing_privilege(&error) => Because::Forbidden,
            None => Because::Silence,
            Some(OTHER_COLLECTION) => Because::Overtaken,
            Some(BUILD_IN_PROGRESS) => Because::InProgress,
            Some(code) if is_change_of_state(code) => Because::ChangeOfState,
            Some(_) if reason.contains(BUILD_ABORTED) => Because::Overtaken,
            Some(_) => Because::Answer,
        };
        let needs = || {
            let needs = format!("`collMod`, `createIndex` and `dropIndex` on `{ns}`");
            without_values(&schema_error(&error, &needs).to_string())
        };
        let advice = (because == Because::Forbidden && self.role == Role::Target).then(needs);
        let is_away = class_of(&error) == Class::Unavailable;
        Unaltered { reason, advice, because, is_away, error: self.role.error(error) }
    }
}

fn no_majority() -> Unaltered {
    let reason = "no majority has answered".to_owned();
    let error = SinkError::Unavailable(reason.clone()).into();
    Unaltered { reason, advice: None, because: Because::NoMajority, is_away: true, error }
}

/// A server's message without the values of documents that it quotes.
fn without_values(message: &str) -> String {
    message.split(" dup key:").next().unwrap_or_default().to_owned()
}
