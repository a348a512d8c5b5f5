//! Promise 3: when the queue is empty, each replicated collection in Atlas equals the local one byte
//! for byte.

use std::time::Duration;

use mongodb::{
    Client, Collection,
    bson::{Document, RawDocumentBuf, Timestamp, doc, rawdoc},
};
use outrigger::model::raw::{Builder, kind};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    mongod::Mongod,
    names, odd, odd_work, pair,
    proxy::{Line, Proxy},
    seed,
    unasked::Unasked::{Doubt, Retries},
    workload,
};

/// Documents of every kind; to ten of them a step with names, and one with odd schema.
async fn work(local: &Mongod, rng: &mut StdRng, changes: usize) {
    let collections = workload::collections(&local.client);
    let names = local.client.database("names");
    let mut made = 0;
    for n in 0..changes {
        let collection = &collections[rng.random_range(0..collections.len())];
        made += usize::from(workload::change(collection, rng).await.unwrap());
        if n % 10 == 0 {
            names::step(&names, rng).await.unwrap();
            odd_work::step(local.port, rng).await.unwrap();
        }
    }
    // An insert of what is there is refused, and much else. Work that is refused as a whole proves nothing.
    assert!(made * 4 >= changes, "the server made {made} of {changes} changes");
}

async fn random_workload_with_restarts(update_mode: &str) {
    let mut rng = StdRng::seed_from_u64(seed());
    let (mut local, mut atlas) = pair().await;
    work(&local, &mut rng, 300).await;
    let config = format!(
        "[worker]\nupdate_mode = \"{update_mode}\"\nbatch_size = 20\nretry_delays = [\"200ms\"]"
    );
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config);
    agent.may(&[Doubt, Retries], "Atlas is killed, maybe while it makes a collection");
    agent.start(&[]);
    for round in 0..8 {
        work(&local, &mut rng, 120).await;
        match round % 4 {
            0 => {
                agent.kill();
                work(&local, &mut rng, 60).await;
                agent.start(&[]);
            }
            1 => {
                atlas.kill();
                work(&local, &mut rng, 60).await;
                atlas.resume().await;
            }
            2 => {
                local.kill();
                local.resume().await;
            }
            _ => {
                assert!(agent.stop().success());
                work(&local, &mut rng, 60).await;
                agent.start(&[]);
            }
        }
    }

    equal(&local, &atlas, PATIENCE).await;

    // Quiet, it stays so; and a stopped agent leaves nothing behind.
    agent.streaming().await;
    assert!(agent.stop().success());
    equal(&local, &atlas, Duration::ZERO).await;
    let dead = agent.cli_json(&["dead", "list"]).unwrap();
    assert_eq!(dead.as_array().map(Vec::len), Some(0), "{dead}");
}

#[tokio::test(flavor = "multi_thread")]
async fn random_workloads_with_restarts_of_all_three_end_equal() {
    random_workload_with_restarts("document").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deltas_that_are_sent_as_such_end_equal_too() {
    random_workload_with_restarts("delta").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_that_go_as_whichever_is_shorter_end_equal_too() {
    random_workload_with_restarts("auto").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_updates_of_one_document_while_atlas_is_away_arrive_as_one_write() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let orders: Collection<Document> = local.client.database("shop").collection("orders");
    orders.insert_one(doc! { "_id": 1, "n": 0 }).await.unwrap();
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    let writes_before = atlas.document_writes().await;

    line.set(Line::Cut);
    for n in 1..=100 {
        orders
            .update_one(doc! { "_id": 1 }, doc! { "$set": { "n": n }, "$push": { "log": n } })
            .await
            .unwrap();
    }
    agent.queued(1).await;
    // All hundred are read: the entry says how many changes it holds.
    crate::support::eventually("a hundred changes in one entry", PATIENCE, async || {
        agent.cli_json(&["queue", "list"]).is_some_and(|list| list[0]["changes"] == 100)
    })
    .await;
    line.set(Line::Up);

    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(atlas.document_writes().await - writes_before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_of_every_odd_form_arrive_as_they_are() {
    let (local, atlas) = pair().await;
    let raw: Collection<RawDocumentBuf> = local.client.database("odd").collection("forms");
    let empty = Timestamp { time: 0, increment: 0 };
    raw.insert_one(
        rawdoc! { "_id": 1, "a.b": 1, "$set": { "$inc": 1 }, "": "", "n": { "": { ".": 1 } } },
    )
    .await
    .unwrap();
    raw.insert_one(rawdoc! { "_id": 2, "later": 1 }).await.unwrap();
    // An empty timestamp can only be stored by an update: an insert fills it in.
    raw.update_one(doc! { "_id": 2 }, doc! { "$set": { "at": empty } }).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    raw.insert_one(rawdoc! { "_id": 3, "x": 1 }).await.unwrap();
    raw.update_one(doc! { "_id": 3 }, doc! { "$set": { "at": empty } }).await.unwrap();
    raw.update_one(doc! { "_id": 1 }, doc! { "$set": { "new": 1 } }).await.unwrap();
    // The same `_id` in another numeric type is the same document, and its new form counts.
    raw.delete_one(doc! { "_id": 2 }).await.unwrap();
    raw.insert_one(rawdoc! { "_id": 2.0, "form": "double" }).await.unwrap();
    let literal =
        vec![doc! { "$replaceWith": { "$literal": { "_id": 4, "$x": 1, "a.b": { "$y": 1 } } } }];
    raw.update_one(doc! { "_id": 4 }, literal).upsert(true).await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
}

/// No driver writes such an array. A server keeps it, and so must a merge with what waits, and a delta.
#[tokio::test(flavor = "multi_thread")]
async fn arrays_whose_items_have_other_names_than_their_places_keep_them() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[worker]\nupdate_mode = \"auto\"\n");
    agent.start(&[]);
    agent.streaming().await;
    let named: Collection<Document> = local.client.database("odd").collection("named");
    let change = async || {
        named.update_many(doc! {}, doc! { "$inc": { "b": 1 } }).await.unwrap();
        let within = doc! { "$set": { "a.0.n": 2 } };
        // The server does not find its way in some of them.
        let _ = named.update_many(doc! { "_id": { "$mod": [3, 1] } }, within).await;
        let grown = doc! { "$push": { "a": { "n": 3 } } };
        named.update_many(doc! { "_id": { "$mod": [3, 2] } }, grown).await.unwrap();
    };

    for round in 0..2 {
        assert!(agent.cli(&["pause"]).status.success());
        for (n, name) in ["7", "00", "", "x", "1", "0"].iter().cycle().take(18).enumerate() {
            let mut items = Builder::default();
            items.document(name, |item| item.push(kind::INT32, "n", &1_i32.to_le_bytes()));
            let mut document = Builder::default();
            let id = n as i32 + 100 * round;
            document.push(kind::INT32, "_id", &id.to_le_bytes());
            document.push(kind::ARRAY, "a", items.finish().as_bytes());
            document.push(kind::INT32, "b", &1_i32.to_le_bytes());
            let documents = odd::array_of("documents", &document.finish());
            odd::run(&local, "odd", &odd::joined(&rawdoc! { "insert": "named" }, &documents));
        }
        change().await;
        agent.queued(18).await;
        change().await;
        assert!(agent.cli(&["resume"]).status.success());
        equal(&local, &atlas, PATIENCE).await;
        change().await;
        equal(&local, &atlas, PATIENCE).await;
    }
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_up_to_the_largest_and_events_beyond_it_arrive() {
    let (local, atlas) = pair().await;
    let large: Collection<Document> = local.client.database("large").collection("c");
    let text = |bytes: usize| "x".repeat(bytes);
    large.insert_one(doc! { "_id": 1, "x": text((16 << 20) - 100) }).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    large.insert_one(doc! { "_id": 2, "x": text((16 << 20) - 100) }).await.unwrap();
    // A key of 2 MB stands four times in its events: neither the insert nor the update fits a reply.
    let key = text(2 << 20);
    large.insert_one(doc! { "_id": &key, "x": text(12 << 20) }).await.unwrap();
    large
        .update_one(doc! { "_id": &key }, doc! { "$set": { "y": 1, "x": text(11 << 20) } })
        .await
        .unwrap();
    large.insert_one(doc! { "_id": 3, "after": "the oversized" }).await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.log().contains("too large to be shown"), "the events were oversized");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_and_renamed_collections_follow_in_order_also_while_atlas_is_away() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let db = local.client.database("shop");
    let collection = |name: &str| db.collection::<Document>(name);
    for name in ["a", "b", "c"] {
        collection(name).insert_many((0..20).map(|n| doc! { "_id": n, "of": name })).await.unwrap();
    }
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    line.set(Line::Cut);

    collection("a")
        .update_one(doc! { "_id": 1 }, doc! { "$set": { "renamed": true } })
        .await
        .unwrap();
    rename(&local.client, "shop.a", "shop.d", false).await;
    collection("a").insert_one(doc! { "_id": 1, "of": "the second a" }).await.unwrap();
    collection("b").drop().await.unwrap();
    collection("b").insert_one(doc! { "_id": 3, "of": "the second b" }).await.unwrap();
    collection("c").update_one(doc! { "_id": 2 }, doc! { "$set": { "n": 1 } }).await.unwrap();
    rename(&local.client, "shop.c", "shop.b", true).await;
    collection("b").update_one(doc! { "_id": 2 }, doc! { "$set": { "m": 1 } }).await.unwrap();
    agent.queued(5).await;
    line.set(Line::Up);

    equal(&local, &atlas, PATIENCE).await;
}

async fn rename(client: &Client, from: &str, to: &str, drop_target: bool) {
    let command = doc! { "renameCollection": from, "to": to, "dropTarget": drop_target };
    client.database("admin").run_command(command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exists_is_copied_while_the_application_goes_on_writing() {
    let mut rng = StdRng::seed_from_u64(seed());
    let (local, atlas) = pair().await;
    let orders: Collection<Document> = local.client.database("shop").collection("orders");
    for part in 0..20 {
        let documents = (0..1000).map(|n| doc! { "_id": part * 1000 + n, "x": "x".repeat(200) });
        orders.insert_many(documents).await.unwrap();
    }

    let agent = Agent::started(&local.uri(), &atlas.uri());
    for n in 0..1500 {
        let id = rng.random_range(0..20_000);
        match n % 3 {
            0 => drop(orders.delete_one(doc! { "_id": id }).await.unwrap()),
            1 => drop(
                orders.update_one(doc! { "_id": id }, doc! { "$set": { "n": n } }).await.unwrap(),
            ),
            _ => drop(orders.insert_one(doc! { "_id": 20_000 + n }).await.unwrap()),
        }
    }

    equal(&local, &atlas, PATIENCE).await;
    agent.streaming().await;
}
