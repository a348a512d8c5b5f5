//! The sink and the marks of PostgreSQL against a real server: whose writes count, what becomes of tables whose collections
//! come, go and are renamed, and that what is copied is what is written row by row.

use std::{collections::BTreeSet, time::Duration};

use mongodb::bson::{Document, RawDocumentBuf, doc};
use outrigger::{
    config::{ChildRule, ColumnRule, ColumnType, Exact, Mapping},
    gate::tally::Counts,
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        event::SchemaChange,
        namespace::{Namespace, Patterns},
    },
    side::{
        postgres::PostgresRecords,
        records::{AgentIdentity, LeaseRecords, NewLeaseRecord},
    },
    sink::{
        Changed, SchemaSink, Sink, SinkError, Write, Written,
        postgres::{PostgresSink, connect, fence::Fence},
    },
};

use crate::support::postgres::Postgres;

fn pool(target: &Postgres) -> connect::Postgres {
    connect::Postgres::new(&target.uri(), 4, Duration::from_secs(20)).unwrap()
}

fn sink(target: &Postgres, mapping: &Mapping) -> PostgresSink {
    PostgresSink::of(pool(target), mapping.clone(), Exact::Hash, None)
}

fn column(path: &str, ty: ColumnType) -> ColumnRule {
    ColumnRule { path: path.into(), name: path.replace('.', "_"), ty }
}

fn ns(name: &str) -> Namespace {
    name.parse().unwrap()
}

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
}

fn key(id: i32) -> DocumentKey {
    DocumentKey::of(&raw(&doc! { "_id": id })).unwrap()
}

/// With columns, and an array as a table, of `shop.orders`.
fn mapping() -> Mapping {
    let orders = ns("shop.orders");
    let columns = vec![column("sku", ColumnType::Text), column("qty", ColumnType::Integer)];
    Mapping {
        columns: vec![
            (orders.clone(), column("v", ColumnType::Integer)),
            (orders.clone(), column("customer.name", ColumnType::Text)),
        ],
        children: vec![(
            orders,
            ChildRule { path: "items".into(), table: "orders_items".into(), columns },
        )],
    }
}

async fn write(sink: &PostgresSink, ns: &Namespace, documents: &[RawDocumentBuf]) -> Vec<Written> {
    let writes: Vec<_> = documents.iter().map(|document| Write::Insert(document)).collect();
    sink.write(ns, &writes).await.unwrap()
}

fn agent(instance: &str) -> AgentIdentity {
    let text = |text: &str| text.to_owned();
    AgentIdentity {
        id: text("a"),
        instance: text(instance),
        host: text("h"),
        boot: text("b"),
        pid: 7,
    }
}

async fn take(
    records: &PostgresRecords,
    agent: &AgentIdentity,
    before: Option<&str>,
    is_new: bool,
) -> bool {
    let patterns = Patterns { include: vec!["shop.*".into()], exclude: Vec::new() };
    let record = NewLeaseRecord {
        source_id: "rs0",
        patterns: &patterns,
        copied: Vec::new(),
        refused: &BTreeSet::from([ns("shop.theirs")]),
        upstream: vec!["up"],
        agent,
        lease_id: &agent.instance,
        counts: &Counts::default(),
    };
    records.set("outrigger", record, before, is_new).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_agent_writes_nothing_and_whoever_takes_over_waits_for_what_it_has_begun() {
    let target = Postgres::start().await;
    let (ns, own, other) = (ns("shop.orders"), Fence::default(), Fence::default());
    let fenced =
        PostgresSink::of(pool(&target), Mapping::default(), Exact::Hash, Some(own.clone()));
    let (records, successor) =
        (PostgresRecords::new(pool(&target), own), PostgresRecords::new(pool(&target), other));
    let first = raw(&doc! { "_id": 1 });

    let early = fenced.write(&ns, &[Write::Insert(&first)]).await;
    assert!(matches!(early, Err(SinkError::Unavailable(_))), "no mark yet: {early:?}");
    assert!(take(&records, &agent("one"), None, true).await);
    assert!(!take(&successor, &agent("two"), None, true).await, "it is held");
    assert_eq!(
        fenced.write(&ns, &[Write::Insert(&first)]).await.unwrap(),
        [Written::Applied { created: true }]
    );
    // What another agent sees of it.
    let seen = successor.read("outrigger").await.unwrap();
    let seen = seen.first().unwrap();
    let holder = seen.holder.as_ref().unwrap();
    assert_eq!((&*seen.source_id, &holder.agent), ("rs0", &agent("one")));
    assert!(seen.owns(&self::ns("shop.orders")) && !seen.owns(&self::ns("shop.theirs")));
    assert_eq!(seen.upstream, ["up"]);
    assert!(holder.is_fresh());

    // A heartbeat passes the batches in flight, and holds only for a mark that is as it was left.
    let times = |n: u64| (ClusterTime((n - 1) << 32), ClusterTime(n << 32));
    let (left, at) = times(1 << 31);
    let stranded = target.client().await;
    let share = "BEGIN; SELECT 1 FROM outrigger.replicas WHERE lease_id = 'one' FOR KEY SHARE";
    stranded.batch_execute(share).await.unwrap();
    assert!(
        records.renew("outrigger", "rs0", "one", ClusterTime(0), left, vec!["up"]).await.unwrap()
    );
    assert!(records.renew("outrigger", "rs0", "one", left, at, vec!["up"]).await.unwrap());
    assert!(
        !records.renew("outrigger", "rs0", "one", ClusterTime(at.0 + 1), at, vec![]).await.unwrap()
    );
    assert!(!records.renew("outrigger", "rs0", "two", left, at, vec![]).await.unwrap());

    // Taken over: behind what has begun, and nothing is written that begins later.
    let two = agent("two");
    let taking = take(&successor, &two, Some("one"), false);
    tokio::pin!(taking);
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut taking).await;
    assert!(waits.is_err(), "a batch is in flight");
    stranded.batch_execute("COMMIT").await.unwrap();
    assert!(taking.await);
    let late = fenced.write(&ns, &[Write::Delete(&key(1))]).await;
    assert!(matches!(late, Err(SinkError::Unavailable(_))), "{late:?}");
    let dropped = fenced.change_schema(&SchemaChange::Drop { ns: ns.clone() }).await;
    assert!(matches!(dropped, Err(SinkError::Unavailable(_))), "{dropped:?}");
    assert_eq!(target.ask("SELECT count(*) FROM shop.orders").await, ["1"]);

    // Given back, and free.
    successor.release("outrigger", "rs0", "two").await.unwrap();
    assert!(successor.read("outrigger").await.unwrap()[0].holder.is_none());
    assert!(take(&records, &agent("three"), None, false).await);
    assert_eq!(
        fenced.write(&ns, &[Write::Delete(&key(1))]).await.unwrap(),
        [Written::Applied { created: false }]
    );
    // A schema that somebody has dropped, marks and all: no document is to blame.
    target.ask("DROP SCHEMA outrigger CASCADE").await;
    let gone = fenced.write(&ns, &[Write::Insert(&first)]).await;
    assert!(matches!(gone, Err(SinkError::Unavailable(_))), "{gone:?}");
    assert!(records.read("outrigger").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_come_go_and_are_renamed_with_their_collections() {
    let target = Postgres::start().await;
    let sink = sink(&target, &mapping());
    let (orders, old) = (ns("shop.orders"), ns("shop.Old"));
    // What is written late may be of a collection that has gone.
    assert_eq!(
        sink.write(&ns("shop.gone"), &[Write::Delete(&key(1))]).await.unwrap(),
        [Written::Applied { created: false }]
    );
    assert_eq!(target.ask("SELECT to_regclass('shop.gone') IS NULL").await, ["t"]);
    let change = async |change: SchemaChange| sink.change_schema(&change).await.unwrap();
    let create = |ns: &Namespace, options: Document| SchemaChange::Create {
        ns: ns.clone(),
        options: raw(&options),
    };
    let drop_it = |ns: &Namespace| SchemaChange::Drop { ns: ns.clone() };
    let rename = |from: &Namespace, to: &Namespace| SchemaChange::Rename {
        from: from.clone(),
        to: to.clone(),
        drop_target: true,
    };
    let tables = "SELECT string_agg(table_name, ' ' ORDER BY table_name COLLATE \"C\") FROM information_schema.tables WHERE table_schema = 'shop'";

    for _ in 0..2 {
        assert_eq!(change(create(&orders, doc! {})).await, Changed::Done);
    }
    change(create(&ns("shop.view"), doc! { "viewOn": "orders", "pipeline": [] })).await;
    assert_eq!(target.ask(tables).await, ["orders orders_items"], "no table of a view");
    let items = doc! { "sku": "a", "qty": 2 };
    write(&sink, &orders, &[raw(&doc! { "_id": 1, "v": 5, "items": [items.clone(), items] })])
        .await;

    // To a name for which nothing is declared: the rows are there, and the columns are not.
    assert_eq!(change(rename(&orders, &old)).await, Changed::WasNotThere, "to be compared");
    assert_eq!(target.ask(tables).await, ["Old"]);
    assert_eq!(target.ask("SELECT id FROM shop.\"Old\"").await, ["{\"$numberInt\":\"1\"}"]);
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'shop' AND column_name = 'v'";
    assert_eq!(target.ask(columns).await, ["0"]);
    assert_eq!(change(rename(&orders, &old)).await, Changed::WasNotThere, "once more");
    assert_eq!(target.ask("SELECT ns, mongo_id FROM outrigger.sync_status").await.len(), 1);

    // Onto one that is there, in another database, of which the same is declared: nothing.
    let (other, third) = (ns("crm.other"), ns("crm.third"));
    write(&sink, &other, &[raw(&doc! { "_id": 7 })]).await;
    assert_eq!(change(rename(&old, &other)).await, Changed::Done);
    assert_eq!(target.ask("SELECT id FROM crm.other").await, ["{\"$numberInt\":\"1\"}"]);
    write(&sink, &other, &[raw(&doc! { "_id": 8 })]).await;

    // Somebody's view keeps a table, and only that.
    target.ask("CREATE VIEW crm.mine AS SELECT id FROM crm.other; CREATE VIEW crm.all AS SELECT * FROM outrigger.sync_status").await;
    let held = sink.change_schema(&drop_it(&other)).await;
    assert!(matches!(&held, Err(SinkError::Held(why)) if why.contains("view")), "{held:?}");
    assert_eq!(change(rename(&other, &third)).await, Changed::Done);
    target.ask("DROP VIEW crm.mine").await;
    for _ in 0..2 {
        assert_eq!(change(drop_it(&third)).await, Changed::Done);
    }
    assert_eq!(target.ask("SELECT count(*) FROM crm.all").await, ["0"]);
    assert_eq!(target.ask("SELECT count(*) FROM outrigger.tables").await, ["0"]);
    assert_eq!(target.ask("SELECT count(*) FROM outrigger.children").await, ["0"]);

    // A table that is dropped by hand, and its schema: it is made anew, and the view with it.
    write(&sink, &orders, &[raw(&doc! { "_id": 1, "items": [1] })]).await;
    target.ask("DROP SCHEMA shop CASCADE").await;
    write(&sink, &orders, &[raw(&doc! { "_id": 2, "items": [{ "sku": "b" }] })]).await;
    assert_eq!(target.ask("SELECT sku FROM shop.orders_items").await, ["b"]);
    assert_eq!(target.ask("SELECT count(*) FROM outrigger.sync_status").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_outrigger_did_not_make_is_left_alone() {
    let target = Postgres::start().await;
    let (sink, orders) = (sink(&target, &mapping()), ns("shop.orders"));
    target.ask("CREATE SCHEMA shop; CREATE TABLE shop.orders (mine int)").await;

    let written = write(&sink, &orders, &[raw(&doc! { "_id": 1 })]).await;
    let [Written::Rejected { reason, .. }] = &written[..] else { panic!("{written:?}") };
    assert!(
        reason.contains("\"shop\".\"orders\"") && reason.contains("somebody else's"),
        "{reason}"
    );
    let create = SchemaChange::Create { ns: orders.clone(), options: RawDocumentBuf::new() };
    assert!(matches!(sink.change_schema(&create).await, Err(SinkError::Held(_))));
    let columns = "SELECT column_name FROM information_schema.columns WHERE table_schema = 'shop'";
    assert_eq!(target.ask(columns).await, ["mine"]);

    // Nor is the table of a collection taken for that of an array, which is declared later by its name.
    target.ask("ALTER TABLE shop.orders RENAME TO away").await;
    let before = self::sink(&target, &Mapping::default());
    write(&before, &ns("shop.orders_items"), &[raw(&doc! { "_id": 1 })]).await;
    let written = write(&sink, &orders, &[raw(&doc! { "_id": 1, "items": [1] })]).await;
    let [Written::Rejected { reason, .. }] = &written[..] else { panic!("{written:?}") };
    assert!(reason.contains("collection shop.orders_items"), "{reason}");
    target.ask("DROP TABLE shop.orders_items CASCADE").await;
    let written = write(&sink, &orders, &[raw(&doc! { "_id": 1, "items": [1] })]).await;
    assert_eq!(written, [Written::Applied { created: true }]);
    assert_eq!(target.ask("SELECT count(*) FROM outrigger.sync_status").await, ["1"]);
    // Its own it knows, also where somebody has dropped what it has noted of them.
    target.ask("DROP SCHEMA outrigger CASCADE").await;
    let anew = self::sink(&target, &mapping());
    let written = write(&anew, &orders, &[raw(&doc! { "_id": 1, "items": [1, 2] })]).await;
    assert_eq!(written, [Written::Applied { created: false }]);
    assert_eq!(target.ask("SELECT count(*) FROM outrigger.sync_status").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_copied_is_what_is_written_row_by_row() {
    let target = Postgres::start().await;
    let (sink, orders) = (sink(&target, &mapping()), ns("shop.orders"));
    let of = |n: i32| {
        let mut document = doc! { "_id": n, "v": n, "customer": { "name": format!("c{n}") } };
        document
            .insert("items", (0..n % 4).map(|q| doc! { "sku": "s", "qty": q }).collect::<Vec<_>>());
        match n % 7 {
            0 => document.insert("v", "no number"),
            1 => document.insert("x", f64::NAN),
            2 => document.insert("nul", "a\0b"),
            _ => document.insert("y", mongodb::bson::DateTime::from_millis(i64::from(n))),
        };
        raw(&document)
    };
    let documents: Vec<_> = (0..300).map(of).collect();
    let all = "SELECT encode(_id, 'hex'), id, doc, encode(hash, 'hex'), shape, encode(raw, 'hex'), v, customer_name, \
               (SELECT jsonb_agg(i ORDER BY position) FROM shop.orders_items i WHERE i._id = o._id), \
               (SELECT jsonb_agg(f.path) FROM outrigger.failures f WHERE f._id = o._id AND ns = 'shop.orders') FROM shop.orders o ORDER BY _id";

    let written = write(&sink, &orders, &documents).await;
    assert!(written.iter().all(|written| *written == Written::Applied { created: true }));
    let copied = target.ask(all).await;
    // The same again is no copy, since all of it is there.
    let written = write(&sink, &orders, &documents).await;
    assert!(written.iter().all(|written| *written == Written::Applied { created: false }));
    assert_eq!(target.ask(all).await, copied);
    assert_eq!(sink.misfits().values().sum::<u64>(), 2 * 43, "values that are no integers");

    // A page in which the server refuses a row is written without it, and that one is told until it is written.
    let more = "TRUNCATE shop.orders, shop.orders_items; \
                ALTER TABLE shop.orders ADD CONSTRAINT few CHECK (v <> 150) ; \
                ALTER TABLE shop.orders ADD CONSTRAINT late UNIQUE (customer_name) DEFERRABLE INITIALLY DEFERRED";
    target.ask(more).await;
    let fresh = self::sink(&target, &mapping());
    let mut documents = documents;
    documents.push(raw(&doc! { "_id": 1_000, "customer": { "name": "c3" } }));
    let written = write(&fresh, &orders, &documents).await;
    let refused: Vec<_> = written
        .iter()
        .enumerate()
        .filter(|(_, written)| !matches!(written, Written::Applied { created: true }))
        .collect();
    let [(150, Written::Rejected { .. }), (300, Written::Conflict { .. })] = &refused[..] else {
        panic!("{refused:?}")
    };
    assert_eq!(target.ask("SELECT count(*) FROM shop.orders").await, ["299"]);
    let failed = "SELECT count(*) FROM outrigger.sync_status WHERE state = 'FAILED'";
    assert_eq!(target.ask(failed).await, ["2"]);
    target.ask("ALTER TABLE shop.orders DROP CONSTRAINT few, DROP CONSTRAINT late").await;
    write(&fresh, &orders, &[documents[150].clone(), documents[300].clone()]).await;
    assert_eq!(target.ask(failed).await, ["0"]);
}

/// Under row security, for one: PostgreSQL takes the rows there, and refuses each `COPY`.
#[tokio::test(flavor = "multi_thread")]
async fn where_every_copy_is_refused_the_rows_are_written_all_the_same() {
    let target = Postgres::start().await;
    target.ask("CREATE ROLE clerk LOGIN PASSWORD 'secret'").await;
    target.ask("GRANT CREATE ON DATABASE postgres TO clerk").await;
    let uri = target.uri().replace("outrigger:outrigger@", "clerk:secret@");
    // Of one connection, so that one of no use is met again.
    let pool = connect::Postgres::new(&uri, 1, Duration::from_secs(20)).unwrap();
    let orders = ns("shop.orders");
    let documents: Vec<_> = (0..300).map(|id| raw(&doc! { "_id": id, "v": id })).collect();
    let sink = PostgresSink::of(pool, mapping(), Exact::Hash, None);
    write(&sink, &orders, &documents[..1]).await;
    let secured = "ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; \
                   CREATE POLICY all_rows ON shop.orders USING (true) WITH CHECK (true)";
    target.ask(secured).await;

    for some in documents[1..].chunks(100) {
        let written = write(&sink, &orders, some).await;
        let all = written.iter().all(|written| *written == Written::Applied { created: true });
        assert!(all, "{written:?}");
    }

    assert_eq!(target.ask("SELECT count(*), sum(v) FROM shop.orders").await, ["300|44850"]);
    assert_eq!(target.ask("SELECT count(*) FROM outrigger.failures").await, ["0"]);
}

/// With some that were inserted.
async fn change_and_insert(
    sink: &PostgresSink,
    ns: &Namespace,
    changed: &[RawDocumentBuf],
    inserted: &[RawDocumentBuf],
) {
    let keys: Vec<_> = changed.iter().map(|document| DocumentKey::of(document).unwrap()).collect();
    let changed = changed.iter().zip(&keys);
    let changes = changed.map(|(document, key)| Write::Upsert { key, document });
    let inserts = inserted.iter().map(|document| Write::Insert(document));
    sink.write(ns, &inserts.chain(changes).collect::<Vec<_>>()).await.unwrap();
}

async fn change(sink: &PostgresSink, ns: &Namespace, documents: &[RawDocumentBuf]) {
    change_and_insert(sink, ns, documents, &[]).await;
}

/// All of it would be for nothing, and is done twice then.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_documents_that_are_there_are_not_tried_as_a_copy() {
    let target = Postgres::start().await;
    let (sink, orders) = (sink(&target, &Mapping::default()), ns("shop.orders"));
    let documents: Vec<_> = (0..300).map(|id| raw(&doc! { "_id": id, "v": id })).collect();
    change(&sink, &orders, &documents[..100]).await;
    // What a sequence has given is not taken back where the COPY is refused.
    let counting = "CREATE SEQUENCE copies; \
                    CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                    IF current_query() LIKE 'COPY%' THEN PERFORM nextval('copies'); END IF; RETURN NULL; END $$; \
                    CREATE TRIGGER noted BEFORE INSERT ON shop.orders EXECUTE FUNCTION noted()";
    target.ask(counting).await;
    let copies =
        async || target.ask("SELECT count(*) FROM pg_sequences WHERE last_value > 0").await;

    // A table that was empty is found to be so, once.
    change(&sink, &orders, &documents[100..200]).await;
    assert_eq!(copies().await, ["1"], "none of the batch before was there");
    change(&sink, &orders, &documents[..100]).await;
    target.ask("ALTER SEQUENCE copies RESTART").await;
    for _ in 0..50 {
        change(&sink, &orders, &documents[..200]).await;
    }
    assert_eq!(copies().await, ["0"], "changes");
    // Most of them new, as where an application inserts much and changes a little.
    for at in 0..5 {
        let new = (1_000 * (at + 1)..).take(70).map(|id| raw(&doc! { "_id": id, "v": 0 }));
        change_and_insert(&sink, &orders, &documents[..30], &new.collect::<Vec<_>>()).await;
    }
    assert_eq!(copies().await, ["0"], "inserts and changes");

    write(&sink, &orders, &documents[200..]).await;
    assert_eq!(copies().await, ["1"], "inserts");
    assert_eq!(
        target.ask("SELECT count(*), sum((doc->>'v')::int) FROM shop.orders").await,
        ["650|44850"]
    );
}

/// Statements are planned without their arrays: whatever PostgreSQL believes of those, no table is read from its beginning to
/// its end for a batch.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_found_by_their_keys_in_a_large_table_and_its_children() {
    let mut target = Postgres::start().await;
    let orders = ns("shop.orders");
    let items = doc! { "sku": "s", "qty": 1 };
    let of =
        |id: i32, v: i32| raw(&doc! { "_id": id, "v": v, "items": [items.clone(), items.clone()] });
    let documents: Vec<_> = (0..20_000).map(|id| of(id, 1)).collect();
    let filling = sink(&target, &mapping());
    write(&filling, &orders, &documents).await;
    // A value that is no number for `jsonb` is noted, so that there is something to forget.
    let odd: Vec<_> =
        (0..2_000).map(|id| raw(&doc! { "_id": id, "v": 1, "x": f64::NAN })).collect();
    change(&filling, &orders, &odd).await;
    drop(filling);
    // Of nobody, where no element stands.
    let strange = "INSERT INTO shop.orders_items (_id, position) SELECT _id, p FROM shop.orders, \
                   unnest('{-2147483648,-1,2147483647}'::int[]) AS p WHERE v = 1 AND id = '{\"$numberInt\":\"5\"}'";
    target.ask(strange).await;
    let strangers = "SELECT count(*) FROM shop.orders_items WHERE position NOT BETWEEN 0 AND 1";
    assert_eq!(target.ask(strangers).await, ["3"]);
    // What a server has counted it keeps where it is stopped.
    let scanned = async |target: &Postgres| {
        let sql = "SELECT seq_tup_read FROM pg_stat_all_tables WHERE schemaname IN ('shop', 'outrigger') \
                   AND relname IN ('orders', 'orders_items', 'failures') ORDER BY relname";
        let read: Vec<u64> = target.ask(sql).await.iter().map(|of| of.parse().unwrap()).collect();
        <[u64; 3]>::try_from(read).unwrap()
    };
    target.stop();
    target.resume().await;
    let before = scanned(&target).await;

    let sink = sink(&target, &mapping());
    for changed in (0..10_000).collect::<Vec<_>>().chunks(1_000) {
        let documents: Vec<_> = changed.iter().map(|id| of(*id, 2)).collect();
        change(&sink, &orders, &documents).await;
    }
    let keys: Vec<_> = (10_000..12_000).map(key).collect();
    sink.write(&orders, &keys.iter().map(Write::Delete).collect::<Vec<_>>()).await.unwrap();
    drop(sink);

    let counts = "SELECT (SELECT count(*) FROM outrigger.failures), count(*), sum(v), \
                  (SELECT count(*) FROM shop.orders_items) FROM shop.orders";
    target.stop();
    target.resume().await;
    let after = scanned(&target).await;
    assert_eq!(target.ask(counts).await, ["0|18000|28000|36000"]);
    let read: Vec<_> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    // Whether there is anything to forget is looked for from the beginning of the failures.
    assert!(
        read[1] == 0 && read[2] == 0,
        "rows read by no key, of failures, orders and items: {read:?}"
    );
    assert!(read[0] < 20_000, "{read:?}");
}
