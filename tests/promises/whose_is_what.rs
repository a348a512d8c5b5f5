//! Ownership among several sources and agents: no rings, no shared collections, and what a source has copied
//! stays its own.

use mongodb::bson::{DateTime, Document, doc};

use rand::{SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{equal, equal_in},
    eventually,
    mongod::Mongod,
    orders, pair,
    proxy::{Line, Proxy},
    seed,
    unasked::Unasked::{Doubt, Repair, Retries},
    workload,
};

fn records(server: &Mongod) -> mongodb::Collection<Document> {
    server.client.database("outrigger").collection("replicas")
}

fn collection(server: &Mongod, name: &str) -> mongodb::Collection<Document> {
    server.client.database("shop").collection(name)
}

async fn count(server: &Mongod, name: &str) -> u64 {
    collection(server, name).count_documents(doc! {}).await.unwrap()
}

/// The id by which a set is known as a source.
async fn id_of(server: &Mongod) -> String {
    let config = server.admin(doc! { "replSetGetConfig": 1 }).await;
    let settings = config.get_document("config").unwrap().get_document("settings").unwrap();
    settings.get_object_id("replicaSetId").unwrap().to_hex()
}

/// As an agent sets it.
fn record_of(source: &str, include: &str) -> Document {
    let now = DateTime::now();
    doc! {
        "_id": source, "include": [include], "exclude": [], "claim": "x", "startedAt": now, "heartbeatAt": now,
    }
}

fn check(agent: &Agent) -> (Option<i32>, String) {
    let output = agent.cli(&["check"]);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn alerts(agent: &Agent) -> String {
    agent.health().map(|health| health["alerts"].to_string()).unwrap_or_default()
}

/// Two that overwrite each other with what waits in their queues lose what the application has just written.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_agents_is_fine_and_one_that_would_close_a_ring_is_refused() {
    let ((a, b), c) = tokio::join!(pair(), Mongod::start());
    orders(&a).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut first = Agent::started(&a.uri(), &b.uri());
    first.streaming().await;

    let mut back = Agent::new(&b.uri(), &a.uri(), "");
    for args in [&[][..], &["--adopt"]] {
        let log = back.refused(args).await;
        assert!(log.contains("is itself the copy of this Atlas"), "{log}");
        assert!(log.contains("hint: replicate in one direction only"), "{log}");
    }
    let (code, text) = check(&back);
    assert!(code == Some(1) && text.contains("is itself the copy of this Atlas"), "{text}");

    let second = Agent::started(&b.uri(), &c.uri());
    second.streaming().await;
    equal(&a, &c, PATIENCE).await;
    // The lease of the first is not the application's, and it is said that it is left out.
    let status = String::from_utf8(second.cli(&["status"]).stdout).unwrap();
    assert!(status.contains("left out `outrigger.replicas`: where Outrigger keeps"), "{status}");
    let (_, text) = check(&second);
    assert!(text.contains("outrigger.replicas is not replicated"), "{text}");
    let mut third = Agent::new(&c.uri(), &a.uri(), "");
    let log = third.refused(&["--adopt"]).await;
    assert!(log.contains("by way of others, a copy of this Atlas"), "{log}");

    assert!(first.is_running() && second.is_running(), "and these two are not disturbed");
    assert!(
        records(&a).find_one(doc! {}).await.unwrap().is_none(),
        "nothing was written to the first"
    );
    first.stop();
}

/// Two agents that start at the same moment do not see each other.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_local_database_becomes_a_copy_of_its_target_ends() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;

    records(&local).insert_one(record_of("somebody", "crm.*")).await.unwrap();
    eventually("the mark says what is upstream", PATIENCE, async || {
        let record = records(&atlas).find_one(doc! { "upstream": "somebody" }).await.unwrap();
        record.is_some()
    })
    .await;
    assert!(agent.is_running(), "a chain");
    let farther = doc! { "$set": { "upstream": [id_of(&atlas).await] } };
    records(&local).update_one(doc! {}, farther).await.unwrap();

    assert_eq!(agent.ended(PATIENCE).await.code(), Some(1));
    assert!(agent.log().contains("by way of others, a copy of this Atlas"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sources_that_could_choose_one_name_do_not_share_an_atlas() {
    let ((shop, atlas), crm) = tokio::join!(pair(), Mongod::start());
    orders(&shop).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut first = Agent::new(&shop.uri(), &atlas.uri(), "[namespaces]\ninclude = [\"shop.*\"]\n");
    first.start(&[]);
    first.streaming().await;

    // Not one collection is there that both would write.
    let config = "[namespaces]\ninclude = [\"crm.*\", \"*.late\"]\n";
    let mut second = Agent::new(&crm.uri(), &atlas.uri(), config);
    for args in [&[][..], &["--adopt"]] {
        let log = second.refused(args).await;
        assert!(log.contains("its pattern `shop.*` and ours, `*.late`"), "{log}");
        assert!(log.contains(&format!("process {}", first.id())), "{log}");
        assert!(log.contains("hint: give each source names of its own"), "{log}");
    }
    let (code, text) = check(&second);
    assert!(code == Some(1) && text.contains("`shop.*` and ours, `*.late`"), "{text}");

    second.replace_setting(
        "[\"crm.*\", \"*.late\"]",
        "[\"crm.*\", \"*.late\"]\nexclude = [\"shop.*\"]",
    );
    crm.client.database("crm").collection("late").insert_one(doc! { "_id": 1 }).await.unwrap();
    second.start(&[]);
    second.streaming().await;
    assert!(first.is_running(), "names of their own");
    second.stop();

    // One that is gone for good is taken over when that is said.
    second.replace_setting("exclude = [\"shop.*\"]", "");
    first.stop();
    assert!(second.refused(&[]).await.contains("run --adopt"));
    second.start(&["--adopt"]);
    second.streaming().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sources_with_names_of_their_own_each_end_equal_through_cut_lines_and_kills() {
    let ((shop, atlas), crm) = tokio::join!(pair(), Mongod::start());
    let line = Proxy::to(atlas.port).await;
    let sources = [(&shop, "shop"), (&crm, "crm")];
    let mut agents = sources.map(|(local, db)| {
        let config = format!("[namespaces]\ninclude = [\"{db}.*\"]\n[worker]\nbatch_size = 20\n");
        let agent = Agent::new(&local.uri(), &line.uri(), &config);
        agent.may(&[Doubt, Retries], "the line breaks in the middle of a command");
        agent
    });
    for agent in &mut agents {
        agent.start(&[]);
        agent.streaming().await;
    }
    let (mut rng, mut made) = (StdRng::seed_from_u64(seed()), 0);
    for round in 0..6 {
        line.set(if round % 3 == 1 { Line::Cut } else { Line::Up });
        if round % 3 == 2 {
            agents[round / 3].kill();
        }
        for _ in 0..80 {
            for (local, db) in sources {
                let orders = local.client.database(db).collection("orders");
                made += u32::from(workload::change(&orders, &mut rng).await.unwrap());
            }
        }
        if round % 3 == 2 {
            agents[round / 3].start(&[]);
        }
    }
    line.set(Line::Up);

    assert!(made > 200, "{made} changes were made");
    for (local, db) in sources {
        equal_in(db, local, &atlas, PATIENCE).await;
    }
}

/// While Atlas is away, somebody decides that it is not to have a collection.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_of_a_collection_that_is_left_out_by_now_is_not_written() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    for name in ["orders", "logs"] {
        let documents = (0..20).map(|n| doc! { "_id": n });
        collection(&local, name).insert_many(documents).await.unwrap();
    }
    let mut agent = Agent::new(&local.uri(), &line.uri(), "[namespaces]\nexclude = []\n");
    agent.may(&[Repair, Doubt], "it was left out");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    line.set(Line::Cut);
    collection(&local, "logs").delete_many(doc! { "_id": { "$lt": 5 } }).await.unwrap();
    for name in ["orders", "logs"] {
        collection(&local, name).insert_one(doc! { "_id": "waits" }).await.unwrap();
    }
    agent.queued(7).await;
    agent.stop();

    agent.replace_setting("exclude = []", "exclude = [\"shop.logs\"]");
    agent.start(&[]);
    line.set(Line::Up);
    eventually("the other collection", PATIENCE, async || count(&atlas, "orders").await == 21)
        .await;
    assert!(agent.cli(&["flush"]).status.success());
    assert_eq!(count(&atlas, "logs").await, 20, "neither what was added nor what was removed");

    // One that gets a name that is chosen comes whole.
    let rename = doc! { "renameCollection": "shop.logs", "to": "shop.seen" };
    local.admin(rename).await;
    eventually("the renamed one", PATIENCE, async || count(&atlas, "seen").await == 16).await;
    agent.stop();
    agent.replace_setting("exclude = [\"shop.logs\"]", "exclude = []");
    agent.start(&[]);
    agent.streaming().await;
    assert_eq!(count(&local, "logs").await, 0);
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_source_leases_meanwhile_waits_and_nothing_else_does() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 0 }).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    records(&atlas).insert_one(record_of("other", "shop.late*")).await.unwrap();
    let theirs = DateTime::now();
    eventually("two heartbeats", PATIENCE, async || {
        let since = DateTime::from_millis(theirs.timestamp_millis() + 11_000);
        let own = doc! { "_id": { "$ne": "other" }, "heartbeatAt": { "$gt": since } };
        records(&atlas).find_one(own).await.unwrap().is_some()
    })
    .await;

    collection(&local, "later").insert_one(doc! { "_id": 1 }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();

    eventually("an alert", PATIENCE, async || {
        alerts(&agent).contains("`shop.later` is not written")
    })
    .await;
    eventually("the other collection", PATIENCE, async || count(&atlas, "orders").await == 2).await;
    assert_eq!(count(&atlas, "later").await, 0);
    let status = String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    assert!(status.contains("left out `shop.later`: another source, `other`"), "{status}");

    records(&atlas).delete_one(doc! { "_id": "other" }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    eventually("the alert's end", PATIENCE, async || !alerts(&agent).contains("not written")).await;
}

/// The lease is of the patterns of now, and remembers those of before.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_out_and_comes_back_is_compared() {
    let (local, atlas) = pair().await;
    for name in ["orders", "logs"] {
        let documents = (0..20).map(|n| doc! { "_id": n });
        collection(&local, name).insert_many(documents).await.unwrap();
    }
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[namespaces]\nexclude = []\n");
    agent.may(&[Repair], "it was left out");
    agent.start(&[]);
    agent.streaming().await;
    agent.stop();
    agent.replace_setting("exclude = []", "exclude = [\"shop.logs\"]");
    agent.start(&[]);
    agent.streaming().await;
    collection(&local, "logs").delete_many(doc! { "_id": { "$lt": 5 } }).await.unwrap();
    collection(&local, "logs").insert_one(doc! { "_id": "meanwhile" }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": "meanwhile" }).await.unwrap();
    eventually("the other collection", PATIENCE, async || count(&atlas, "orders").await == 21)
        .await;
    assert_eq!(count(&atlas, "logs").await, 20);
    agent.stop();

    agent.replace_setting("exclude = [\"shop.logs\"]", "exclude = []");
    let (code, text) = check(&agent);
    assert!(code == Some(0) && text.contains("marked as the copy of this source"), "{text}");
    agent.start(&[]);
    equal(&local, &atlas, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_collection_under_a_wider_filter_stops_alone() {
    let (local, atlas) = pair().await;
    for name in ["orders", "more", "theirs"] {
        collection(&local, name).insert_many((0..5).map(|n| doc! { "_id": n })).await.unwrap();
    }
    collection(&atlas, "theirs").insert_one(doc! { "_id": "theirs" }).await.unwrap();
    let config = "[namespaces]\ninclude = [\"shop.orders\"]\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.may(&[Repair], "Atlas has what is not ours");
    agent.start(&[]);
    agent.streaming().await;
    agent.stop();
    agent.replace_setting("shop.orders", "shop.*");

    let (code, text) = check(&agent);
    assert!(code == Some(0) && text.contains("shop.theirs will not be written"), "{text}");
    for _ in 0..2 {
        agent.start(&[]);
        agent.streaming().await;
        eventually("the alert", PATIENCE, async || {
            alerts(&agent).contains("`shop.theirs` is not written")
        })
        .await;
        collection(&local, "theirs").insert_one(doc! {}).await.unwrap();
        collection(&local, "more").insert_one(doc! {}).await.unwrap();
        let more = count(&local, "more").await;
        eventually("the others", PATIENCE, async || count(&atlas, "more").await == more).await;
        assert_eq!(count(&atlas, "theirs").await, 1, "and this one is as it was");
        agent.stop();
    }

    agent.start(&["--adopt"]);
    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(alerts(&agent), "[]");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_for_the_lease_makes_room_for_one_of_the_application() {
    let (local, atlas) = pair().await;
    let things = |server: &Mongod| -> mongodb::Collection<Document> {
        server.client.database("Outrigger").collection("things")
    };
    things(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    let (code, text) = check(&agent);
    assert!(code == Some(0) && text.contains("Outrigger.things is not replicated"), "{text}");
    assert!(text.contains("`atlas.state_database`"), "{text}");
    agent.start(&[]);
    agent.streaming().await;
    let left_out = agent.health().unwrap()["notReplicated"].to_string();
    assert!(left_out.contains("`Outrigger.things`"), "{left_out}");

    // A lease in another database is seen all the same.
    let moved = |agent: &Agent| {
        agent.replace_setting("[atlas]\n", "[atlas]\nstate_database = \"outrigger_state\"\n");
    };
    let mut beside = Agent::new(&local.uri(), &atlas.uri(), "");
    moved(&beside);
    let log = beside.refused(&["--adopt"]).await;
    assert!(log.contains(&format!("process {}", agent.id())), "{log}");
    agent.stop();
    moved(&agent);
    let log = agent.refused(&[]).await;
    assert!(log.contains("`atlas.state_database` was `outrigger` before"), "{log}");
    assert!(log.contains("run --adopt"), "{log}");

    agent.start(&["--adopt"]);

    eventually("the application's database", PATIENCE, async || {
        things(&atlas).count_documents(doc! {}).await.unwrap() == 1
    })
    .await;
    let databases = atlas.client.list_database_names().await.unwrap();
    assert!(databases.contains(&"outrigger_state".to_owned()), "{databases:?}");
    assert!(!databases.contains(&"outrigger".to_owned()), "{databases:?}");
    agent.stop();
    agent.replace_setting("outrigger_state", "outrigger.state");
    let output = agent.cli(&["check"]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}
