//! A person's pause: told with its reason, over by itself, never somebody's night; and who asked for what.

use mongodb::bson::doc;

use crate::support::{PATIENCE, agent::Agent, api::Api, equal::equal, eventually, orders, pair};

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_says_why_and_by_whom_is_degraded_survives_a_restart_and_ends_by_itself() {
    let (local, atlas) = pair().await;
    let mut agent =
        Agent::new(&local.uri(), &atlas.uri(), "[alerts]\nqueue_size = 5\nlag = \"2s\"\n");
    agent.set_env("USER", "ann");
    agent.set_env("SUDO_USER", "");
    agent.start(&[]);
    agent.streaming().await;

    let said = agent.cli(&["pause", "--reason", "the cluster is scaled", "--for", "15s"]);

    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("it goes on by itself in 15s"), "{said}");
    orders(&local).insert_many((0..20).map(|id| doc! { "_id": id })).await.unwrap();
    agent.stop();
    agent.start(&[]);
    eventually("both warnings", PATIENCE, async || {
        let health = agent.health().unwrap_or_default();
        health["raised"].as_array().is_some_and(|raised| raised.len() >= 2)
    })
    .await;
    let health = agent.health().unwrap();
    assert_eq!(health["status"], "degraded", "{health}");
    assert!(
        health["raised"].as_array().unwrap().iter().all(|alert| alert["severity"] == "warning"),
        "{health}"
    );
    let pause = &health["pause"];
    assert_eq!(pause["reason"], "the cluster is scaled");
    assert!(pause["by"].as_str().unwrap().starts_with("ann@"), "{pause}");
    let status = agent.cli(&["status"]);
    assert_eq!(status.status.code(), Some(0), "not unhealthy");
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(
        status.contains("writing is paused by ann@") && status.contains(": the cluster is scaled"),
        "{status}"
    );
    let (_, metrics) = Api::of(&agent).get("/metrics");
    assert!(metrics.as_str().unwrap().contains("\noutrigger_paused 1\n"));

    equal(&local, &atlas, PATIENCE).await;
    eventually("no pause", PATIENCE, async || {
        let health = agent.health().unwrap_or_default();
        health["pause"].is_null() && health["phase"] == "streaming"
    })
    .await;
    assert!(agent.log().contains("the pause is over, writing goes on"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_the_agent_is_in_its_log_with_who_and_why() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[log]\nformat = \"json\"\n");
    agent.set_env("USER", "ann");
    agent.set_env("SUDO_USER", "");
    agent.start(&[]);
    agent.streaming().await;
    let api = Api::of(&agent);

    assert!(agent.cli(&["pause", "--reason", "wärmer"]).status.success());
    assert!(agent.cli(&["resume"]).status.success());
    assert!(agent.cli(&["sync", "--reason", "to be sure", "--wait"]).status.success());
    assert_eq!(api.with_body("POST", "/api/sync/pause", "{\"for\": \"soon\"}").0, 400);
    assert_eq!(api.with_body("POST", "/api/sync/pause", "{\"reason\": \"a\\nb\"}").0, 200);
    assert_eq!(api.call("POST", "/api/sync/resume", &[]).0, 401);
    assert_eq!(api.with_token("POST", "/api/sync/resume").0, 200);

    // A line is written behind the answer, by a thread of its own.
    eventually("six lines in the log", PATIENCE, async || {
        let log = agent.log();
        log.ends_with('\n') && log.matches("an action was asked for").count() >= 6
    })
    .await;
    let lines: Vec<serde_json::Value> = agent
        .log()
        .lines()
        .filter(|line| line.contains("an action was asked for"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |key: &str| {
                let field = if line[key].is_null() { &line["fields"][key] } else { &line[key] };
                field.as_str().map_or_else(|| field.to_string(), str::to_owned)
            };
            assert!(text("by").contains("127.0.0.1"), "{line}");
            (text("action"), text("by").starts_with("ann@"), text("reason"), text("outcome"))
        })
        .collect();
    let line = |action: &str, is_ann, reason: &str, outcome: &str| {
        (action.to_owned(), is_ann, reason.to_owned(), outcome.to_owned())
    };
    assert_eq!(
        told,
        [
            line("POST /api/sync/pause", true, "wärmer", "200"),
            line("POST /api/sync/resume", true, "", "200"),
            line("POST /api/sync/full", true, "to be sure", "202"),
            line("POST /api/sync/pause", false, "", "400"),
            line("POST /api/sync/pause", false, "a b", "200"),
            line("POST /api/sync/resume", false, "", "200"),
        ]
    );
    assert!(!agent.log().contains(&api.token));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_is_a_line_of_plain_signs_whether_an_agent_takes_it_or_none_runs() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let asked = ["pause", "--reason", "\u{202e}up\u{1b}[2J\nside\u{2066} down"];
    let kept = |agent: &Agent| agent.health().unwrap()["pause"]["reason"].clone();

    assert!(agent.cli(&asked).status.success());
    assert_eq!(kept(&agent), "up [2J side down");
    assert!(agent.cli(&["resume"]).status.success());
    agent.stop();
    assert!(agent.cli(&asked).status.success());
    agent.start(&[]);
    eventually("the agent", PATIENCE, async || agent.health().is_some()).await;
    assert_eq!(kept(&agent), "up [2J side down");
    assert!(!agent.log().contains(['\u{202e}', '\u{1b}']), "{}", agent.log());
}
