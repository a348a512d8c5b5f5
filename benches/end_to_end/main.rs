//! Outrigger between two real servers, beside the limits of the same machine in the same run: `make bench`.
//!
//! Each scenario takes the limit and Outrigger in turn, on the same data, several times, and ends with a comparison
//! of both sides, byte for byte. What was found is saved after each scenario, as JSON and Markdown, in
//! `target/bench/`. A scenario that fails is reported, the others still run, and the exit code is 1. A missed mark is
//! reported too, and is no failure. Ctrl-C and SIGTERM end the servers as well.
//!
//! Environment:
//! - `OUTRIGGER_BENCH_ONLY`: scenarios or groups of them, `catch-up/hot,first-copy`; all by default
//! - `OUTRIGGER_BENCH_SCALE` (1.0): multiplies all sizes
//! - `OUTRIGGER_BENCH_RUNS` (3)
//! - `OUTRIGGER_BENCH_SECONDS` (60): of each phase of the steady state, and of idleness
//! - `OUTRIGGER_BENCH_RATES` (100,1000,5000): writes per second of the steady state
//! - `OUTRIGGER_BENCH_GROWTH` (100000,1000000,10000000): depths of the growing queue

use std::{
    any::Any,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::LocalBoxFuture};
use tokio::signal::unix::{SignalKind, signal};

#[path = "../../tests/support/mod.rs"]
mod support;

mod bed;
mod catch_up;
mod data;
mod first_copy;
mod growth;
mod idle;
mod limits;
mod outbox;
mod postgres;
mod process;
mod raw;
mod reading;
mod report;
mod settings;
mod slow_line;
mod steady;

use report::Notebook;
use settings::Settings;

/// Why a scenario ended that a signal has ended.
const STOPPED: &str = "stopped by a signal";

type Scenario = fn(Settings, Notebook) -> LocalBoxFuture<'static, ()>;

/// Names, and how many minutes each run of one may take at full size on a slow machine.
const SCENARIOS: &[(&str, u64, Scenario)] = &[
    ("limits/change-stream", 15, |s, b| limits::change_stream(s, b).boxed_local()),
    ("limits/writes", 15, |s, b| limits::writes(s, b).boxed_local()),
    ("limits/sled", 15, |s, b| limits::sled(s, b).boxed_local()),
    ("reading/inserts", 15, |s, b| reading::inserts(s, b).boxed_local()),
    ("reading/updates", 15, |s, b| reading::updates(s, b).boxed_local()),
    ("reading/filters", 30, |s, b| reading::filters(s, b).boxed_local()),
    ("catch-up/inserts", 30, |s, b| catch_up::inserts(s, b).boxed_local()),
    ("catch-up/updates", 30, |s, b| catch_up::updates(s, b).boxed_local()),
    ("catch-up/hot", 15, |s, b| catch_up::hot(s, b).boxed_local()),
    ("catch-up/mixed", 15, |s, b| catch_up::mixed(s, b).boxed_local()),
    ("catch-up/large", 30, |s, b| catch_up::large(s, b).boxed_local()),
    ("first-copy/usual", 30, |s, b| first_copy::usual(s, b).boxed_local()),
    ("first-copy/large", 15, |s, b| first_copy::large(s, b).boxed_local()),
    ("first-copy/many", 15, |s, b| first_copy::many(s, b).boxed_local()),
    ("postgres", 15, |s, b| postgres::writes(s, b).boxed_local()),
    ("outbox", 15, |s, b| outbox::rows(s, b).boxed_local()),
    ("steady", 60, |s, b| steady::run(s, b).boxed_local()),
    ("idle", 15, |s, b| idle::run(s, b).boxed_local()),
    ("slow-line/compressed", 30, |s, b| slow_line::compressed(s, b).boxed_local()),
    ("slow-line/uncompressed", 30, |s, b| slow_line::uncompressed(s, b).boxed_local()),
    ("growth", 90, |s, b| growth::run(s, b).boxed_local()),
];

fn main() -> ExitCode {
    // What `cargo bench` says, and a run of all targets as tests does not.
    if !std::env::args().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    let settings = Settings::from_env();
    let names: Vec<_> = SCENARIOS.iter().map(|(name, ..)| *name).collect();
    let unknown = settings.unknown(&names);
    if !unknown.is_empty() {
        eprintln!("OUTRIGGER_BENCH_ONLY: no such scenario: {unknown:?}\nhint: {names:?}");
        return ExitCode::from(2);
    }
    let about = about(&settings);
    let mut notebooks = Vec::new();
    for (name, minutes, scenario) in SCENARIOS.iter().filter(|(name, ..)| settings.chooses(name)) {
        println!("{name}");
        let notebook = Notebook::of(name);
        notebooks.push(notebook.clone());
        let limit = Duration::from_secs(minutes * 60 * settings.runs as u64);
        let started = Instant::now();
        let error = run(*scenario, settings.clone(), notebook.clone(), limit);
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "  {seconds:.0} s{}",
            error.as_deref().map_or(String::new(), |e| format!(", FAILED: {e}"))
        );
        let is_stopped = error.as_deref() == Some(STOPPED);
        notebook.close(seconds, error);
        save(&about, &notebooks);
        if is_stopped {
            break;
        }
    }
    println!("\n{}", report::markdown(&about, &notebooks));
    println!("saved in {}", folder().display());
    ExitCode::from(u8::from(notebooks.iter().any(Notebook::has_failed)))
}

/// Runs a scenario in a thread and a runtime of its own, so that whatever it has started ends with it. Returns why
/// it failed.
fn run(
    scenario: Scenario,
    settings: Settings,
    notebook: Notebook,
    limit: Duration,
) -> Option<String> {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let bounded = async {
            tokio::select! {
                outcome = tokio::time::timeout(limit, scenario(settings, notebook)) => {
                    outcome.err().map(|_| format!("not done within {limit:?}"))
                }
                () = stop_asked_for() => Some(STOPPED.to_owned()),
            }
        };
        let error = runtime.block_on(bounded);
        runtime.shutdown_timeout(Duration::from_secs(5));
        error
    });
    thread.join().unwrap_or_else(|panic| Some(brief(&*panic)))
}

async fn stop_asked_for() {
    let mut asked = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        _ = asked.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

fn brief(panic: &dyn Any) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").chars().take(400).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench")
}

/// Whole or not at all, so that a run that is cut leaves what it had.
fn save(about: &serde_json::Value, notebooks: &[Notebook]) {
    std::fs::create_dir_all(folder()).unwrap();
    for (name, text) in [
        ("end_to_end.json", report::json(about, notebooks)),
        ("end_to_end.md", report::markdown(about, notebooks)),
    ] {
        let new = folder().join(format!("{name}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, folder().join(name)).unwrap();
    }
}

/// What a reader must know of the machine and the run.
fn about(settings: &Settings) -> serde_json::Value {
    let output = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
    };
    let file = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let mongod = support::mongod::program().display().to_string();
    serde_json::json!({
        "began": bson::DateTime::now().try_to_rfc3339_string().ok(),
        "commit": output("git", &["describe", "--always", "--dirty"]),
        "processor": file("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map(usize::from).ok(),
        "memory": file("/proc/meminfo", "MemTotal"),
        "kernel": output("uname", &["-sr"]),
        "mongod": output(&mongod, &["--version"]),
        "scale": settings.scale,
        "runs": settings.runs,
        "secondsOfAPhase": settings.seconds,
    })
}
