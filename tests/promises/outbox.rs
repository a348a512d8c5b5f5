//! An outbox as the source: what transactions have committed is in MongoDB, in order for each key, whatever happens in
//! between.

use std::{path::Path, sync::Arc, time::Duration};

use mongodb::bson::doc;
use outrigger::{
    config::Config,
    gate::{Gate, reading::Reading, writing::Writing},
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        event::{Change, ChangeEvent},
        write_op::WriteOp,
    },
    observe::status::Status,
    policy::{backoff::RetrySchedule, limiter::Limiter, read_watermark::ReadWatermark},
    queue::{Queue, QueueOptions},
    runtime::shutdown::Stop,
    sink::AtlasSink,
    source::{
        EventStream, Pages, Source, StartFrom,
        outbox::{OutboxSource, Stretch},
    },
    tailer::{IMPASSE_PATIENCE, Identity, QueueLimits, Tailer},
    worker::{Shared, Worker, WorkerOptions},
};
use tokio::task::JoinSet;

use crate::support::{
    PATIENCE, eventually,
    outbox::{World, work},
};

/// The tasks of an agent that reads an outbox.
struct Reader {
    tasks: JoinSet<()>,
    queue: Arc<Queue>,
}

impl Reader {
    async fn start(config: &Config, path: &Path) -> Self {
        let queue = Arc::new(Queue::open(&QueueOptions::new(path)).unwrap());
        let source = Arc::new(OutboxSource::new(config).unwrap());
        let atlas = outrigger::agent::connect_atlas(config).await.unwrap();
        let sink = Arc::new(AtlasSink::new(atlas, Limiter::new(0, 0), None));
        let (status, reading): (Arc<Status>, Arc<Reading>) = Default::default();
        let watch = Arc::default();
        let shared = Shared {
            queue: queue.clone(),
            status: status.clone(),
            reading: reading.clone(),
            writing: Arc::new(Writing::default()),
            watermark: Arc::new(parking_lot::Mutex::new(ReadWatermark::new(ClusterTime(0), 1_000))),
            in_doubt: Arc::default(),
            watch: Arc::clone(&watch),
            filter: config.filter().unwrap(),
        };
        let options = WorkerOptions {
            batch_size: 1_000,
            interval: Duration::ZERO,
            retries: RetrySchedule::new(vec![Duration::from_millis(100)], 1),
            update_mode: config.worker.update_mode,
            atlas_timeout: Duration::from_secs(30),
        };
        let tailer = Tailer {
            queue: queue.clone(),
            source: source.clone(),
            status,
            reading,
            filter: config.filter().unwrap(),
            limits: QueueLimits { max_bytes: 1 << 30, max_documents: 1_000_000, min_free_disk: 0 },
            identity: Identity { source_id: "outbox".to_owned(), pipeline: "1".to_owned() },
            disk: path.to_owned(),
            compare: Arc::default(),
            gate: Arc::new(Gate::default()),
            tells_of_schema: true,
            watch,
            impasse_patience: IMPASSE_PATIENCE,
        };
        let worker = Arc::new(Worker::new(source, sink, shared, options));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while tailer.queue.checkpoint().unwrap().is_none() {
                if tailer.take_position().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            tailer.run(&Stop::default()).await.unwrap();
        });
        for _ in 0..2 {
            let worker = worker.clone();
            tasks.spawn(async move { worker.run(&Stop::default()).await.unwrap() });
        }
        Self { tasks, queue }
    }

    /// Ends it in the middle of whatever it does.
    async fn stop(mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let queue = Arc::downgrade(&self.queue);
        drop(self.queue);
        eventually("nobody has the queue", PATIENCE, async || queue.strong_count() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_read_in_order_whatever_commits_late() {
    let world = World::start().await;

    // Once told of rows and once not, as of CockroachDB.
    for listen in ["", "listen = false"] {
        let config = world.config(listen);
        let mut reader = Reader::start(&config, &world.queue("q")).await;
        let mut writing = work(&world, 6, 60).await;
        while !writing.is_empty() {
            let _ = tokio::time::timeout(Duration::from_millis(300), writing.join_next()).await;
            reader.stop().await;
            reader = Reader::start(&config, &world.queue("q")).await;
        }
        world.equal().await;
        assert_eq!(reader.queue.dead_letters_len(), 0);
        reader.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_lost_is_made_anew_from_the_rows_that_are_left_and_nothing_goes_back_in_time()
 {
    let world = World::start().await;
    let config = world.config("");
    let reader = Reader::start(&config, &world.queue("a")).await;
    let mut writing = work(&world, 4, 30).await;
    while writing.join_next().await.is_some() {}
    world.equal().await;
    reader.stop().await;
    // As if nothing of it had got through.
    world.mongod.client.database("app").drop().await.unwrap();
    world.postgres.ask("UPDATE outrigger_outbox SET expires_at = now()").await;

    let reader = Reader::start(&config, &world.queue("b")).await;

    world.equal().await;
    reader.stop().await;
    // The first one comes back with the queue that it had.
    world.write("todo.saved", "x", "{\"n\": 1}").await;
    world.postgres.ask("INSERT INTO todos VALUES ('x', '{\"n\": 1}')").await;
    world.postgres.ask("UPDATE outrigger_outbox SET expires_at = now()").await;
    let reader = Reader::start(&config, &world.queue("a")).await;
    world.equal().await;
    reader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_agents_one_reads_and_the_other_when_the_lease_has_run_out() {
    let world = World::start().await;
    let config = world.config("");
    let first = Reader::start(&config, &world.queue("a")).await;
    world.postgres.ask("INSERT INTO todos VALUES ('1', '{\"n\": 2}')").await;
    world.write("todo.saved", "1", "{\"n\": 1}").await;
    world.write("todo.changed", "1", "{\"n\": 2}").await;
    world.equal().await;

    let second = Reader::start(&config, &world.queue("b")).await;
    world.write("todo.changed", "1", "{\"n\": 3}").await;
    world.postgres.ask("UPDATE todos SET doc = '{\"n\": 3}'").await;
    world.equal().await;
    assert!(second.queue.checkpoint().unwrap().is_none());
    // It is taken over, and what the first one has read meanwhile is not marked by it.
    world.postgres.ask("UPDATE outrigger_outbox SET expires_at = now()").await;
    eventually("the second reads", PATIENCE, async || second.queue.checkpoint().unwrap().is_some())
        .await;
    world.write("todo.changed", "1", "{\"n\": 4}").await;
    world.postgres.ask("UPDATE todos SET doc = '{\"n\": 4}'").await;
    world.equal().await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_makes_no_sense_is_a_dead_letter_and_comes_again_with_what_is_newer() {
    let world = World::start().await;
    let config = world.config("");
    let reader = Reader::start(&config, &world.queue("q")).await;
    world.postgres.ask("INSERT INTO todos VALUES ('1', '{\"n\": 1}')").await;
    world.write("todo.saved", "2", "[1]").await;
    world.write("todo.changed", "2", "{\"a\": 1}").await;
    world.write("list.saved", "3", "{}").await;
    world.write("todo.saved", "1", "{\"n\": 1}").await;
    eventually("the others flow", PATIENCE, async || world.todos().await.len() == 2).await;
    eventually("two letters", PATIENCE, async || reader.queue.dead_letters_len() == 2).await;
    let told = "SELECT id, retry_count, last_error FROM outbox WHERE last_error IS NOT NULL AND processed_at IS NOT NULL ORDER BY id";
    eventually("they are told of", PATIENCE, async || world.postgres.ask(told).await.len() == 2)
        .await;
    assert_eq!(
        world.postgres.ask(told).await,
        ["1|1|the payload is no object", "3|1|no route is for events of the type `list.saved`"]
    );

    // Somebody mends the row.
    world.postgres.ask("UPDATE outbox SET payload = '{\"a\": 0, \"b\": 0}' WHERE id = 1").await;
    let letters = reader.queue.dead_letters(10).unwrap();
    let letter = letters.iter().find(|letter| letter.document_id == "1").unwrap();
    reader.queue.retry_dead_letter(letter.id, &|_| true).unwrap();

    eventually("it is what the rows say in their order", PATIENCE, async || {
        world.todos().await["2"] == doc! { "a": 1, "b": 0 }
    })
    .await;
    assert_eq!(reader.queue.dead_letters_len(), 1);
    assert_eq!(world.postgres.ask(told).await.len(), 1);
    reader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processed_rows_go_after_their_time_in_their_order() {
    let world = World::start().await;
    let config = world.config("retention = \"1h\"");
    let reader = Reader::start(&config, &world.queue("q")).await;
    for n in 1..=5 {
        world.write("todo.saved", "1", &format!("{{\"n\": {n}}}")).await;
    }
    let waiting = "SELECT count(*) FROM outbox WHERE processed_at IS NULL";
    eventually("all are read", PATIENCE, async || world.postgres.ask(waiting).await == ["0"]).await;

    // A clock has gone back between the third and the fourth.
    world
        .postgres
        .ask("UPDATE outbox SET processed_at = now() - interval '2 hours' WHERE id <> 3")
        .await;

    let left = "SELECT id FROM outbox ORDER BY id";
    eventually("the oldest are gone", PATIENCE, async || {
        world.postgres.ask(left).await == ["3", "4", "5"]
    })
    .await;
    reader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_bounded_by_the_bytes_of_its_rows_and_one_that_is_larger_still_comes() {
    let world = World::start().await;
    world.postgres.ask("ALTER TABLE outbox ALTER payload SET STORAGE EXTERNAL").await;
    // Of a megabyte each; then one of twelve, and one behind it.
    let fill = async |key: &str, rows: u32, bytes: u32| {
        let sql = format!(
            "INSERT INTO outbox (event_type, entity_id, payload) SELECT 'todo.saved', {key}, \
             jsonb_build_object('text', repeat('x', {bytes})) FROM generate_series(1, {rows}) n"
        );
        world.postgres.ask(&sql).await;
    };
    fill("n::text", 30, 1 << 20).await;
    fill("'large'", 1, 12 << 20).await;
    world.write("todo.saved", "behind", "{}").await;
    let source = OutboxSource::new(&world.config("")).unwrap();
    let mut stream = source.open(&StartFrom::Now).await.unwrap();

    let (mut rows, mut batches) = (0, Vec::new());
    while rows < 32 {
        let batch = stream.next().await.unwrap();
        let bytes: usize = batch.events.iter().map(bytes_of).sum();
        let largest = batch.events.iter().map(bytes_of).max().unwrap_or_default();
        // The one that goes over the bound is the last.
        assert!(
            bytes < (8 << 20) + largest + 100_000,
            "{} rows of {bytes} bytes",
            batch.events.len()
        );
        rows += batch.events.len();
        batches.push(batch.events.len());
        stream.confirm(&batch.token).await.unwrap();
    }
    assert_eq!(rows, 32);
    assert!(batches.len() >= 5, "a hundred rows would fit by their number: {batches:?}");
    assert_eq!(
        world.postgres.ask("SELECT count(*) FROM outbox WHERE processed_at IS NULL").await,
        ["0"]
    );
}

fn bytes_of(event: &ChangeEvent) -> usize {
    match &event.change {
        Change::Document { op: WriteOp::Replace(document), .. } => document.as_bytes().len(),
        change => panic!("{change:?}"),
    }
}

/// What `flush` waits for: a position before it has not read everything.
#[tokio::test(flavor = "multi_thread")]
async fn everything_is_read_when_all_that_is_to_be_renewed_is_and_not_before() {
    let world = World::start().await;
    let fill = "INSERT INTO outbox (event_type, entity_id, payload) SELECT 'todo.saved', n::text, '{}' FROM generate_series(1, 250) n";
    world.postgres.ask(fill).await;
    let config = world.config("");
    let first = OutboxSource::new(&config).unwrap();
    let mut stream = first.open(&StartFrom::Now).await.unwrap();
    for _ in 0..3 {
        let batch = stream.next().await.unwrap();
        stream.confirm(&batch.token).await.unwrap();
    }
    assert_eq!(
        world.postgres.ask("SELECT count(*) FROM outbox WHERE processed_at IS NULL").await,
        ["0"]
    );
    drop((stream, first));
    world.postgres.ask("UPDATE outrigger_outbox SET expires_at = now()").await;
    world.write("todo.saved", "new", "{}").await;

    // Another queue, which has nothing of it.
    let second = OutboxSource::new(&config).unwrap();
    let mut stream = second.open(&StartFrom::Now).await.unwrap();
    let (mut read, mut asked) = (0, 0);
    while read < 251 {
        let wanted = second.all_read_at().await.unwrap();
        let batch = stream.next().await.unwrap();
        read += batch.events.len();
        asked += 1;
        assert_eq!(
            batch.whole >= wanted,
            read == 251,
            "{read} rows: {wanted:?} and {:?}",
            batch.whole
        );
        stream.confirm(&batch.token).await.unwrap();
    }
    assert!(asked > 3, "it takes several batches");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_table_is_bounded_by_the_bytes_of_its_rows_and_one_that_is_larger_still_comes()
{
    let world = World::start().await;
    world.postgres.ask("CREATE TABLE wide (id int PRIMARY KEY, text text)").await;
    // Of a megabyte each but every fifth, which is small; one of nine.
    let fill = "INSERT INTO wide SELECT n, repeat('x', CASE WHEN n = 7 THEN 9 WHEN n % 5 = 0 THEN 0 ELSE 1 END << 20) \
                FROM generate_series(1, 20) n";
    world.postgres.ask(fill).await;
    let rule = "\n[[table]]\nname = \"wide\"\nkey = \"id\"\ncollection = \"app.wide\"\n";
    let source = OutboxSource::new(&world.config(rule)).unwrap();
    let ns = "app.wide".parse().unwrap();

    let (rows, each) = source.measure(&ns).await.unwrap();
    assert!(rows == 20 && (1 << 20..2 << 20).contains(&each), "{rows} rows of {each} bytes");
    let (mut behind, mut all, mut is_over): (Option<DocumentKey>, Vec<i32>, bool) =
        Default::default();
    while !is_over {
        let stretch = Stretch { behind: behind.as_ref(), limit: 100, ..Stretch::default() };
        let walked = source.walk(&ns, stretch).await.unwrap();
        let sizes = walked.documents.iter().map(|document| document.as_bytes().len());
        let (bytes, largest) = (sizes.clone().sum::<usize>(), sizes.max().unwrap_or_default());
        assert!(bytes <= (4 << 20) + largest, "{} rows of {bytes} bytes", walked.documents.len());
        all.extend(walked.documents.iter().map(|document| document.get_i32("_id").unwrap()));
        behind = walked.documents.last().map(|document| DocumentKey::of(document).unwrap());
        is_over = walked.is_end;
    }
    assert_eq!(all, (1..=20).collect::<Vec<_>>());

    // And so are those that are found by their keys.
    world.postgres.ask("TRUNCATE wide").await;
    let fill = "INSERT INTO wide SELECT n, repeat('x', 100000) FROM generate_series(1, 300) n";
    world.postgres.ask(fill).await;
    let keys: Vec<_> =
        (0..400).map(|n| DocumentKey::from_json(serde_json::json!(n)).unwrap()).collect();
    let keys: Vec<_> = keys.iter().collect();
    let mut pages = source.read(&ns, &keys, ClusterTime(0)).await.unwrap();
    let mut all = Vec::new();
    while let Some(page) = pages.next().await.unwrap() {
        let bytes: usize = page.documents.iter().map(|document| document.as_bytes().len()).sum();
        assert!(bytes < 11 << 20, "{bytes} bytes in {} documents", page.documents.len());
        all.extend(page.documents.iter().map(|document| document.get_i32("_id").unwrap()));
    }
    all.sort_unstable();
    assert_eq!(all, (1..=300).collect::<Vec<_>>());
}
