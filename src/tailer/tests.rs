use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bson::rawdoc;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::{
    model::{
        checkpoint::PositionKind,
        document_key::DocumentKey,
        event::{Change, ChangeEvent},
        namespace::Namespace,
        write_op::WriteOp,
    },
    queue::{QueueOptions, after_a_crash},
    source::fake::{COLLECTION, FakeSource, document},
};

mod asked;
mod hours;

/// A batch of one document, which has the batch's number for its `_id`.
fn batch(n: u64) -> EventBatch {
    let (ns, document) = (Namespace::new("shop", "orders"), document(n as i32, 1));
    let key = DocumentKey::of(&document).unwrap();
    let change = Change::Document { ns, key, op: WriteOp::Insert(document) };
    let cluster_time = ClusterTime(n);
    let collection = Some(COLLECTION);
    let token = ResumeToken(rawdoc! { "_data": n as i64 });
    let events = vec![ChangeEvent { cluster_time, wall_ms: n, collection, change }];
    EventBatch { events, token, cluster_time, whole: cluster_time }
}

/// For what has happened already.
const PATIENCE: Duration = Duration::from_secs(5);

fn number(position: &ResumeToken) -> u64 {
    position.0.get_i64("_data").unwrap() as u64
}

fn open(dir: &Path) -> Arc<Queue> {
    Arc::new(Queue::open(&QueueOptions::new(dir.to_owned())).unwrap())
}

fn tailer(dir: &Path, queue: Arc<Queue>, source: FakeSource) -> Tailer<FakeSource> {
    Tailer {
        queue,
        source: Arc::new(source),
        status: Arc::default(),
        reading: Arc::default(),
        filter: NamespaceFilter::new(&[], &[]).unwrap(),
        limits: QueueLimits { max_bytes: u64::MAX, max_documents: u64::MAX, min_free_disk: 0 },
        identity: Identity { source_id: "rs".to_owned(), pipeline: "p".to_owned() },
        disk: dir.to_owned(),
        compare: Arc::default(),
        gate: Arc::default(),
        tells_of_schema: true,
        watch: Arc::default(),
        impasse_patience: IMPASSE_PATIENCE,
    }
}

/// How far a queue holds the stream: by its documents, and by its checkpoint.
fn held(dir: &Path) -> (u64, u64) {
    let queue = open(dir);
    let checkpoint = queue.checkpoint().unwrap();
    (queue.pending().0, checkpoint.map_or(0, |checkpoint| number(&checkpoint.token)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_told_that_a_position_is_durable_only_when_a_power_cut_would_leave_it() {
    let dir = TempDir::new().unwrap();
    let (stop, told) = (Stop::default(), Arc::new(Mutex::new(Vec::new())));
    let confirmed = {
        let (path, stop, told) = (dir.path().to_owned(), stop.clone(), told.clone());
        move |position: &ResumeToken| {
            let n = number(position);
            told.lock().push((n, held(after_a_crash(&path).path())));
            if n == 4 {
                stop.drain.cancel();
            }
            true
        }
    };
    let source = FakeSource { confirmed: Some(Arc::new(confirmed)), ..FakeSource::default() };
    source.batches.lock().extend((1..=4).map(batch));

    tailer(dir.path(), open(dir.path()), source).run(&stop).await.unwrap();

    let told = told.lock();
    let positions: Vec<_> = told.iter().map(|(n, _)| *n).collect();
    assert_eq!(positions, [1, 2, 3, 4]);
    for (n, (documents, checkpoint)) in told.iter() {
        assert!(documents >= n && checkpoint >= n, "{n} was confirmed with {documents} documents");
    }
}

/// An outbox keeps a row until it is confirmed. The agent ends behind the commit of row 3 and before the source hears
/// of it, and begins anew with what a power cut left.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_kept_a_source_from_hearing_is_confirmed_when_it_is_read_again_and_nothing_is_lost()
 {
    let dir = TempDir::new().unwrap();
    let (stop, outbox) = (Stop::default(), Arc::new(AtomicU64::new(0)));
    let heard = |upto: &Arc<AtomicU64>, stop: &Stop, deaf_from: u64, last: u64| {
        let (upto, stop) = (upto.clone(), stop.clone());
        move |position: &ResumeToken| {
            let n = number(position);
            if n >= deaf_from || n == last {
                stop.drain.cancel();
            }
            if n < deaf_from {
                upto.fetch_max(n, Relaxed);
            }
            n < deaf_from
        }
    };
    let confirmed = Arc::new(heard(&outbox, &stop, 3, u64::MAX));
    let source = FakeSource { confirmed: Some(confirmed), ..FakeSource::default() };
    source.batches.lock().extend((1..=3).map(batch));
    // The outage that ends the first run is waited out by nobody: it is told to stop.
    let _ = tailer(dir.path(), open(dir.path()), source).run(&stop).await;
    let left = after_a_crash(dir.path());
    assert_eq!(outbox.load(Relaxed), 2, "row 3 is kept");

    let (stop, told) = (Stop::default(), Arc::new(Mutex::new(Vec::new())));
    let confirmed = {
        let (inner, told) = (heard(&outbox, &stop, u64::MAX, 5), told.clone());
        move |position: &ResumeToken| {
            told.lock().push(number(position));
            inner(position)
        }
    };
    let source = FakeSource { confirmed: Some(Arc::new(confirmed)), ..FakeSource::default() };
    source.batches.lock().extend((3..=5).map(batch));
    tailer(left.path(), open(left.path()), source).run(&stop).await.unwrap();

    assert_eq!(*told.lock(), [3, 3, 4, 5], "first what the queue had, before anything is read");
    assert_eq!(held(left.path()), (5, 5));
}

#[tokio::test]
async fn a_position_is_taken_with_the_note_that_everything_is_to_be_copied_or_compared() {
    let dir = TempDir::new().unwrap();
    let queue = open(dir.path());
    let source = FakeSource::default();
    source.batches.lock().extend([batch(7), batch(9)]);
    let tailer = tailer(dir.path(), queue.clone(), source);
    let owed = || SyncState::open(&queue).unwrap().unwrap();
    for (position, reason) in [(7, Reason::FirstCopy), (9, Reason::HistoryLost)] {
        tailer.take_position().await.unwrap();

        let checkpoint = queue.checkpoint().unwrap().unwrap();
        assert_eq!((number(&checkpoint.token), owed().reason), (position, reason));
        assert_eq!(owed().after(), ClusterTime(position - 1), "no older read will do");
        tokio::time::timeout(PATIENCE, tailer.compare.notified()).await.expect("it is told of");
    }
    assert_eq!(queue.pending().0, 2, "what came with them is not lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_positions_of_one_kind_refuses_a_source_of_another() {
    let dir = TempDir::new().unwrap();
    let queue = open(dir.path());
    let checkpoint = Checkpoint {
        token: ResumeToken(rawdoc! { "_data": "82" }),
        kind: PositionKind::CLUSTER_TIME,
        anchor: ClusterTime(1),
        cluster_time: ClusterTime(1),
        source_id: "rs".to_owned(),
        pipeline: "p".to_owned(),
    };
    queue.commit(Vec::new(), Some(&checkpoint)).unwrap();
    let source = FakeSource::default();
    source.batches.lock().push_back(batch(2));

    let ended = tailer(dir.path(), queue.clone(), source).run(&Stop::default()).await;

    let error = ended.unwrap_err();
    assert!(matches!(error, TailerError::OtherKind(_)), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("`cluster time`") && said.contains("`number of a batch`"), "{said}");
    assert_eq!(queue.checkpoint().unwrap(), Some(checkpoint), "and is left as it was");
    assert_eq!(queue.pending().0, 0);
}
