//! What goes wrong with a PostgreSQL that is replicated into: each row is a sentence and a fault on a real server, and ends
//! with every document as the row that the model of the mapping says, the same agent running, and no dead letter.

use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::Agent,
    eventually,
    mongod::Mongod,
    names, orders,
    postgres::Postgres,
    rows, seed,
    unasked::Unasked::{Doubt, Repair, Retries},
    workload,
};

/// What a statement of the agent ends with, by PostgreSQL's own codes.
const REFUSALS: [(&str, &str); 12] = [
    ("a full disk is waited for", "53100"),
    ("memory that is used up is waited for", "53200"),
    ("an I/O error is waited for", "58030"),
    ("a server that shuts down is waited for", "57P01"),
    ("a statement that somebody cancels is sent again", "57014"),
    ("connections that are all taken are waited for", "53300"),
    ("a standby is waited out", "25006"),
    ("a missing privilege is waited for until it is granted", "42501"),
    ("a deadlock is run again", "40P01"),
    ("what cannot be serialized is run again", "40001"),
    ("a lock that is not had in time is asked for again", "55P03"),
    ("an internal error is no document's", "XX000"),
];

const PLANT: &str = "CREATE OR REPLACE FUNCTION public.planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                     PERFORM nextval('public.met'); RAISE EXCEPTION 'planted' USING ERRCODE = 'THAT'; END $$; \
                     CREATE TRIGGER planted BEFORE INSERT OR UPDATE OR DELETE ON shop.orders \
                     FOR EACH STATEMENT EXECUTE FUNCTION public.planted()";

struct Stage {
    local: Mongod,
    target: Postgres,
    agent: Agent,
    rng: StdRng,
}

impl Stage {
    async fn set() -> Self {
        let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
        let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), &rows::declared());
        agent.may(
            &[Retries, Doubt, Repair],
            "each refusal of PostgreSQL is provoked, and each end is killed",
        );
        let mut rng = StdRng::seed_from_u64(seed());
        orders(&local).insert_many((0..50).map(|n| doc! { "_id": n, "a": n })).await.unwrap();
        for collection in &workload::collections(&local.client) {
            workload::change(collection, &mut rng).await.unwrap();
        }
        agent.start(&[]);
        agent.streaming().await;
        Self { local, target, agent, rng }
    }

    async fn work(&mut self) {
        for collection in &workload::collections(&self.local.client) {
            for _ in 0..15 {
                workload::change(collection, &mut self.rng).await.unwrap();
            }
        }
        orders(&self.local).update_many(doc! {}, doc! { "$inc": { "touched": 1 } }).await.unwrap();
    }

    /// Ends equal, by the agent that met it.
    async fn mended(&self, row: &str) {
        rows::equal(&self.local.client, &self.target, PATIENCE).await;
        assert!(self.agent.is_running(), "{row}");
        eventually(row, PATIENCE, async || {
            self.agent.health().is_some_and(|health| {
                health["queueSize"] == 0 && health["deadLetters"].as_u64().unwrap_or(0) == 0
            })
        })
        .await;
    }

    /// The agent waits, and says so.
    async fn noticed(&self) {
        eventually("the breaker is open", PATIENCE, async || {
            self.agent.health().is_some_and(|health| health["breaker"]["state"] != "closed")
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_of_postgres_is_outlived() {
    let mut stage = Stage::set().await;
    stage.target.ask("CREATE SEQUENCE public.met").await;
    for (row, code) in REFUSALS {
        println!("{row}");
        stage.target.ask("SELECT setval('public.met', 1)").await;
        stage.target.ask(&PLANT.replace("THAT", code)).await;
        stage.work().await;
        eventually("the agent has met it", PATIENCE, async || {
            stage.target.ask("SELECT last_value > 2 FROM public.met").await == ["t"]
        })
        .await;
        stage.target.ask("DROP TRIGGER planted ON shop.orders").await;
        stage.mended(row).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_the_server_itself_is_outlived() {
    let mut stage = Stage::set().await;
    let ends_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outrigger'";

    println!("a server that is killed and comes back has everything");
    stage.target.kill();
    stage.work().await;
    stage.noticed().await;
    stage.target.resume().await;
    stage.mended("kill").await;

    println!("connections that are cut in the middle of a batch are made again");
    let held = stage.target.client().await;
    held.batch_execute("BEGIN; LOCK TABLE shop.orders").await.unwrap();
    stage.work().await;
    for end in [
        ends_all,
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'outrigger'",
    ] {
        eventually("a batch waits", PATIENCE, async || {
            let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'outrigger' AND wait_event_type = 'Lock'";
            stage.target.ask(waits).await == ["t"]
        })
        .await;
        stage.target.ask(end).await;
    }
    held.batch_execute("COMMIT").await.unwrap();
    stage.mended("cut").await;

    println!("a password that is changed is waited for, and said");
    let admin = stage.target.client().await;
    admin.batch_execute("ALTER ROLE outrigger PASSWORD 'another'").await.unwrap();
    admin.batch_execute(&format!("{ends_all} AND pid <> pg_backend_pid()")).await.unwrap();
    stage.work().await;
    stage.noticed().await;
    eventually("it is said", PATIENCE, async || stage.agent.log().contains("28P01")).await;
    admin.batch_execute("ALTER ROLE outrigger PASSWORD 'outrigger'").await.unwrap();
    stage.mended("password").await;

    println!("a server that takes no writes is waited out");
    let reload = |setting: &str| format!("ALTER SYSTEM {setting}");
    admin.batch_execute(&reload("SET default_transaction_read_only = on")).await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    stage.work().await;
    stage.noticed().await;
    admin.batch_execute("SET default_transaction_read_only = off").await.unwrap();
    admin.batch_execute(&reload("RESET default_transaction_read_only")).await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    stage.mended("read-only").await;

    println!("all connections are taken by others for a while");
    admin.batch_execute(&reload("SET max_connections = 20")).await.unwrap();
    stage.target.kill();
    stage.target.resume().await;
    stage.mended("fewer connections").await;
    let mut others = vec![stage.target.client().await];
    others[0].batch_execute(ends_all).await.unwrap();
    while let Some(other) = stage.target.try_connect().await {
        others.push(other);
    }
    stage.work().await;
    stage.noticed().await;
    drop(others);
    stage.mended("connections").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_workload_with_kills_of_all_three_ends_as_the_model_says() {
    let mut stage = Stage::set().await;
    let names = stage.local.client.database("names");
    for round in 0..6 {
        for _ in 0..40 {
            names::step(&names, &mut stage.rng).await.unwrap();
        }
        stage.work().await;
        // Children that grow and shrink, a column whose values change their type, a large document.
        let grown: Vec<Bson> = (0..stage.rng.random_range(0..200)).map(Bson::Int32).collect();
        let set = doc! { "$set": { "arr": grown, "a": if round % 2 == 0 { Bson::Int32(round) } else { "text".into() } } };
        orders(&stage.local).update_many(doc! { "_id": { "$type": "int" } }, set).await.unwrap();
        let large: Document = doc! { "_id": "large", "a": round, "b": "x".repeat(15 << 20) };
        orders(&stage.local)
            .replace_one(doc! { "_id": "large" }, large)
            .upsert(true)
            .await
            .unwrap();
        match round {
            1 => {
                stage.agent.kill();
                stage.agent.start(&[]);
            }
            2 => {
                stage.target.kill();
                stage.target.resume().await;
            }
            3 => {
                stage.local.kill();
                stage.local.resume().await;
            }
            4 => {
                stage.agent.kill();
                stage.target.kill();
                stage.target.resume().await;
                // With a column of another type than it had.
                let declared = |ty: &str| format!("path = \"a\"\ntype = \"{ty}\"");
                stage.agent.replace_setting(&declared("integer"), &declared("text"));
                stage.agent.start(&[]);
            }
            5 => {
                stage.agent.kill();
                let declared = |ty: &str| format!("path = \"a\"\ntype = \"{ty}\"");
                stage.agent.replace_setting(&declared("text"), &declared("integer"));
                stage.agent.start(&[]);
            }
            _ => {}
        }
    }
    stage.mended("hard workload").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_frozen_writes_nothing_once_another_has_adopted_its_copy() {
    let mut stage = Stage::set().await;
    stage.work().await;
    stage.mended("before").await;
    stage.agent.signal("STOP");
    orders(&stage.local).insert_one(doc! { "_id": "meanwhile" }).await.unwrap();
    // As if a minute had gone by.
    stage
        .target
        .ask("UPDATE outrigger.replicas SET heartbeat = heartbeat - interval '5 minutes'")
        .await;
    let mut other =
        Agent::into_postgres(&stage.local.uri(), &stage.target.uri(), &rows::declared());
    other.may(&[Repair], "another agent has adopted the copy");
    other.start(&["--adopt"]);
    other.streaming().await;
    rows::equal(&stage.local.client, &stage.target, PATIENCE).await;
    let holder = "SELECT holder, lease_id FROM outrigger.replicas";
    let held = stage.target.ask(holder).await;
    other.signal("STOP");

    stage.agent.signal("CONT");
    orders(&stage.local).insert_one(doc! { "_id": "late" }).await.unwrap();
    eventually("the first has noticed", PATIENCE, async || {
        !stage.agent.is_running() || stage.agent.log().contains("mark of ownership")
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let late = "SELECT count(*) FROM shop.orders WHERE doc->>'_id' = 'late'";
    assert_eq!(stage.target.ask(late).await, ["0"], "the stale one writes nothing");
    assert_eq!(stage.target.ask(holder).await, held);
    stage.agent.kill();
    other.signal("CONT");
    rows::equal(&stage.local.client, &stage.target, PATIENCE).await;
}
