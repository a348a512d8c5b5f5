//! What is done in one transaction arrives as a whole in the end, however large it is and whatever is killed within it.

use mongodb::{
    ClientSession, Collection,
    bson::{Document, Timestamp, doc},
};

use crate::support::{
    PATIENCE, agent::Agent, equal::equal, eventually, mongod::Mongod, orders, pair,
    unasked::Unasked::Retries,
};

async fn begun(local: &Mongod) -> ClientSession {
    let mut session = local.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    session
}

/// Larger than a document may be, so that it stands in the oplog as a chain of entries, which are one moment: there is no
/// position within it that a reader could go on from.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_arrives_whole_though_the_agent_is_killed_within_it() {
    let (local, atlas) = pair().await;
    let filler = "x".repeat(2_000);
    let document = |id: i32| doc! { "_id": id, "v": 0, "filler": &filler };
    orders(&local).insert_many((0..3_000).map(document)).await.unwrap();
    // Slow enough to be met within it.
    let config = "[worker]\nbatch_size = 100\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.replace_setting("[atlas]\n", "[atlas]\nmax_ops_per_second = 5000\n");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    let mut kills_within = 0;
    let archive = local.client.database("shop").collection::<Document>("archive");
    archive.insert_one(doc! { "_id": "before" }).await.unwrap();
    for round in 1..=2 {
        let mut session = begun(&local).await;
        let first = round * 100_000;
        for part in 0..12 {
            let from = first + part * 1_000;
            let some = (from..from + 1_000).map(document);
            orders(&local).insert_many(some).session(&mut session).await.unwrap();
        }
        let all = doc! { "_id": { "$lt": 3_000 } };
        let change = doc! { "$set": { "v": round }, "$inc": { "n": 1 } };
        orders(&local).update_many(all, change).session(&mut session).await.unwrap();
        let gone = doc! { "_id": { "$gte": first, "$lt": first + 500 } };
        orders(&local).delete_many(gone).session(&mut session).await.unwrap();
        archive.insert_one(doc! { "_id": round }).session(&mut session).await.unwrap();
        session.commit_transaction().await.unwrap();
        // Its last document is far from its first.
        for part in 1..=3_u64 {
            let read = agent.health().map_or(0, |health| health["queueSize"].as_u64().unwrap());
            let copied = orders(&atlas).count_documents(doc! {}).await.unwrap();
            println!("round {round}, kill {part}: {copied} in Atlas, {read} wait");
            agent.kill();
            let before = 3_000 + 11_500 * u64::try_from(round - 1).unwrap();
            kills_within += u32::from(copied > before && copied < before + 11_500);
            agent.start(&[]);
            eventually("some of it", PATIENCE, async || {
                let now = orders(&atlas).count_documents(doc! {}).await.unwrap();
                now > copied || now >= 3_000 + 11_500 * u64::try_from(round).unwrap()
            })
            .await;
        }
        equal(&local, &atlas, PATIENCE).await;
    }
    assert!(kills_within > 0, "no kill fell between its first document and its last");
}

/// Atlas sees the changes one by one, and each state in between but the last breaks its unique index.
#[tokio::test(flavor = "multi_thread")]
async fn unique_values_that_are_exchanged_within_transactions_arrive() {
    let (local, atlas) = pair().await;
    let index = doc! { "key": { "u": 1 }, "name": "u", "unique": true };
    let command = doc! { "createIndexes": "orders", "indexes": [index] };
    local.client.database("shop").run_command(command).await.unwrap();
    orders(&local).insert_many((0..12).map(|id| doc! { "_id": id, "u": id })).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Retries], "for a moment a value is another document's");
    agent.streaming().await;

    for round in 1..=15 {
        let mut session = begun(&local).await;
        let all = orders(&local);
        for id in 0..12 {
            set(&all, id, -1 - id, &mut session).await;
        }
        for id in 0..12 {
            // By deletion and insertion, too.
            if (id + round) % 4 == 0 {
                all.delete_one(doc! { "_id": id }).session(&mut session).await.unwrap();
                let again = doc! { "_id": id, "u": (id + round) % 12, "born": round };
                all.insert_one(again).session(&mut session).await.unwrap();
            } else {
                set(&all, id, (id + round) % 12, &mut session).await;
            }
        }
        if round % 5 == 0 {
            session.abort_transaction().await.unwrap();
        } else {
            session.commit_transaction().await.unwrap();
        }
    }

    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

/// Only a cluster of several shards prepares what it commits; here the server's test commands do. What was done stands in the
/// oplog where it was prepared, and counts from where it is committed, which the stream and its position may be far behind:
/// at the commit the server goes back for it (server source: `document_source_change_stream_unwind_transaction.cpp`).
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_arrives_when_it_is_committed_however_far_was_read_meanwhile() {
    let (local, atlas) = pair().await;
    let all = orders(&local);
    all.insert_many((0..10).map(|id| doc! { "_id": id, "v": 0 })).await.unwrap();
    let prepared = async |round: i32| {
        let mut session = begun(&local).await;
        all.insert_one(doc! { "_id": 100 * round }).session(&mut session).await.unwrap();
        set_v(&all, round, &mut session).await;
        all.delete_one(doc! { "_id": 9 - round }).session(&mut session).await.unwrap();
        let prepare = doc! { "prepareTransaction": 1 };
        let admin = local.client.database("admin");
        let reply = admin.run_command(prepare).session(&mut session).await.unwrap();
        (session, reply.get_timestamp("prepareTimestamp").unwrap())
    };
    let commit = async |(mut session, time): (ClientSession, Timestamp)| {
        let commit = doc! { "commitTransaction": 1, "commitTimestamp": time };
        let admin = local.client.database("admin");
        admin.run_command(commit).session(&mut session).await.unwrap();
    };

    // A read that must show all of that time waits for it, so the first copy does.
    let open = prepared(1).await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    eventually("the first copy", PATIENCE, async || {
        agent.health().is_some_and(|health| health["phase"] == "copying")
    })
    .await;
    commit(open).await;
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    for (round, is_committed) in [(2, true), (3, false)] {
        let (mut session, time) = prepared(round).await;
        all.insert_one(doc! { "_id": format!("past {round}") }).await.unwrap();
        eventually("what came later", PATIENCE, async || {
            let later = doc! { "_id": format!("past {round}") };
            orders(&atlas).find_one(later).await.unwrap().is_some()
        })
        .await;
        let before = orders(&atlas).find_one(doc! { "_id": round }).await.unwrap().unwrap();
        assert_eq!(before.get_i32("v").unwrap(), 0);
        assert!(agent.stop().success());
        agent.start(&[]);
        agent.streaming().await;
        if is_committed {
            commit((session, time)).await;
        } else {
            session.abort_transaction().await.unwrap();
        }
        equal(&local, &atlas, PATIENCE).await;
    }
}

async fn set_v(all: &Collection<Document>, id: i32, session: &mut ClientSession) {
    let change = doc! { "$set": { "v": id } };
    all.update_one(doc! { "_id": id }, change).session(session).await.unwrap();
}

async fn set(all: &Collection<Document>, id: i32, u: i32, session: &mut ClientSession) {
    let change = doc! { "$set": { "u": u } };
    all.update_one(doc! { "_id": id }, change).session(session).await.unwrap();
}
