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

#[cfg(test)]
mod tests {
    use bson::rawdoc;
    use tempfile::TempDir;

    use super::*;
    use crate::{
        model::write_op::{Refusal, WriteOp},
        queue::{Ack, Incoming, Outcome, QueueOptions, Work},
        runtime::clock,
        side::{fake::FakeSide, fake_database::FakeDatabase},
        sync::state::Reason,
    };

    /// A queue, and what looks the document 1 of a collection up.
    struct Scene {
        queue: Arc<Queue>,
        _dir: TempDir,
    }

    fn orders() -> Namespace {
        Namespace::new("shop", "orders")
    }

    fn key() -> DocumentKey {
        DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap()
    }

    impl Scene {
        fn new() -> Self {
            let dir = TempDir::new().unwrap();
            let queue = Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap();
            Self { queue: Arc::new(queue), _dir: dir }
        }

        /// Where the two sides have documents of these values.
        async fn look(
            &self,
            reading: Option<&Reading>,
            local: Option<i32>,
            atlas: Option<i32>,
        ) -> DocumentReport {
            let side = |v: Option<i32>| FakeSide::of(v.map(|v| (1, v)));
            let (local, atlas) = (side(local), side(atlas));
            look_up(&self.queue, reading, &local, &atlas, &orders(), &key()).await.unwrap()
        }

        fn waits(&self) {
            let op = WriteOp::Insert(rawdoc! { "_id": 1 });
            let work = Work::Document { ns: orders(), key: key(), op, collection: None };
            let change = Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1_000 };
            self.queue.commit(vec![change], None).unwrap();
        }
    }

    /// The stream was read up to this time.
    fn reading(time: u64) -> Reading {
        let reading = Reading::default();
        reading.end_reply(ClusterTime(time), ClusterTime(time));
        reading
    }

    #[tokio::test(start_paused = true)]
    async fn a_document_is_synced_when_both_sides_have_the_same_of_it_or_nothing() {
        for (v, is_there) in [(Some(5), true), (None, false)] {
            let report = Scene::new().look(None, v, v).await;

            assert_eq!(report.state, DocumentState::Synced);
            assert_eq!((report.in_local, report.in_atlas), (Some(is_there), Some(is_there)));
            assert_eq!((report.error, report.next), (None, None));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_document_that_differs_though_nothing_waits_has_failed_and_it_is_said_in_what() {
        for (local, atlas, what) in [
            (Some(5), None, "it is missing in Atlas"),
            (None, Some(5), "only Atlas has it"),
            (Some(5), Some(6), "Atlas has it with another content"),
        ] {
            let report = Scene::new().look(Some(&reading(50)), local, atlas).await;

            assert_eq!(report.state, DocumentState::Failed);
            assert_eq!(report.error, Some(format!("{what}; nothing waits for it")));
            assert!(report.next.is_some_and(|next| next.contains("--ns shop.orders")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_document_that_may_still_come_is_pending_and_it_is_said_why() {
        let (scene, owing) = (Scene::new(), Scene::new());
        SyncState::require(&owing.queue, ClusterTime(1), Reason::FirstCopy).unwrap();
        for (scene, reading, why, next) in [
            (&scene, None, "no agent runs", Some("start the agent with `outrigger run`")),
            (&scene, Some(reading(0)), "not every change was read yet", None),
            (&owing, Some(reading(50)), "a copy or a comparison is not done", None),
        ] {
            let report = scene.look(reading.as_ref(), Some(5), None).await;

            assert_eq!(report.state, DocumentState::Pending);
            assert!(report.error.as_ref().is_some_and(|error| error.contains(why)), "{report:?}");
            assert_eq!(report.next.as_deref(), next);
        }
    }

    /// It need not be read then.
    #[tokio::test(start_paused = true)]
    async fn a_document_that_waits_in_the_queue_is_pending_and_one_that_was_given_up_has_failed() {
        let scene = Scene::new();
        scene.waits();
        let report = scene.look(Some(&reading(50)), Some(5), Some(5)).await;
        assert_eq!((report.state, report.in_atlas), (DocumentState::Pending, None));
        assert_eq!(report.since, rfc3339(1_000));

        let entry = scene.queue.lease(1, usize::MAX, 1_000).unwrap().entries.remove(0);
        let (reason, refusal) = ("too large".to_owned(), Refusal::TooLarge);
        let outcome = Outcome::Rejected { reason, refusal, now_ms: 2_000 };
        scene.queue.ack(&[Ack { seq: entry.seq, version: entry.version, outcome }]).unwrap();
        let report = scene.look(Some(&reading(50)), Some(5), Some(5)).await;
        assert_eq!(
            (report.state, report.error.as_deref()),
            (DocumentState::Failed, Some("too large"))
        );
        assert_eq!(report.since, rfc3339(2_000));
        assert!(report.next.is_some_and(|next| next.contains("outrigger dead retry")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_document_that_is_on_its_way_is_given_seconds_to_arrive() {
        let (scene, began) = (Scene::new(), clock::now());
        let local = FakeDatabase::source(1);
        local.holds(&orders(), [(1, 5)]);
        let atlas = Arc::new(FakeDatabase::target(1));
        let arriving = atlas.clone();
        atlas.when_nth("find shop.orders", 5, move || arriving.holds(&orders(), [(1, 5)]));

        let (ns, key) = (orders(), key());
        let report = look_up(&scene.queue, None, &local, &*atlas, &ns, &key).await.unwrap();

        assert_eq!((report.state, report.in_atlas), (DocumentState::Synced, Some(true)));
        assert_eq!(clock::since(began), Duration::from_secs(2));
    }

    #[test]
    fn what_is_not_replicated_is_said_and_what_chooses_it_where_that_helps() {
        let filter = NamespaceFilter::new(&["shop.*".to_owned()], &[]).unwrap();
        let said = |ns: &str| not_replicated(&filter, &ns.parse().unwrap());
        assert_eq!(said("shop.orders"), None);
        let (why, hint) = said("crm.people").unwrap();
        assert_eq!((why.as_str(), hint.is_some()), ("`crm.people` is not replicated", true));

        let everything = NamespaceFilter::new(&[], &[]).unwrap();
        let of_ours = Namespace::new(everything.state_database(), "replicas");
        let (why, hint) = not_replicated(&everything, &of_ours).unwrap();
        assert!(why.starts_with("`outrigger.replicas` is not replicated: "), "{why}");
        assert_eq!(hint, None);
    }
}
