//! A MongoDB and a PostgreSQL that is its copy, compared: each difference is found, whatever somebody has done to the
//! rows, and nothing else is.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use mongodb::bson::{Bson, RawDocumentBuf, doc};
use outrigger::{
    Config, Stop,
    agent::connect_local,
    config::Exact,
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        namespace::{Namespace, NamespaceFilter},
    },
    observe::progress::{Activity, Progress},
    postgres::connect::Postgres as Wire,
    side::{KeyRange, MongoSide, Order, Part, PostgresSide, Route, Side},
    sink::{Sink, Write, postgres::PostgresSink},
    sync::{NamespaceResult, Sides, Verify},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::into_postgres::{DECLARED, configured, odd_document, odd_id};
use crate::support::{PATIENCE, eventually, mongod::Mongod, odd, orders, postgres::Postgres, seed};

/// Both databases, and what looks into them.
struct Both {
    config: Config,
    source: Arc<dyn Side>,
    target: Arc<PostgresSide>,
    sink: PostgresSink,
}

impl Both {
    async fn of(local: &Mongod, target: &Postgres, dir: &Path, exact: Exact) -> Self {
        let mut config = configured(local, target, dir, DECLARED);
        config.postgres.exact = exact;
        let mongo = connect_local(&config).await.unwrap();
        let wire = Wire::new(&target.uri(), 4, Duration::from_secs(30)).unwrap();
        Self {
            source: MongoSide::source(&mongo),
            target: Arc::new(PostgresSide::new(wire, config.mapping.clone(), exact)),
            sink: PostgresSink::new(&config).unwrap(),
            config,
        }
    }

    /// What a side has in a range, in its order: by page.
    async fn walked(&self, side: &dyn Side, range: &KeyRange, part: Part) -> Vec<RawDocumentBuf> {
        let (ns, order) = (ns(), Order::ById);
        let after = ClusterTime::default();
        let mut walk = side.walk(Route { ns, range: range.clone(), part, order, after, page: 7 });
        let mut all = Vec::new();
        while let Some(page) = walk.next().await.unwrap() {
            let documents = page.documents().unwrap();
            assert_eq!(documents.len(), page.count());
            all.extend(documents.into_iter().map(ToOwned::to_owned));
        }
        all
    }

    async fn keys(&self, side: &dyn Side, range: &KeyRange) -> Vec<DocumentKey> {
        let all = self.walked(side, range, Part::Key).await;
        all.iter().map(|document| DocumentKey::of(document).unwrap()).collect()
    }

    /// Copies everything.
    async fn copy(&self) {
        let all = self.walked(&*self.source, &KeyRange::default(), Part::Whole).await;
        let writes: Vec<_> =
            all.iter().map(|document: &RawDocumentBuf| Write::Insert(document)).collect();
        for part in writes.chunks(200) {
            self.sink.write(&ns(), part).await.unwrap();
        }
    }

    async fn verified(&self) -> NamespaceResult {
        let sides = Sides::new(self.source.clone(), self.target.clone(), 2, 0);
        let scope = NamespaceFilter::new(&["shop.*".to_owned()], &[]).unwrap();
        let verify = Verify {
            sides: &sides,
            filter: &self.config.filter().unwrap(),
            scope: &scope,
            digest: false,
            lag: Arc::new(|| None),
            progress: Arc::new(parking_lot::Mutex::new(Progress::begin(
                String::new(),
                Activity::Verify,
                String::new(),
                0,
            ))),
            stop: &Stop::default(),
        };
        let mut found = verify.run().await.unwrap();
        assert_eq!(found.equal, found.namespaces.iter().all(NamespaceResult::is_equal));
        found.namespaces.pop().unwrap()
    }

    /// What differs: missing, extra, different.
    async fn differences(&self) -> [Vec<String>; 3] {
        let found = self.verified().await;
        [found.missing, found.extra, found.different]
            .map(|found| found.keys.iter().map(ToString::to_string).collect())
    }
}

fn ns() -> Namespace {
    Namespace::new("shop", "orders")
}

fn none() -> [Vec<String>; 3] {
    Default::default()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_somebody_does_to_a_row_is_found_and_mended_by_its_document() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let dir = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(seed());
    let collection = orders(&local);
    for id in 0..300 {
        collection.insert_one(odd_document(&mut random, Bson::Int32(id))).await.unwrap();
    }
    let done = [
        "UPDATE shop.orders SET doc = doc || '{\"v\": 2}' ROW",
        "UPDATE shop.orders SET doc = doc - 'v' ROW",
        "UPDATE shop.orders SET doc = jsonb_set(doc, '{v}', '1.0') ROW",
        "UPDATE shop.orders SET v = 2 ROW",
        "UPDATE shop.orders SET customer = NULL ROW",
        "UPDATE shop.orders SET hash = sha256('x') ROW",
        "UPDATE shop.orders SET shape = shape + 1 ROW",
        "UPDATE shop.orders SET raw = 'x' ROW",
        "UPDATE shop.orders_items SET qty = 2 CHILD AND position = 0",
        "UPDATE shop.orders_items SET qty = 0 CHILD AND position = 1",
        "DELETE FROM shop.orders_items CHILD AND position = 1",
        "INSERT INTO shop.orders_items SELECT _id, 7, 's' FROM shop.orders ROW",
        "UPDATE shop.orders_items SET position = 5 CHILD AND position = 1",
        "UPDATE shop.orders SET id = 'x' ROW",
        "DELETE FROM outrigger.failures CHILD",
        "UPDATE outrigger.failures SET error = 'none' CHILD",
        "INSERT INTO outrigger.failures (ns, _id, id, state, path, error) \
         SELECT 'shop.orders', _id, id, 'INEXACT', 'v', 'x' FROM shop.orders ROW",
        "DELETE FROM shop.orders ROW",
    ];
    let touched = 1000..1000 + done.len() as i32;
    for id in touched.clone() {
        let items = [doc! { "sku": "s", "qty": 1 }, doc! { "sku": "t" }];
        let line = doc! { "_id": id, "v": 1, "odd": f64::NAN, "customer": { "name": "Ann" }, "items": items.to_vec() };
        collection.insert_one(line).await.unwrap();
    }
    let both = Both::of(&local, &target, dir.path(), Exact::Hash).await;
    both.copy().await;
    assert_eq!(both.differences().await, none(), "nobody has done anything");

    for (id, what) in touched.clone().zip(done) {
        let row = format!("WHERE id = '{{\"$numberInt\":\"{id}\"}}'");
        let child = format!("WHERE _id = (SELECT _id FROM shop.orders {row})");
        target.ask(&what.replace("ROW", &row).replace("CHILD", &child)).await;
    }
    let raw = collection.clone_with_type::<RawDocumentBuf>();
    for (id, what) in touched.clone().zip(done) {
        let document = raw.find_one(doc! { "_id": id }).await.unwrap().unwrap();
        let key = DocumentKey::of(&document).unwrap();
        let found = both.target.find(&ns(), std::slice::from_ref(&key)).await.unwrap();
        let is_copy = found.get(&key.canonical()).map(|copy| both.target.is_copy(&document, copy));
        // Of one whose row is deleted the elements are left.
        assert_eq!(is_copy, Some(false), "{what}");
    }
    let found = both.verified().await;
    let counts = [found.missing.count, found.extra.count, found.different.count];
    assert_eq!(counts, [1, 0, done.len() as u64 - 1], "{found:?}");
    // What a sync does of it.
    for id in touched {
        let document = raw.find_one(doc! { "_id": id }).await.unwrap().unwrap();
        let key = DocumentKey::of(&document).unwrap();
        let write = Write::Upsert { key: &key, document: &document };
        both.sink.write(&ns(), &[write]).await.unwrap();
    }
    assert_eq!(both.differences().await, none(), "mended");

    // Rows that no document has, one of them with a key that none can have.
    target.ask("INSERT INTO shop.orders (_id, id, doc, hash, shape) VALUES ('planted', 'x', '{}', '', 0), ('\\x14', 'null', '{}', '', 0)").await;
    let [gone, extra, other] = both.differences().await;
    assert_eq!((gone.len(), extra.len(), other.len()), (0, 2, 0), "{extra:?}");
    let known: BTreeSet<_> = both
        .keys(&*both.source, &KeyRange::default())
        .await
        .iter()
        .map(DocumentKey::canonical)
        .collect();
    let there = both.keys(&*both.target, &KeyRange::default()).await;
    let strangers: Vec<_> = there.iter().filter(|key| !known.contains(&key.canonical())).collect();
    let deletes: Vec<_> = strangers.iter().map(|key| Write::Delete(key)).collect();
    both.sink.write(&ns(), &deletes).await.unwrap();
    assert_eq!(both.differences().await, none(), "deleted by their keys");

    let all = 300 + done.len() as u64;
    // A column that is not there is no row's fault, and no row is what it should be.
    target.ask("ALTER TABLE shop.orders DROP COLUMN v").await;
    assert_eq!(both.verified().await.different.count, all);
    both.copy().await;
    assert_eq!(both.differences().await, none(), "made again");
    target.ask("DROP TABLE shop.orders_items").await;
    assert_eq!(both.verified().await.different.count, all);
    target.ask("DROP TABLE shop.orders CASCADE").await;
    assert_eq!(both.verified().await.missing.count, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn elements_without_a_row_are_found_and_go_with_what_is_left_of_their_documents() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let dir = tempfile::tempdir().unwrap();
    let collection = orders(&local);
    let items = [doc! { "sku": "s", "qty": 1 }, doc! { "sku": "t" }];
    let line = |id: i32| doc! { "_id": id, "v": 1, "items": items.to_vec() };
    collection.insert_many((0..60).map(line)).await.unwrap();
    let both = Both::of(&local, &target, dir.path(), Exact::Hash).await;
    both.copy().await;
    assert_eq!(both.differences().await, none());

    // Of 30 the rows go by hand, of which MongoDB still has ten: those between the others, and those behind them.
    target.ask("DELETE FROM shop.orders WHERE (doc->>'_id')::int % 2 = 0").await;
    collection.delete_many(doc! { "_id": { "$mod": [6, 0] } }).await.unwrap();
    collection.delete_many(doc! { "_id": { "$mod": [6, 2] } }).await.unwrap();
    let found = both.verified().await;
    let counts = [found.missing.count, found.extra.count, found.different.count];
    assert_eq!(counts, [10, 20, 0], "{found:?}");
    let all = KeyRange::default();
    let there = both.keys(&*both.target, &all).await;
    let as_set: BTreeSet<_> = there.iter().map(DocumentKey::canonical).collect();
    assert_eq!((there.len(), as_set.len()), (60, 60), "each once, in pages of seven");
    let range = KeyRange { from: Some(there[13].clone()), until: Some(there[41].clone()) };
    assert_eq!(both.keys(&*both.target, &range).await, there[13..41], "and in a range");

    // What a sync does of it.
    let raw = collection.clone_with_type::<RawDocumentBuf>();
    for key in there {
        let filter = mongodb::bson::Document::try_from(key.filter()).unwrap();
        let document = raw.find_one(filter).await.unwrap();
        let write = match &document {
            Some(document) => Write::Upsert { key: &key, document },
            None => Write::Delete(&key),
        };
        both.sink.write(&ns(), &[write]).await.unwrap();
    }
    assert_eq!(both.differences().await, none(), "mended");
    assert_eq!(target.ask("SELECT count(*) FROM shop.orders_items").await, ["80"]);
    // None of them is a document to be restored.
    target.ask("DELETE FROM shop.orders WHERE (doc->>'_id')::int = 1").await;
    let wire = Wire::new(&target.uri(), 1, Duration::from_secs(30)).unwrap();
    let kept = PostgresSide::documents(wire, both.config.mapping.clone(), Exact::Raw);
    let key = DocumentKey::from_json(serde_json::json!(1)).unwrap();
    assert!(kept.find(&ns(), &[key]).await.unwrap().is_empty());
}

/// What is given up after its time goes on in no server.
#[tokio::test(flavor = "multi_thread")]
async fn a_reading_that_nobody_waits_for_any_more_is_cancelled_in_the_server() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let dir = tempfile::tempdir().unwrap();
    orders(&local).insert_many((0..10).map(|id| doc! { "_id": id })).await.unwrap();
    let both = Both::of(&local, &target, dir.path(), Exact::Hash).await;
    both.copy().await;
    let held = target.client().await;
    held.batch_execute("BEGIN; LOCK TABLE shop.orders").await.unwrap();
    let asking = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outrigger' AND state = 'active'";

    let wire = Wire::new(&target.uri(), 4, Duration::from_millis(200)).unwrap();
    let side = PostgresSide::new(wire, both.config.mapping.clone(), Exact::Hash);
    let (order, after) = (Order::ById, ClusterTime::default());
    let route =
        Route { ns: ns(), range: KeyRange::default(), part: Part::Whole, order, after, page: 5 };
    let late = side.walk(route.clone()).next().await.map(drop).unwrap_err().to_string();
    assert!(late.contains("no answer within 200ms"), "{late}");
    eventually("its end", PATIENCE, async || target.ask(asking).await == ["0"]).await;

    // The same where whoever has asked goes away.
    let walk = async { both.target.walk(route).next().await.map(drop) };
    tokio::select! {
        _ = walk => panic!("the table is locked"),
        () = eventually("it waits", PATIENCE, async || target.ask(asking).await == ["1"]) => {}
    }
    eventually("its end", PATIENCE, async || target.ask(asking).await == ["0"]).await;
    held.batch_execute("COMMIT").await.unwrap();
    assert_eq!(both.differences().await, none(), "it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn between_any_two_keys_there_are_the_same_documents_whatever_their_types_and_however_long() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let dir = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(seed());
    let collection = orders(&local);
    for _ in 0..150 {
        let id = odd_id(&mut random);
        let _ = collection.insert_one(doc! { "_id": id }).await;
    }
    // Keys that begin alike for longer than an index of PostgreSQL takes.
    for n in 0..60 {
        let long = "x".repeat(3_000);
        let id = match n % 3 {
            0 => Bson::String(format!("{long}{n:03}")),
            1 => Bson::Document(doc! { "a": &long, "b": random.random::<i32>() }),
            _ => Bson::Document(doc! { "a": &long, "b": f64::from(n) / 7.0, "c": "\0" }),
        };
        collection.insert_one(doc! { "_id": id }).await.unwrap();
    }
    // And what is told of it stands beside its key in another index.
    let signs: String = (0..5_000).map(|_| random.random_range('a'..='z')).collect();
    collection.insert_one(doc! { "_id": &signs, &signs: f64::NAN }).await.unwrap();
    let code = "f()".to_owned();
    let scope = doc! { "a": [1, "\0"] };
    let with_scope = mongodb::bson::JavaScriptCodeWithScope { code: code.clone(), scope };
    for id in [
        Bson::Symbol("a".into()),
        Bson::JavaScriptCode(code),
        Bson::JavaScriptCodeWithScope(with_scope),
        Bson::Document(doc! { "": [], "b": { "": Bson::Undefined } }),
    ] {
        let _ = collection.insert_one(doc! { "_id": id }).await;
    }
    odd::run(
        &local,
        "shop",
        &mongodb::bson::rawdoc! {
            "insert": "orders", "documents": [odd::string("_id", b"no \xFF text")],
        },
    );
    let both = Both::of(&local, &target, dir.path(), Exact::Hash).await;
    both.copy().await;
    assert_eq!(both.differences().await, none());

    let all = both.keys(&*both.source, &KeyRange::default()).await;
    let there = both.keys(&*both.target, &KeyRange::default()).await;
    assert_eq!(there.len(), all.len());
    let mut bounds: Vec<usize> = (0..all.len()).collect();
    bounds.shuffle(&mut random);
    let as_set =
        |keys: &[DocumentKey]| -> BTreeSet<_> { keys.iter().map(DocumentKey::canonical).collect() };
    for pair in bounds.chunks(2).filter(|pair| pair.len() == 2) {
        let (low, high) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
        let range = KeyRange { from: Some(all[low].clone()), until: Some(all[high].clone()) };
        let between = both.keys(&*both.target, &range).await;
        assert_eq!(between.len(), high - low, "none twice");
        assert_eq!(as_set(&between), as_set(&all[low..high]), "{:?} to {:?}", all[low], all[high]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_whose_order_a_collation_rules_is_compared_key_by_key() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let dir = tempfile::tempdir().unwrap();
    let create = doc! { "create": "orders", "collation": { "locale": "de", "strength": 2 } };
    local.client.database("shop").run_command(create).await.unwrap();
    let collection = orders(&local);
    let ids = ["b", "A", "ä", "Z", "c", "a b", "O", "ö", "1", "_"];
    collection.insert_many(ids.map(|id| doc! { "_id": id, "v": 1 })).await.unwrap();
    let both = Both::of(&local, &target, dir.path(), Exact::Hash).await;
    both.copy().await;
    assert_eq!(both.differences().await, none());

    target.ask("DELETE FROM shop.orders WHERE id = '\"ö\"'").await;
    target.ask("UPDATE shop.orders SET v = 3 WHERE id = '\"Z\"'").await;
    let upper = DocumentKey::from_json(serde_json::json!("a")).unwrap();
    let document = upper.filter();
    both.sink.write(&ns(), &[Write::Insert(document)]).await.unwrap();

    let found = both.differences().await.map(|keys| keys.join(" "));
    assert_eq!(
        found,
        ["\"ö\"", "\"a\"", "\"Z\""],
        "one that is equal to another by the collation is another"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_raw_is_handed_out_byte_for_byte_and_what_is_not_is_said() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let dir = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(seed());
    let collection = orders(&local);
    for _ in 0..100 {
        let id = odd_id(&mut random);
        let _ = collection.insert_one(odd_document(&mut random, id)).await;
    }
    let twice = odd::joined(&odd::raw(&doc! { "_id": "twice" }), &odd::twice("name"));
    let insert = mongodb::bson::rawdoc! { "insert": "orders", "documents": [twice] };
    odd::run(&local, "shop", &insert);
    let both = Both::of(&local, &target, dir.path(), Exact::Raw).await;
    both.copy().await;
    assert_eq!(both.differences().await, none());

    let wire = Wire::new(&target.uri(), 1, Duration::from_secs(30)).unwrap();
    let kept = PostgresSide::documents(wire, both.config.mapping.clone(), Exact::Raw);
    assert!(kept.keeps_documents() && !both.target.keeps_documents());
    let all = KeyRange::default();
    let documents = both.walked(&kept, &all, Part::Whole).await;
    assert!(documents.len() > 50, "{}", documents.len());
    assert_eq!(documents, both.walked(&*both.source, &all, Part::Whole).await);

    target.ask("UPDATE shop.orders SET raw = NULL WHERE id = '\"twice\"'").await;
    let (order, after) = (Order::Natural, ClusterTime::default());
    let mut walk =
        kept.walk(Route { ns: ns(), range: all, part: Part::Whole, order, after, page: 500 });
    let error = walk.next().await.map(drop).unwrap_err().to_string();
    assert!(error.contains("\"twice\"") && error.contains("postgres.exact"), "{error}");
}
