//! The limits by themselves, on the data of the other scenarios.

use std::time::Instant;

use tempfile::TempDir;

use crate::{
    bed::Bed,
    data::{self, Backlog, ORDERS, USUAL},
    raw,
    report::Notebook,
    settings::Settings,
};

/// Of the change stream: inserts, then updates.
pub async fn change_stream(settings: Settings, book: Notebook) {
    let inserts = Backlog::Inserts { count: settings.scaled(1_000_000), size: USUAL };
    let count = settings.scaled(500_000);
    let updates = Backlog::Updates { count, documents: count };
    let bed = Bed::start().await;
    for _ in 0..settings.runs {
        for (name, backlog) in [("inserts", inserts), ("updates", updates)] {
            bed.reset().await;
            backlog.prepare(&bed.local.client).await;
            let from = bed.position().await;
            backlog.apply(&bed.local.client, 1).await;
            let events = backlog.events();
            let meter = bed.meter();
            let read = raw::read_stream(&bed.local.client, from, events).await;
            let usage = meter.stop();
            let rate = events as f64 / read.elapsed.as_secs_f64();
            book.add(&format!("raw change stream, {name}"), "events/s", rate);
            let cpu = usage.cpu("local mongod") * 1e6 / events as f64;
            book.add(&format!("raw change stream, {name}, local mongod CPU"), "µs/event", cpu);
            book.costs(&format!("raw change stream, {name}"), &usage);
        }
    }
}

/// Of writing to Atlas: a pipe of plain inserts, and replacing upserts in two lanes.
pub async fn writes(settings: Settings, book: Notebook) {
    let bed = Bed::start().await;
    let count = settings.scaled(1_000_000);
    let updated = settings.scaled(500_000);
    for _ in 0..settings.runs {
        bed.reset().await;
        data::insert(&bed.local.client, ORDERS, 0..count, USUAL).await;
        let meter = bed.meter();
        let names = [ORDERS.to_owned()];
        raw::pipe(&bed.local.client, &bed.atlas.client, &names, 4).await;
        let usage = meter.stop();
        let rate = count as f64 / usage.elapsed.as_secs_f64();
        book.add("raw find -> insert pipe, 4 connections", "documents/s", rate);
        let cpu = usage.cpu("target mongod") * 1e6 / count as f64;
        book.add("raw find -> insert pipe, target mongod CPU", "µs/document", cpu);
        book.costs("raw find -> insert pipe", &usage);

        Backlog::Updates { count: updated, documents: updated }.apply(&bed.local.client, 1).await;
        let commands = raw::upserts_of(&bed.local.client, ORDERS).await;
        let meter = bed.meter();
        raw::send(&bed.atlas.client, commands, 2).await;
        let usage = meter.stop();
        let rate = updated as f64 / usage.elapsed.as_secs_f64();
        book.add("raw upserts, 2 lanes", "documents/s", rate);
        let cpu = usage.cpu("target mongod") * 1e6 / updated as f64;
        book.add("raw upserts, target mongod CPU", "µs/document", cpu);
        book.costs("raw upserts, 2 lanes", &usage);
        compare_orders(&bed).await;
    }
}

/// Only one side has sentinels here.
async fn compare_orders(bed: &Bed) {
    bed.local
        .client
        .database("shop")
        .collection::<bson::Document>("sentinel")
        .drop()
        .await
        .unwrap();
    bed.assert_equal().await;
}

/// Of the queue's storage: bare sled, a document to a key, and 200 documents to a key.
pub async fn sled(settings: Settings, book: Notebook) {
    let documents = settings.scaled(1_000_000);
    let all = move || {
        for _ in 0..settings.runs {
            bare_sled(&book, "ordered keys", documents, 1);
            bare_sled(&book, "blocks of 200", documents, 200);
        }
    };
    tokio::task::spawn_blocking(all).await.unwrap();
}

fn bare_sled(book: &Notebook, name: &str, documents: u64, block: u64) {
    let dir = TempDir::new().unwrap();
    let db = sled::Config::default()
        .path(dir.path().join("db"))
        .mode(sled::Mode::HighThroughput)
        .open()
        .unwrap();
    let mut written = std::time::Duration::ZERO;
    for first in (0..documents).step_by(1_000) {
        let values: Vec<Vec<u8>> = (first..first + 1_000)
            .step_by(block as usize)
            .map(|n| {
                let parts = (n..n + block).map(|n| data::document(n, 323).into_bytes());
                parts.flatten().collect()
            })
            .collect();
        let started = Instant::now();
        let mut batch = sled::Batch::default();
        for (n, value) in (first..).step_by(block as usize).zip(values) {
            batch.insert(&n.to_be_bytes(), value);
        }
        db.apply_batch(batch).unwrap();
        written += started.elapsed();
    }
    db.flush().unwrap();
    let bytes = db.size_on_disk().unwrap() as f64;
    let rate = documents as f64 / written.as_secs_f64();
    book.add(&format!("bare sled, {name}, write"), "documents/s", rate);
    book.add(&format!("bare sled, {name}, on disk"), "B/document", bytes / documents as f64);
    let started = Instant::now();
    // What leasing and acking must do at least: read in order, and remove.
    let keys_at_once = (1_000 / block) as usize;
    loop {
        let mut batch = sled::Batch::default();
        let mut found = 0;
        for entry in db.iter().take(keys_at_once) {
            let (key, value) = entry.unwrap();
            std::hint::black_box(value);
            batch.remove(key);
            found += 1;
        }
        if found == 0 {
            break;
        }
        db.apply_batch(batch).unwrap();
    }
    let rate = documents as f64 / started.elapsed().as_secs_f64();
    book.add(&format!("bare sled, {name}, read and remove"), "documents/s", rate);
}
