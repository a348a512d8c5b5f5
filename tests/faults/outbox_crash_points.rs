//! An agent that reads an outbox ends at each step that it passes, perhaps together with one of the databases, and is
//! started again; the copy is what the application's own tables say.

use std::{
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use mongodb::bson::{Document, doc};
use outrigger::runtime::crash::CrashPoint;
use tokio_postgres::Client;

use crate::support::{
    PATIENCE, eventually,
    outbox::{Program, World, transaction},
};

/// Steps that one start passes once, before anything is read.
const AT_THE_START: [CrashPoint; 7] = [
    CrashPoint::PositionNoted,
    CrashPoint::LeaseIdNoted,
    CrashPoint::TurnTaken,
    CrashPoint::ReaderNoted,
    CrashPoint::PartCopied,
    CrashPoint::RangeNoted,
    CrashPoint::CollectionCopied,
];

const WHILE_READING: [CrashPoint; 8] = [
    CrashPoint::CommitBegins,
    CrashPoint::CommitDone,
    CrashPoint::RowsMarked,
    CrashPoint::Leased,
    CrashPoint::Written,
    CrashPoint::AckBegins,
    CrashPoint::AckDone,
    CrashPoint::DeadLetterDone,
];

/// Beside the world's: a collection of a table, and one of which the target takes no document.
const MORE: &str = "[[table]]\nname = \"items\"\nkey = \"id\"\ncollection = \"app.items\"\n\
                    [[route]]\nevent = \"item.saved\"\ncollection = \"app.items\"\nkey = \"payload.id\"\nop = \"replace\"\n\
                    [[route]]\nevent = \"poison.*\"\ncollection = \"app.poison\"\nkey = \"entity_id\"\nop = \"insert\"\n\
                    [worker]\nmax_retries = 0\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_of_the_start_of_an_outbox_is_made_good_by_the_next_start() {
    let stage = Stage::set().await;
    let Stage { world, .. } = &stage;
    let mut client = world.postgres.client().await;
    for (n, step) in AT_THE_START.into_iter().enumerate() {
        // A target and a queue that know of nothing, where the last ones had read all that is marked.
        for db in ["app", "outrigger"] {
            world.mongod.client.database(db).drop().await.unwrap();
        }
        stage.let_the_turn_run_out().await;
        let marked = "SELECT coalesce(max(id), 0) FROM outbox";
        let marked = world.postgres.ask(marked).await[0].parse::<u64>().unwrap();
        let mut program = Program::new(world, &format!("start {n}"), MORE);
        crash(&mut program, step, 1, async || {}).await;

        stage.work(&mut client).await;
        stage.let_the_turn_run_out().await;
        program.start();
        stage.is_well(&program, marked).await;
        println!("{step:?} ok");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_of_reading_an_outbox_alone_or_with_a_database_is_made_good() {
    let mut stage = Stage::set().await;
    let mut program = Program::started(&stage.world, "agent", MORE);
    stage.is_well(&program, 0).await;
    program.kill();
    for step in WHILE_READING {
        for passes in 1..=3 {
            let mut client = stage.world.postgres.client().await;
            crash(&mut program, step, passes, async || stage.work(&mut client).await).await;
            match passes {
                2 => {
                    stage.world.postgres.kill();
                    stage.world.postgres.resume().await;
                }
                3 => {
                    stage.world.mongod.kill();
                    stage.world.mongod.resume().await;
                    stage.refuse_poison().await;
                }
                _ => {}
            }
            program.start();
            stage.is_well(&program, 0).await;
            program.kill();
            println!("{step:?}:{passes} ok");
        }
    }
    assert!(!program.log().contains("moved aside"), "the queue survives every crash");
}

/// Starts the agent so that it ends at `step`, and has `work` done until it has.
async fn crash(program: &mut Program, step: CrashPoint, passes: u32, mut work: impl AsyncFnMut()) {
    program.start_with(&[("OUTRIGGER_CRASH_AT", &format!("{step:?}:{passes}"))]);
    let give_up = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = program.has_ended() {
            break status;
        }
        assert!(Instant::now() < give_up, "{step:?}:{passes} was not reached");
        work().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(status.signal(), Some(6), "{step:?}: {status}");
}

struct Stage {
    world: World,
}

impl Stage {
    async fn set() -> Self {
        let stage = Self { world: World::start().await };
        let ask = async |sql: &str| stage.world.postgres.ask(sql).await;
        ask("CREATE TABLE items (id int PRIMARY KEY, text text, n int)").await;
        // Several ranges, each of several parts.
        ask("INSERT INTO items SELECT n, repeat('x', 2000), 0 FROM generate_series(1, 9000) n")
            .await;
        stage.refuse_poison().await;
        stage
    }

    /// Until the server ends.
    async fn refuse_poison(&self) {
        let refuse = doc! {
            "failCommands": ["insert", "update"], "namespace": "app.poison", "errorCode": 121,
        };
        self.world.mongod.fail(refuse, i32::MAX).await;
    }

    /// As if the time had passed for which a dead agent keeps it: another queue may read at once.
    async fn let_the_turn_run_out(&self) {
        self.world.postgres.ask("UPDATE outrigger_outbox SET expires_at = now()").await;
    }

    /// Some of everything that an application does.
    async fn work(&self, client: &mut Client) {
        for n in 0..20 {
            transaction(client, n).await.unwrap();
        }
        let id = fastrand::u32(1..9_000);
        let both = format!(
            "BEGIN; UPDATE items SET n = n + 1 WHERE id = {id}; \
             INSERT INTO outbox (event_type, entity_id, payload) SELECT 'item.saved', {id}, to_jsonb(items) FROM items WHERE id = {id}; COMMIT"
        );
        client.batch_execute(&both).await.unwrap();
        let odd = "INSERT INTO outbox (event_type, entity_id, payload) VALUES ('nobody.knows', 'x', '{}'), ('poison.made', gen_random_uuid()::text, '{}')";
        client.batch_execute(odd).await.unwrap();
    }

    /// The copy is the application's, and what could not be taken is among the dead letters: each once. Rows that make no
    /// sense are no document's, so those up to `marked` were told of by the queue that has read them.
    async fn is_well(&self, program: &Program, marked: u64) {
        self.world.equal().await;
        let odd = format!(
            "SELECT count(*) FROM outbox WHERE event_type = 'poison.made' \
             OR (event_type = 'nobody.knows' AND id > {marked})"
        );
        let odd = self.world.postgres.ask(&odd).await[0].parse::<u64>().unwrap();
        let mut last = serde_json::Value::Null;
        eventually("all that is odd is a dead letter", PATIENCE, async || {
            last = program.health().unwrap_or_default();
            last["phase"] == "streaming" && last["queueSize"] == 0 && last["deadLetters"] == odd
        })
        .await;
        let items = self.world.mongod.client.database("app").collection::<Document>("items");
        let sum = doc! { "$group": { "_id": null, "rows": { "$sum": 1 }, "n": { "$sum": "$n" } } };
        let sums = "SELECT count(*), sum(n) FROM items";
        eventually("the items are the table's", PATIENCE, async || {
            let mut found = items.aggregate([sum.clone()]).await.unwrap();
            if !found.advance().await.unwrap() {
                return false;
            }
            let found = found.deserialize_current().unwrap();
            let number = |name: &str| found.get_i32(name).unwrap();
            self.world.postgres.ask(sums).await == [format!("{}|{}", number("rows"), number("n"))]
        })
        .await;
        let (code, told) = program.run(&["verify"]);
        assert_eq!(code, 0, "{told}");
    }
}
