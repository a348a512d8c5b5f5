//! Every figure that is shown equals what happened.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use mongodb::bson::doc;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    equal::equal,
    eventually, orders, pair,
    proxy::{Line, Proxy},
    seed,
    unasked::Unasked::{DeadLetters, Retries},
};

/// The samples of `/metrics`, by name with labels.
fn scrape(agent: &Agent) -> BTreeMap<String, f64> {
    let text = text(agent);
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

fn text(agent: &Agent) -> String {
    let (status, body) = Api::of(agent).get("/metrics");
    assert_eq!(status, 200);
    body.as_str().unwrap().to_owned()
}

/// Random inserts, updates and deletes while Atlas is away, and two documents that Atlas never takes: after each
/// step the figures are what a person would count.
#[tokio::test(flavor = "multi_thread")]
async fn property_07_metrics_equal_what_happened() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    local.client.database("shop").create_collection("orders").await.unwrap();
    let config =
        "[worker]\nmax_retries = 2\nretry_delays = [\"50ms\"]\nupdate_mode = \"document\"\n";
    let mut agent = Agent::new(&local.uri(), &line.uri(), config);
    agent.may(&[DeadLetters, Retries], "Atlas has an index of its own, which refuses some");
    agent.start(&[]);
    agent.streaming().await;
    let api = Api::of(&agent);
    let metrics = || api.get("/api/sync/metrics").1;
    let start = metrics();
    line.set(Line::Cut);
    // One change first, so that the batch that fails is not one of those that are counted on.
    let mut rng = StdRng::seed_from_u64(seed());
    let (mut ops, mut touched, mut there) = (0_u64, BTreeSet::new(), BTreeSet::new());
    let mut kinds = BTreeMap::<&str, u64>::new();
    for _ in 0..400 {
        let id: i32 = rng.random_range(0..120);
        if there.contains(&id) {
            if rng.random_bool(0.8) {
                let update = doc! { "$set": { "v": rng.random::<i32>() }, "$inc": { "n": 1 } };
                orders(&local).update_one(doc! { "_id": id }, update).await.unwrap();
                *kinds.entry("update").or_default() += 1;
            } else {
                orders(&local).delete_one(doc! { "_id": id }).await.unwrap();
                there.remove(&id);
                *kinds.entry("delete").or_default() += 1;
            }
        } else {
            orders(&local).insert_one(doc! { "_id": id, "n": 0 }).await.unwrap();
            there.insert(id);
            *kinds.entry("insert").or_default() += 1;
        }
        ops += 1;
        touched.insert(id);
    }
    let number = |value: &serde_json::Value, key: &str| value[key].as_u64().unwrap();
    let grown = |key: &str| number(&metrics(), key) - number(&start, key);
    eventually("all events", PATIENCE, async || grown("totalOperations") == ops).await;

    // Each change made an entry or was merged into one. An entry that is in a failing write takes no change;
    // the two are merged when it comes back.
    eventually("the queue's size", PATIENCE, async || {
        number(&metrics(), "queueSize") == touched.len() as u64
    })
    .await;
    assert_eq!(grown("successfulSyncs"), 0);
    assert_eq!(number(&metrics()["queue"], "pending"), touched.len() as u64);
    let while_away = scrape(&agent);
    assert_eq!(while_away["outrigger_queue_documents"], touched.len() as f64);
    assert!(while_away["outrigger_applied_lag_seconds"] > 0.0);

    line.set(Line::Up);
    equal(&local, &atlas, PATIENCE).await;
    eventually("an empty queue", PATIENCE, async || number(&metrics(), "queueSize") == 0).await;
    assert_eq!(grown("successfulSyncs"), touched.len() as u64, "one write for each document");
    assert_eq!((grown("failedSyncs"), grown("deadLettered")), (0, 0));
    let after = scrape(&agent);
    let applied: f64 = after
        .iter()
        .filter(|(name, _)| name.starts_with("outrigger_writes_applied_total{"))
        .map(|(_, n)| n)
        .sum();
    assert_eq!(applied, number(&metrics(), "successfulSyncs") as f64);

    // Atlas alone has this index: two documents are rejected three times each.
    let index = doc! { "key": { "u": 1 }, "name": "u", "unique": true, "sparse": true };
    let command = doc! { "createIndexes": "orders", "indexes": [index] };
    atlas.client.database("shop").run_command(command).await.unwrap();
    let same = (1000..1003).map(|id| doc! { "_id": id, "u": 1 });
    orders(&local).insert_many(same).await.unwrap();
    eventually("two dead letters", PATIENCE, async || grown("deadLettered") == 2).await;

    // What a batch did is counted before its ack, the batch itself afterwards.
    eventually("the end of the batch", PATIENCE, async || {
        let last = scrape(&agent);
        last["outrigger_dead_letters"] == 2.0
            && last["outrigger_batch_duration_seconds_count"]
                == number(&metrics(), "batches") as f64
    })
    .await;

    assert_eq!(grown("failedSyncs"), 6, "three attempts for each of the two");
    assert_eq!(grown("retries"), 4);
    assert_eq!(grown("successfulSyncs"), touched.len() as u64 + 1);
    let last = scrape(&agent);
    assert_eq!(last["outrigger_dead_letters_total{reason=\"unique_value\"}"], 2.0);
    assert_eq!(last["outrigger_dead_letters"], 2.0);
    // The average is the sum over the number, in the histogram as in the API.
    let average = last["outrigger_batch_duration_seconds_sum"]
        / last["outrigger_batch_duration_seconds_count"]
        * 1000.0;
    let said = metrics();
    assert_eq!(last["outrigger_batch_duration_seconds_count"], number(&said, "batches") as f64);
    let told = said["avgSyncTime"].as_f64().unwrap();
    assert!((told - average).abs() < 0.05 * average + 0.01, "{told} and {average}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_are_what_prometheus_expects() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    orders(&local).insert_many((0..100).map(|id| doc! { "_id": id })).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    let page = text(&agent);

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/promtool");
    let output = Command::new(script).stderr(Stdio::inherit()).output().expect("the script runs");
    assert!(output.status.success(), "scripts/promtool found no promtool");
    let program = String::from_utf8(output.stdout).unwrap();
    let mut promtool = Command::new(program.trim())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let verdict = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&verdict.stderr).into_owned()
        + &String::from_utf8_lossy(&verdict.stdout);
    assert!(verdict.status.success() && said.trim().is_empty(), "{said}\n{page}");

    for name in [
        "outrigger_events_read_total",
        "outrigger_ops_coalesced_total",
        "outrigger_queue_documents",
        "outrigger_queue_bytes",
        "outrigger_writes_applied_total",
        "outrigger_atlas_sent_bytes_total",
        "outrigger_batch_duration_seconds",
        "outrigger_lag_seconds",
        "outrigger_local_majority_lag_seconds",
        "outrigger_read_lag_seconds",
        "outrigger_applied_lag_seconds",
        "outrigger_retries_total",
        "outrigger_dead_letters_total",
        "outrigger_breaker_state",
        "outrigger_breaker_openings_total",
        "outrigger_checkpoint_age_seconds",
        "outrigger_queue_disk_bytes",
        "outrigger_queue_free_disk_bytes",
        "outrigger_sync_running",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
    ] {
        assert!(page.contains(&format!("# HELP {name} ")), "{name} has no help text");
        assert!(page.contains(&format!("# TYPE {name} ")), "{name} has no type");
    }
    let figures = scrape(&agent);
    assert!(figures["outrigger_atlas_sent_bytes_total"] > 100.0 * 20.0);
    assert!(figures["process_resident_memory_bytes"] > 1e6);
    assert!(figures["outrigger_read_lag_seconds"] < 30.0);
}
