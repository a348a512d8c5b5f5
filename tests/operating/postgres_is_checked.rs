//! `outrigger check` before a PostgreSQL: what would keep the agent from its work is said beforehand, each with what to do;
//! and what it says is enough is enough.

use mongodb::bson::doc;

use crate::support::{
    PATIENCE, agent::Agent, eventually, mongod::Mongod, orders, postgres::Postgres, proxy::Proxy,
    said::Said,
};

/// What `check` says: in the words of PostgreSQL, and without a password.
fn check(agent: &Agent) -> Said {
    let said = Said::by(agent, &["check"]);
    assert!(!said.text.contains("Atlas") && !said.text.contains("secret"), "{}", said.text);
    said
}

/// By another user, or into another database.
fn agent(local: &Mongod, target: &Postgres, user: &str, database: &str) -> Agent {
    let uri = target.uri();
    let uri = uri.replace("outrigger:outrigger@", user);
    let uri = uri.replace("/postgres?", &format!("/{database}?"));
    Agent::into_postgres(&local.uri(), &uri, "")
}

const OWNER: &str = "outrigger:outrigger@";
const CLERK: &str = "clerk:secret@";

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_are_named_with_the_grant_and_what_check_calls_enough_is_enough() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    target.ask("CREATE ROLE clerk LOGIN PASSWORD 'secret'").await;
    let mut agent = agent(&local, &target, CLERK, "postgres");

    let said = check(&agent);
    assert_eq!(said.code, 4, "{}", said.text);
    said.has(
        "PROBLEM",
        "the user may make no schema, and these are not there: \"outrigger\", \"shop\"",
        "GRANT CREATE ON DATABASE \"postgres\" TO \"clerk\"; or have each made for it",
    );
    said.has_not("the user may make the tables");

    // Made for it by somebody who forgets one grant, and then by the book.
    target.ask("CREATE SCHEMA outrigger AUTHORIZATION clerk; CREATE SCHEMA shop").await;
    let said = check(&agent);
    assert_eq!(said.code, 4, "{}", said.text);
    said.has(
        "PROBLEM",
        "the user may make no tables in these schemas: \"shop\"",
        "GRANT USAGE, CREATE ON SCHEMA \"shop\" TO \"clerk\"",
    );
    target.ask("GRANT USAGE, CREATE ON SCHEMA shop TO clerk").await;
    let said = check(&agent);
    assert_eq!(said.code, 0, "{}", said.text);
    said.has(
        "warning",
        "the user may make no schema: those that are needed now",
        "GRANT CREATE ON",
    );
    said.has("ok", "the user may make the tables, and write them", "");
    said.has("ok", "SQL does not tell how much room", "");

    // It is enough.
    agent.start(&[]);
    agent.streaming().await;
    eventually("the row", PATIENCE, async || {
        target.try_ask("SELECT count(*) FROM shop.orders").await.is_ok_and(|rows| rows == ["1"])
    })
    .await;
    assert!(agent.stop().success(), "{}", agent.log());

    // The same tables by another user.
    target.ask("CREATE ROLE heir LOGIN PASSWORD 'secret'").await;
    target.ask("GRANT USAGE, CREATE ON SCHEMA shop, outrigger TO heir").await;
    let heir = crate::postgres_is_checked::agent(&local, &target, "heir:secret@", "postgres");
    let said = check(&heir);
    assert_eq!(said.code, 4, "{}", said.text);
    said.has(
        "PROBLEM",
        "the user may not write these tables, which belong to clerk: outrigger.",
        "REASSIGN OWNED BY \"clerk\" TO \"heir\"",
    );
    for schema in ["shop", "outrigger"] {
        let rights = "SELECT, INSERT, UPDATE, DELETE";
        target.ask(&format!("GRANT {rights} ON ALL TABLES IN SCHEMA {schema} TO heir")).await;
    }
    let said = check(&heir);
    said.has("warning", "these tables belong to clerk: outrigger.", "GRANT \"clerk\" TO \"heir\"");
    assert_eq!(said.code, 0, "{}", said.text);
    target.ask("GRANT clerk TO heir").await;
    check(&heir).has_not("belong to");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_set_up_otherwise_is_told_beforehand() {
    let (local, mut target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    target.ask("CREATE DATABASE stiff").await;
    target.ask("ALTER DATABASE stiff SET default_transaction_read_only = on").await;
    target.ask("CREATE DATABASE narrow ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").await;
    target.ask("CREATE ROLE hasty LOGIN PASSWORD 'secret' CONNECTION LIMIT 4").await;
    target.ask("GRANT CREATE ON DATABASE postgres TO hasty").await;
    target.ask("ALTER ROLE hasty SET statement_timeout = '1s'").await;

    let said = check(&agent(&local, &target, OWNER, "stiff"));
    assert_eq!(said.code, 4, "{}", said.text);
    said.has("PROBLEM", "transactions are read-only here", "ALTER DATABASE \"stiff\" RESET");

    let said = check(&agent(&local, &target, OWNER, "narrow"));
    assert_eq!(said.code, 4, "{}", said.text);
    said.has("PROBLEM", "the database narrow is in LATIN1", "ENCODING 'UTF8'");

    let said = check(&agent(&local, &target, "hasty:secret@", "postgres"));
    assert_eq!(said.code, 0, "{}", said.text);
    said.has("warning", "its `statement_timeout` of 1s cancels", "ALTER ROLE \"hasty\" SET");
    said.has("warning", "4 connections are left, and the agent may use", "raise `max_connections`");

    let said = check(&agent(&local, &target, OWNER, "nowhere"));
    assert_eq!(said.code, 4, "{}", said.text);
    said.has("PROBLEM", "\"nowhere\" does not exist", "CREATE DATABASE");
    let said = check(&agent(&local, &target, "hasty:secret-of-another@", "postgres"));
    assert_eq!(said.code, 4, "{}", said.text);
    said.has("PROBLEM", "password authentication failed", "check user and password");

    // Something stands between, as a pooler does.
    let between = Proxy::to(target.port).await;
    let said = check(&Agent::into_postgres(&local.uri(), &Postgres::uri_at(between.port), ""));
    assert_eq!(said.code, 0, "{}", said.text);
    said.has("ok", "a pooler, or a port that is passed on, is in between", "");
    said.has("ok", "the connection does not leave this machine", "");
    said.has("ok", "PostgreSQL holds nothing in the namespaces that will be replicated", "");

    target.kill();
    target.becomes_a_standby();
    target.resume().await;
    let said = check(&agent(&local, &target, OWNER, "postgres"));
    assert_eq!(said.code, 4, "{}", said.text);
    said.has(
        "PROBLEM",
        "it is a standby, which takes no writes",
        "target_session_attrs=read-write",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_the_tables_are_is_told_in_the_words_of_postgres_and_the_plan_names_it() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let config = "[[child]]\ncollection = \"shop.orders\"\npath = \"items\"\ntable = \"lines\"\n\
                  columns = [{ path = \"sku\", type = \"text\" }]\n";
    let agent = Agent::into_postgres(&local.uri(), &target.uri(), config);

    // Somebody's tables, before there is anything of Outrigger's.
    for (table, words) in
        [("orders", "the table \"shop\".\"orders\""), ("lines", "the table \"shop\".\"lines\"")]
    {
        target
            .ask(&format!("CREATE SCHEMA IF NOT EXISTS shop; CREATE TABLE shop.{table} ()"))
            .await;
        let said = check(&agent);
        assert_eq!(said.code, 4, "{}", said.text);
        said.has("PROBLEM", words, "make way for it");
        said.has("PROBLEM", "was not made by Outrigger", "namespaces.exclude");
        target.ask(&format!("DROP TABLE shop.{table}")).await;
    }
    assert_eq!(check(&agent).code, 0);

    // Tables of another source.
    let (other, mut theirs) = (Mongod::start().await, None);
    orders(&other).insert_many([doc! { "_id": 2 }, doc! { "_id": 3 }]).await.unwrap();
    let first = theirs.insert(Agent::into_postgres(&other.uri(), &target.uri(), config));
    first.start(&[]);
    first.streaming().await;
    assert!(first.stop().success(), "{}", first.log());
    let said = check(&agent);
    assert_eq!(said.code, 1, "{}", said.text);
    said.has("PROBLEM  owner", "owner", "--adopt");
    let plan = agent.cli(&["check", "--plan"]);
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.contains("leave") && plan.contains("POSTGRESQL"), "{plan}");
    assert!(plan.to_uppercase().contains("DELETE IN POSTGRESQL"), "{plan}");
    assert!(!plan.to_uppercase().contains("ATLAS"), "{plan}");
}
