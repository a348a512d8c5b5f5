//! A PostgreSQL that comes back without what it had confirmed: restored, or a replica that was behind when it took over.
//! Nothing in it says so but the count of its transactions, which the agent keeps as well.

use mongodb::bson::doc;
use tempfile::TempDir;

use crate::support::{
    PATIENCE, agent::Agent, eventually, mongod::Mongod, orders, postgres::Postgres, rows,
    unasked::Unasked,
};

struct Stage {
    local: Mongod,
    target: Postgres,
    agent: Agent,
}

impl Stage {
    async fn set() -> Self {
        let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
        orders(&local).insert_many((0..50).map(|n| doc! { "_id": n, "a": n })).await.unwrap();
        let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), &rows::declared());
        let why = "the target is put back";
        agent.may(&[Unasked::Doubt, Unasked::Repair, Unasked::Retries], why);
        agent.start(&[]);
        agent.streaming().await;
        Self { local, target, agent }
    }

    async fn heartbeat(&self) -> Vec<String> {
        self.target.ask("SELECT checkpoint, heartbeat FROM outrigger.replicas").await
    }

    /// Has something written that a backup lacks, between two heartbeats: these do not tell of it.
    async fn written_behind_a_backup(&mut self) -> TempDir {
        for round in 0..10 {
            let last = self.heartbeat().await;
            eventually("a heartbeat", PATIENCE, async || self.heartbeat().await != last).await;
            let last = self.heartbeat().await;
            self.target.stop();
            let backup = self.target.back_up();
            self.target.resume().await;
            let late = (0..20).map(|n| doc! { "_id": format!("{round} {n}"), "a": n });
            orders(&self.local).insert_many(late).await.unwrap();
            orders(&self.local).delete_one(doc! { "_id": round }).await.unwrap();
            let change = doc! { "$set": { "a": 1000 + round } };
            orders(&self.local).update_one(doc! { "_id": 40 }, change).await.unwrap();
            rows::equal(&self.local.client, &self.target, PATIENCE).await;
            self.at_rest().await;
            if self.heartbeat().await == last {
                return backup;
            }
        }
        panic!("no backup without a heartbeat behind it");
    }

    async fn at_rest(&self) {
        eventually("nothing waits", PATIENCE, async || {
            self.agent.health().is_some_and(|health| health["queueSize"] == 0)
        })
        .await;
    }

    async fn put_back(&mut self, backup: &TempDir) {
        self.target.kill();
        self.target.put_back(backup);
        self.target.resume().await;
    }

    async fn is_told(&self) {
        // The alert is raised for as long as it is not compared, which may be less than the second between two looks.
        let part = "lacks what it had confirmed; everything is compared";
        eventually(part, PATIENCE, async || self.agent.log().contains(part)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_lacks_its_last_moments_is_compared_by_itself_and_it_is_said() {
    let mut stage = Stage::set().await;
    let backup = stage.written_behind_a_backup().await;

    stage.put_back(&backup).await;

    rows::equal(&stage.local.client, &stage.target, PATIENCE).await;
    stage.is_told().await;
    // What is written from now on is counted from what there is now.
    orders(&stage.local).insert_one(doc! { "_id": "after" }).await.unwrap();
    rows::equal(&stage.local.client, &stage.target, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_behind_when_it_took_over_is_compared_by_itself_and_it_is_said() {
    let (local, mut target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_many((0..50).map(|n| doc! { "_id": n, "a": n })).await.unwrap();
    let replica = target.replica().await;
    // The one of both that takes writes, as a driver is told of a pair.
    let uri = format!(
        "postgres://outrigger:outrigger@127.0.0.1:{},127.0.0.1:{}/postgres?sslmode=disable&target_session_attrs=read-write",
        target.port, replica.port
    );
    let mut agent = Agent::into_postgres(&local.uri(), &uri, &rows::declared());
    agent.may(&[Unasked::Doubt, Unasked::Repair, Unasked::Retries], "a replica takes over");
    agent.start(&[]);
    agent.streaming().await;
    rows::equal(&local.client, &replica, PATIENCE).await;

    // It hears of nothing any more, and the agent of nothing but its own success.
    replica.ask("ALTER SYSTEM SET primary_conninfo = ''").await;
    replica.ask("SELECT pg_reload_conf()").await;
    let hears = "SELECT count(*) FROM pg_stat_wal_receiver";
    eventually("it follows no more", PATIENCE, async || replica.ask(hears).await == ["0"]).await;
    let late = (0..20).map(|n| doc! { "_id": format!("late {n}"), "a": n });
    orders(&local).insert_many(late).await.unwrap();
    orders(&local).delete_one(doc! { "_id": 7 }).await.unwrap();
    orders(&local).update_one(doc! { "_id": 40 }, doc! { "$set": { "a": 1_000 } }).await.unwrap();
    rows::equal(&local.client, &target, PATIENCE).await;
    target.kill();
    replica.ask("SELECT pg_promote()").await;

    rows::equal(&local.client, &replica, PATIENCE).await;
    let part = "lacks what it had confirmed; everything is compared";
    eventually(part, PATIENCE, async || agent.log().contains(part)).await;
    orders(&local).insert_one(doc! { "_id": "after" }).await.unwrap();
    rows::equal(&local.client, &replica, PATIENCE).await;
    let health = agent.health().unwrap();
    assert_eq!(health["deadLetters"], 0, "{health}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_was_put_back_while_no_agent_ran_is_known_at_the_next_start() {
    let mut stage = Stage::set().await;
    let backup = stage.written_behind_a_backup().await;
    assert!(stage.agent.stop().success());

    stage.put_back(&backup).await;
    stage.agent.start(&[]);

    rows::equal(&stage.local.client, &stage.target, PATIENCE).await;
    stage.is_told().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_has_all_that_it_confirmed_is_not_compared_however_it_ended() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_many((0..50).map(|n| doc! { "_id": n })).await.unwrap();
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), &rows::declared());
    agent.start(&[]);
    agent.streaming().await;
    let mut target = target;
    for round in 0..4 {
        let change = doc! { "$set": { "a": round } };
        orders(&local).update_many(doc! {}, change).await.unwrap();
        target.kill();
        if round == 2 {
            agent.kill();
            agent.start(&[]);
        }
        target.resume().await;
        rows::equal(&local.client, &target, PATIENCE).await;
    }

    // Dropping it tells of every comparison that nobody asked for.
    assert!(!agent.log().contains("had confirmed"), "{}", agent.log());
}
