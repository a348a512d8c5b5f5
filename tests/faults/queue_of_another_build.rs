//! A queue that another build of the program has written: what waits in an older one arrives, and one of a newer build is left
//! as it is.

use std::collections::BTreeMap;

use mongodb::bson::{Binary, Bson, Decimal128, Document, doc, oid::ObjectId, spec::BinarySubtype};
use outrigger::{
    model::namespace::Namespace,
    queue::{Queue, QueueOptions, Work, note},
};

use crate::support::{
    PATIENCE,
    agent::Agent,
    copy_dir,
    equal::equal,
    eventually,
    mongod::Mongod,
    orders, pair, root,
    unasked::Unasked::{Doubt, NewQueue},
};

/// The queue that `src/queue/tests/earlier.rs` tells of, with a dead letter, and a comparison of `shop.log` that is owed.
fn earlier(agent: &Agent) -> QueueOptions {
    let to = agent.dir.path().join("earlier");
    copy_dir(&root().join("tests/fixtures/queue-22d8421"), &to);
    // Empty, so that no repository has it.
    std::fs::create_dir_all(to.join("blobs")).unwrap();
    QueueOptions::new(to)
}

/// The collections that its entries are of.
fn collections(queue: &Queue) -> BTreeMap<Namespace, Bson> {
    let of = |work: Work| match work {
        Work::Document { ns, collection: Some(id), .. } => {
            let bytes = id.0.to_vec();
            Some((ns, Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes })))
        }
        _ => None,
    };
    queue.entries().filter_map(|entry| of(entry.unwrap().work)).collect()
}

/// Makes a collection that is the one with this id.
async fn make(local: &Mongod, ids: &BTreeMap<Namespace, Bson>, ns: &str, options: Document) {
    let (db, name) = ns.split_once('.').unwrap();
    let id = ids.iter().find(|(of, _)| of.to_string() == ns).unwrap().1;
    let by_id = doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" };
    let mut create = doc! { "create": name, "idIndex": by_id };
    create.extend(options);
    let made = doc! { "op": "c", "ns": format!("{db}.$cmd"), "ui": id, "o": create };
    local.admin(doc! { "applyOps": [made] }).await;
}

/// What the application had when the fixture's agent lost its Atlas.
async fn before(local: &Mongod, ids: &BTreeMap<Namespace, Bson>) {
    make(local, ids, "shop.orders", doc! {}).await;
    make(local, ids, "shop.tmp", doc! {}).await;
    let order = |n: i32| doc! { "_id": n, "total": n, "lines": [{ "n": 1 }, { "n": 2 }] };
    orders(local).insert_many((0..5).map(order)).await.unwrap();
    let shop = local.client.database("shop");
    shop.collection("tmp").insert_many([doc! { "_id": 1 }, doc! { "_id": 2 }]).await.unwrap();
    shop.collection("gone").insert_one(doc! { "_id": 1 }).await.unwrap();
}

/// What it did then; it is what waits in the fixture.
async fn meanwhile(local: &Mongod, ids: &BTreeMap<Namespace, Bson>) {
    let (orders, shop) = (orders(local), local.client.database("shop"));
    let total: Decimal128 = "1.50".parse().unwrap();
    let blob = Binary { subtype: BinarySubtype::Generic, bytes: vec![0, 1, 2] };
    let of_shop = doc! { "_id": { "shop": 1, "n": 7_i64 }, "total": total, "blob": blob };
    let large = doc! { "_id": 10, "total": 1, "text": "x".repeat(50_000) };
    let refused = doc! { "_id": "refused" };
    orders.insert_many([large, of_shop, refused]).await.unwrap();
    let set = doc! { "$set": { "total": 5, "changes": 1 }, "$push": { "lines": { "n": 3 } } };
    orders.update_one(doc! { "_id": 0 }, set).await.unwrap();
    orders.update_one(doc! { "_id": 1 }, doc! { "$set": { "lines.0.n": 9 } }).await.unwrap();
    orders.replace_one(doc! { "_id": 2 }, doc! { "total": "other" }).await.unwrap();
    orders.delete_one(doc! { "_id": 3 }).await.unwrap();
    make(local, ids, "shop.log", doc! { "capped": true, "size": 1_048_576 }).await;
    let log = shop.collection::<Document>("log");
    log.insert_many((0..3).map(|n| doc! { "_id": n })).await.unwrap();
    let tmp = shop.collection::<Document>("tmp");
    tmp.update_one(doc! { "_id": 1 }, doc! { "$set": { "v": 1 } }).await.unwrap();
    local.admin(doc! { "renameCollection": "shop.tmp", "to": "shop.kept" }).await;
    shop.collection("kept").insert_one(doc! { "_id": 3 }).await.unwrap();
    shop.collection::<Document>("gone").drop().await.unwrap();
    make(local, ids, "crm.people", doc! {}).await;
    let id = ObjectId::parse_str("00000000000000000000000a").unwrap();
    let people = local.client.database("crm").collection("people");
    people.insert_one(doc! { "_id": id, "name": "Ann" }).await.unwrap();
}

/// The pause outlives the queue in which it was noted, until somebody ends it.
async fn resume(agent: &Agent) {
    eventually("the pause", PATIENCE, async || {
        agent.health().is_some_and(|health| health["pause"].is_object())
    })
    .await;
    assert!(agent.cli(&["resume"]).status.success());
}

/// The entries are the fixture's own bytes. Whose they are, and from where the stream goes on, is put beside them: no server
/// of a test is the one that they were read from.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_queue_of_an_earlier_build_arrives_when_this_one_is_started_on_it() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.may(&[Doubt], "the queue says that `shop.log` is to be compared");
    let options = earlier(&agent);
    let ids = collections(&Queue::open(&options).unwrap());
    before(&local, &ids).await;
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.cli(&["pause"]).status.success());
    meanwhile(&local, &ids).await;
    agent.queued(14).await;
    // The last of it is in the position, too.
    eventually("the last change", PATIENCE, async || {
        let list = agent.cli_json(&["queue", "list"]).unwrap_or_default();
        list.as_array().is_some_and(|list| list.iter().any(|of| of["collection"] == "crm.people"))
    })
    .await;
    assert!(agent.stop().success());
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 5, "nothing has arrived");

    let own = agent.dir.path().join("queue");
    {
        let (now, then) =
            (Queue::open(&QueueOptions::new(&own)).unwrap(), Queue::open(&options).unwrap());
        for name in [note::AGENT, note::LEASE_ID, note::RENEWED, note::RENEWING, note::LIVES] {
            then.set_meta(name, now.meta(name).unwrap().as_deref()).unwrap();
        }
        then.commit(vec![], now.checkpoint().unwrap().as_ref()).unwrap();
        then.make_durable().unwrap();
    }
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::rename(&options.path, &own).unwrap();
    agent.start(&[]);
    resume(&agent).await;
    agent.streaming().await;

    eventually("an empty queue", PATIENCE, async || {
        agent.health().is_some_and(|health| health["queueSize"] == 0)
    })
    .await;
    assert!(!agent.log().contains("everything"), "{}", agent.log());
    let letters = agent.cli_json(&["dead", "list"]).unwrap();
    assert_eq!(letters.as_array().unwrap().len(), 1, "{letters}");
    assert!(agent.cli(&["dead", "retry", letters[0]["id"].as_str().unwrap()]).status.success());
    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 7);
    assert!(agent.stop().success());
}

/// As after an upgrade that was taken back: the program says what it met, replicates, and leaves the queue whole for the newer
/// one. What waited there is found by the comparison.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_a_newer_build_is_moved_aside_whole_and_what_waited_in_it_is_found_again() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.may(&[NewQueue], "it is a newer build's");
    agent.start(&[]);
    agent.streaming().await;
    orders(&local).insert_many((0..10).map(|id| doc! { "_id": id, "v": 1 })).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.cli(&["pause"]).status.success());
    orders(&local).delete_one(doc! { "_id": 1 }).await.unwrap();
    orders(&local).update_one(doc! { "_id": 2 }, doc! { "$inc": { "v": 1 } }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": 100 }).await.unwrap();
    agent.queued(3).await;
    assert!(agent.stop().success());
    // The number of the layout stands among the small values. That the seal does not fit any more is not looked at before it.
    let own = QueueOptions::new(agent.dir.path().join("queue"));
    let queue = Queue::open(&own).unwrap();
    queue.set_meta("format", Some(&[3])).unwrap();
    queue.make_durable().unwrap();
    drop(queue);

    let refused = agent.cli(&["queue", "list"]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && told.contains("layout 3"), "{told}");
    agent.start(&[]);
    resume(&agent).await;
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    let log = agent.log();
    assert!(log.contains("layout 3 is not known to this program, which writes layout 2"), "{log}");
    let aside: Vec<_> = std::fs::read_dir(agent.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.display().to_string().contains("queue.broken-"))
        .collect();
    assert_eq!(aside.len(), 1, "{log}");
    assert!(log.contains(&aside[0].file_name().unwrap().display().to_string()), "{log}");
    assert!(aside[0].join("db").exists(), "nothing of it is deleted");
}
