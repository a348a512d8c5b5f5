//! An outbox as the source: what transactions have committed is in MongoDB, in order for each key, whatever happens in
//! between. The model is the application's own table, which each transaction changes together with its row.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mongodb::bson::{Bson, Document, doc};
use outrigger::{
    config::{self, Config},
    gate::{Gate, reading::Reading, writing::Writing},
    observe::status::Status,
    policy::{backoff::RetrySchedule, limiter::Limiter, read_watermark::ReadWatermark},
    queue::{Queue, QueueOptions},
    runtime::shutdown::Stop,
    sink::AtlasSink,
    source::outbox::OutboxSource,
    tailer::{IMPASSE_PATIENCE, Identity, QueueLimits, Tailer},
    worker::{Shared, Worker, WorkerOptions},
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::support::{PATIENCE, eventually, mongod::Mongod, postgres::Postgres};

const ROUTES: &str = r#"
[[route]]
event = "todo.*"
collection = "app.todos"
key = "entity_id"
op = "replace"
[[route]]
event = "todo.changed"
collection = "app.todos"
key = "entity_id"
op = "merge"
[[route]]
event = "todo.deleted"
collection = "app.todos"
key = "entity_id"
op = "delete"
"#;

/// Both databases, with the tables in the one, and a folder for queues.
struct World {
    postgres: Postgres,
    mongod: Mongod,
    dir: TempDir,
}

impl World {
    async fn start() -> Self {
        let (postgres, mongod) = tokio::join!(Postgres::start(), Mongod::start());
        let world = Self { postgres, mongod, dir: TempDir::new().unwrap() };
        let file = world.dir.path().join("config.toml");
        std::fs::write(&file, world.text("")).unwrap();
        let printed = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .arg("--config")
            .arg(&file)
            .args(["outbox", "init"])
            .output()
            .unwrap();
        world.postgres.ask(&String::from_utf8(printed.stdout).unwrap()).await;
        world.postgres.ask("CREATE TABLE todos (id text PRIMARY KEY, doc jsonb)").await;
        world
    }

    fn text(&self, more: &str) -> String {
        format!(
            "[source]\nkind = \"outbox\"\n[outbox]\nbatch_size = 100\npoll = \"100ms\"\n{more}\n\
             [atlas]\nuri = \"{}\"\nallow_insecure = true\n{ROUTES}",
            self.mongod.uri()
        )
    }

    fn config(&self, more: &str) -> Config {
        let uri = self.postgres.uri();
        let env = |name: &str| (name == "OUTBOX_URI").then(|| uri.clone());
        config::parse(&self.text(more), Path::new("config.toml"), env).unwrap()
    }

    fn queue(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn write(&self, event: &str, id: &str, payload: &str) {
        let sql = format!(
            "INSERT INTO outbox (event_type, entity_id, payload) VALUES ('{event}', '{id}', '{payload}')"
        );
        self.postgres.ask(&sql).await;
    }

    async fn todos(&self) -> BTreeMap<String, Document> {
        let mut all = BTreeMap::new();
        let todos = self.mongod.client.database("app").collection::<Document>("todos");
        let mut cursor = todos.find(doc! {}).await.unwrap();
        while cursor.advance().await.unwrap() {
            let mut document = cursor.deserialize_current().unwrap();
            let id = document.remove("_id").unwrap().as_str().unwrap().to_owned();
            all.insert(id, document);
        }
        all
    }

    /// What the application's table holds.
    async fn model(&self) -> BTreeMap<String, Document> {
        let rows = self.postgres.ask("SELECT id, doc::text FROM todos WHERE doc IS NOT NULL").await;
        let pairs = rows.iter().map(|row| {
            let (id, text) = row.split_once('|').unwrap();
            let json: serde_json::Value = serde_json::from_str(text).unwrap();
            let Bson::Document(document) = Bson::try_from(json).unwrap() else { panic!("{text}") };
            (id.to_owned(), document)
        });
        pairs.collect()
    }

    /// Waits until the copy is what the model is.
    async fn equal(&self) {
        eventually("the copy is the model", PATIENCE, async || {
            let waiting =
                self.postgres.ask("SELECT count(*) FROM outbox WHERE processed_at IS NULL");
            waiting.await == ["0"] && sorted(self.todos().await) == sorted(self.model().await)
        })
        .await;
    }
}

/// The order of fields is none of JSON's.
fn sorted(documents: BTreeMap<String, Document>) -> BTreeMap<String, BTreeMap<String, Bson>> {
    documents.into_iter().map(|(id, document)| (id, document.into_iter().collect())).collect()
}

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
            watermark: Arc::new(parking_lot::Mutex::new(ReadWatermark::new(
                outrigger::model::checkpoint::ClusterTime(0),
                1_000,
            ))),
            in_doubt: Arc::default(),
            watch: Arc::clone(&watch),
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

/// A transaction of the application: the entity and its row, after the entity's lock; perhaps long, perhaps in vain.
async fn transaction(client: &mut Client, n: u64) -> Result<(), tokio_postgres::Error> {
    let ids: Vec<String> =
        (0..fastrand::usize(1..3)).map(|_| fastrand::u8(0..12).to_string()).collect();
    let mut ids = ids;
    ids.sort();
    ids.dedup();
    let transaction = client.transaction().await?;
    for id in &ids {
        let kind = fastrand::u8(0..10);
        let (event, payload, change) = match kind {
            0..=1 => ("todo.deleted", None, "NULL".to_owned()),
            2..=5 => {
                let payload =
                    format!(r#"{{"n": {n}, "title": "t{n}", "tags": ["a", null, {{"x": 1.5}}]}}"#);
                ("todo.saved", Some(payload.clone()), format!("'{payload}'::jsonb"))
            }
            _ => {
                let payload = format!(r#"{{"f{}": {n}, "n": {n}}}"#, fastrand::u8(0..4));
                (
                    "todo.changed",
                    Some(payload.clone()),
                    format!("coalesce(todos.doc, '{{}}') || '{payload}'::jsonb"),
                )
            }
        };
        let sql = format!(
            "INSERT INTO todos (id, doc) VALUES ('{id}', {}) ON CONFLICT (id) DO UPDATE SET doc = {change}",
            payload.as_ref().map_or("NULL".to_owned(), |payload| format!("'{payload}'::jsonb"))
        );
        transaction.batch_execute(&sql).await?;
        let payload = payload.map_or("NULL".to_owned(), |payload| format!("'{payload}'"));
        let sql = format!(
            "INSERT INTO outbox (event_type, entity_id, payload) VALUES ('{event}', '{id}', {payload})"
        );
        transaction.batch_execute(&sql).await?;
        if fastrand::u8(0..8) == 0 {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..60))).await;
        }
    }
    if fastrand::u8(0..6) == 0 { transaction.rollback().await } else { transaction.commit().await }
}

async fn work(world: &World, writers: u64, transactions: u64) -> JoinSet<()> {
    let mut writing = JoinSet::new();
    for writer in 0..writers {
        let mut client = world.postgres.client().await;
        writing.spawn(async move {
            for n in 0..transactions {
                transaction(&mut client, writer * transactions + n).await.unwrap();
            }
        });
    }
    writing
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
    reader.queue.retry_dead_letter(letter.id).unwrap();

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

/// The program, as it is run.
struct Program {
    child: std::process::Child,
}

impl Program {
    fn command(world: &World, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command
            .arg("--config")
            .arg(world.dir.path().join("config.toml"))
            .args(args)
            .current_dir(world.dir.path())
            .env("OUTBOX_URI", world.postgres.uri());
        command
    }

    fn start(world: &World) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(world.dir.path().join("log"))
            .unwrap();
        let child = Self::command(world, &["run"]).stderr(log).spawn().unwrap();
        Self { child }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

fn configure(world: &World, more: &str) {
    let port = crate::support::free_port();
    let text = format!(
        "{}{more}\n[admin]\nlisten = \"127.0.0.1:{port}\"\n[breaker]\nopen_for_max = \"1s\"\n",
        world.text("")
    );
    std::fs::write(world.dir.path().join("config.toml"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_agent_and_of_both_databases_lose_nothing_and_put_nothing_in_another_order() {
    let mut world = World::start().await;
    configure(&world, "");
    let mut program = Program::start(&world);
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writing = JoinSet::new();
    for writer in 0..4_u64 {
        let (is_over, uri) = (is_over.clone(), world.postgres.uri());
        writing.spawn(async move {
            let mut n = writer << 32;
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                let connected = tokio_postgres::connect(&uri, tokio_postgres::NoTls).await;
                let Ok((mut client, connection)) = connected else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                tokio::spawn(connection);
                // What a commit without an answer has come to is in the model as well.
                while !is_over.load(std::sync::atomic::Ordering::Relaxed)
                    && transaction(&mut client, n).await.is_ok()
                {
                    n += 1;
                }
            }
        });
    }
    let processed = "SELECT count(*) FROM outbox WHERE processed_at IS NOT NULL";
    let count =
        async |world: &World| world.postgres.ask(processed).await[0].parse::<u64>().unwrap();
    for round in 0..5 {
        let before = count(&world).await;
        eventually("it reads", PATIENCE, async || count(&world).await > before + 20).await;
        match round {
            1 => {
                world.postgres.kill();
                world.postgres.resume().await;
            }
            3 => {
                world.mongod.kill();
                tokio::time::sleep(Duration::from_millis(500)).await;
                world.mongod.resume().await;
            }
            _ => {
                program.kill();
                program = Program::start(&world);
            }
        }
    }
    is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    while writing.join_next().await.is_some() {}

    world.equal().await;
    program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_copied_at_first_and_compared_and_mended_when_somebody_asks() {
    let world = World::start().await;
    let ask = async |sql: &str| world.postgres.ask(sql).await;
    ask("CREATE TABLE items (id int PRIMARY KEY, title text, price numeric, at timestamptz)").await;
    ask("INSERT INTO items SELECT n, 'item ' || n, n / 4.0, '2026-01-31T10:00:00.5Z' FROM generate_series(1, 3000) n").await;
    configure(
        &world,
        "[[table]]\nname = \"items\"\nkey = \"id\"\ncollection = \"app.items\"\ndates = [\"at\"]\ndecimals = [\"price\"]\n",
    );
    let mut program = Program::start(&world);
    let items = world.mongod.client.database("app").collection::<Document>("items");
    eventually("all are copied", PATIENCE, async || {
        items.count_documents(doc! {}).await.unwrap() == 3_000
    })
    .await;
    let one = items.find_one(doc! { "_id": 7 }).await.unwrap().unwrap();
    assert_eq!(one.get("price"), Some(&Bson::Decimal128("1.7500000000000000".parse().unwrap())));
    assert_eq!(one.get_datetime("at").unwrap().timestamp_millis() % 1_000, 500);
    let run = |args: &[&str]| {
        let output = Program::command(&world, args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    };
    eventually("the sides are equal", PATIENCE, async || run(&["verify"]).0 == 0).await;

    // The order of fields is none of theirs.
    items.delete_one(doc! { "_id": 5 }).await.unwrap();
    items.update_one(doc! { "_id": 6 }, doc! { "$set": { "title": "other" } }).await.unwrap();
    items.insert_one(doc! { "_id": 9_000, "title": "nobody's" }).await.unwrap();
    let first = items.find_one(doc! { "_id": 8 }).await.unwrap().unwrap();
    let mut turned = doc! { "_id": 8 };
    turned.extend(
        first.into_iter().filter(|(name, _)| name != "_id").collect::<Vec<_>>().into_iter().rev(),
    );
    items.replace_one(doc! { "_id": 8 }, turned).await.unwrap();
    let (code, told) = run(&["verify", "--json"]);
    assert_eq!(code, 1, "{told}");
    let (code, told) = run(&["sync", "--wait"]);
    assert_eq!(code, 0, "{told}");

    assert_eq!(run(&["verify"]).0, 0);
    assert!(items.find_one(doc! { "_id": 9_000 }).await.unwrap().is_none());
    program.kill();
}
