//! From an outbox into MongoDB: rows that wait, beside a loop by hand of the same statements; and what the application's own
//! transactions take with an agent that reads and without one.

use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use tokio_postgres::Client;

use crate::{
    bed::await_until,
    process::{Meter, Process},
    report::{Notebook, Target},
    settings::Settings,
    support::{agent::Agent, mongod::Mongod, postgres::Postgres},
};

const RATIO: &str = "rows / by hand";
const RATE: &str = "rows read and written";
const LATENCY: &str = "an insert, with the agent / without";

/// Rows of a turn by hand, as in one of the agent's.
const BATCH: i64 = 1_000;

const ROUTES: &str = "[[route]]\nevent = \"todo.*\"\ncollection = \"app.todos\"\n\
                      key = \"entity_id\"\nop = \"replace\"\n";

pub async fn rows(settings: Settings, book: Notebook) {
    let rows = settings.scaled(100_000);
    book.mark(RATE, Target::AtLeast(10_000.0));
    book.mark(RATIO, Target::AtLeast(0.7));
    book.mark(LATENCY, Target::AtMost(1.5));
    for _ in 0..settings.runs {
        let (source, target) = tokio::join!(Postgres::start(), Mongod::start());
        let mut agent = Agent::from_outbox(&source, &target.uri(), ROUTES).await;
        let mut client = source.client().await;

        fill(&source, rows).await;
        let started = Instant::now();
        by_hand(&mut client, &target).await;
        let by_hand = rows as f64 / started.elapsed().as_secs_f64();
        book.add("by hand", "rows/s", by_hand);
        source.ask("TRUNCATE outbox").await;
        target.client.database("app").drop().await.unwrap();
        let without = latency(&client).await;
        book.add("an insert without an agent", "µs", without);
        source.ask("TRUNCATE outbox").await;

        fill(&source, rows).await;
        let meter = Meter::start(&[]);
        agent.start(&[]);
        meter.born(Process { name: "agent", pid: agent.id() });
        let todos = target.client.database("app").collection::<Document>("todos");
        let waiting = "SELECT count(*) FROM outbox WHERE processed_at IS NULL";
        await_until("the last row", Duration::from_millis(50), async || {
            todos.estimated_document_count().await.unwrap() == rows
                && source.ask(waiting).await == ["0"]
        })
        .await;
        let usage = meter.stop();
        book.costs("rows", &usage);
        let rate = rows as f64 / usage.elapsed.as_secs_f64();
        book.add(RATE, "rows/s", rate);
        book.add("agent CPU", "µs/row", usage.cpu("agent") * 1e6 / rows as f64);
        book.add(RATIO, "ratio", rate / by_hand);
        let with = latency(&client).await;
        book.add("an insert with an agent", "µs", with);
        book.add(LATENCY, "ratio", with / without);
        assert!(agent.stop().success());
    }
}

/// Rows that wait, each of an entity of its own.
async fn fill(source: &Postgres, rows: u64) {
    let sql = format!(
        "INSERT INTO outbox (event_type, entity_id, payload) SELECT 'todo.saved', n::text, \
         jsonb_build_object('id', n, 'title', 'todo ' || n, 'tags', jsonb_build_array('a', 'b'), 'text', repeat('x', 150)) \
         FROM generate_series(1, {rows}) n"
    );
    source.ask(&sql).await;
    source.ask("ANALYZE outbox").await;
}

/// As a program of a person's own would do it: a batch is read, written and marked, one after the other.
async fn by_hand(client: &mut Client, target: &Mongod) {
    let read = "SELECT id, entity_id, payload::text FROM outbox WHERE processed_at IS NULL ORDER BY id LIMIT $1";
    let mark = "UPDATE outbox SET processed_at = now() WHERE id = ANY($1)";
    let (read, mark) = (client.prepare(read).await.unwrap(), client.prepare(mark).await.unwrap());
    loop {
        let rows = client.query(&read, &[&BATCH]).await.unwrap();
        if rows.is_empty() {
            return;
        }
        let updates: Vec<Document> = rows
            .iter()
            .map(|row| {
                let (key, payload): (String, String) = (row.get(1), row.get(2));
                let payload: serde_json::Value = serde_json::from_str(&payload).unwrap();
                let mut document = doc! { "_id": key.as_str() };
                let Bson::Document(fields) = Bson::try_from(payload).unwrap() else { panic!() };
                document.extend(fields);
                doc! { "q": { "_id": key }, "u": document, "upsert": true }
            })
            .collect();
        let command = doc! {
            "update": "todos", "updates": updates, "ordered": false, "writeConcern": { "w": "majority" },
        };
        target.client.database("app").run_command(command).await.unwrap();
        let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        client.execute(&mark, &[&ids]).await.unwrap();
    }
}

/// Microseconds of the application's insert, its median.
async fn latency(client: &Client) -> f64 {
    let sql = "INSERT INTO outbox (event_type, entity_id, payload) VALUES ('todo.saved', $1, '{\"a\": 1}')";
    let insert = client.prepare(sql).await.unwrap();
    let mut took = Vec::new();
    for n in 0..2_000 {
        let started = Instant::now();
        client.execute(&insert, &[&format!("later {n}")]).await.unwrap();
        took.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    took.sort();
    took[took.len() / 2].as_secs_f64() * 1e6
}
