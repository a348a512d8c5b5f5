//! A real MongoDB into a real PostgreSQL, by a program that brings the sink: whatever is done to the one, and to the
//! other's server meanwhile, every document ends as the row that it is.

use std::{collections::BTreeMap, path::Path};

use mongodb::bson::{Bson, Decimal128, Document, RawDocumentBuf, doc, oid::ObjectId};
use outrigger::{Agent, Config, config, sink::postgres::PostgresSink};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};

use crate::support::{
    PATIENCE,
    agent::Agent as Program,
    eventually,
    mongod::Mongod,
    orders,
    postgres::{Postgres, hex},
    seed,
    unasked::Unasked,
};

pub(super) fn configured(local: &Mongod, target: &Postgres, dir: &Path, declared: &str) -> Config {
    let text = format!(
        "[local]\nuri = \"{}\"\n[queue]\npath = \"{}\"\n[worker]\nbatch_size = 50\n[target]\nkind = \"postgres\"\n{declared}",
        local.uri(),
        dir.join("queue").display(),
    );
    let uri = target.uri();
    let env = |name: &str| (name == "POSTGRES_URI").then(|| uri.clone());
    config::parse(&text, Path::new("config.toml"), env).unwrap()
}

/// Replicates for as long as `work` goes on.
async fn replicating(config: &Config, work: impl Future<Output = ()>) {
    let sink = PostgresSink::new(config).unwrap();
    let preparing = Agent::builder(config.clone()).sink(sink).prepare();
    let agent = Box::pin(preparing).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let work = async {
        work.await;
        stop.send(()).unwrap();
    };
    let (ended, ()) = tokio::join!(Box::pin(agent.run(async { stopped.await.unwrap() })), work);
    ended.unwrap();
}

/// The documents in the order of their `_id`s, each by its hash.
async fn in_mongodb(local: &Mongod) -> Vec<String> {
    let orders = orders(local).clone_with_type::<RawDocumentBuf>();
    let mut found = orders.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap();
    let mut hashes = Vec::new();
    while found.advance().await.unwrap() {
        hashes.push(hex(&Sha256::digest(found.current().as_bytes())));
    }
    hashes
}

async fn in_postgres(target: &Postgres) -> Vec<String> {
    if target.ask("SELECT to_regclass('shop.orders') IS NULL").await == ["t"] {
        return Vec::new();
    }
    target.ask("SELECT encode(hash, 'hex') FROM shop.orders ORDER BY _id").await
}

/// `_id`s of every type that a server takes, and some that it holds for one with others.
pub(super) fn odd_id(random: &mut StdRng) -> Bson {
    let decimal = |text: &str| Bson::Decimal128(text.parse::<Decimal128>().unwrap());
    match random.random_range(0..16) {
        0 => Bson::Int32(random.random_range(-5..5)),
        1 => Bson::Int64(random.random()),
        2 => Bson::Double(f64::from(random.random_range(-20..20)) / 4.0),
        3 => Bson::Double([f64::NAN, f64::INFINITY, -0.0, 5e-324, 0.1][random.random_range(0..5)]),
        4 => decimal(["1E+6000", "-1E-6000", "0.1", "NaN", "2.50"][random.random_range(0..5)]),
        5 => decimal(&format!("{}E{}", random.random::<i64>(), random.random_range(-30..30))),
        6 => Bson::String(["", "a", "a\0", "ab", "é", "b"][random.random_range(0..6)].into()),
        // One that is longer than a key may be. Of two that begin alike for that long the order is no promise.
        7 => Bson::String("x".repeat([100, 1_900, 5_000][random.random_range(0..3)])),
        8 => Bson::Document(doc! { "a": random.random_range(0..3), "b": ["x", 1.5] }),
        9 => Bson::Document(doc! { "a": "x", "b": Bson::Null }),
        10 => Bson::ObjectId(ObjectId::from_bytes(random.random())),
        11 => Bson::Boolean(random.random()),
        12 => Bson::DateTime(mongodb::bson::DateTime::from_millis(random.random())),
        13 => Bson::Timestamp(mongodb::bson::Timestamp { time: random.random(), increment: 1 }),
        14 => Bson::Binary(mongodb::bson::Binary {
            subtype: [0, 4, 5, 128][random.random_range(0..4)].into(),
            bytes: (0..random.random_range(0..20)).map(|_| random.random()).collect(),
        }),
        _ => [Bson::Null, Bson::MinKey, Bson::MaxKey][random.random_range(0..3)].clone(),
    }
}

pub(super) fn odd_document(random: &mut StdRng, id: Bson) -> Document {
    let items: Vec<_> = (0..random.random_range(0..4))
        .map(|n| doc! { "sku": format!("s{n}"), "qty": if n == 2 { Bson::Null } else { Bson::Int32(n) } })
        .collect();
    let v = if random.random_bool(0.2) {
        odd_id(random)
    } else {
        Bson::Int32(random.random_range(0..9))
    };
    doc! { "_id": id, "customer": { "name": "Ann" }, "v": v, "items": items, "nul": if random.random_bool(0.1) { "\0" } else { "" } }
}

pub(super) const DECLARED: &str = "[[column]]\ncollection = \"shop.orders\"\npath = \"v\"\ntype = \"integer\"\n\
                        [[column]]\ncollection = \"shop.orders\"\npath = \"customer.name\"\nname = \"customer\"\ntype = \"text\"\n\
                        [[child]]\ncollection = \"shop.orders\"\npath = \"items\"\ntable = \"orders_items\"\n\
                        columns = [{ path = \"sku\", type = \"text\" }, { path = \"qty\", type = \"integer\" }]\n";

#[tokio::test(flavor = "multi_thread")]
async fn every_document_ends_as_its_row_in_the_order_of_mongodb_through_a_kill_of_the_target() {
    let (local, mut target) = tokio::join!(Mongod::start(), Postgres::start());
    let dir = tempfile::tempdir().unwrap();
    let config = configured(&local, &target, dir.path(), DECLARED);
    let mut random = StdRng::seed_from_u64(seed());
    let orders = orders(&local);
    // What one `_id` is twice is no second document.
    let insert = async |random: &mut StdRng| {
        let id = odd_id(random);
        let _ = orders.insert_one(odd_document(random, id)).await;
    };
    // Many have an `_id` that is there already, and some of the others are deleted again.
    for _ in 0..300 {
        insert(&mut random).await;
    }

    replicating(&config, async {
        for round in 0..300 {
            match random.random_range(0..3) {
                0 => insert(&mut random).await,
                1 => {
                    let filter = doc! { "v": random.random_range(0..9) };
                    let push = doc! { "$inc": { "v": 1 }, "$push": { "items": { "sku": "new" } } };
                    orders.update_one(filter, push).await.unwrap();
                }
                _ => {
                    orders.delete_one(doc! { "v": random.random_range(0..9) }).await.unwrap();
                }
            }
            if round == 150 {
                target.kill();
                target.resume().await;
            }
        }
        let all = in_mongodb(&local).await;
        assert!(all.len() > 50, "{}", all.len());
        // The order of the rows is that of the documents, whatever types their keys have.
        eventually("every row is its document", PATIENCE, async || {
            in_postgres(&target).await == all
        })
        .await;
    })
    .await;

    let (mut model, mut elements) = (BTreeMap::<i32, i64>::new(), 0);
    let mut found = orders.find(doc! {}).await.unwrap();
    while found.advance().await.unwrap() {
        let document = found.deserialize_current().unwrap();
        // A whole number is one, whatever type it has.
        let v = match document.get("v") {
            Some(Bson::Int32(v)) => Some(*v),
            Some(Bson::Int64(v)) => i32::try_from(*v).ok(),
            Some(Bson::Double(v)) if v.trunc() == *v && v.abs() < 1e9 => Some(*v as i32),
            _ => None,
        };
        if let Some(v) = v {
            *model.entry(v).or_default() += 1;
        }
        elements += document.get_array("items").unwrap().len();
    }
    let counted: Vec<_> = model.iter().map(|(v, count)| format!("{v}|{count}")).collect();
    let columns = "SELECT v, count(*) FROM shop.orders WHERE v IS NOT NULL GROUP BY v ORDER BY v";
    assert_eq!(target.ask(columns).await, counted, "the declared column");
    let children = target.ask("SELECT count(*) FROM shop.orders_items").await;
    assert_eq!(children, [elements.to_string()], "the elements of the arrays");
    let orphans = "SELECT count(*) FROM shop.orders_items i WHERE NOT EXISTS (SELECT FROM shop.orders o WHERE o._id = i._id)";
    assert_eq!(target.ask(orphans).await, ["0"]);
    let inexact = "SELECT (SELECT count(DISTINCT _id) FROM outrigger.failures WHERE state = 'INEXACT') = \
                   (SELECT count(*) FROM shop.orders WHERE raw IS NOT NULL)";
    assert_eq!(target.ask(inexact).await, ["t"], "what jsonb does not say is kept, and told");
    let customers = target.ask("SELECT DISTINCT customer FROM shop.orders").await;
    assert_eq!(customers, ["Ann"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_postgres_refuses_is_told_and_keeps_none_of_the_others_away() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let dir = tempfile::tempdir().unwrap();
    let config = configured(
        &local,
        &target,
        dir.path(),
        "[[column]]\ncollection = \"shop.orders\"\npath = \"v\"\ntype = \"integer\"\n",
    );
    let orders = orders(&local);
    orders.insert_one(doc! { "_id": 0, "v": 0 }).await.unwrap();

    replicating(&config, async {
        eventually("the table", PATIENCE, async || {
            target.ask("SELECT to_regclass('shop.orders') IS NOT NULL").await == ["t"]
                && target.ask("SELECT count(*) FROM shop.orders").await == ["1"]
        })
        .await;
        // A rule of somebody's own.
        target.ask("ALTER TABLE shop.orders ADD CONSTRAINT few CHECK (v < 100)").await;
        let many = (1..200).map(|n| doc! { "_id": n, "v": if n == 77 { 100 } else { n % 100 } });
        orders.insert_many(many).await.unwrap();
        eventually("all but the one", PATIENCE, async || {
            target.ask("SELECT count(*) FROM outrigger.sync_status WHERE state = 'SYNCED'").await
                == ["199"]
        })
        .await;
        eventually("the one is told", PATIENCE, async || {
            let failed = "SELECT mongo_id, error FROM outrigger.sync_status WHERE state = 'FAILED'";
            let failed = target.ask(failed).await;
            failed.len() == 1
                && failed[0].starts_with("{\"$numberInt\":\"77\"}|")
                && failed[0].contains("few")
        })
        .await;
        orders.update_one(doc! { "_id": 77 }, doc! { "$set": { "v": 7 } }).await.unwrap();
        eventually("what is written later is no failure any more", PATIENCE, async || {
            target.ask("SELECT state, count(*) FROM outrigger.sync_status GROUP BY 1").await
                == ["SYNCED|200"]
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_declared_later_is_filled_and_what_cannot_be_made_is_said_at_the_start() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let mut agent = Program::into_postgres(&local.uri(), &target.uri(), "");
    let items = [doc! { "sku": "a" }, doc! { "sku": "b" }];
    orders(&local).insert_one(doc! { "_id": 1, "v": 7, "items": items.to_vec() }).await.unwrap();
    local.client.database("shop").collection("lines").insert_one(doc! { "_id": 1 }).await.unwrap();
    agent.start(&[]);
    agent.streaming().await;
    assert_eq!(target.ask("SELECT count(*) FROM shop.orders").await, ["1"]);
    assert_eq!(target.ask("SELECT count(*) FROM shop.lines").await, ["1"]);
    let status = agent.cli(&["status", "--json"]);
    let status = String::from_utf8_lossy(&status.stdout);
    assert!(status.contains("this target keeps none of MongoDB's"), "{status}");
    assert!(agent.stop().success());

    // The name of an array's table is that of a collection which has it already.
    let file = agent.dir.path().join("config.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let declared = |table: &str| DECLARED.replace("orders_items", table);
    std::fs::write(&file, format!("{before}\n{}", declared("lines"))).unwrap();
    agent.start(&[]);
    assert_eq!(agent.ended(PATIENCE).await.code(), Some(2), "{}", agent.log());
    assert!(agent.log().contains("is that of the collection shop.lines"), "{}", agent.log());

    std::fs::write(&file, format!("{before}\n{}", declared("orders_items"))).unwrap();
    agent.may(&[Unasked::Repair], "rows that were there are made anew with their columns");
    agent.start(&[]);
    eventually(
        "rows that were there have the columns that are declared now",
        PATIENCE,
        async || {
            target.try_ask("SELECT v FROM shop.orders").await.is_ok_and(|rows| rows == ["7"])
                && target
                    .ask("SELECT string_agg(sku, ' ' ORDER BY position) FROM shop.orders_items")
                    .await
                    == ["a b"]
        },
    )
    .await;
    // A mark that is given back leaves the copy its source's.
    assert!(agent.stop().success());
    assert_eq!(
        target.ask("SELECT count(*) FROM outrigger.replicas WHERE holder IS NULL").await,
        ["1"]
    );
}
