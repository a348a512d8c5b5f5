//! `outrigger status`

use std::{io::IsTerminal, process::ExitCode as Code, time::Duration};

use serde_json::{Value, json};

use super::{
    access::{Access, Client},
    show,
};
use crate::{
    cli::args::{Output, StatusArgs},
    config::{Config, units},
    observe::{progress::ProgressReport, report::Failure},
};

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);

/// Exit code 0 while health is `healthy` or `degraded`, 1 when it is `unhealthy` or no agent runs.
pub fn run(config: &Config, args: &StatusArgs) -> Result<Code, Failure> {
    match () {
        () if args.alive => alive(config, args.output),
        () if args.watch => watch(config, args.output),
        () => once(config, args.output),
    }
}

fn alive(config: &Config, output: Output) -> Result<Code, Failure> {
    let lives = match Client::connect(config)? {
        Some(client) => client.lives()?,
        None => false,
    };
    if output.json {
        show::json(&json!({ "alive": lives }));
    } else {
        show::line(if lives { "alive" } else { "not running  (start it with `outrigger run`)" });
    }
    Ok(if lives { Code::SUCCESS } else { Code::FAILURE })
}

/// Until Ctrl-C. On a terminal the screen is drawn anew each time; elsewhere one follows the other, as JSON one
/// to a line.
fn watch(config: &Config, output: Output) -> Result<Code, Failure> {
    let is_terminal = std::io::stdout().is_terminal();
    loop {
        let health = match Client::connect(config) {
            Ok(Some(client)) => client.get("/api/sync/health"),
            Ok(None) => Ok(json!({ "status": "unhealthy", "phase": "not running" })),
            Err(failure) => Err(failure),
        };
        if is_terminal {
            show::clear();
        }
        match &health {
            Ok(health) if output.json => show::json_line(health),
            Ok(health) if health["phase"] == "not running" => show::line("phase    not running"),
            Ok(health) => print(health),
            Err(failure) if output.json => {
                let error = failure.error.to_string();
                show::json_line(&json!({ "status": "unhealthy", "error": error }));
            }
            Err(failure) => show::line(failure.render()),
        }
        if !is_terminal && !output.json {
            show::line("");
        }
        if !show::is_read() {
            return Ok(Code::SUCCESS);
        }
        std::thread::sleep(EVERY);
    }
}

fn once(config: &Config, output: Output) -> Result<Code, Failure> {
    match Access::open(config)? {
        Access::Agent(client) => {
            let health = client.get("/api/sync/health")?;
            if output.json {
                show::json(&health);
            } else {
                print(&health);
            }
            let unhealthy = health["status"] == "unhealthy";
            Ok(if unhealthy { Code::FAILURE } else { Code::SUCCESS })
        }
        Access::Queue(queue) => {
            let stats = queue.stats()?;
            if output.json {
                show::json(
                    &json!({ "status": "unhealthy", "phase": "not running", "queueSize": stats.pending, "deadLetters": stats.dead_letters }),
                );
            } else {
                show::line("phase    not running  (start it with `outrigger run`)");
                show::line(format!("queue    {}", documents(stats.pending)));
                dead(stats.dead_letters);
            }
            Ok(Code::FAILURE)
        }
    }
}

/// How it is comes first, and what is wrong with what is behind it; then the figures.
fn print(health: &Value) {
    let status = health["status"].as_str().unwrap_or("unknown");
    let word = match status {
        "healthy" => show::good(status),
        "degraded" => show::soso(status),
        _ => show::bad(status),
    };
    show::line(format!("health   {word}"));
    for alert in health["alerts"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        show::line(format!("{}    {alert}", show::bad("alert")));
    }
    for (name, key) in [("local", "localError"), ("atlas", "atlasError")] {
        if let Some(error) = health[key].as_str() {
            show::line(format!("{name:<8} {error}"));
        }
    }
    let phase = health["phase"].as_str().unwrap_or("unknown");
    let lag = show::number(&health["syncLagMs"]);
    // "0 s behind" is said only where it is known.
    if lag > 0 || health["lagKnown"] != false {
        show::line(format!("phase    {phase}, {} behind the local database", ago(lag)));
    } else {
        show::line(format!("phase    {phase}"));
    }
    if let Ok(sync) = serde_json::from_value::<ProgressReport>(health["sync"].clone()) {
        show::line(format!(
            "sync     {} of {} collections, {} of {} documents; {}",
            sync.collections_done,
            sync.collections,
            sync.documents_done,
            sync.documents,
            super::bars::pace(&sync)
        ));
    }
    if let Some(holder) = health["readBy"].as_str() {
        show::line(format!("standby  the outbox is read by {holder}"));
    }
    if let Some(rows) = health["waitingRows"].as_u64() {
        let rows = if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") };
        let oldest = health["oldestRowMs"].as_u64().map(ago);
        let oldest = oldest.map_or_else(String::new, |oldest| format!(", the oldest for {oldest}"));
        show::line(format!("outbox   {rows} to be read{oldest}"));
    }
    let waiting = documents(show::number(&health["queueSize"]));
    match health["oldestPendingMs"].as_u64() {
        Some(oldest) => {
            show::line(format!("queue    {waiting} waiting, the oldest for {}", ago(oldest)));
        }
        None => show::line("queue    empty"),
    }
    let last = health["lastSync"]
        .as_str()
        .map_or_else(|| "nothing was written yet".to_owned(), |at| format!("last one {at}"));
    let breaker = health["breaker"].as_str().unwrap_or_default();
    let flow = match health["flow"].as_str() {
        Some("flowing") => "writes flow".to_owned(),
        Some("connecting") => "not connected yet, nothing is written".to_owned(),
        Some("held") => "writes are held back, changes wait".to_owned(),
        Some("denied") => format!("refuses access, changes wait{}", of_breaker(breaker)),
        Some("paused") => super::pause::sentence(&health["pause"]),
        _ => format!("away, changes wait{}", of_breaker(breaker)),
    };
    show::line(format!("atlas    {flow}; {last}"));
    if let Some(at) = health["consistentAsOf"].as_str() {
        show::line(format!("equal    as of {at}"));
    }
    dead(show::number(&health["deadLetters"]));
    if let Some(scan) = health["localScanMs"].as_u64() {
        let scan = ago(scan);
        show::line(format!(
            "local    its server has been looking through its oplog for {scan}, for what is behind the checkpoint"
        ));
    }
    if let Some(window) = health["oplogWindowS"].as_u64() {
        let window = units::show_duration(Duration::from_secs(window));
        show::line(format!("oplog    reaches back {window} before the checkpoint"));
    }
    for build in health["indexBuilds"].as_array().into_iter().flatten() {
        let names = build["indexes"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let names = names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let ns = build["ns"].as_str().unwrap_or_default();
        let far = build["percent"].as_u64().map_or_else(String::new, |far| format!("{far} %, "));
        let since = ago(show::number(&build["runningMs"]));
        show::line(format!("index    building {names} of `{ns}`: {far}for {since}"));
    }
    for left in health["notReplicated"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        show::line(format!("left out {left}"));
    }
    for misfit in health["misfits"].as_array().into_iter().flatten() {
        let text = |key: &str| misfit[key].as_str().unwrap_or_default();
        let (ns, column) = (text("ns"), text("column"));
        let values = show::many(show::number(&misfit["values"]), "value");
        show::line(format!("column   `{column}` of `{ns}`: {values} of another type, NULL there"));
    }
    for problem in
        health["schemaProblems"].as_array().into_iter().flatten().filter_map(Value::as_str)
    {
        show::line(format!("schema   {problem}"));
    }
}

fn dead(letters: u64) {
    match letters {
        0 => show::line("dead     none"),
        1 => show::line("dead     1 letter  (see `outrigger dead list`)"),
        n => show::line(format!("dead     {n} letters  (see `outrigger dead list`)")),
    }
}

fn documents(n: u64) -> String {
    show::many(n, "document")
}

fn ago(ms: u64) -> String {
    units::show_duration(Duration::from_millis(ms))
}

/// What is said of a breaker that lets nothing, or little, through.
fn of_breaker(breaker: &str) -> String {
    if breaker == "closed" { String::new() } else { format!(" (breaker {breaker})") }
}
