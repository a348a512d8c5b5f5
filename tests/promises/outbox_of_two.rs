//! Several agents of one outbox: one reads and writes, and the others take its place when it is gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mongodb::bson::{Document, doc};
use tokio::task::JoinSet;

use crate::support::{
    PATIENCE,
    agent::{is_stopped, signal},
    eventually,
    outbox::{Program, World, transaction},
};

/// A killed agent's lease runs out by itself.
const TURN: Duration = Duration::from_secs(120);

async fn reads(program: &Program) {
    eventually("it reads", TURN, async || {
        program.health().is_some_and(|health| health["phase"] == "streaming")
    })
    .await;
}

async fn stands_by_for(program: &Program, reader: &Program) {
    let reader = format!("process {}", reader.id());
    eventually("it stands by, and says for whom", PATIENCE, async || {
        program.health().is_some_and(|health| {
            health["phase"] == "standby"
                && health["readBy"].as_str().is_some_and(|by| by.ends_with(&reader))
        })
    })
    .await;
}

/// Rows that have been processed grow in number.
async fn goes_on(world: &World) {
    let processed = "SELECT count(*) FROM outbox WHERE processed_at IS NOT NULL";
    let count = async || world.postgres.ask(processed).await[0].parse::<u64>().unwrap();
    let before = count().await;
    eventually("rows are carried over", PATIENCE, async || count().await > before + 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_agents_one_reads_and_the_other_takes_over_when_it_is_killed_stopped_or_paused() {
    let world = World::start().await;
    let mut first = Program::started(&world, "first", "");
    reads(&first).await;
    let mut second = Program::started(&world, "second", "");
    stands_by_for(&second, &first).await;
    let (code, told) = second.run(&["status"]);
    assert!(code == 0 && told.contains("standby  the outbox is read by host"), "{told}");
    let is_over = Arc::new(AtomicBool::new(false));
    let mut writing = JoinSet::new();
    for writer in 0..3_u64 {
        let (is_over, mut client) = (is_over.clone(), world.postgres.client().await);
        writing.spawn(async move {
            let mut n = writer << 32;
            while !is_over.load(Ordering::Relaxed) {
                transaction(&mut client, n).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
                n += 1;
            }
        });
    }
    goes_on(&world).await;

    first.kill();
    reads(&second).await;
    goes_on(&world).await;
    // With what waits in the queue that it had.
    first.start();
    stands_by_for(&first, &second).await;

    // One that is paused knows nothing of it, and when it goes on writes nothing any more.
    signal(second.id(), "STOP");
    eventually("it is paused", PATIENCE, async || is_stopped(second.id())).await;
    reads(&first).await;
    goes_on(&world).await;
    signal(second.id(), "CONT");
    assert_eq!(second.ended().await, Some(1));
    // By whichever it finds out first: its turn, or the mark in MongoDB.
    let told =
        ["another agent reads the outbox in the place of this one", "another agent replicates"];
    assert!(told.iter().any(|part| second.log().contains(part)), "{}", second.log());
    second.start();
    stands_by_for(&second, &first).await;
    goes_on(&world).await;

    // One that is stopped in order gives its place away at once.
    signal(first.id(), "TERM");
    assert_eq!(first.ended().await, Some(0));
    reads(&second).await;
    is_over.store(true, Ordering::Relaxed);
    while writing.join_next().await.is_some() {}

    world.equal().await;
    for program in [&first, &second] {
        assert!(!program.log().contains("panicked"));
    }
    assert_eq!(second.health().unwrap()["deadLetters"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_queue_of_an_agent_that_was_overtaken_puts_nothing_back() {
    let world = World::start().await;
    let mut first = Program::started(&world, "first", "");
    reads(&first).await;
    assert_eq!(first.run(&["pause"]).0, 0);
    world.write("todo.saved", "1", "{\"n\": 1}").await;
    let waiting = "SELECT count(*) FROM outbox WHERE processed_at IS NULL";
    eventually("the first has it", PATIENCE, async || world.postgres.ask(waiting).await == ["0"])
        .await;
    first.kill();

    let mut second = Program::started(&world, "second", "");
    let n = async || world.todos().await.get("1").and_then(|todo| todo.get_i32("n").ok());
    eventually("it is not lost with it", TURN, async || n().await == Some(1)).await;
    world.write("todo.saved", "1", "{\"n\": 2}").await;
    eventually("the newer one", PATIENCE, async || n().await == Some(2)).await;
    signal(second.id(), "TERM");
    assert_eq!(second.ended().await, Some(0));

    first.start();
    reads_paused(&first).await;
    assert_eq!(first.run(&["resume"]).0, 0);
    world.write("todo.saved", "2", "{\"n\": 1}").await;
    eventually("it writes", PATIENCE, async || world.todos().await.contains_key("2")).await;
    eventually("its queue is empty", PATIENCE, async || {
        first.health().is_some_and(|health| health["queueSize"] == 0)
    })
    .await;
    assert_eq!(n().await, Some(2), "as it was before");
}

async fn reads_paused(program: &Program) {
    eventually("it has its turn", TURN, async || {
        let health = program.health().unwrap_or_default();
        ["copying", "paused"].iter().any(|phase| health["phase"] == *phase)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mark_of_another_outbox_is_not_taken_over() {
    let world = World::start().await;
    let mut first = Program::started(&world, "first", "");
    reads(&first).await;
    signal(first.id(), "TERM");
    assert_eq!(first.ended().await, Some(0));
    // Another outbox, whose collections are the same.
    world.postgres.ask("UPDATE outrigger_outbox SET reader = gen_random_uuid()::text WHERE outbox = 'outbox is'").await;
    world.write("todo.saved", "1", "{\"n\": 1}").await;

    let mut second = Program::started(&world, "second", "");

    assert_eq!(second.ended().await, Some(1));
    assert!(second.log().contains("marked as the copy of another source"), "{}", second.log());
    let marks = world.mongod.client.database("outrigger").collection::<Document>("replicas");
    assert_eq!(marks.count_documents(doc! {}).await.unwrap(), 1);
    assert!(world.todos().await.is_empty());
}
