//! The state of one document: is it in Atlas as it is here?
//!
//! What waits in the queue and what was given up is known. Of everything else both sides are read and
//! compared byte for byte: that nothing waits proves nothing about a document that somebody changed in Atlas.

use std::{sync::Arc, time::Duration};

use bson::RawDocument;
use serde::Serialize;

use super::SyncError;
use crate::{
    gate::reading::Reading,
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        namespace::{Namespace, NamespaceFilter},
    },
    queue::{Queue, QueueError},
    runtime::{clock::rfc3339, shutdown::blocking},
    side::Side,
    sync::state::SyncState,
};

/// Whether Atlas has a document as it is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DocumentState {
    /// Both sides hold the same bytes, or neither holds it.
    Synced,
    /// A change of it waits for Atlas, or is still to be read.
    Pending,
    /// It was given up, or differs although nothing waits.
    Failed,
}

/// `GET /api/documents/{ns}/{id}`, and `outrigger doc`. Holds no document.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DocumentReport {
    pub collection: Namespace,
    pub document_id: serde_json::Value,
    pub state: DocumentState,
    /// Why it is not in Atlas, or what went wrong at the last attempt.
    pub error: Option<String>,
    /// When it was last written to Atlas, RFC 3339, as far as a running agent remembers, or the copy says.
    pub last_sync: Option<String>,
    /// Since when its change waits, or was given up, RFC 3339.
    pub since: Option<String>,
    pub retry_count: u32,
    /// Whether each side holds it; null where that was not looked at.
    pub in_local: Option<bool>,
    pub in_atlas: Option<bool>,
    /// What to do, where there is something to be done.
    pub next: Option<String>,
}

/// How often two sides that differ are looked at, and how far apart: a change may be on its way.
const LOOKS: usize = 8;
const LOOK_APART: Duration = Duration::from_millis(500);

/// Why there is nothing to look up in a collection, and what to do about it where that is not said with it.
pub fn not_replicated(
    filter: &NamespaceFilter,
    ns: &Namespace,
) -> Option<(String, Option<&'static str>)> {
    if let Some(reason) = filter.kept_apart(ns) {
        return Some((format!("`{ns}` is not replicated: {reason}"), None));
    }
    let hint = "`namespaces.include` and `namespaces.exclude` choose what is";
    (!filter.matches(ns)).then(|| (format!("`{ns}` is not replicated"), Some(hint)))
}

/// Looks a document up; `reading` is that of the agent that runs, if one does.
///
/// # Errors
/// When the queue cannot be read, or an end that must be asked does not answer.
pub async fn look_up(
    queue: &Arc<Queue>,
    reading: Option<&Reading>,
    local: &dyn Side,
    atlas: &dyn Side,
    ns: &Namespace,
    key: &DocumentKey,
) -> Result<DocumentReport, SyncError> {
    let mut report = DocumentReport {
        collection: ns.clone(),
        document_id: key.to_json(),
        state: DocumentState::Synced,
        error: None,
        last_sync: None,
        since: None,
        retry_count: 0,
        in_local: None,
        in_atlas: None,
        next: None,
    };
    let now = match reading {
        Some(_) => local.now().await.unwrap_or_default(),
        None => ClusterTime::default(),
    };
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(LOOK_APART).await;
        }
        // The entry first: its success removes the letter in the same step.
        let (asked, of, name) = (queue.clone(), ns.clone(), key.clone());
        let waiting = blocking(move || {
            let entry = asked.entry_of(&of, &name)?;
            Ok::<_, QueueError>((entry, asked.dead_letter_of(&of, &name)?))
        });
        let (entry, letter) = waiting.await?;
        if let Some(entry) = entry {
            report.state = DocumentState::Pending;
            report.error = entry.error.or(letter.map(|letter| letter.reason));
            report.since = rfc3339(entry.first_ms);
            report.retry_count = entry.attempts;
            return Ok(report);
        }
        if let Some(letter) = letter {
            report.state = DocumentState::Failed;
            let id = letter.id();
            report.next = Some(format!(
                "mend what the error names, then `outrigger dead retry {id}`; a later change of the document tries it too"
            ));
            report.error = Some(letter.reason);
            report.since = rfc3339(letter.died_ms);
            report.retry_count = letter.entry.attempts;
            return Ok(report);
        }
        let (keys, name) = (std::slice::from_ref(key), key.canonical());
        let source = local.find(ns, keys).await?.remove(&name);
        let target = atlas.find(ns, keys).await?.remove(&name);
        // Of one that neither has, what is left there is no copy of it.
        let is_there = target.as_ref().is_some_and(|copy| !atlas.is_left_over(copy));
        (report.in_local, report.in_atlas) = (Some(source.is_some()), Some(is_there));
        let written = atlas.written_at(ns, key).await?;
        report.last_sync = written.and_then(rfc3339);
        if is_same(atlas, source.as_deref(), target.as_deref()) {
            return Ok(report);
        }
    }
    let why = match reading {
        None => Some("no agent runs, so nothing is read"),
        Some(_) if SyncState::is_owed(queue)? => Some("a copy or a comparison is not done"),
        // What was committed before the first look had seconds to be read.
        Some(reading) => {
            (!reading.position().has_read(now)).then_some("not every change was read yet")
        }
    };
    report.state = if why.is_some() { DocumentState::Pending } else { DocumentState::Failed };
    let what = match (report.in_local, report.in_atlas) {
        (Some(true), Some(false)) => "it is missing in Atlas",
        (Some(false), Some(true)) => "only Atlas has it",
        (Some(false), Some(false)) => "only Atlas has something of it",
        _ => "Atlas has it with another content",
    };
    let why = why.unwrap_or("nothing waits for it");
    report.error = Some(format!("{what}; {why}"));
    report.next = match (report.state, reading) {
        (DocumentState::Failed, _) => Some(format!(
            "`outrigger sync --ns {ns} --wait` compares the collection and repairs it"
        )),
        (_, None) => Some("start the agent with `outrigger run`".to_owned()),
        (_, Some(_)) => None,
    };
    Ok(report)
}

fn is_same(atlas: &dyn Side, source: Option<&RawDocument>, target: Option<&RawDocument>) -> bool {
    match (source, target) {
        (None, None) => true,
        (Some(source), Some(target)) => atlas.is_copy(source, target),
        (Some(_), None) | (None, Some(_)) => false,
    }
}
