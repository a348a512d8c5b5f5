//! Property 11: every configured value is respected, by the real program. What has a test of its own elsewhere is
//! named in a table, which a test keeps complete.

use std::{path::Path, time::Duration};

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    equal::equal,
    eventually, orders, pair,
    proxy::{Line, Proxy},
    unasked::Unasked::{Cursors, DeadLetters, Repair, Retries},
};

/// Every key, and the tests that it is respected in.
const PROVED_BY: &[(&str, &str)] = &[
    ("source.kind", "what_does_not_go_with_an_outbox_is_refused"),
    ("local.uri", "property_11_both_ends_are_those_that_the_file_names_or_holds_the_names_of"),
    ("local.uri_file", "property_11_both_ends_are_those_that_the_file_names_or_holds_the_names_of"),
    ("local.timeout", "property_11_an_end_that_hangs_is_waited_for_as_long_as_configured"),
    ("outbox.uri", "property_11_a_postgres_is_the_one_that_the_file_names_or_holds_the_name_of"),
    (
        "outbox.uri_file",
        "property_11_a_postgres_is_the_one_that_the_file_names_or_holds_the_name_of",
    ),
    ("outbox.table", "a_table_is_made_by_what_is_printed_and_has_what_is_read"),
    ("outbox.columns", "a_table_is_made_by_what_is_printed_and_has_what_is_read"),
    ("outbox.batch_size", "property_11_rows_of_an_outbox_are_read_so_many_at_once"),
    (
        "outbox.poll",
        "property_11_an_outbox_is_looked_at_as_often_as_configured_and_listened_to_if_so",
    ),
    (
        "outbox.listen",
        "property_11_an_outbox_is_looked_at_as_often_as_configured_and_listened_to_if_so",
    ),
    ("outbox.retention", "processed_rows_go_after_their_time_in_their_order"),
    ("target.kind", "a_sync_repairs_what_verify_finds_in_postgres_and_deletes_no_more_than_it_may"),
    ("atlas.uri", "property_11_both_ends_are_those_that_the_file_names_or_holds_the_names_of"),
    ("atlas.uri_file", "property_11_both_ends_are_those_that_the_file_names_or_holds_the_names_of"),
    ("atlas.allow_insecure", "an_atlas_without_tls_is_refused_unless_it_is_allowed"),
    ("atlas.compressors", "property_11_the_line_is_compressed_as_configured"),
    ("atlas.timeout", "property_11_an_end_that_hangs_is_waited_for_as_long_as_configured"),
    ("atlas.max_ops_per_second", "property_11_a_rate_limit_cuts_what_is_sent"),
    ("atlas.max_bytes_per_second", "property_11_a_limit_of_bytes_cuts_what_is_sent"),
    (
        "atlas.state_database",
        "another_database_for_the_lease_makes_room_for_one_of_the_application",
    ),
    ("postgres.uri", "property_11_a_postgres_is_the_one_that_the_file_names_or_holds_the_name_of"),
    (
        "postgres.uri_file",
        "property_11_a_postgres_is_the_one_that_the_file_names_or_holds_the_name_of",
    ),
    ("postgres.exact", "what_is_kept_raw_is_restored_byte_for_byte_and_a_hash_is_no_document"),
    ("namespaces.include", "property_11_excluded_collections_and_limits_are_respected"),
    ("namespaces.exclude", "property_11_excluded_collections_and_limits_are_respected"),
    ("queue.path", "property_11_files_are_where_they_are_told_to_be"),
    ("queue.max_bytes", "property_11_reading_stops_at_each_limit_of_the_queue"),
    ("queue.max_documents", "property_11_reading_stops_at_each_limit_of_the_queue"),
    ("queue.min_free_disk", "property_11_reading_stops_at_each_limit_of_the_queue"),
    ("queue.persist", "property_11_a_queue_that_is_not_to_persist_goes_with_the_agent"),
    ("worker.batch_size", "property_11_excluded_collections_and_limits_are_respected"),
    ("worker.lanes", "property_11_each_lane_writes_one_batch_and_then_pauses"),
    ("worker.interval", "property_11_each_lane_writes_one_batch_and_then_pauses"),
    ("worker.max_retries", "property_11_the_environment_is_respected"),
    ("worker.retry_delays", "property_11_what_is_rejected_waits_as_long_as_configured"),
    ("worker.update_mode", "property_11_an_update_is_sent_as_configured"),
    (
        "breaker.failure_threshold",
        "property_11_the_breaker_stays_closed_for_as_many_failures_as_configured",
    ),
    ("breaker.open_for", "property_11_the_breaker_opens_and_waits_as_configured"),
    ("breaker.open_for_max", "property_11_no_pause_before_atlas_is_longer_than_configured"),
    ("sync.enabled", "replication_that_is_switched_off_does_nothing"),
    ("sync.parallel", "property_11_so_many_ranges_are_copied_at_the_same_time"),
    ("sync.verify_every", "a_sync_comes_by_itself_as_often_as_configured"),
    ("sync.count_check_every", "documents_that_are_missing_in_atlas_are_noticed_by_counting"),
    ("sync.max_delete_ratio", "a_mass_delete_that_only_a_comparison_asks_for_is_not_made"),
    ("sync.max_docs_per_second", "property_11_a_copy_reads_no_faster_than_configured"),
    ("admin.listen", "on_any_other_address_than_loopback_everything_but_healthz_needs_the_token"),
    ("admin.token_file", "property_11_files_are_where_they_are_told_to_be"),
    ("alerts.lag", "an_alert_is_told_once_when_it_begins_and_once_when_it_is_over"),
    ("alerts.queue_size", "an_alert_is_told_once_when_it_begins_and_once_when_it_is_over"),
    ("alerts.error_rate", "property_11_thresholds_of_alerts_are_respected"),
    (
        "alerts.oplog_window",
        "an_oplog_that_is_about_to_roll_over_is_an_alert_and_status_shows_what_is_left",
    ),
    ("alerts.runbook", "an_alert_names_the_page_that_says_what_to_do"),
    ("alerts.webhook", "an_alert_is_told_once_when_it_begins_and_once_when_it_is_over"),
    ("alerts.webhook_file", "property_11_thresholds_of_alerts_are_respected"),
    (
        "alerts.heartbeat_url",
        "the_heartbeat_is_sent_after_progress_or_proven_idleness_and_not_otherwise",
    ),
    (
        "alerts.heartbeat_every",
        "the_heartbeat_is_sent_after_progress_or_proven_idleness_and_not_otherwise",
    ),
    ("shutdown.drain_for", "property_11_a_stopping_agent_writes_for_as_long_as_it_may"),
    ("log.level", "property_06_every_outcome_is_logged_with_time_and_details"),
    ("log.format", "property_06_every_outcome_is_logged_with_time_and_details"),
];

/// Every key, in the order of the reference file.
pub fn keys() -> impl Iterator<Item = &'static str> {
    PROVED_BY.iter().map(|(key, _)| *key)
}

#[test]
fn property_11_every_key_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    let mut folders = vec![root.join("tests"), root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                tests += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    for (key, test) in PROVED_BY {
        assert!(tests.contains(&format!("fn {test}(")), "{key}: there is no test {test}");
    }
    let mut section = "";
    let mut keys = Vec::new();
    for line in outrigger::config::REFERENCE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((name, _)) = line.trim_start_matches("# ").split_once(" = ")
            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            keys.push(format!("{section}.{name}"));
        }
    }
    let proved: Vec<_> = PROVED_BY.iter().map(|(key, _)| (*key).to_owned()).collect();
    assert_eq!(keys, proved);
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_reading_stops_at_each_limit_of_the_queue() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let big = "x".repeat(20_000);
    for (n, (limit, says)) in [
        ("max_documents = 50", "queue.max_documents"),
        ("max_bytes = \"1MiB\"", "queue.max_bytes"),
        ("min_free_disk = \"900TiB\"", "queue.min_free_disk"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut agent = Agent::new(&local.uri(), &line.uri(), &format!("[queue]\n{limit}\n"));
        line.set(Line::Up);
        if n == 2 {
            agent.may(
                &[Cursors],
                "it is stopped while it compares: a read that is being opened is not waited for",
            );
        }
        agent.start(&["--adopt"]);
        if n < 2 {
            agent.streaming().await;
            line.set(Line::Cut);
            for part in 0..40_i32 {
                let id = |m: i32| i32::try_from(n).unwrap() * 100_000 + part * 100 + m;
                let batch = (0..20).map(|m| doc! { "_id": id(m), "big": &big });
                orders(&local).insert_many(batch).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }

        eventually(says, PATIENCE, async || {
            agent
                .health()
                .is_some_and(|health| health["alerts"].to_string().contains("reading has stopped"))
        })
        .await;

        let health = agent.health().unwrap();
        let size = health["queueSize"].as_u64().unwrap();
        assert!(size < 800, "{limit}: {size} of 800 were read");
        if n < 2 {
            assert!(size >= 45, "{limit}: {size}");
            line.set(Line::Up);
            equal(&local, &atlas, PATIENCE).await;
        }
        assert_eq!(health["status"], "unhealthy");
        agent.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_a_queue_that_is_not_to_persist_goes_with_the_agent() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[queue]\npersist = false\n");
    agent.may(&[Repair], "the test provokes it");
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    agent.start(&[]);
    agent.streaming().await;
    assert!(agent.stop().success());
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();

    agent.start(&[]);

    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(agent.log().matches("the first copy").count(), 2, "it began anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_files_are_where_they_are_told_to_be() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[queue]\npath = \"deep/er/queue\"\n");
    agent.replace_setting("[admin]", "[admin]\ntoken_file = \"the.token\"");
    agent.start(&[]);
    agent.streaming().await;

    assert!(agent.dir.path().join("deep/er/queue").is_dir());
    assert!(agent.dir.path().join("the.token").is_file());
    assert!(!agent.dir.path().join("queue").exists());
    assert!(agent.cli(&["pause"]).status.success(), "the CLI finds the token");
}

/// Each of the specification's variables, in place of the file's value.
#[tokio::test(flavor = "multi_thread")]
async fn property_11_the_environment_is_respected() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let config =
        "[worker]\nlanes = 1\nretry_delays = [\"50ms\"]\nmax_retries = 9\nbatch_size = 500\n";
    let mut agent = Agent::new(&local.uri(), &line.uri(), config);
    agent.may(&[DeadLetters, Retries], "the test provokes it");
    for (name, value) in [
        ("SYNC_BATCH_SIZE", "5"),
        ("SYNC_WORKER_INTERVAL", "20"),
        ("SYNC_MAX_RETRIES", "1"),
        ("SYNC_QUEUE_MAX_SIZE", "30"),
        ("SYNC_EXCLUDED_COLLECTIONS", "sessions, shop.tmp"),
    ] {
        agent.set_env(name, value);
    }
    agent.start(&[]);
    agent.streaming().await;
    let before = agent.health().unwrap()["queueSize"].as_u64();
    assert_eq!(before, Some(0));
    let shop = local.client.database("shop");
    for name in ["sessions", "tmp"] {
        shop.collection::<Document>(name).insert_one(doc! { "_id": 1 }).await.unwrap();
    }
    orders(&local).insert_many((0..25).map(|id| doc! { "_id": id })).await.unwrap();
    eventually("the orders", PATIENCE, async || {
        orders(&atlas).count_documents(doc! {}).await.unwrap() == 25
    })
    .await;
    let there = atlas.client.database("shop").list_collection_names().await.unwrap();
    assert_eq!(there, ["orders"]);
    // The collection itself, and five at a time in the one lane.
    eventually("six batches", PATIENCE, async || {
        Api::of(&agent).get("/api/sync/metrics").1["batches"].as_u64() >= Some(6)
    })
    .await;

    let index = doc! { "key": { "u": 1 }, "name": "u", "unique": true, "sparse": true };
    let command = doc! { "createIndexes": "orders", "indexes": [index] };
    atlas.client.database("shop").run_command(command).await.unwrap();
    orders(&local)
        .insert_many([doc! { "_id": 50, "u": 1 }, doc! { "_id": 51, "u": 1 }])
        .await
        .unwrap();
    eventually("a dead letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 1)
        .await;
    let letters = agent.cli_json(&["dead", "list"]).unwrap();
    assert_eq!(letters[0]["attempts"], 2, "one more than SYNC_MAX_RETRIES");

    line.set(Line::Cut);
    for n in 0..20 {
        orders(&local)
            .insert_many((0..10).map(|m| doc! { "_id": 1000 + n * 10 + m }))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually("the limit", PATIENCE, async || {
        agent.health().unwrap()["alerts"].to_string().contains("queue.max_documents")
    })
    .await;
}

/// The server says what it received in which way.
#[tokio::test(flavor = "multi_thread")]
async fn property_11_the_line_is_compressed_as_configured() {
    let (local, atlas) = pair().await;
    let big = "compress me ".repeat(500);
    orders(&local).insert_many((0..50).map(|id| doc! { "_id": id, "big": &big })).await.unwrap();
    let received = async |name: &str| {
        let status = atlas.admin(doc! { "serverStatus": 1 }).await;
        let compression =
            status.get_document("network").unwrap().get_document("compression").unwrap();
        let of = compression.get_document(name).unwrap().get_document("decompressor").unwrap();
        of.get_i64("bytesIn").unwrap()
    };
    for (configured, expected) in
        [("[\"zlib\"]", "zlib"), ("[\"snappy\", \"zlib\"]", "snappy"), ("[]", "")]
    {
        let before = [received("zlib").await, received("snappy").await, received("zstd").await];
        let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
        agent.replace_setting("[atlas]", &format!("[atlas]\ncompressors = {configured}"));
        agent.start(&["--adopt"]);
        agent.streaming().await;
        orders(&local).update_many(doc! {}, doc! { "$set": { "by": configured } }).await.unwrap();
        equal(&local, &atlas, PATIENCE).await;
        assert!(agent.stop().success());
        for (name, before) in ["zlib", "snappy", "zstd"].into_iter().zip(before) {
            let is_used = received(name).await > before;
            assert_eq!(is_used, name == expected, "{name} with {configured}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_a_limit_of_bytes_cuts_what_is_sent() {
    let (local, atlas) = pair().await;
    orders(&local)
        .insert_many((0..60).map(|n| doc! { "_id": n, "x": "x".repeat(1_000) }))
        .await
        .unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.replace_setting("[atlas]", "[atlas]\nmax_bytes_per_second = \"100KiB\"");
    let inserts = async || atlas.insert_commands().await;
    let before = inserts().await;

    agent.start(&[]);

    equal(&local, &atlas, PATIENCE).await;
    // A tenth of a second's worth in each command.
    assert!(inserts().await - before >= 5, "60 KB at 10 KiB in a command");
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_the_breaker_opens_and_waits_as_configured() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let mut agent = Agent::new(&local.uri(), &line.uri(), "");
    // Opened by the first failure, for an hour: Atlas is back, and nothing is tried.
    agent.replace_setting("[breaker]", "[breaker]\nfailure_threshold = 1");
    agent.replace_setting(
        "open_for = \"200ms\"\nopen_for_max = \"1s\"",
        "open_for = \"1h\"\nopen_for_max = \"1h\"",
    );
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    line.set(Line::Cut);
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    eventually("an open breaker", PATIENCE, async || agent.health().unwrap()["breaker"] == "open")
        .await;
    line.set(Line::Up);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(agent.health().unwrap()["breaker"], "open");
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_a_stopping_agent_writes_for_as_long_as_it_may() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let mut agent = Agent::new(&local.uri(), &line.uri(), "[shutdown]\ndrain_for = \"1s\"\n");
    // An exchange that hangs is waited for longer than the agent may drain.
    agent.replace_setting(
        "[atlas]\nallow_insecure = true\ntimeout = \"5s\"",
        "[atlas]\nallow_insecure = true\ntimeout = \"10m\"",
    );
    agent.start(&[]);
    agent.streaming().await;
    line.set(Line::Silent);
    orders(&local).insert_many((0..10).map(|id| doc! { "_id": id })).await.unwrap();
    agent.queued(10).await;

    agent.signal("TERM");

    // Far below `atlas.timeout`, and below the default of 30 s by more than any machine is slow.
    let status = agent.ended(Duration::from_secs(25)).await;
    assert!(status.success());
    let pending = agent.cli_json(&["queue", "stats"]).unwrap()["pending"].as_u64().unwrap();
    assert!(pending >= 10, "nothing is lost: {pending}");
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_thresholds_of_alerts_are_respected() {
    let (local, atlas) = pair().await;
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("hook");
    std::fs::write(&file, "http://127.0.0.1:1/s3cret\n").unwrap();
    let config = format!(
        "[worker]\nmax_retries = 0\n[alerts]\nerror_rate = 1.0\nwebhook_file = {:?}\n",
        file.display().to_string()
    );
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config);
    agent.may(&[DeadLetters], "the test provokes it");
    orders(&local).insert_one(doc! { "_id": 0, "u": 0 }).await.unwrap();
    agent.start(&[]);
    agent.streaming().await;
    // Not by an index that the local database does not have: the agent that is started anew would drop that.
    let refuse = doc! {
        "failCommands": ["insert", "update"], "namespace": "shop.orders", "errorCode": 121,
    };
    atlas.fail(refuse, i32::MAX).await;
    orders(&local).insert_many((1..25).map(|id| doc! { "_id": id, "u": 0 })).await.unwrap();
    eventually("dead letters", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 24)
        .await;
    let raised = |agent: &Agent| agent.health().unwrap()["raised"].to_string();

    // All of them failed, and that many are allowed to.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!raised(&agent).contains("error_rate"), "{}", raised(&agent));
    assert!(raised(&agent).contains("dead_letters"));
    eventually("the web hook of the file", PATIENCE, async || {
        agent.log().contains("the web hook does not take alerts")
    })
    .await;
    assert!(!agent.log().contains("s3cret"));
    assert!(agent.stop().success());
    agent.replace_setting("error_rate = 1.0", "error_rate = 0.5");
    agent.start(&[]);
    eventually("the API", PATIENCE, async || agent.health().is_some()).await;
    orders(&local).insert_many((30..60).map(|id| doc! { "_id": id, "u": 0 })).await.unwrap();
    eventually("the alert", PATIENCE, async || raised(&agent).contains("error_rate")).await;
}

/// Two lanes of five documents each, and a pause after them that outlasts the test.
#[tokio::test(flavor = "multi_thread")]
async fn property_11_each_lane_writes_one_batch_and_then_pauses() {
    let (local, atlas) = pair().await;
    // Made beforehand, so that its creation is no batch.
    local.client.database("shop").create_collection("orders").await.unwrap();
    let config = "[worker]\nlanes = 2\nbatch_size = 5\ninterval = \"1h\"\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.start(&[]);
    agent.streaming().await;
    assert!(agent.cli(&["pause"]).status.success());
    orders(&local).insert_many((0..50).map(|id| doc! { "_id": id })).await.unwrap();
    agent.queued(50).await;

    assert!(agent.cli(&["resume"]).status.success());

    let there = async || orders(&atlas).count_documents(doc! {}).await.unwrap();
    eventually("both batches", PATIENCE, async || there().await == 10).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(there().await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn property_11_an_end_that_hangs_is_waited_for_as_long_as_configured() {
    let (local, atlas) = pair().await;
    let (to_local, to_atlas) = (Proxy::to(local.port).await, Proxy::to(atlas.port).await);
    let mut agent = Agent::new(&to_local.uri(), &to_atlas.uri(), "");
    agent.replace_setting(
        "[atlas]\nallow_insecure = true\ntimeout = \"5s\"",
        "[atlas]\nallow_insecure = true\ntimeout = \"2s\"",
    );
    agent.replace_setting("[local]\ntimeout = \"5s\"", "[local]\ntimeout = \"3s\"");
    agent.start(&[]);
    agent.streaming().await;
    let error = |key: &str| agent.health().unwrap()[key].to_string();

    to_atlas.set(Line::Silent);
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    eventually("Atlas is given up", PATIENCE, async || error("atlasError").contains("within 2s"))
        .await;
    to_local.set(Line::Silent);
    eventually("the local end is given up", PATIENCE, async || {
        error("localError").contains("within 3s")
    })
    .await;
}
