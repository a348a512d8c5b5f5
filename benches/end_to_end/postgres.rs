//! Into PostgreSQL: the first copy beside `COPY` by hand, updates beside `INSERT … ON CONFLICT DO UPDATE` by hand, of the
//! same rows into tables of the same definition, over one connection and over two.
//!
//! By hand PostgreSQL has the machine to itself; beside the agent it shares it with the MongoDB that is read from. So it is
//! also told what PostgreSQL itself takes for a row, which is of the statements alone.

use std::{pin::pin, time::Duration};

use bson::doc;
use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::Client;

use crate::{
    bed::{Bed, Variant, await_until, streaming},
    data::{self, ORDERS, USUAL},
    process::{Meter, Process, Usage},
    report::{Notebook, Target},
    settings::Settings,
    support::{agent::Agent, api::Api, postgres::Postgres},
};

const COPY: &str = "first copy / COPY by hand";
const UPDATES: &str = "updates / upserts by hand";
const WRITES: &str = "writing what waited / upserts by hand";
const CPU: &str = "first copy, agent CPU";
const COPY_COST: &str = "PostgreSQL's CPU for a row, COPY by hand / first copy";
const UPDATE_COST: &str = "PostgreSQL's CPU for a row, upserts by hand / updates";

/// Rows in a statement by hand, as in one of the agent's.
const BATCH: usize = 500;

/// Columns of a table of the agent's with the two that are declared.
const COLUMNS: &str = "_id, id, doc, hash, shape, raw, source_time, number, city";

pub async fn writes(settings: Settings, book: Notebook) {
    let documents = settings.scaled(500_000);
    book.mark(COPY, Target::AtLeast(0.7));
    book.mark(UPDATES, Target::AtLeast(0.7));
    book.mark(WRITES, Target::AtLeast(0.7));
    book.mark(CPU, Target::AtMost(25.0));
    book.mark(COPY_COST, Target::AtLeast(0.7));
    book.mark(UPDATE_COST, Target::AtLeast(0.7));
    // It comes a minute later than what it cleans up, and what was written by hand would be counted as the agent's.
    let (bed, target) = tokio::join!(Bed::start(), Postgres::start_with(&["autovacuum=off"]));
    bed.reset().await;
    data::insert(&bed.local.client, ORDERS, 0..documents, USUAL).await;
    for round in 0..settings.runs {
        target
            .ask("DROP SCHEMA IF EXISTS shop CASCADE; DROP SCHEMA IF EXISTS outrigger CASCADE")
            .await;
        let mut agent = agent(&bed, &target);
        target.ask("CHECKPOINT").await;
        let meter = start(&bed, &target, &mut agent);
        let took = end_of_copy(&agent).await;
        let usage = meter.stop();
        book.costs("first copy", &usage);
        streaming(&agent).await;
        assert_eq!(target.ask("SELECT count(*) FROM shop.orders").await, [documents.to_string()]);
        let copied = documents as f64 / took.as_secs_f64();
        book.add("first copy", "documents/s", copied);
        book.add(CPU, "µs/document", usage.cpu("agent") * 1e6 / documents as f64);
        let copy_cpu = usage.cpu(POSTGRES);
        assert!(agent.stop().success());

        let (mut best, mut least) = ([0.0_f64; 2], [f64::INFINITY; 2]);
        for connections in [1, 2] {
            let found = by_hand(&target, connections).await;
            for (at, (what, usage)) in ["COPY", "upserts"].into_iter().zip(found).enumerate() {
                let rate = documents as f64 / usage.elapsed.as_secs_f64();
                book.add(&format!("{what} by hand, {connections} connections"), "rows/s", rate);
                book.costs(&format!("{what} by hand, {connections} connections"), &usage);
                best[at] = best[at].max(rate);
                least[at] = least[at].min(usage.cpu(POSTGRES));
            }
        }
        book.add(COPY, "ratio", copied / best[0]);
        book.add(COPY_COST, "ratio", least[0] / copy_cpu);

        // Every document is changed while nobody looks, and read when it is its turn.
        let set = doc! { "$set": { "number": round as i32 } };
        let orders = bed.local.client.database("shop").collection::<bson::Document>(ORDERS);
        orders.update_many(doc! {}, set).await.unwrap();
        bed.write_sentinel(round as u64).await;
        target.ask("CHECKPOINT").await;
        let meter = start(&bed, &target, &mut agent);
        let written = format!("SELECT count(*) FROM shop.sentinel WHERE doc->>'_id' = '{round}'");
        await_until("the last update", Duration::from_millis(50), async || {
            target.try_ask(&written).await.is_ok_and(|count| count != ["0"])
                && crate::bed::queue_size(&agent) == Some(0)
        })
        .await;
        let usage = meter.stop();
        book.costs("updates", &usage);
        let updated = documents as f64 / usage.elapsed.as_secs_f64();
        book.add("updates", "documents/s", updated);
        book.add("updates, agent CPU", "µs/document", usage.cpu("agent") * 1e6 / documents as f64);
        book.add(UPDATES, "ratio", updated / best[1]);
        book.add(UPDATE_COST, "ratio", least[1] / usage.cpu(POSTGRES));
        let numbers = target.ask("SELECT DISTINCT number FROM shop.orders").await;
        assert_eq!(numbers, [round.to_string()]);

        let written = what_waited(&bed, &target, &agent, documents).await;
        book.costs("writing what waited", &written);
        let rate = documents as f64 / written.elapsed.as_secs_f64();
        book.add("writing what waited", "documents/s", rate);
        book.add(WRITES, "ratio", rate / best[1]);
        assert!(agent.stop().success());
    }
}

/// Every document is changed and read into the queue while nothing is written to PostgreSQL, as in an outage: what is measured
/// is the writing that comes behind it.
async fn what_waited(bed: &Bed, target: &Postgres, agent: &Agent, documents: u64) -> Usage {
    let api = Api::of(agent);
    assert_eq!(api.with_token("POST", "/api/sync/pause").0, 200);
    let orders = bed.local.client.database("shop").collection::<bson::Document>(ORDERS);
    orders.update_many(doc! {}, doc! { "$set": { "number": -1 } }).await.unwrap();
    await_until("everything in the queue", Duration::from_millis(50), async || {
        crate::bed::queue_size(agent) == Some(documents)
    })
    .await;
    target.ask("CHECKPOINT").await;
    let meter = Meter::start(&[
        Process { name: POSTGRES, pid: target.id() },
        Process { name: "local mongod", pid: bed.local.id() },
        Process { name: "agent", pid: agent.id() },
    ]);
    assert_eq!(api.with_token("POST", "/api/sync/resume").0, 200);
    crate::bed::emptied(agent).await;
    let usage = meter.stop();
    assert_eq!(target.ask("SELECT DISTINCT number FROM shop.orders").await, ["-1"]);
    usage
}

fn agent(bed: &Bed, target: &Postgres) -> Agent {
    let agent = bed.agent("", Variant::Usual);
    let local = format!("mongodb://127.0.0.1:{}/shop?directConnection=true", bed.local.port);
    let column = |path: &str, name: &str, ty: &str| {
        format!(
            "[[column]]\ncollection = \"shop.{ORDERS}\"\npath = \"{path}\"\nname = \"{name}\"\ntype = \"{ty}\"\n"
        )
    };
    let columns = column("number", "number", "bigint") + &column("customer.city", "city", "text");
    let file = agent.dir.path().join("config.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    let config =
        config.replace("[atlas]\nallow_insecure = true\n", "[target]\nkind = \"postgres\"\n");
    let new = Agent::into_postgres(&local, &target.uri(), "");
    let config = config.replace(&agent.admin_port.to_string(), &new.admin_port.to_string());
    std::fs::write(new.dir.path().join("config.toml"), config + &columns).unwrap();
    new
}

const POSTGRES: &str = "postgres";

fn start(bed: &Bed, target: &Postgres, agent: &mut Agent) -> Meter {
    let meter = Meter::start(&[
        Process { name: POSTGRES, pid: target.id() },
        Process { name: "local mongod", pid: bed.local.id() },
    ]);
    agent.start(&[]);
    meter.born(Process { name: "agent", pid: agent.id() });
    meter
}

async fn end_of_copy(agent: &Agent) -> Duration {
    let mut took = Duration::ZERO;
    await_until("the end of the copy", Duration::from_millis(50), async || {
        assert!(agent.is_running(), "the agent has ended: {}", agent.log());
        if agent.health().is_none() {
            return false;
        }
        let sync = &Api::of(agent).get("/api/sync/full").1["sync"];
        let times = sync["startedMs"].as_u64().zip(sync["finishedMs"].as_u64());
        took = times.map_or(took, |(from, to)| Duration::from_millis(to - from));
        times.is_some()
    })
    .await;
    took
}

/// Rows of one connection's share, as a person would have them in a program.
#[derive(Default)]
struct Rows {
    keys: Vec<Vec<u8>>,
    ids: Vec<String>,
    docs: Vec<String>,
    hashes: Vec<Vec<u8>>,
    shapes: Vec<i32>,
    numbers: Vec<Option<i64>>,
    cities: Vec<Option<String>>,
}

/// What `COPY` takes, and what upserts of what is there then.
async fn by_hand(target: &Postgres, connections: usize) -> [Usage; 2] {
    target
        .ask("DROP SCHEMA IF EXISTS hand CASCADE; CREATE SCHEMA hand; CREATE TABLE hand.orders (LIKE shop.orders INCLUDING ALL)")
        .await;
    let mut clients = Vec::new();
    for at in 0..connections {
        let client = target.client().await;
        let share = format!("get_byte(hash, 0) % {connections} = {at}");
        let out = format!(
            "COPY (SELECT {COLUMNS} FROM shop.orders WHERE {share}) TO STDOUT (FORMAT binary)"
        );
        let stream = client.copy_out(&out).await.unwrap();
        let chunks: Vec<Bytes> = stream.try_collect().await.unwrap();
        let rows = rows(&client, &share).await;
        clients.push((client, chunks, rows));
    }
    let process = Process { name: POSTGRES, pid: target.id() };
    target.ask("CHECKPOINT").await;
    let meter = Meter::start(&[process]);
    futures_util::future::join_all(clients.iter().map(async |(client, chunks, _)| {
        let sink = client
            .copy_in::<_, Bytes>(&format!(
                "COPY hand.orders ({COLUMNS}) FROM STDIN (FORMAT binary)"
            ))
            .await
            .unwrap();
        let mut sink = pin!(sink);
        for chunk in chunks {
            sink.feed(chunk.clone()).await.unwrap();
        }
        sink.finish().await.unwrap();
    }))
    .await;
    let by_copy = meter.stop();
    target.ask("CHECKPOINT").await;
    let meter = Meter::start(&[process]);
    futures_util::future::join_all(
        clients.iter().map(async |(client, _, rows)| upsert(client, rows).await),
    )
    .await;
    [by_copy, meter.stop()]
}

async fn rows(client: &Client, share: &str) -> Rows {
    let sql = format!(
        "SELECT _id, id, doc::text, hash, shape, number, city FROM shop.orders WHERE {share}"
    );
    let mut rows = Rows::default();
    for row in client.query(&sql, &[]).await.unwrap() {
        rows.keys.push(row.get(0));
        rows.ids.push(row.get(1));
        rows.docs.push(row.get(2));
        rows.hashes.push(row.get(3));
        rows.shapes.push(row.get(4));
        rows.numbers.push(row.get(5));
        rows.cities.push(row.get(6));
    }
    rows
}

async fn upsert(client: &Client, rows: &Rows) {
    let sql = "INSERT INTO hand.orders (_id, id, doc, hash, shape, number, city) \
               SELECT a, b, c::jsonb, d, e, f, g FROM unnest($1::bytea[], $2::text[], $3::text[], $4::bytea[], $5::int[], \
               $6::bigint[], $7::text[]) AS t (a, b, c, d, e, f, g) ON CONFLICT (_id) DO UPDATE SET id = EXCLUDED.id, \
               doc = EXCLUDED.doc, hash = EXCLUDED.hash, shape = EXCLUDED.shape, number = EXCLUDED.number, \
               city = EXCLUDED.city, synced_at = now()";
    let statement = client.prepare(sql).await.unwrap();
    for at in (0..rows.keys.len()).step_by(BATCH) {
        let part = at..(at + BATCH).min(rows.keys.len());
        let Rows { keys, ids, docs, hashes, shapes, numbers, cities } = rows;
        client
            .execute(
                &statement,
                &[
                    &&keys[part.clone()],
                    &&ids[part.clone()],
                    &&docs[part.clone()],
                    &&hashes[part.clone()],
                    &&shapes[part.clone()],
                    &&numbers[part.clone()],
                    &&cities[part.clone()],
                ],
            )
            .await
            .unwrap();
    }
}
