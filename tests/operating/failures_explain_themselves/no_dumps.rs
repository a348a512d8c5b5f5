//! What the driver knows is told as one cause for each server, wherever a person looks.

use mongodb::bson::{Document, doc};
use serde_json::Value;

use super::{checked, nowhere};
use crate::support::{
    PATIENCE,
    agent::Agent,
    certificates::Certificates,
    eventually, free_port,
    guarded::{Guarded, PASSWORD},
    mongod::Mongod,
    orders,
    proxy::{Line, Proxy},
    strangers,
};

/// Signs of what the driver prints for programmers.
const SIGNS: [&str; 7] =
    ["Topology", "Kind:", "labels:", "Some(", "os error", "SystemOverloaded", "Custom user error"];

fn is_told_plainly(text: &str, what: &str) {
    for sign in SIGNS {
        assert!(!text.contains(sign), "{what} has `{sign}`: {text}");
    }
    assert!(!text.contains(PASSWORD), "{what}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_atlas_is_one_cause_in_check_the_log_the_status_and_the_api() {
    let certificates = Certificates::new();
    let (tls, options) = (certificates.server_args(), certificates.options());
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    let (local, guarded, encrypted) = tokio::join!(
        Mongod::start(),
        Guarded::start(vec!["root".into()]),
        Mongod::start_with_options(&tls, &options),
    );
    let (nobody, guarded_at) = (free_port(), guarded.server.port);
    let silent = strangers::serve(strangers::silent);
    let secondary = strangers::serve(strangers::unknown_names);
    let cases = [
        (
            format!("mongodb://127.0.0.1:{nobody},127.0.0.1:{nobody}/?replicaSet=rs"),
            "nothing listens there",
        ),
        ("mongodb://db1.invalid:27017/?replicaSet=rs".to_owned(), "the name does not resolve"),
        (format!("mongodb://127.0.0.1:{}/?tls=true", encrypted.port), "UnknownIssuer"),
        (
            format!("mongodb://outrigger:wrong@127.0.0.1:{guarded_at}/?directConnection=true"),
            "check user name, password and `authSource`",
        ),
        (
            format!(
                "mongodb://outrigger:{PASSWORD}@127.0.0.1:{guarded_at}/shop?directConnection=true"
            ),
            "looked for in the database `shop`: add `authSource=admin`",
        ),
        (
            format!("mongodb://127.0.0.1:{secondary}/?replicaSet=rs"),
            "there is no primary that can be reached",
        ),
        (format!("mongodb://127.0.0.1:{silent}/?directConnection=true"), "no answer"),
        ("mongodb+srv://none.invalid/".to_owned(), "does not tell the servers of `none.invalid`"),
    ];
    let mut agents = Vec::new();
    for (atlas, _) in &cases {
        let mut agent = Agent::new(&local.uri(), atlas, "");
        agent.replace_setting(
            "allow_insecure = true\ntimeout = \"5s\"",
            "allow_insecure = true\ntimeout = \"3s\"",
        );
        agent.start(&[]);
        agents.push(agent);
    }

    for (agent, (atlas, cause)) in agents.iter().zip(&cases) {
        eventually(cause, PATIENCE, async || {
            agent.health().is_some_and(|health| health["atlasError"].to_string().contains(cause))
        })
        .await;
        let health = agent.health().unwrap().to_string();
        is_told_plainly(&health, atlas);
        let databases = format!("http://127.0.0.1:{}/api/sync/databases", agent.admin_port);
        let databases = ureq::get(databases).call().unwrap().body_mut().read_to_string().unwrap();
        is_told_plainly(&databases, atlas);
        let status = agent.cli(&["status"]);
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.contains(cause), "{atlas}: {status}");
        is_told_plainly(&status, atlas);
        let (code, text) = checked(agent);
        assert!(code == Some(4) || code == Some(2), "{atlas}: {text}");
        assert!(text.contains(cause), "{atlas}: {text}");
        is_told_plainly(&text, atlas);
        assert!(agent.log().contains(cause), "{atlas}: {}", agent.log());
        is_told_plainly(&agent.log(), atlas);
    }
}

/// In the middle of writes the driver has other words than for a server that it never reached, and a certificate that
/// is renewed and does not fit is tried beside what goes on.
#[tokio::test(flavor = "multi_thread")]
async fn outages_under_load_and_an_authority_that_no_longer_fits_are_told_as_one_cause() {
    let certificates = Certificates::new();
    let (local, atlas) =
        tokio::join!(Mongod::start(), Guarded::start_tls(vec!["root".into()], &certificates),);
    let line = Proxy::to(atlas.server.port).await;
    let uri = atlas.uri().replace(&atlas.server.port.to_string(), &line.port.to_string());
    let mut agent = Agent::new(&local.uri(), &uri, "");
    agent.start(&[]);
    agent.streaming().await;
    let collection = orders(&local);
    let load = tokio::spawn(async move {
        loop {
            let batch = (0..200).map(|n| doc! { "n": n, "text": "x".repeat(2_000) });
            collection.insert_many(batch).await.unwrap();
        }
    });
    let there = atlas.root.database("shop").collection::<Document>("orders");
    let arrived = async || there.estimated_document_count().await.unwrap();
    let is_away = |health: Option<Value>| health.is_some_and(|h| !h["atlasError"].is_null());
    for fault in [Line::Cut, Line::Cut, Line::Silent] {
        line.set(fault);
        eventually("a fault", PATIENCE, async || is_away(agent.health())).await;
        is_told_plainly(&agent.health().unwrap().to_string(), "health");
        line.set(Line::Up);
        // Over the wire: a client that is only being made would be made of the authority that is put there next, and then
        // there is no old one to go on.
        let before = arrived().await;
        eventually("writes", PATIENCE, async || {
            agent.health().is_some() && !is_away(agent.health()) && arrived().await > before
        })
        .await;
    }
    load.abort();
    let other = Certificates::of("another", "outrigger");
    std::fs::copy(other.file("ca.pem"), certificates.file("ca.pem")).unwrap();
    eventually("a trial", PATIENCE, async || agent.log().contains("does not work yet")).await;

    is_told_plainly(&agent.log(), "the log");
    assert!(
        agent.log().contains("UnknownIssuer") || agent.log().contains("certificate"),
        "{}",
        agent.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_driver_knows_of_all_servers_is_in_the_log_at_debug() {
    let local = Mongod::start().await;
    let mut agent = Agent::new(&local.uri(), &nowhere(), "[log]\nlevel = \"debug\"\n");
    agent.start(&[]);

    eventually("the dump", PATIENCE, async || agent.log().contains("Topology: {")).await;

    let told = agent.log();
    let dumps = told.lines().filter(|line| line.contains("Topology: {"));
    for line in dumps {
        assert!(line.contains("DEBUG") || line.contains("debug"), "{line}");
    }
}
