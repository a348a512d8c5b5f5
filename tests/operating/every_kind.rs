//! Whatever an agent reads from and writes to, it has every part: it is checked, copies, tells how it is, is paused, waits,
//! is compared, and goes on where it stopped.

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE, agent::Agent, api::Api, eventually, mongod::Mongod, pair, postgres::Postgres,
};

/// What of a pair of ends its agent is asked about.
struct Kind {
    /// As `check` calls them, and what they tell of themselves.
    ends: [(&'static str, &'static str); 2],
    ns: &'static str,
}

fn told(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a command that must succeed.
fn does(agent: &Agent, args: &[&str]) -> String {
    let output = agent.cli(args);
    assert!(output.status.success(), "{args:?}: {}", told(&output));
    told(&output)
}

/// `write` makes, or changes, the document that has this number for its `_id`, whatever else there is.
async fn has_every_part(mut agent: Agent, kind: Kind, write: impl AsyncFn(i32)) {
    for id in 0..30 {
        write(id).await;
    }
    let check = does(&agent, &["check", "--plan"]);
    for (end, version) in kind.ends {
        assert!(check.contains(&format!("ok       {end:<5}  {version}")), "{end}: {check}");
    }
    assert!(check.contains("ok       both ") && check.contains("ok       owner"), "{check}");
    assert!(check.contains("copy") && check.contains(kind.ns), "the plan: {check}");

    agent.start(&[]);
    agent.streaming().await;
    let api = Api::of(&agent);
    eventually("health", PATIENCE, async || api.get("/api/sync/health").1["status"] == "healthy")
        .await;
    assert_eq!((api.get("/healthz").0, api.get("/readyz").0), (200, 200));
    let (_, databases) = api.get("/api/sync/databases");
    for end in ["local", "atlas"] {
        let of = &databases[end];
        assert_eq!(of["state"], "connected", "{databases}");
        assert!(of["version"].as_str().is_some_and(|version| !version.is_empty()), "{databases}");
        assert!(of["roundTripMs"].is_number(), "{databases}");
    }
    does(&agent, &["verify"]);

    does(&agent, &["pause"]);
    write(7).await;
    write(100).await;
    agent.queued(2).await;
    let flush = agent.cli(&["flush", "--timeout", "1s"]);
    assert!(!flush.status.success(), "what waits is not there: {}", told(&flush));
    assert_ne!(agent.cli_json(&["doc", kind.ns, "100"]).unwrap()["state"], "SYNCED");
    does(&agent, &["resume"]);
    does(&agent, &["flush"]);
    let document = agent.cli_json(&["doc", kind.ns, "100"]).unwrap();
    assert_eq!((&document["state"], &document["inAtlas"]), (&"SYNCED".into(), &true.into()));
    assert!(document["lastSync"].is_string(), "{document}");
    does(&agent, &["verify"]);
    does(&agent, &["sync", "--dry-run", "--wait"]);
    does(&agent, &["sync", "--wait"]);
    for command in [&["status"][..], &["queue", "stats"], &["dead", "list"], &["check"]] {
        does(&agent, command);
    }
    let (_, health) = api.get("/api/sync/health");
    assert_eq!((&health["localError"], &health["atlasError"]), (&().into(), &().into()));
    eventually("a moment of equality", PATIENCE, async || {
        api.get("/api/sync/health").1["consistentAsOf"].is_string()
    })
    .await;
    let metrics = api.get("/metrics").1.to_string();
    for name in
        ["outrigger_writes_applied_total", "outrigger_lag_seconds", "outrigger_health_state"]
    {
        assert!(metrics.contains(name), "{name}");
    }

    assert!(agent.stop().success(), "{}", agent.log());
    write(8).await;
    write(101).await;
    does(&agent, &["check"]);
    agent.start(&[]);
    agent.streaming().await;
    does(&agent, &["flush"]);
    assert_eq!(agent.cli_json(&["doc", kind.ns, "101"]).unwrap()["state"], "SYNCED");
    does(&agent, &["verify"]);
    assert!(agent.stop().success(), "{}", agent.log());
}

/// Puts a document into a MongoDB, or another in its place.
async fn put(local: &Mongod, id: i32) {
    let orders = local.client.database("shop").collection::<Document>("orders");
    let place = doc! { "_id": id };
    let set = doc! { "$inc": { "v": 1 }, "$set": { "name": format!("n{id}") } };
    orders.update_one(place, set).upsert(true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_from_mongodb_to_atlas_has_every_part() {
    let (local, atlas) = pair().await;
    let agent = Agent::new(&local.uri(), &atlas.uri(), "");
    let kind = Kind { ends: [("local", "MongoDB "), ("atlas", "MongoDB ")], ns: "shop.orders" };
    has_every_part(agent, kind, async |id| put(&local, id).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_from_mongodb_to_postgres_has_every_part() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let mut agent = Agent::new(&local.uri(), "", "");
    agent.replace_setting(
        "[atlas]\nallow_insecure = true\n",
        "[target]\nkind = \"postgres\"\n[atlas]\n",
    );
    agent.set_env("POSTGRES_URI", &target.uri());
    let kind =
        Kind { ends: [("local", "MongoDB "), ("postgres", "PostgreSQL ")], ns: "shop.orders" };
    has_every_part(agent, kind, async |id| put(&local, id).await).await;
    assert_eq!(target.ask("SELECT count(*) FROM shop.orders").await, ["32"]);
}

/// Rows that are the documents of `shop.orders`, and the events that say what has become of them.
const ORDERS: &str = "[[route]]\nevent = \"order.*\"\ncollection = \"shop.orders\"\nkey = \"number\"\nop = \"replace\"\n\
                      [[table]]\nname = \"orders\"\nkey = \"number\"\ncollection = \"shop.orders\"\n";

/// Has the table of events with a number in each row, and a table of orders.
async fn shop(source: &Postgres) {
    source
        .ask(
            "CREATE TABLE orders (number bigint PRIMARY KEY, v bigint NOT NULL, name text); \
             CREATE TABLE outbox (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, event_type text NOT NULL, \
             number bigint, payload jsonb, created_at timestamptz NOT NULL DEFAULT clock_timestamp())",
        )
        .await;
}

/// An order is changed, and its event written, in one transaction.
async fn order(source: &Postgres, number: i32) {
    source
        .ask(&format!(
            "BEGIN; INSERT INTO orders VALUES ({number}, 1, 'n{number}') \
             ON CONFLICT (number) DO UPDATE SET v = orders.v + 1; \
             INSERT INTO outbox (event_type, number, payload) \
             SELECT 'order.written', number, to_jsonb(orders) FROM orders WHERE number = {number}; COMMIT"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_from_an_outbox_to_atlas_has_every_part() {
    let (source, atlas) = tokio::join!(Postgres::start(), Mongod::start());
    shop(&source).await;
    let agent = Agent::from_outbox(&source, &atlas.uri(), ORDERS).await;
    let kind = Kind { ends: [("outbox", "PostgreSQL "), ("atlas", "MongoDB ")], ns: "shop.orders" };
    has_every_part(agent, kind, async |number| order(&source, number).await).await;
}
