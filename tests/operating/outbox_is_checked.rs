//! `outrigger check` and `outrigger roles` before an outbox: what would keep its rows from being read is said beforehand, each
//! with what to do; what is printed for the reader's user is enough, and nothing is made by a look.

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE, agent::Agent, eventually, mongod::Mongod, postgres::Postgres, said::Said,
};

const ROUTES: &str = r#"
[[route]]
event = "todo.*"
collection = "app.todos"
key = "entity_id"
op = "replace"
[[table]]
name = "todos"
key = "id"
collection = "app.todos"
columns = ["id", "title"]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_an_outbox_lacks_is_named_with_what_mends_it_and_nothing_is_made_by_a_look() {
    let (source, atlas) = tokio::join!(Postgres::start(), Mongod::start());
    let agent = Agent::unprepared_outbox(&source.uri(), &atlas.uri(), ROUTES);

    let said = Said::by(&agent, &["check"]);
    assert_eq!(said.code, 3, "{}", said.text);
    said.has("ok", "PostgreSQL ", "");
    said.has("PROBLEM", "there is no table \"outbox\"", "`outrigger outbox init` prints");

    // A table of the application's own: without what is read of it, and in the order of a transaction's begin.
    source
        .ask(
            "CREATE TABLE outbox (id uuid PRIMARY KEY, event_type text, entity_id text, payload jsonb, \
             created_at timestamptz DEFAULT now())",
        )
        .await;
    let said = Said::by(&agent, &["check"]);
    assert_eq!(said.code, 3, "{}", said.text);
    said.has("PROBLEM", "has no column `processed_at`", "`outrigger outbox init` prints");
    source
        .ask(
            "ALTER TABLE outbox ADD processed_at timestamptz; CREATE TABLE outrigger_outbox (outbox text PRIMARY KEY, \
             reader text NOT NULL, term bigint NOT NULL, position bigint NOT NULL, holder text, expires_at timestamptz NOT NULL)",
        )
        .await;
    let said = Said::by(&agent, &["check"]);
    assert_eq!(said.code, 3, "{}", said.text);
    said.has("warning", "`created_at` is when a transaction began", "the wrong order");
    said.has("warning", "no index holds the rows alone that wait", "`outrigger outbox init`");
    said.has("PROBLEM", "there is no table \"todos\"", "correct `name` in `[[table]]`");

    source
        .ask("DROP TABLE outbox, outrigger_outbox; CREATE TABLE todos (id text, name text)")
        .await;
    let agent = Agent::from_outbox(&source, &atlas.uri(), ROUTES).await;
    let said = Said::by(&agent, &["check"]);
    assert_eq!(said.code, 3, "{}", said.text);
    said.has(
        "PROBLEM",
        "the table \"todos\" has no column \"title\"",
        "correct `key` or `columns`",
    );
    source.ask("ALTER TABLE todos RENAME name TO title").await;
    let said = Said::by(&agent, &["check"]);
    assert_eq!(said.code, 0, "{}", said.text);
    said.has("warning", "has no unique index on its `key`", "name the primary key");
    source.ask("ALTER TABLE todos ADD PRIMARY KEY (id)").await;
    source.ask("INSERT INTO outbox (event_type, entity_id) VALUES ('todo.made', '1')").await;
    let said = Said::by(&agent, &["check", "--plan"]);
    assert_eq!(said.code, 0, "{}", said.text);
    said.has("ok", "the table \"todos\" can be compared", "");
    said.has("ok", "1 rows wait, the oldest for", "");
    assert!(said.text.contains("plan"), "{}", said.text);
    let made = source.ask("SELECT count(*) FROM outrigger_outbox").await;
    assert_eq!(made, ["0"], "a look draws no identity and takes no lease");

    // Not to be reached, and not to be let in.
    let other = Agent::unprepared_outbox(
        &source.uri().replace("outrigger:outrigger@", "outrigger:s3cret@"),
        &atlas.uri(),
        ROUTES,
    );
    let said = Said::by(&other, &["check"]);
    assert_eq!(said.code, 3, "{}", said.text);
    said.has("PROBLEM", "password authentication failed", "check user and password in OUTBOX_URI");
    assert!(!said.text.contains("s3cret"), "{}", said.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_that_are_printed_for_an_outbox_are_enough_and_each_that_is_missing_is_named() {
    let (source, atlas) = tokio::join!(Postgres::start(), Mongod::start());
    source
        .ask("CREATE SCHEMA sales; CREATE SCHEMA books; CREATE TABLE books.todos (id text PRIMARY KEY, title text)")
        .await;
    let routes = ROUTES.replace("\"todos\"", "\"books.todos\"");
    let config = format!("table = \"sales.outbox\"\n{routes}");
    let owner = Agent::from_outbox(&source, &atlas.uri(), &config).await;

    let roles = Said::by(&owner, &["roles"]);
    assert_eq!(roles.code, 0, "{}", roles.text);
    for part in [
        "in psql",
        "CREATE ROLE outrigger LOGIN;",
        "\\password outrigger",
        "OUTBOX_URI='postgres://outrigger:PASSWORD@",
        "readWrite@app",
    ] {
        assert!(roles.text.contains(part), "{part}: {}", roles.text);
    }
    assert!(!roles.text.contains("createRole"), "{}", roles.text);
    let told = owner.cli_json(&["roles"]).unwrap();
    let statements = told["outbox"]["statements"].as_array().unwrap();
    // The database's owner of the tests is called so already.
    let statements =
        statements.iter().map(|of| of.as_str().unwrap().replace("outrigger LOGIN", "r"));
    let statements: Vec<String> =
        statements.map(|of| of.replace("TO \"outrigger\"", "TO r")).collect();
    source.ask(&statements.join(";")).await;
    source.ask("ALTER ROLE r LOGIN PASSWORD 'r'").await;

    let uri = source.uri().replace("outrigger:outrigger@", "r:r@");
    let mut agent = Agent::unprepared_outbox(&uri, &atlas.uri(), &config);
    for (right, table, verdict, words) in [
        ("UPDATE", "sales.outbox", "PROBLEM", "the user lacks UPDATE on \"sales\".\"outbox\""),
        ("DELETE", "sales.outbox", "warning", "the user may not delete in \"sales\".\"outbox\""),
        ("INSERT", "sales.outrigger_outbox", "PROBLEM", "the user lacks INSERT on"),
        ("SELECT", "books.todos", "PROBLEM", "the user lacks SELECT on \"books\".\"todos\""),
    ] {
        source.ask(&format!("REVOKE {right} ON {table} FROM r")).await;
        let said = Said::by(&agent, &["check"]);
        assert_eq!(said.code, if verdict == "PROBLEM" { 3 } else { 0 }, "{}", said.text);
        said.has(verdict, words, &format!("GRANT {right} ON"));
        source.ask(&format!("GRANT {right} ON {table} TO r")).await;
    }
    source.ask("REVOKE USAGE ON SCHEMA books FROM r").await;
    let said = Said::by(&agent, &["check"]);
    assert_eq!(said.code, 3, "{}", said.text);
    said.has("PROBLEM", "or the user may not look into its schema", "GRANT USAGE ON SCHEMA");
    said.has("ok", "the user may read its rows", "");
    source.ask("GRANT USAGE ON SCHEMA books TO r").await;
    source.ask("REVOKE USAGE ON SCHEMA sales FROM r").await;
    let said = Said::by(&agent, &["check"]);
    assert_eq!(said.code, 3, "{}", said.text);
    said.has("PROBLEM", "permission denied for schema sales", "USAGE on the schema");
    source.ask("GRANT USAGE ON SCHEMA sales TO r").await;

    // It is enough: for a first copy, for rows, for a comparison.
    source.ask("INSERT INTO books.todos VALUES ('1', 'one')").await;
    assert_eq!(Said::by(&agent, &["check"]).code, 0);
    agent.start(&[]);
    agent.streaming().await;
    source
        .ask(
            "BEGIN; INSERT INTO books.todos VALUES ('2', 'two'); INSERT INTO sales.outbox (event_type, entity_id, payload) \
             VALUES ('todo.made', '2', '{\"id\": \"2\", \"title\": \"two\"}'); COMMIT",
        )
        .await;
    let todos = atlas.client.database("app").collection::<Document>("todos");
    eventually("both", PATIENCE, async || todos.count_documents(doc! {}).await.unwrap() == 2).await;
    let verified = Said::by(&agent, &["verify"]);
    assert_eq!(verified.code, 0, "{}", verified.text);
    let said = Said::by(&agent, &["check"]);
    assert_eq!(said.code, 0, "{}", said.text);
    said.has("ok", "an agent reads it now", "");
    assert!(agent.stop().success(), "{}", agent.log());

    let said = Said::by(&agent, &["restore"]);
    assert_eq!(said.code, 2, "{}", said.text);
    assert!(said.text.contains("come back from a backup of their database"), "{}", said.text);
}

#[test]
fn keys_of_another_end_are_refused_with_the_reason_and_those_at_their_defaults_are_not() {
    let agent = Agent::unprepared_outbox("postgres://h/d", "", ROUTES);
    let refused = |section: &str| {
        let path = agent.dir.path().join("config.toml");
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{before}{section}\n")).unwrap();
        let said = Said::by(&agent, &["outbox", "init"]);
        std::fs::write(&path, before).unwrap();
        said
    };
    for (section, words) in [
        ("[alerts]\noplog_window = \"1h\"", "an outbox has no oplog"),
        ("[postgres]\nexact = \"raw\"", "in Atlas every document is kept as it is"),
    ] {
        let said = refused(section);
        assert_eq!(said.code, 2, "{}", said.text);
        assert!(said.text.contains(words), "{}", said.text);
    }
    let said = refused("[alerts]\noplog_window = \"6h\"\n[postgres]\nexact = \"hash\"");
    assert_eq!(said.code, 0, "{}", said.text);
    agent.replace_setting("kind = \"outbox\"", "kind = \"mongodb\"");
    agent.replace_setting("poll = \"100ms\"", "uri = \"postgres://db.example.net/shop\"");
    let said = Said::by(&agent, &["check"]);
    assert_eq!(said.code, 2, "{}", said.text);
    assert!(said.text.contains("`kind = \"outbox\"` in `[source]`"), "{}", said.text);
}
