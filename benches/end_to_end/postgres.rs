//! Into PostgreSQL: the first copy beside `COPY` by hand, updates beside `INSERT … ON CONFLICT DO UPDATE` by hand, of the
//! same rows into tables of the same definition, over one connection and over two.
//!
//! By hand PostgreSQL has the machine to itself; beside the agent it shares it with the MongoDB that is read from. So it is
//! also told what PostgreSQL itself takes for a row, which is of the statements alone; and all of it is measured a second
//! time with PostgreSQL on a core of its own, by hand and by the agent, as where it has a machine of its own.

use std::{
    pin::pin,
    time::{Duration, SystemTime},
};

use bson::doc;
use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::Client;

use crate::{
    bed::{Bed, Variant, await_until, streaming},
    data::{self, ORDERS, USUAL},
    process::{Meter, Process, Usage, children},
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

/// By hand, at a time.
const CONNECTIONS: [usize; 2] = [1, 2];

/// A ratio to what so many connections make by hand.
fn beside(ratio: &str, connections: usize) -> String {
    format!("{ratio}, {connections} connections")
}

/// Rows in a statement by hand, as in one of the agent's.
const BATCH: usize = 500;

/// Columns of a table of the agent's with the two that are declared.
const COLUMNS: &str = "_id, id, doc, hash, shape, raw, source_time, number, city";

/// Where the processes run.
#[derive(Clone, Copy)]
enum Cores {
    /// Anywhere.
    Shared,
    /// PostgreSQL on the first, all else on the others.
    Apart,
}

impl Cores {
    fn named(self, figure: &str) -> String {
        match self {
            Cores::Shared => figure.to_owned(),
            Cores::Apart => format!("{figure}, PostgreSQL on a core of its own"),
        }
    }

    /// Puts everything where it belongs, on a machine whose last core is `last`; what is started later is where its parent is.
    fn put(self, bed: &Bed, target: &Postgres, last: usize) {
        let (first, others) = match self {
            Cores::Shared => (format!("0-{last}"), format!("0-{last}")),
            Cores::Apart => ("0".to_owned(), format!("1-{last}")),
        };
        let postmaster = target.id();
        for process in [postmaster].into_iter().chain(children(postmaster)) {
            pin(process, &first);
        }
        pin(bed.local.id(), &others);
        pin(std::process::id(), &others);
    }
}

/// A process with all of its threads, onto these cores.
fn pin(process: u32, cores: &str) {
    let pid = process.to_string();
    let pinned = std::process::Command::new("taskset").args(["-acp", cores, &pid]).output();
    let pinned = pinned.expect("taskset, of util-linux");
    // One that has ended needs no place.
    let is_there = std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(pinned.status.success() || !is_there, "{pinned:?}");
}

pub async fn writes(settings: Settings, book: Notebook) {
    let documents = settings.scaled(500_000);
    // It comes a minute later than what it cleans up, and what was written by hand would be counted as the agent's.
    let (bed, target) = tokio::join!(Bed::start(), Postgres::start_with(&["autovacuum=off"]));
    bed.reset().await;
    data::insert(&bed.local.client, ORDERS, 0..documents, USUAL).await;
    let mut all = vec![Cores::Shared];
    // Asked before this process has a place of its own.
    let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    if last > 0 {
        all.push(Cores::Apart);
    } else {
        book.note("PostgreSQL has no core of its own here: there is one.");
    }
    for cores in &all {
        for ratio in [COPY, UPDATES, WRITES] {
            for connections in CONNECTIONS {
                let figure = cores.named(&beside(ratio, connections));
                book.mark(&figure, Target::AtLeast(0.7));
            }
        }
        for cost in [COPY_COST, UPDATE_COST] {
            book.mark(&cores.named(cost), Target::AtLeast(0.7));
        }
        book.mark(&cores.named(CPU), Target::AtMost(25.0));
    }
    let mut number = 0;
    for _ in 0..settings.runs {
        for cores in &all {
            cores.put(&bed, &target, last);
            round(&bed, &target, &book, documents, *cores, number).await;
            number += 1;
        }
    }
    Cores::Shared.put(&bed, &target, last);
}

/// Everything once; `number` is what the documents are changed to.
async fn round(
    bed: &Bed,
    target: &Postgres,
    book: &Notebook,
    documents: u64,
    cores: Cores,
    number: i32,
) {
    let add =
        |figure: &str, unit: &'static str, value: f64| book.add(&cores.named(figure), unit, value);
    let costs = |step: &str, usage: &Usage| book.costs(&cores.named(step), usage);
    let rate = |usage: &Usage| documents as f64 / usage.elapsed.as_secs_f64();
    target.ask("DROP SCHEMA IF EXISTS shop CASCADE; DROP SCHEMA IF EXISTS outrigger CASCADE").await;
    let mut agent = agent(bed, target);
    target.ask("CHECKPOINT").await;
    let meter = start(bed, target, &mut agent);
    let took = end_of_copy(&agent).await;
    let usage = meter.stop();
    costs("first copy", &usage);
    streaming(&agent).await;
    assert_eq!(target.ask("SELECT count(*) FROM shop.orders").await, [documents.to_string()]);
    let copied = documents as f64 / took.as_secs_f64();
    add("first copy", "documents/s", copied);
    add(CPU, "µs/document", usage.cpu("agent") * 1e6 / documents as f64);
    let copy_cpu = usage.cpu(POSTGRES);
    assert!(agent.stop().success());

    // Rates of COPY and of upserts, for each number of connections.
    let (mut rates, mut least) = (Vec::new(), [f64::INFINITY; 2]);
    for connections in CONNECTIONS {
        let found = by_hand(target, connections).await;
        rates.push([rate(&found[0]), rate(&found[1])]);
        for (at, (what, usage)) in ["COPY", "upserts"].into_iter().zip(found).enumerate() {
            add(&format!("{what} by hand, {connections} connections"), "rows/s", rate(&usage));
            costs(&format!("{what} by hand, {connections} connections"), &usage);
            least[at] = least[at].min(usage.cpu(POSTGRES));
        }
    }
    let ratios = |figure: &str, rate: f64, at: usize| {
        for (connections, by_hand) in CONNECTIONS.into_iter().zip(&rates) {
            add(&beside(figure, connections), "ratio", rate / by_hand[at]);
        }
    };
    ratios(COPY, copied, 0);
    add(COPY_COST, "ratio", least[0] / copy_cpu);

    // Every document is changed while nobody looks, and read when it is its turn.
    let set = doc! { "$set": { "number": number } };
    let orders = bed.local.client.database("shop").collection::<bson::Document>(ORDERS);
    orders.update_many(doc! {}, set).await.unwrap();
    bed.write_sentinel(number as u64).await;
    target.ask("CHECKPOINT").await;
    let meter = start(bed, target, &mut agent);
    let written = format!("SELECT FROM shop.sentinel WHERE doc->>'_id' = '{number}'");
    // One that is there already: to begin one takes PostgreSQL as long as 300 rows. It has no table to look into at first.
    let looks = target.client().await;
    await_until("the last update", Duration::from_millis(50), async || {
        crate::bed::queue_size(&agent) == Some(0)
            && looks.query(&written, &[]).await.is_ok_and(|found| !found.is_empty())
    })
    .await;
    let usage = meter.stop();
    costs("updates", &usage);
    add("updates", "documents/s", rate(&usage));
    add("updates, agent CPU", "µs/document", usage.cpu("agent") * 1e6 / documents as f64);
    ratios(UPDATES, rate(&usage), 1);
    add(UPDATE_COST, "ratio", least[1] / usage.cpu(POSTGRES));
    let numbers = target.ask("SELECT DISTINCT number FROM shop.orders").await;
    assert_eq!(numbers, [number.to_string()]);

    let usage = what_waited(bed, target, &agent, documents).await;
    costs("writing what waited", &usage);
    add("writing what waited", "documents/s", rate(&usage));
    ratios(WRITES, rate(&usage), 1);
    assert!(agent.stop().success());
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
    // As the table by hand is: without what was there before.
    target.ask("VACUUM FULL shop.orders").await;
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
    raws: Vec<Option<Vec<u8>>>,
    times: Vec<Option<SystemTime>>,
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
        "SELECT _id, id, doc::text, hash, shape, raw, source_time, number, city FROM shop.orders WHERE {share}"
    );
    let mut rows = Rows::default();
    for row in client.query(&sql, &[]).await.unwrap() {
        rows.keys.push(row.get(0));
        rows.ids.push(row.get(1));
        rows.docs.push(row.get(2));
        rows.hashes.push(row.get(3));
        rows.shapes.push(row.get(4));
        rows.raws.push(row.get(5));
        rows.times.push(row.get(6));
        rows.numbers.push(row.get(7));
        rows.cities.push(row.get(8));
    }
    rows
}

async fn upsert(client: &Client, rows: &Rows) {
    let sql = format!(
        "INSERT INTO hand.orders ({COLUMNS}) SELECT a, b, c::jsonb, d, e, f, g, h, i FROM unnest($1::bytea[], $2::text[], \
         $3::text[], $4::bytea[], $5::int[], $6::bytea[], $7::timestamptz[], $8::bigint[], $9::text[]) \
         AS t (a, b, c, d, e, f, g, h, i) ON CONFLICT (_id) DO UPDATE SET id = EXCLUDED.id, doc = EXCLUDED.doc, \
         hash = EXCLUDED.hash, shape = EXCLUDED.shape, raw = EXCLUDED.raw, source_time = EXCLUDED.source_time, \
         number = EXCLUDED.number, city = EXCLUDED.city, synced_at = now()"
    );
    let statement = client.prepare(&sql).await.unwrap();
    for at in (0..rows.keys.len()).step_by(BATCH) {
        let part = at..(at + BATCH).min(rows.keys.len());
        let Rows { keys, ids, docs, hashes, shapes, raws, times, numbers, cities } = rows;
        client
            .execute(
                &statement,
                &[
                    &&keys[part.clone()],
                    &&ids[part.clone()],
                    &&docs[part.clone()],
                    &&hashes[part.clone()],
                    &&shapes[part.clone()],
                    &&raws[part.clone()],
                    &&times[part.clone()],
                    &&numbers[part.clone()],
                    &&cities[part.clone()],
                ],
            )
            .await
            .unwrap();
    }
}
