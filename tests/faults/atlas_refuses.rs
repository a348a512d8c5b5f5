//! What Atlas refuses: a document, or us.

use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{MayDiffer, equal, equal_but},
    eventually,
    guarded::{Guarded, PASSWORD},
    mongod::Mongod,
    orders, pair,
    unasked::Unasked::{DeadLetters, Retries},
};

/// May write, and not bypass validation.
fn writer() -> Vec<Bson> {
    vec!["readWriteAnyDatabase".into()]
}

async fn dead_letter(agent: &Agent, patience: Duration) -> Value {
    eventually("a dead letter", patience, async || {
        agent.health().is_some_and(|health| health["deadLetters"] == 1)
    })
    .await;
    agent.cli_json(&["dead", "list"]).unwrap()[0].clone()
}

/// On the schedule as it is by default, which takes about two minutes.
#[tokio::test(flavor = "multi_thread")]
async fn property_04_a_document_that_a_validator_refuses_is_retried_on_the_schedule_and_then_kept()
{
    let (local, atlas) = tokio::join!(Mongod::start(), Guarded::start(writer()));
    let in_atlas = atlas.root.database("shop").collection::<Document>("orders");
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[log]\nlevel = \"debug\"\n");
    agent.may(&[Retries, DeadLetters], "a validator of Atlas refuses the document");
    orders(&local).insert_one(doc! { "_id": 0, "total": 1 }).await.unwrap();
    agent.start(&[]);
    agent.streaming().await;
    let validator = doc! { "collMod": "orders", "validator": { "total": { "$exists": true } } };
    atlas.root.database("shop").run_command(validator.clone()).await.unwrap();

    orders(&local)
        .insert_many((1..50).map(|n| {
            if n == 7 {
                doc! { "_id": n }
            } else {
                doc! { "_id": n, "total": n }
            }
        }))
        .await
        .unwrap();
    eventually("the others, in the same batch too", PATIENCE, async || {
        in_atlas.count_documents(doc! {}).await.unwrap() == 49
    })
    .await;
    let letter = dead_letter(&agent, Duration::from_secs(240)).await;

    assert_eq!((&letter["documentId"], &letter["type"]), (&7.into(), &"insert".into()), "{letter}");
    assert_eq!(letter["attempts"], 6, "the first and five more");
    assert!(letter["reason"].as_str().unwrap().contains("failed validation"), "{letter}");
    let waited = letter["diedMs"].as_u64().unwrap() - letter["queuedMs"].as_u64().unwrap();
    // 1 + 5 + 15 + 30 + 60 seconds less the jitter of a tenth. That none comes early is what the
    // schedule promises; a slow machine may be late.
    assert!(waited >= 99_000, "given up after {waited} ms");
    let waits: Vec<u64> = agent
        .log()
        .lines()
        .filter_map(|line| line.split_once("wait_ms=")?.1.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(waits.len(), 5, "{waits:?}");
    for (wait, seconds) in waits.iter().zip([1, 5, 15, 30, 60]) {
        assert!(
            wait.abs_diff(seconds * 1000) <= seconds * 100,
            "{wait} ms in place of {seconds} s"
        );
    }

    let relaxed = doc! { "collMod": "orders", "validator": {} };
    atlas.root.database("shop").run_command(relaxed).await.unwrap();
    assert!(agent.cli(&["dead", "retry", letter["id"].as_str().unwrap()]).status.success());
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
    eventually("no dead letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 0)
        .await;
}

/// The document in Atlas is larger than the local one, so that a delta on it goes past 16 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_makes_a_document_too_large_is_followed_by_the_whole_document() {
    let (local, atlas) = pair().await;
    let config = "[worker]\nupdate_mode = \"delta\"\nmax_retries = 1\nretry_delays = [\"100ms\"]\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    orders(&local).insert_many([doc! { "_id": 1 }, doc! { "_id": 2 }]).await.unwrap();
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    let bulk = "x".repeat(10 << 20);
    orders(&atlas)
        .update_one(doc! { "_id": 1 }, doc! { "$set": { "planted": bulk.as_str() } })
        .await
        .unwrap();

    orders(&local)
        .update_one(doc! { "_id": 1 }, doc! { "$set": { "bulk": bulk.as_str() } })
        .await
        .unwrap();
    orders(&local).update_one(doc! { "_id": 2 }, doc! { "$set": { "n": 1 } }).await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_can_be_shown_retried_and_discarded_and_survives_a_restart() {
    let (local, atlas) = tokio::join!(Mongod::start(), Guarded::start(writer()));
    let config = "[worker]\nmax_retries = 1\nretry_delays = [\"100ms\"]\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.may(&[Retries, DeadLetters], "a validator of Atlas refuses the document");
    agent.start(&[]);
    agent.streaming().await;
    // A full sync would drop what only Atlas has.
    let strict = doc! { "create": "orders", "validator": { "total": { "$exists": true } } };
    atlas.root.database("shop").run_command(strict).await.unwrap();
    orders(&local).insert_one(doc! { "_id": 1, "card": "4711-of-a-customer" }).await.unwrap();
    let letter = dead_letter(&agent, PATIENCE).await;
    let id = letter["id"].as_str().unwrap().to_owned();

    agent.kill();
    agent.start(&[]);
    agent.streaming().await;
    let letter = dead_letter(&agent, PATIENCE).await;
    assert_eq!(letter["id"], id);
    assert!(!letter.to_string().contains("4711-of-a-customer"), "a list shows no document");
    assert_eq!(
        agent.cli_json(&["dead", "show", &id]).unwrap()["data"]["card"],
        "4711-of-a-customer"
    );
    assert!(agent.cli(&["dead", "retry", &id]).status.success());
    eventually("the same document, given up again", PATIENCE, async || {
        let list = agent.cli_json(&["dead", "list"]).unwrap();
        list.as_array().unwrap().len() == 1 && list[0]["id"] != id
    })
    .await;

    let id = agent.cli_json(&["dead", "list"]).unwrap()[0]["id"].as_str().unwrap().to_owned();
    assert!(agent.cli(&["dead", "discard", &id]).status.success());
    assert_eq!(agent.cli_json(&["dead", "list"]).unwrap().as_array().unwrap().len(), 0);
    assert_eq!(agent.cli(&["dead", "show", &id]).status.code(), Some(1));
}

/// What `status` says, once it says that Atlas refuses.
async fn refusal(agent: &Agent) -> String {
    eventually("a refusal", PATIENCE, async || {
        let output = agent.cli(&["status"]);
        output.status.code() == Some(1)
            && String::from_utf8_lossy(&output.stdout).contains("refuses access")
    })
    .await;
    let text = String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    assert!(!text.contains(PASSWORD) && !text.contains("4711-of-a-customer"), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_privilege_is_named_in_status_and_log_and_costs_no_retry() {
    let (local, atlas) = tokio::join!(Mongod::start(), Guarded::start(writer()));
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let roles = || doc! { "roles": ["readWriteAnyDatabase"] };
    let mut revoke = doc! { "revokeRolesFromUser": "outrigger" };
    revoke.extend(roles());
    atlas.admin(revoke).await;

    orders(&local).insert_one(doc! { "_id": 1, "card": "4711-of-a-customer" }).await.unwrap();
    let status = refusal(&agent).await;

    assert!(status.contains("privilege"), "{status}");
    assert!(status.contains("on `shop.orders`") || status.contains("on `shop`"), "{status}");
    assert!(status.contains("breaker open") || status.contains("half-open"), "{status}");
    assert!(agent.log().contains("privilege"), "{}", agent.log());
    let list = agent.cli_json(&["queue", "list"]).unwrap();
    assert!(list.as_array().unwrap().iter().all(|op| op["retryCount"] == 0), "{list}");
    let mut grant = doc! { "grantRolesToUser": "outrigger" };
    grant.extend(roles());
    atlas.admin(grant).await;
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
    eventually("health", PATIENCE, async || agent.health().unwrap()["status"] == "healthy").await;
    assert!(!agent.log().contains("4711-of-a-customer"), "no document in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_names_the_setting_on_either_side() {
    let (local, atlas) =
        tokio::join!(Guarded::start(vec!["readAnyDatabase".into()]), Guarded::start(writer()));
    let wrong = |uri: String| uri.replace(PASSWORD, "wr0ng");
    let mut agent = Agent::started(&local.uri(), &wrong(atlas.uri()));
    let status = refusal(&agent).await;
    assert!(status.contains("password") && status.contains("MONGODB_ATLAS_URI"), "{status}");
    assert!(!format!("{status}{}", agent.log()).contains("wr0ng"));
    agent.kill();

    agent.set_env("MONGODB_LOCAL_URI", &wrong(local.uri()));
    let output = agent.cli(&["run"]);
    assert_eq!(output.status.code(), Some(3));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("password") && told.contains("MONGODB_LOCAL_URI"), "{told}");
    assert!(!told.contains("wr0ng"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_is_a_refusal_and_a_trusted_one_is_not() {
    let dir = tempfile::TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, both) = (dir.path().join("ca.pem"), dir.path().join("server.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&both, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
    // Tests reach it without TLS, the agent asks for it.
    let args = ["--replSet", "rs", "--tlsMode", "preferTLS", "--tlsCertificateKeyFile"];
    let args = [&args[..], &[both.to_str().unwrap()]].concat();
    let (local, atlas) = tokio::join!(Mongod::start(), Mongod::start_with(&args));
    atlas.initiate().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let uri = format!("{}&tls=true", atlas.uri());
    let mut agent = Agent::started(&local.uri(), &uri);

    let status = refusal(&agent).await;

    assert!(status.contains("TLS") && status.contains("tlsCAFile"), "{status}");
    agent.kill();
    agent.set_env(
        "MONGODB_ATLAS_URI",
        &format!("{uri}&tlsCAFile={}", certificate.display().to_string().replace('/', "%2F")),
    );
    agent.start(&[]);
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
}

/// A copy must take what the original took: that it may was doubted for a moment, or was granted later.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_validator_forbids_is_copied_though_atlas_refused_who_asked_a_while_ago() {
    let (local, atlas) = tokio::join!(Mongod::start(), Guarded::start(writer()));
    let config = "[worker]\nmax_retries = 0\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.start(&[]);
    agent.streaming().await;
    let strict = doc! { "create": "orders", "validator": { "total": { "$exists": true } } };
    atlas.root.database("shop").run_command(strict).await.unwrap();
    // The first write is refused with `bypassDocumentValidation`, and made without.
    orders(&local).insert_one(doc! { "_id": 1, "total": 1 }).await.unwrap();
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;

    let grant = doc! { "grantRolesToUser": "outrigger", "roles": ["dbAdminAnyDatabase"] };
    atlas.admin(grant).await;
    orders(&local).insert_many([doc! { "_id": 2 }, doc! { "_id": 3, "total": 3 }]).await.unwrap();
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;

    // The same by codes that a change of passwords or roles gives for a moment.
    for (n, code) in [(4, 13), (5, 18), (6, 11)] {
        let refused = doc! {
            "configureFailPoint": "failCommand", "mode": { "times": 1 },
            "data": { "failCommands": ["insert", "update"], "errorCode": code, "appName": "outrigger" },
        };
        atlas.admin(refused).await;
        orders(&local).insert_one(doc! { "_id": 10 * n, "total": n }).await.unwrap();
        equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
        orders(&local).insert_one(doc! { "_id": n }).await.unwrap();
        equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
    }
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

/// A migration ends with it, and a disk that is nearly full may bring it. No document is at fault.
#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_may_write_in_atlas_everything_waits_and_no_op_becomes_a_dead_letter() {
    let (local, atlas) = tokio::join!(Mongod::start(), Guarded::start(writer()));
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[worker]\nmax_retries = 0\n");
    agent.may(&[Retries], "nobody may write in Atlas for a while");
    agent.start(&[]);
    agent.streaming().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;

    atlas.admin(doc! { "setUserWriteBlockMode": 1, "global": true }).await;
    orders(&local).insert_many((2..100).map(|id| doc! { "_id": id })).await.unwrap();
    orders(&local).delete_one(doc! { "_id": 1 }).await.unwrap();
    eventually("it is waited for", PATIENCE, async || {
        agent.health().is_some_and(|health| health["breaker"] == "open")
    })
    .await;
    let log = agent.log();
    assert!(log.contains("User writes blocked") && log.contains("(371)"), "{log}");
    eventually("and why it may not renew its mark", PATIENCE, async || {
        let log = agent.log();
        let told =
            log.lines().find(|line| line.contains("mark of ownership in Atlas is not renewed"));
        told.is_some_and(|line| line.contains("User writes blocked"))
    })
    .await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
    atlas.admin(doc! { "setUserWriteBlockMode": 1, "global": false }).await;

    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}
