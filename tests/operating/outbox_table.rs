//! `outrigger outbox init`: the table of events, in a real PostgreSQL; and what does not go with such a source.

use std::process::Command;

use outrigger::observe::{
    health::{Health, SILENCE, Vitals, judge, proves_life},
    status::Phase,
};
use tempfile::TempDir;

use crate::support::postgres::Postgres;

const ROUTES: &str = r#"
[[route]]
event = "todo.*"
collection = "app.todos"
key = "aggregateid"
op = "replace"
[[route]]
event = "list.*"
collection = "app.lists"
key = "payload.list.id"
op = "merge"
"#;

fn outrigger(config: &str, args: &[&str]) -> (i32, String, String) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .arg("--config")
        .arg(&file)
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_made_by_what_is_printed_and_has_what_is_read() {
    let postgres = Postgres::start().await;
    postgres.ask("CREATE SCHEMA sales; CREATE ROLE reader").await;
    let config = format!(
        "[source]\nkind = \"outbox\"\n[outbox]\nuri = \"postgres://db.example.net/shop\"\ntable = \"sales.events\"\n\
         columns = {{ event_type = \"type\", entity_type = \"aggregatetype\", entity_id = \"aggregateid\" }}\n{ROUTES}"
    );

    let (code, sql, told) = outrigger(&config, &["outbox", "init", "--user", "reader"]);

    assert_eq!((code, &*told), (0, ""), "{sql}");
    postgres.ask(&sql).await;
    // Once more is harmless.
    postgres.ask(&sql).await;
    postgres
        .ask("INSERT INTO sales.events (type, aggregatetype, aggregateid, payload) VALUES ('todo.made', 'todo', '7', '{\"a\": 1}')")
        .await;
    let row = "SELECT type, aggregateid, payload, created_at <= clock_timestamp(), processed_at, retry_count FROM sales.events";
    assert_eq!(postgres.ask(row).await, [r#"todo.made|7|{"a": 1}|t|NULL|0"#]);
    let indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'sales' ORDER BY indexname";
    let indexes = postgres.ask(indexes).await.join("\n");
    for part in ["(id) WHERE (processed_at IS NULL)", "(aggregateid, id)", "->> 'id'::text)), id)"]
    {
        assert!(indexes.contains(part), "{part}\n{indexes}");
    }
    let (code, cockroach, _) = outrigger(&config, &["outbox", "init", "--cockroachdb"]);
    assert!(code == 0 && cockroach.contains("unique_rowid()") && !cockroach.contains("TRIGGER"));
}

#[test]
fn what_does_not_go_with_an_outbox_is_refused() {
    let refused = |config: &str| {
        let (code, _, told) = outrigger(config, &["outbox", "init"]);
        assert_eq!(code, 2, "{told}");
        told
    };
    let outbox = format!("[source]\nkind = \"outbox\"\n{ROUTES}");

    assert!(refused("").contains("`source.kind`"));
    assert!(refused("[source]\nkind = \"outbox\"").contains("`[[route]]`"));
    assert!(refused(ROUTES).contains("is `mongodb`"));
    assert!(refused(&format!("{outbox}[target]\nkind = \"postgres\"")).contains("MongoDB alone"));
    assert!(
        refused(&format!("{outbox}[namespaces]\ninclude = [\"a.*\"]"))
            .contains("namespaces.include")
    );
    for (line, part) in [
        ("op = \"upsert\"", "none of insert, replace, merge and delete"),
        ("op = \"merge\"\nevnt = 1", "did you mean `event`?"),
        ("op = \"merge\"\ndates = [\"a..b\"]", "an empty part"),
        ("op = \"merge\"\ndates = 1", "is no list of texts"),
        ("op = \"merge\"\nindexes = \"status\"", "is no list"),
        ("op = \"merge\"\nindexes = [1]", "neither a text"),
        ("op = \"merge\"\nindexes = [\"a,,b\"]", "that is empty"),
        ("op = \"merge\"\nindexes = [\"a, -a\"]", "has `a` twice"),
        ("op = \"merge\"\nindexes = [\"_id\"]", "there by itself"),
        ("op = \"merge\"\nindexes = [\"at:2dsphere\"]", "of another kind is made in Atlas"),
        ("op = \"merge\"\nindexes = [{ keys = \"a\", sparse = true }]", "has `keys` and `unique`"),
        ("op = \"merge\"\nindexes = [{ unique = true }]", "without `keys"),
        ("op = \"merge\"\nindexes = [{ keys = \"a\", unique = 1 }]", "neither true nor false"),
        (
            "op = \"merge\"\nindexes = [\"a\", { keys = \"a\", unique = true }]",
            "once unique and once not",
        ),
    ] {
        let route =
            format!("[[route]]\nevent = \"a\"\ncollection = \"app.a\"\nkey = \"id\"\n{line}\n");
        let told = refused(&format!("{outbox}{route}"));
        assert!(told.contains(part), "{told}");
        assert!(told.contains("config.toml:"), "where it stands: {told}");
    }
    let of = |event: &str, indexes: &str| {
        format!(
            "[[route]]\nevent = \"{event}\"\ncollection = \"app.a\"\nkey = \"id\"\nop = \"merge\"\nindexes = [{indexes}]\n"
        )
    };
    let two = of("a", "\"x\"") + &of("b", "{ keys = \"x\", unique = true }");
    assert!(refused(&format!("{outbox}{two}")).contains("once unique and once not"));
    let twice = format!("{outbox}{}", &ROUTES[..ROUTES.len() / 2]);
    assert!(refused(&twice).contains("has a route already"));
    let odd = format!("{outbox}[outbox]\ncolumns = {{ payload = \"\" }}");
    assert!(refused(&odd).contains("cannot be left out"));
    let (code, _, told) = outrigger(&outbox, &["run"]);
    assert!(code == 2 && told.contains("no connection string"), "{told}");
}

#[test]
fn what_waits_in_the_table_counts_as_what_waits_in_the_queue_and_what_is_not_known_is_not_healthy()
{
    let alerts = outrigger::config::Config::default().alerts;
    let health = |vitals: &Vitals| judge(vitals, &alerts).0;
    let streaming = || Vitals { phase: Phase::Streaming, ..Vitals::default() };
    let rows = |backlog| Vitals { backlog, ..streaming() };
    let unknown = Vitals { is_backlog_unknown: true, ..streaming() };
    let standby = Vitals { phase: Phase::Standby, atlas_silence: 2 * SILENCE, ..streaming() };

    assert_eq!(health(&rows(1_000)), Health::Healthy);
    assert_eq!(health(&rows(1_001)), Health::Degraded);
    assert_eq!(health(&rows(10_001)), Health::Unhealthy);
    assert_eq!((health(&unknown), proves_life(0, &unknown)), (Health::Degraded, false));
    assert!(!proves_life(0, &rows(1)));
    assert_eq!(health(&standby), Health::Healthy, "it asks nothing of Atlas");
    assert_eq!(health(&Vitals { local_silence: 2 * SILENCE, ..standby }), Health::Unhealthy);
}
