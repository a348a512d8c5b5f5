//! What Atlas would not take, kept for a person.

use serde::Serialize;
use uuid::Uuid;

use crate::queue::Entry;

/// An op that Atlas rejected until its retries were used up. It stays until a person retries or
/// discards it, or until a later op of the same document succeeds.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// The op, with its attempts and the times of its changes.
    pub entry: Entry,
    /// Why Atlas rejected it, in words a person can act on.
    pub reason: String,
    /// When it was given up, in milliseconds since 1970.
    pub died_ms: u64,
}

impl DeadLetter {
    /// The op's id, by which a person names it.
    pub fn id(&self) -> Uuid {
        self.entry.id
    }
}

/// One line of `dead list`. Holds no document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterSummary {
    pub id: Uuid,
    #[serde(rename = "type")]
    pub kind: String,
    pub collection: String,
    pub document_id: serde_json::Value,
    pub reason: String,
    pub attempts: u32,
    /// When the document first changed, and when the op was given up; milliseconds since 1970.
    pub queued_ms: u64,
    pub died_ms: u64,
}

impl From<&DeadLetter> for DeadLetterSummary {
    fn from(letter: &DeadLetter) -> Self {
        let entry = &letter.entry;
        Self {
            id: entry.id,
            kind: entry.work.name().to_owned(),
            collection: entry.work.ns().to_string(),
            document_id: entry.work.document_id(),
            reason: letter.reason.clone(),
            attempts: entry.attempts,
            queued_ms: entry.first_ms,
            died_ms: letter.died_ms,
        }
    }
}
