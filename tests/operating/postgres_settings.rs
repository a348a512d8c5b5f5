//! Every key of the configuration, with PostgreSQL as the target: it is respected there as well, or refused with the
//! reason.

use mongodb::bson::doc;
use outrigger::config::{REFERENCE, Secrets, load_with};

use crate::support::{
    PATIENCE, agent::Agent, eventually, mongod::Mongod, orders, postgres::Postgres, root, rows,
};

/// What becomes of a key.
enum Here {
    /// It says something of another kind of end alone; the reason has these words.
    Refused(&'static str),
    /// The target has to respect it, which a test on a real server proves.
    ByTarget(&'static str),
    /// The target has no part in it: it is proved as for Atlas.
    OfTheAgent,
}
use Here::{ByTarget, OfTheAgent, Refused};

const HELD: &str = "what_is_called_after_atlas_and_holds_of_any_target_is_respected_by_postgres";
const COMPARED: &str =
    "a_sync_repairs_what_verify_finds_in_postgres_and_deletes_no_more_than_it_may";
const REFUSED: &str = "what_postgres_refuses_is_failed_to_whoever_asks_until_it_is_written";

/// Each with another value than its default.
const KEYS: &[(&str, &str, Here)] = &[
    // An outbox is not replicated into PostgreSQL, and is refused for that by its kind.
    ("source.kind", "\"mongodb\"", OfTheAgent),
    ("local.uri", "\"mongodb://127.0.0.1:1/?replicaSet=rs\"", OfTheAgent),
    ("local.uri_file", "\"x\"", OfTheAgent),
    ("local.timeout", "\"5s\"", OfTheAgent),
    ("outbox.uri", "\"postgres://h/d\"", Refused("`[source]`")),
    ("outbox.uri_file", "\"x\"", Refused("`[source]`")),
    ("outbox.table", "\"t\"", Refused("no such table")),
    ("outbox.columns", "{ entity_id = \"a\" }", Refused("no such table")),
    ("outbox.batch_size", "100", OfTheAgent),
    ("outbox.poll", "\"1s\"", OfTheAgent),
    ("outbox.listen", "false", OfTheAgent),
    ("outbox.retention", "\"1h\"", Refused("in its oplog")),
    ("target.kind", "\"postgres\"", ByTarget(COMPARED)),
    ("atlas.uri", "\"mongodb://127.0.0.1:1/\"", Refused("`postgres.uri`")),
    ("atlas.uri_file", "\"x\"", Refused("`postgres.uri_file`")),
    ("atlas.allow_insecure", "true", Refused("`sslmode=disable`")),
    ("atlas.compressors", "[]", Refused("has no compression")),
    ("atlas.timeout", "\"5s\"", ByTarget(HELD)),
    ("atlas.max_ops_per_second", "5", ByTarget(HELD)),
    ("atlas.max_bytes_per_second", "5000", ByTarget(HELD)),
    ("atlas.state_database", "\"x\"", Refused("in the schema `outrigger`")),
    ("postgres.uri", "\"postgres://h/d\"", ByTarget(COMPARED)),
    ("postgres.uri_file", "\"x\"", ByTarget("a_connection_string_may_come_from_a_file")),
    (
        "postgres.exact",
        "\"raw\"",
        ByTarget("what_is_kept_raw_is_restored_byte_for_byte_and_a_hash_is_no_document"),
    ),
    ("namespaces.include", "[\"a.*\"]", OfTheAgent),
    ("namespaces.exclude", "[\"a.*\"]", OfTheAgent),
    ("queue.path", "\"q\"", OfTheAgent),
    ("queue.max_bytes", "\"1MiB\"", OfTheAgent),
    ("queue.max_documents", "5", OfTheAgent),
    ("queue.min_free_disk", "\"1MiB\"", OfTheAgent),
    ("queue.persist", "false", OfTheAgent),
    ("worker.batch_size", "10", OfTheAgent),
    ("worker.lanes", "2", OfTheAgent),
    ("worker.interval", "\"1s\"", OfTheAgent),
    ("worker.max_retries", "1", ByTarget(REFUSED)),
    ("worker.retry_delays", "[\"1s\"]", ByTarget(REFUSED)),
    ("worker.update_mode", "\"delta\"", Refused("is written whole")),
    ("breaker.failure_threshold", "1", OfTheAgent),
    ("breaker.open_for", "\"2s\"", OfTheAgent),
    ("breaker.open_for_max", "\"2m\"", OfTheAgent),
    ("sync.enabled", "false", OfTheAgent),
    ("sync.parallel", "2", OfTheAgent),
    ("sync.verify_every", "\"1h\"", OfTheAgent),
    (
        "sync.count_check_every",
        "\"1s\"",
        ByTarget("rows_that_somebody_removes_are_found_by_counting"),
    ),
    ("sync.max_delete_ratio", "0.5", ByTarget(COMPARED)),
    ("sync.max_docs_per_second", "5", OfTheAgent),
    ("admin.listen", "\"127.0.0.1:1\"", OfTheAgent),
    ("admin.token_file", "\"x\"", OfTheAgent),
    ("alerts.lag", "\"1s\"", OfTheAgent),
    ("alerts.queue_size", "5", OfTheAgent),
    ("alerts.error_rate", "0.5", OfTheAgent),
    ("alerts.oplog_window", "\"1s\"", OfTheAgent),
    ("alerts.runbook", "\"http://h/{alert}\"", OfTheAgent),
    ("alerts.webhook", "\"http://h/\"", OfTheAgent),
    ("alerts.webhook_file", "\"Cargo.toml\"", OfTheAgent),
    ("alerts.heartbeat_url", "\"http://h/\"", OfTheAgent),
    ("alerts.heartbeat_every", "\"1s\"", OfTheAgent),
    ("shutdown.drain_for", "\"1s\"", OfTheAgent),
    ("log.level", "\"debug\"", OfTheAgent),
    ("log.format", "\"json\"", OfTheAgent),
];

/// What is said of a configuration.
fn said(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    let read = load_with(Some(&file), |_| None, Secrets::Leave);
    read.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn each_key_is_respected_by_postgres_or_refused_with_the_reason() {
    let tests = ["tests/operating", "tests/promises"].map(|folder| {
        let files =
            std::fs::read_dir(root().join(folder)).unwrap().map(|file| file.unwrap().path());
        files
            .filter(|path| path.is_file())
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect::<String>()
    });
    let tests = tests.concat();
    for (key, value, here) in KEYS {
        let (section, name) = key.split_once('.').unwrap();
        let kind = if *key == "target.kind" { "" } else { "[target]\nkind = \"postgres\"\n" };

        let said = said(&format!("{kind}[{section}]\n{name} = {value}\n"));

        match here {
            Refused(why) => {
                let is_told =
                    said.contains(&format!("`{key}`")) && said.contains("does not go with");
                assert!(is_told && said.contains(why), "{key}: {said}");
            }
            ByTarget(test) => {
                assert!(tests.contains(&format!("fn {test}(")), "{key}: there is no test {test}");
                assert_eq!(said, "", "{key}");
            }
            OfTheAgent => assert_eq!(said, "", "{key}"),
        }
    }
    let listed: Vec<_> = KEYS.iter().map(|(key, ..)| *key).collect();
    let known: Vec<_> = super::every_setting_is_respected::keys().collect();
    assert_eq!(listed, known);
}

#[tokio::test]
async fn the_reference_file_needs_no_more_than_another_kind_and_what_only_postgres_has_needs_it() {
    let postgres = REFERENCE.replace("kind = \"atlas\"", "kind = \"postgres\"");
    assert_eq!(said(&postgres), "", "what nobody has changed is nobody's wish");

    let column = "[[column]]\ncollection = \"a.b\"\npath = \"v\"\ntype = \"text\"\n";
    let local = "mongodb://127.0.0.1:1/?replicaSet=rs";
    let mut agent = Agent::new(local, "mongodb://127.0.0.1:1/", column);
    agent.start(&[]);
    assert_eq!(agent.ended(PATIENCE).await.code(), Some(2));
    let told = agent.log();
    assert!(told.contains("`target.kind`") && told.contains("`[[column]]`"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_called_after_atlas_and_holds_of_any_target_is_respected_by_postgres() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_one(doc! { "_id": 0, "a": 0 }).await.unwrap();
    let limited = |limit: &str| format!("timeout = \"2s\"\n{limit}\n");
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), &rows::declared());
    agent.replace_setting("[atlas]\ntimeout = \"5s\"\n", &format!("[atlas]\n{}", limited("")));
    agent.start(&[]);
    agent.streaming().await;

    // A batch that has to wait for longer than an answer may take is given up.
    let held = target.client().await;
    held.batch_execute("BEGIN; LOCK TABLE shop.orders").await.unwrap();
    orders(&local).insert_one(doc! { "_id": 1, "a": 1 }).await.unwrap();
    eventually("it is said", PATIENCE, async || {
        let health = agent.health().unwrap_or_default();
        let error = health["atlasError"].as_str().unwrap_or_default();
        error.contains("within 2s") || error.contains("57014")
    })
    .await;
    held.batch_execute("COMMIT").await.unwrap();
    rows::equal(&local.client, &target, PATIENCE).await;
    assert!(agent.stop().success());

    // A rate is cut into tenths of a second: of documents, and of bytes.
    target
        .ask(
            "CREATE TABLE public.sizes (n bigint); CREATE FUNCTION public.sized() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN INSERT INTO public.sizes SELECT count(*) FROM new_rows; RETURN NULL; END $$; \
             CREATE TRIGGER sized AFTER INSERT ON shop.orders REFERENCING NEW TABLE AS new_rows \
             FOR EACH STATEMENT EXECUTE FUNCTION public.sized()",
        )
        .await;
    let mut before = limited("");
    for (limit, first) in
        [("max_ops_per_second = 100", 100), ("max_bytes_per_second = 100000", 200)]
    {
        agent.replace_setting(&before, &limited(limit));
        before = limited(limit);
        target.ask("TRUNCATE public.sizes").await;
        let late = (first..first + 60).map(|id| doc! { "_id": id, "a": "x".repeat(1000) });
        orders(&local).insert_many(late).await.unwrap();
        agent.start(&[]);
        rows::equal(&local.client, &target, PATIENCE).await;
        let most: i64 = target.ask("SELECT max(n) FROM public.sizes").await[0].parse().unwrap();
        assert!(most <= 10, "{limit}: {most} at once");
        assert!(agent.stop().success());
    }
}
