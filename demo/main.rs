//! `make demo`: an order-taking application, its database, a stand-in for Atlas, and the agent between
//! the two; Atlas goes away for some seconds in the middle.
//!
//! Everything is real but the distance: two `mongod`s, the program itself, and a proxy as the line
//! that is cut. Nothing is left behind.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mongodb::{
    Client, Collection,
    bson::{Document, doc},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use support::{
    agent::Agent,
    equal::{Everything, MayDiffer, differences, everything},
    mongod::Mongod,
    proxy::{Line, Proxy},
};
use tokio_util::sync::CancellationToken;

const CUSTOMERS: i32 = 2_000;
const PRODUCTS: i32 = 500;
const BEFORE: Duration = Duration::from_secs(6);
const AWAY: Duration = Duration::from_secs(8);
const AFTER: Duration = Duration::from_secs(4);

#[tokio::main]
async fn main() {
    say("starting the application's database and a stand-in for Atlas (two mongod, on 127.0.0.1)");
    let (local, atlas) = tokio::join!(Mongod::start(), Mongod::start());
    let line = Proxy::to(atlas.port).await;
    fill(&local.client).await;
    say(&format!("the shop has {CUSTOMERS} customers and {PRODUCTS} products; starting the agent"));
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    say("first copy done; the application starts taking orders\n");

    let made = Arc::new(AtomicU64::new(0));
    let stop = CancellationToken::new();
    let application = tokio::spawn(take_orders(local.client.clone(), made.clone(), stop.clone()));
    header();
    show_for(&agent, &made, BEFORE, "").await;
    line.set(Line::Cut);
    show_for(&agent, &made, AWAY, "the line to Atlas is cut").await;
    line.set(Line::Up);
    let caught_up = time_to_catch_up(&agent).await;
    show_for(&agent, &made, AFTER, "the line is back").await;
    stop.cancel();
    application.await.expect("the application did not fail");
    wait_for_the_rest(&agent, &made, &local, &atlas).await;

    println!();
    say("comparing both sides, byte for byte");
    let (here, there) = tokio::join!(everything(&local), everything(&atlas));
    let (here, there) = (here.expect("local can be read"), there.expect("Atlas can be read"));
    let found = differences(&here, &there, MayDiffer::Nothing);
    summary(&agent, made.load(Ordering::Relaxed), &here, caught_up);
    if found.is_empty() {
        println!("\n  Both sides are equal, byte for byte.\n");
    } else {
        println!("\n  {} DIFFERENCES, the first:\n{}\n", found.len(), found[0]);
        std::process::exit(1);
    }
}

fn say(text: &str) {
    println!("  {text}");
}

fn orders(client: &Client) -> Collection<Document> {
    client.database("shop").collection("orders")
}

async fn fill(client: &Client) {
    let shop = client.database("shop");
    let customers =
        (0..CUSTOMERS).map(|id| doc! { "_id": id, "name": format!("Customer {id}"), "orders": 0 });
    shop.collection::<Document>("customers").insert_many(customers).await.expect("filled");
    let products = (0..PRODUCTS).map(
        |id| doc! { "_id": format!("SKU-{id:04}"), "price": f64::from(id) / 4.0, "stock": 1000 },
    );
    shop.collection::<Document>("products").insert_many(products).await.expect("filled");
}

/// The application: it knows nothing of Outrigger.
async fn take_orders(client: Client, made: Arc<AtomicU64>, stop: CancellationToken) {
    let mut rng = StdRng::seed_from_u64(1);
    let mut next = 0_i64;
    while !stop.is_cancelled() {
        for _ in 0..20 {
            let changes = one_step(&client, &mut rng, &mut next).await.expect("a local write");
            made.fetch_add(changes, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One thing that happens in a shop. Returns how many documents it changed.
async fn one_step(
    client: &Client,
    rng: &mut StdRng,
    next: &mut i64,
) -> mongodb::error::Result<u64> {
    let shop = client.database("shop");
    let orders = orders(client);
    let recent = doc! { "_id": (*next - rng.random_range(1..60)).max(0) };
    let sku = format!("SKU-{:04}", rng.random_range(0..PRODUCTS));
    Ok(match rng.random_range(0..100) {
        0..30 => {
            let customer = rng.random_range(0..CUSTOMERS);
            let order = doc! { "_id": *next, "customer": customer, "status": "new", "items": [{ "sku": &sku, "n": 1 }], "total": 9.75 };
            orders.insert_one(order).await?;
            *next += 1;
            let customers: Collection<Document> = shop.collection("customers");
            1 + customers
                .update_one(doc! { "_id": customer }, doc! { "$inc": { "orders": 1 } })
                .await?
                .modified_count
        }
        30..60 => {
            let products: Collection<Document> = shop.collection("products");
            products
                .update_one(doc! { "_id": sku }, doc! { "$inc": { "stock": -1 } })
                .await?
                .modified_count
        }
        60..75 => {
            let item = doc! { "sku": sku, "n": rng.random_range(1..5) };
            orders
                .update_one(recent, doc! { "$push": { "items": item }, "$inc": { "total": 3.5 } })
                .await?
                .modified_count
        }
        75..88 => {
            let status = ["paid", "packed", "sent"][rng.random_range(0..3)];
            let change = doc! { "$set": { "status": status, format!("log.{status}"): rng.random_range(0..1000) } };
            orders.update_one(recent, change).await?.modified_count
        }
        88..92 => {
            let replaced = doc! { "status": "corrected", "items": [], "total": 0.0 };
            orders.replace_one(recent, replaced).await?.modified_count
        }
        92..96 => orders.delete_one(recent).await?.deleted_count,
        _ => {
            // Cancelled and taken again under the same number.
            let deleted = orders.delete_one(recent.clone()).await?.deleted_count;
            let mut again = recent;
            again.insert("status", "taken again");
            if deleted > 0 {
                orders.insert_one(again).await?;
            }
            2 * deleted
        }
    })
}

fn header() {
    println!(
        "  {:>7}  {:>8}  {:>7}  {:>8}  {:>9}",
        "changes", "written", "waiting", "lag", "breaker"
    );
}

async fn show_for(agent: &Agent, made: &AtomicU64, time: Duration, note: &str) {
    let until = Instant::now() + time;
    let mut note = note;
    while Instant::now() < until {
        show(agent, made, std::mem::take(&mut note));
        tokio::time::sleep(Duration::from_millis(if std::io::stdout().is_terminal() {
            500
        } else {
            1000
        }))
        .await;
    }
}

fn show(agent: &Agent, made: &AtomicU64, note: &str) {
    let (Some(health), Some(metrics)) = (agent.health(), metrics(agent)) else { return };
    let arrow = if note.is_empty() { "" } else { "  <- " };
    println!(
        "  {:>7}  {:>8}  {:>7}  {:>8}  {:>9}{arrow}{note}",
        made.load(Ordering::Relaxed),
        metrics["successfulSyncs"].to_string(),
        health["queueSize"].to_string(),
        health["syncLag"].as_str().unwrap_or("?"),
        health["breaker"].as_str().unwrap_or("?"),
    );
    let _ = std::io::stdout().flush();
}

fn metrics(agent: &Agent) -> Option<Value> {
    let url = format!("http://127.0.0.1:{}/api/sync/metrics", agent.admin_port);
    serde_json::from_str(&ureq::get(url).call().ok()?.body_mut().read_to_string().ok()?).ok()
}

/// From now until Atlas is less than a second behind, while the application goes on.
async fn time_to_catch_up(agent: &Agent) -> Duration {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        if agent.health().is_some_and(|health| health["syncLagMs"].as_u64() < Some(1_000)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

async fn wait_for_the_rest(agent: &Agent, made: &AtomicU64, local: &Mongod, atlas: &Mongod) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while Instant::now() < give_up {
        if let (Ok(here), Ok(there)) = (everything(local).await, everything(atlas).await)
            && differences(&here, &there, MayDiffer::Nothing).is_empty()
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    show(agent, made, "the application has stopped");
}

fn summary(agent: &Agent, made: u64, here: &Everything, caught_up: Duration) {
    let Some(metrics) = metrics(agent) else { return };
    let documents: usize = here.values().map(support::equal::Held::len).sum();
    let written = metrics["successfulSyncs"].as_u64().unwrap_or(0);
    let share = 100.0 * written as f64 / made.max(1) as f64;
    println!();
    println!("  documents                    {documents} in {} collections", here.len());
    println!("  changes the application made {made}");
    println!("  writes sent after coalescing {written} ({share:.0} %)");
    println!(
        "  lag now                      {}",
        agent.health().map_or_else(String::new, |h| h["syncLag"].as_str().unwrap_or("").to_owned())
    );
    println!(
        "  time to catch up             {:.1} s (until less than a second behind)",
        caught_up.as_secs_f64()
    );
    println!("  dead letters                 {}", metrics["queue"]["deadLetters"]);
}
