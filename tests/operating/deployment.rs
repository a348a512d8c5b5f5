//! What is under `deploy/`, as far as a machine without systemd and Docker can tell.

use std::{
    collections::BTreeSet,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use mongodb::bson::doc;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    PATIENCE,
    agent::{Agent, signal},
    api::Api,
    eventually, orders, pair,
    proof::{Need, not_proved},
    proxy::{Line, Proxy},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn script(name: &str, args: &[&str]) -> PathBuf {
    let output = Command::new(root().join("scripts").join(name))
        .args(args)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "scripts/{name}");
    String::from_utf8(output.stdout).unwrap().lines().last().unwrap().into()
}

#[test]
fn the_unit_is_understood_by_systemd_and_hardened() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        not_proved(Need::SystemdAnalyze);
        return;
    }
    // The program is where a package puts it, which is not here.
    let dir = TempDir::new().unwrap();
    let unit = read("deploy/outrigger.service");
    let program = env!("CARGO_BIN_EXE_outrigger");
    let here: String = unit
        .lines()
        .filter(|line| !line.starts_with("Documentation="))
        .map(|line| line.replace("/usr/bin/outrigger", program) + "\n")
        .collect();
    let path = dir.path().join("outrigger.service");
    std::fs::write(&path, here).unwrap();

    let verify = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
    assert!(verify.status.success() && said(&verify).trim().is_empty(), "{}", said(&verify));
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=20"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(security.status.success(), "exposure above 2.0: {}", said(&security));

    for line in [
        "Type=notify",
        "DynamicUser=yes",
        "StateDirectory=outrigger",
        "MemoryMax=1G",
        "WatchdogSec=180",
        // However it ended: a clean end that nobody asked systemd for is an accident too.
        "Restart=always",
        "RestartPreventExitStatus=2 5",
        "SuccessExitStatus=5",
    ] {
        assert!(unit.lines().any(|of| of == line), "{line} is missing");
    }
}

/// The names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        .filter(|word| word.starts_with("outrigger_") || word.starts_with("process_"))
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_board_use_metrics_that_exist() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let api = Api::of(&agent);
    let page = api.get("/metrics").1;
    let page = page.as_str().unwrap();
    let known: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned))
        .collect();
    // Only there when they have something to tell.
    let sometimes = ["outrigger_alerts", "outrigger_oplog_window_seconds"].map(str::to_owned);
    let board: Value = serde_json::from_str(&read("deploy/grafana/outrigger.json")).unwrap();
    let rules = read("deploy/prometheus/outrigger.rules.yml");

    for text in [rules.as_str(), &board["panels"].to_string()] {
        let used = metrics_in(text);
        assert!(used.len() >= 7, "{used:?}");
        let unknown: Vec<_> = used
            .iter()
            .filter(|name| !known.contains(*name) && !sometimes.contains(*name))
            .collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
    // Each rule leads to a page that the agent has.
    let pages: Vec<_> = rules.lines().filter_map(|of| of.split_once("runbook_url: ")).collect();
    assert_eq!(pages.len(), rules.matches("- alert: ").count());
    for (_, page) in pages {
        let page = page.trim_matches('"').replace("{{ $labels.name }}", "failed");
        let Some((_, path)) = page.split_once("{{ $labels.instance }}") else {
            assert!(page.starts_with("file:///usr/share/doc/outrigger/docs/"), "{page}");
            continue;
        };
        assert_eq!(api.get(path).0, 200, "{page}");
    }
    let promtool = script("promtool", &[]);
    let path = root().join("deploy/prometheus/outrigger.rules.yml");
    let check = Command::new(promtool).args(["check", "rules"]).arg(path).output().unwrap();
    assert!(check.status.success(), "{}", said(&check));
    // Each help text can be read alone.
    for help in page.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let words: Vec<_> = help.split([' ', ',', ';']).collect();
        let leans = ["them", "Their", "Those", "it", "It"];
        assert!(!leans.iter().any(|word| words.contains(word)), "{help}");
    }
    let ids: BTreeSet<_> =
        board["panels"].as_array().unwrap().iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), board["panels"].as_array().unwrap().len(), "each panel has an id");
}

/// The units in the names of metrics, of which a panel has one: what has two axes is read wrong at night.
const UNITS: [&str; 4] = ["seconds", "bytes", "documents", "ratio"];

#[test]
fn one_cause_is_one_alert_and_one_axis_has_one_unit() {
    let promtool = script("promtool", &[]);
    let path = root().join("deploy/prometheus/outrigger.rules.test.yml");
    let tested = Command::new(promtool).args(["test", "rules"]).arg(path).output().unwrap();
    assert!(tested.status.success(), "{}", said(&tested));

    let board: Value = serde_json::from_str(&read("deploy/grafana/outrigger.json")).unwrap();
    for panel in board["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}");
        assert!(panel["description"].as_str().is_some_and(|about| about.len() > 5), "{title}");
        if panel["type"] != "timeseries" {
            continue;
        }
        let unit = |name: &str| {
            let name = name.trim_end_matches("_total").trim_end_matches("_done");
            UNITS.into_iter().find(|unit| name.ends_with(unit))
        };
        let used: BTreeSet<_> =
            metrics_in(&panel["targets"].to_string()).iter().map(|name| unit(name)).collect();
        assert_eq!(used.len(), 1, "{title}: {used:?}");
    }
}

#[test]
fn the_board_is_one_that_grafana_and_prometheus_understand() {
    let validated = |files: &[&Path]| {
        Command::new(root().join("scripts/grafana-validate")).args(files).output().unwrap()
    };
    let good = validated(&[]);
    if good.status.code() == Some(69) {
        not_proved(Need::Grafana);
        return;
    }
    assert!(good.status.success(), "{}", said(&good));
    // The checker would say so if it were not.
    let dir = TempDir::new().unwrap();
    let bad = dir.path().join("bad.json");
    let text = read("deploy/grafana/outrigger.json");
    for (right, wrong) in [
        ("\"colorMode\"", "\"colourMode\""),
        ("\"type\": \"timeseries\"", "\"type\": \"timelines\""),
        ("\"mode\": \"absolute\"", "\"mode\": \"absolut\""),
        ("\"editable\": true", "\"editable\": \"true\""),
    ] {
        assert!(text.contains(right), "{right}");
        std::fs::write(&bad, text.replace(right, wrong)).unwrap();
        let found = validated(&[&bad]);
        assert!(!found.status.success(), "{wrong}: {}", said(&found));
    }

    // Each of its questions, as a rule, so that Prometheus's own parser reads it.
    let board: Value = serde_json::from_str(&text).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let annotations = board["annotations"]["list"].as_array().unwrap().iter();
    let asked = targets.chain(annotations).filter_map(|of| of["expr"].as_str());
    let rules: Vec<_> = asked
        .enumerate()
        .map(|(n, expr)| {
            let expr = expr.replace("$__rate_interval", "5m").replace("$instance", ".*");
            serde_json::json!({ "record": format!("board:{n}"), "expr": expr })
        })
        .collect();
    assert!(rules.len() > 15, "{}", rules.len());
    let file = dir.path().join("board.yml");
    let groups = serde_json::json!({ "groups": [{ "name": "board", "rules": rules }] });
    std::fs::write(&file, groups.to_string()).unwrap();
    let promtool = script("promtool", &[]);
    let check = Command::new(promtool).args(["check", "rules"]).arg(file).output().unwrap();
    assert!(check.status.success(), "{}", said(&check));
}

/// There is no engine to build it with; what can be checked is that it names what is there.
#[test]
fn the_dockerfile_names_what_is_there_and_does_not_run_as_root() {
    let text = read("deploy/Dockerfile");
    let toolchain = format!("rust:{}", "1.95");

    assert!(text.contains(&toolchain) && text.matches("\nFROM ").count() >= 2, "two stages");
    assert!(text.contains("USER 10001:10001") && text.contains("HEALTHCHECK"));
    let health =
        Command::new(env!("CARGO_BIN_EXE_outrigger")).args(["status", "--help"]).output().unwrap();
    assert!(text.contains("[\"outrigger\", \"status\", \"--alive\"]"));
    assert!(said(&health).contains("--alive"), "the health check's command");
    let manifest = read("Cargo.toml");
    assert!(!manifest.contains("path = \"..\""), "the build needs this folder only");
}

/// systemd's end of the socket.
struct Systemd {
    socket: UnixDatagram,
    dir: TempDir,
}

impl Systemd {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, dir }
    }

    fn address(&self) -> String {
        self.dir.path().join("notify").display().to_string()
    }

    /// What has come since the last call.
    fn heard(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| self.socket.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec()))
            .flat_map(|bytes| {
                let text = String::from_utf8(bytes).unwrap();
                text.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_of_the_start_the_state_and_the_end() {
    let (local, atlas) = pair().await;
    let to_local = Proxy::to(local.port).await;
    let to_atlas = Proxy::to(atlas.port).await;
    let systemd = Systemd::new();
    let mut agent = Agent::new(&to_local.uri(), &to_atlas.uri(), "[alerts]\nlag = \"1s\"\n");
    agent.set_env("NOTIFY_SOCKET", &systemd.address());
    // Atlas is away, which is no failed start.
    to_atlas.set(Line::Cut);
    agent.start(&[]);
    let mut all = Vec::new();
    let mut hears = async |part: &str| {
        eventually(part, PATIENCE, async || {
            all.extend(systemd.heard());
            all.iter().any(|line| line.contains(part))
        })
        .await;
        std::mem::take(&mut all)
    };
    let heard = hears("READY=1").await;
    assert!(heard.iter().any(|line| line == "WATCHDOG=1"), "{heard:?}");
    to_atlas.set(Line::Up);
    hears("STATUS=Healthy: streaming").await;
    to_atlas.set(Line::Cut);
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    hears("STATUS=Unhealthy: Atlas is").await;

    // An end that is known to be away is no reason to begin anew.
    to_local.set(Line::Cut);
    tokio::time::sleep(Duration::from_secs(3)).await;
    systemd.heard();
    hears("WATCHDOG=1").await;

    // A process that hangs does not say that it lives.
    signal(agent.id(), "STOP");
    tokio::time::sleep(Duration::from_millis(200)).await;
    systemd.heard();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(systemd.heard(), Vec::<String>::new());
    signal(agent.id(), "CONT");
    to_local.set(Line::Up);
    to_atlas.set(Line::Up);
    signal(agent.id(), "TERM");
    hears("STOPPING=1").await;
    assert!(agent.ended(PATIENCE).await.success());
}

/// The exit code for which the unit makes an exception to `Restart=always`; by hand it is a success.
#[test]
fn a_service_that_is_switched_off_is_not_started_again() {
    let systemd = Systemd::new();
    let nowhere = "mongodb://127.0.0.1:1/?directConnection=true";
    let mut agent = Agent::new(nowhere, nowhere, "[sync]\nenabled = false\n");
    assert_eq!(agent.cli(&["run"]).status.code(), Some(0));
    agent.set_env("NOTIFY_SOCKET", &systemd.address());

    let ended = agent.cli(&["run"]);

    assert_eq!(ended.status.code(), Some(5), "{}", said(&ended));
    assert_eq!(systemd.heard(), ["READY=1"]);
}

/// A service's connection strings come as systemd's copies, under the names that the configuration gives.
#[test]
fn credentials_of_systemd_take_the_place_of_the_files() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("local.uri"), "mongodb://127.0.0.1:1/?directConnection=true")
        .unwrap();
    std::fs::write(dir.path().join("atlas.uri"), "mongodb://127.0.0.1:1/").unwrap();
    let config = root().join("deploy/debian/config.toml");
    let status = |credentials: Option<&Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command.arg("--config").arg(&config).arg("check").current_dir(dir.path());
        command.env_remove("MONGODB_LOCAL_URI").env_remove("MONGODB_ATLAS_URI");
        if let Some(path) = credentials {
            command.env("CREDENTIALS_DIRECTORY", path);
        }
        command.output().unwrap()
    };

    assert!(said(&status(None)).contains("cannot read `/etc/outrigger/local.uri`"));
    let with = said(&status(Some(dir.path())));
    assert!(with.contains("without TLS"), "both were read: {with}");
}
