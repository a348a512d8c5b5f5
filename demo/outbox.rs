//! The application keeps its data in PostgreSQL, and writes a row of an outbox in the transaction of each change. The copy is
//! a MongoDB, which goes away for some seconds in the middle. At the end every row of the application's tables is held
//! against the document that it is to be.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mongodb::bson::{Bson, Document, doc};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::{
    show::{Table, conclude, say, summary, verified},
    support::{agent::Agent, mongod::Mongod, postgres::Postgres, proxy::Proxy},
};

const DECLARED: &str = r#"
[[route]]
event = "order.*"
collection = "shop.orders"
key = "entity_id"
op = "replace"
indexes = ["status", "customer, -id"]
[[route]]
event = "order.cancelled"
collection = "shop.orders"
key = "entity_id"
op = "delete"
[[route]]
event = "customer.*"
collection = "shop.customers"
key = "entity_id"
op = "merge"
[[table]]
name = "customers"
key = "id"
collection = "shop.customers"
"#;

/// What there is before the first order.
const FILLED: &str = "CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, orders int NOT NULL DEFAULT 0);
    CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL, status text NOT NULL, total int NOT NULL, items jsonb NOT NULL);
    INSERT INTO customers (id, name) SELECT n, 'Customer ' || n FROM generate_series(0, 1999) n";

/// What the application adds to its transactions, as `outrigger outbox init` prints it.
const TELL_ORDER: &str = "INSERT INTO outbox (event_type, entity_id, payload) \
    SELECT 'order.' || status, id::text, to_jsonb(orders) FROM orders WHERE id = $1";

const TABLES: [&str; 2] = ["customers", "orders"];

/// Whether every document equals its row in the end, and nothing else is there.
pub async fn demo() -> bool {
    say("starting the application's PostgreSQL and a stand-in for Atlas (on 127.0.0.1)");
    let (source, atlas) = tokio::join!(Postgres::start(), Mongod::start());
    let line = Proxy::to(atlas.port).await;
    source.ask(FILLED).await;
    say("the shop has 2000 customers; its events go where these routes say:");
    println!("{}", DECLARED.trim_end().replace('\n', "\n    "));
    println!();
    say("outrigger outbox init | psql");
    let mut agent = Agent::from_outbox(&source, &line.uri(), DECLARED).await;
    agent.start(&[]);
    agent.streaming().await;
    say(
        "the customers are copied; the application starts taking orders, and somebody asks MongoDB\n",
    );

    let shop = Shop::opens(source.client().await);
    let orders = atlas.client.database("shop").collection::<Document>("orders");
    let ask = async || {
        let sent = orders.count_documents(doc! { "status": "sent" }).await;
        format!("  {:>11}", sent.unwrap_or_default())
    };
    let last = "  orders sent";
    let table = Table { agent: &agent, changes: shop.changes.clone(), last, ask };
    let caught_up = table.watch_over_an_outage(&line, "MongoDB").await;
    let changes = shop.closes().await;
    let (rows, left) = compared(&source, &atlas).await;
    table.line("the application has stopped").await;

    println!();
    let is_verified = verified(&agent);
    say("comparing every document with its row");
    let size = format!("documents                    {rows} in {} collections", TABLES.len());
    summary(&agent, changes, &size, caught_up);
    conclude(&left, "Every document equals its row.");
    left.is_empty() && is_verified
}

/// The application. Runs until it is closed.
struct Shop {
    changes: Arc<AtomicU64>,
    closes: CancellationToken,
    work: tokio::task::JoinHandle<()>,
}

impl Shop {
    fn opens(client: Client) -> Self {
        let (changes, closes) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let work = tokio::spawn(take_orders(client, changes.clone(), closes.clone()));
        Self { changes, closes, work }
    }

    /// Takes no more orders. Returns how many changes there were.
    async fn closes(self) -> u64 {
        self.closes.cancel();
        self.work.await.expect("the application did not fail");
        self.changes.load(Ordering::Relaxed)
    }
}

async fn take_orders(mut client: Client, made: Arc<AtomicU64>, stop: CancellationToken) {
    let mut rng = StdRng::seed_from_u64(1);
    let mut next = 0_i64;
    while !stop.is_cancelled() {
        for _ in 0..10 {
            let step = one_step(&mut client, &mut rng, &mut next).await;
            made.fetch_add(step.expect("a transaction"), Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One thing that happens in a shop, in one transaction. Returns how many rows of its tables it changed.
async fn one_step(
    client: &mut Client,
    rng: &mut StdRng,
    next: &mut i64,
) -> Result<u64, tokio_postgres::Error> {
    let recent = (*next - rng.random_range(1..60)).max(0);
    let transaction = client.transaction().await?;
    let changed = match rng.random_range(0..100) {
        0..60 => {
            let (id, customer, total) =
                (*next, rng.random_range(0..2_000), rng.random_range(1..500));
            *next += 1;
            let order = "INSERT INTO orders VALUES ($1, $2, 'new', $3, jsonb_build_array(jsonb_build_object('sku', 'SKU-' || $2 % 500, 'n', $3 % 9)))";
            transaction.execute(order, &[&id, &customer, &total]).await?;
            transaction.execute(TELL_ORDER, &[&id]).await?;
            let one_more = "UPDATE customers SET orders = orders + 1 WHERE id = $1";
            transaction.execute(one_more, &[&customer]).await?;
            let tell = "INSERT INTO outbox (event_type, entity_id, payload) \
                        SELECT 'customer.ordered', id::text, jsonb_build_object('orders', orders) FROM customers WHERE id = $1";
            transaction.execute(tell, &[&customer]).await?;
            2
        }
        60..90 => {
            let sent = "UPDATE orders SET status = 'sent' WHERE id = $1";
            let changed = transaction.execute(sent, &[&recent]).await?;
            transaction.execute(TELL_ORDER, &[&recent]).await?;
            changed
        }
        _ => {
            let changed =
                transaction.execute("DELETE FROM orders WHERE id = $1", &[&recent]).await?;
            let tell = "INSERT INTO outbox (event_type, entity_id) VALUES ('order.cancelled', ($1::bigint)::text)";
            transaction.execute(tell, &[&recent]).await?;
            changed
        }
    };
    transaction.commit().await?;
    Ok(changed)
}

/// Of a table or a collection what each key has.
type Held = BTreeMap<String, Value>;

/// How many rows there are, and what differs from them still when everything has had its time.
async fn compared(source: &Postgres, atlas: &Mongod) -> (usize, Vec<String>) {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let (mut rows, mut left) = (0, Vec::new());
        for name in TABLES {
            let wanted = rows_of(source, name).await;
            let held = documents_of(atlas, name).await.unwrap_or_default();
            rows += wanted.len();
            let keys: std::collections::BTreeSet<_> = wanted.keys().chain(held.keys()).collect();
            let differs = keys.into_iter().filter(|key| wanted.get(*key) != held.get(*key));
            left.extend(
                differs.map(|key| {
                    format!("{name} {key}: {:?} for {:?}", held.get(key), wanted.get(key))
                }),
            );
        }
        if left.is_empty() || Instant::now() > give_up {
            return (rows, left);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn rows_of(source: &Postgres, name: &str) -> Held {
    let rows = source.ask(&format!("SELECT id::text, to_jsonb(t)::text FROM {name} t")).await;
    let pairs = rows.iter().map(|row| {
        let (key, row) = row.split_once('|').expect("two columns");
        (key.to_owned(), serde_json::from_str(row).expect("JSON"))
    });
    pairs.collect()
}

async fn documents_of(atlas: &Mongod, name: &str) -> mongodb::error::Result<Held> {
    let mut held = Held::new();
    let collection = atlas.client.database("shop").collection::<Document>(name);
    let mut found = collection.find(doc! {}).await?;
    while found.advance().await? {
        let mut document = found.deserialize_current()?;
        let key = document.remove("_id").map_or_else(String::new, |id| match id {
            Bson::String(key) => key,
            other => other.to_string(),
        });
        held.insert(key, Bson::Document(document).into_relaxed_extjson());
    }
    Ok(held)
}
