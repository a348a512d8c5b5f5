//! `outrigger verify`

use std::{process::ExitCode as Code, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    access::Client,
    args::check_patterns,
    bars::{Bars, LOOK},
    show, signals,
};
use crate::{
    agent::{TargetEnd, sides, source_side},
    cli::args::{Output, VerifyArgs},
    config::{Config, units},
    observe::{
        progress::{Activity, Progress},
        report::{ExitCode, Failure},
    },
    runtime::{clock::now_ms, shutdown::Stop},
    sync::{Found, Lag, NamespaceResult, Sides, SyncError, Verification, Verify, same},
};

/// How long an end may be away while a person waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// Exit code 0 when both sides are equal, 1 when they are not.
pub async fn run(config: &Config, args: VerifyArgs) -> Result<Code, Failure> {
    compare(config, &args.ns, args.digest, args.output).await
}

pub async fn compare(
    config: &Config,
    patterns: &[String],
    digest: bool,
    output: Output,
) -> Result<Code, Failure> {
    let filter = config.comparable()?;
    let scope = check_patterns(patterns)?.with_state_database(&config.atlas.state_database);
    crate::observe::logging::start("error", config.log.format);
    let local = source_side(config).await?;
    let mut sides = sides(config, local, TargetEnd::connect(config).await?.end().side);
    greet(&sides).await?;
    sides.patience = Some(PATIENCE);
    let for_lag = config.clone();
    let verify = Verify {
        sides: &sides,
        filter: &filter,
        scope: &scope,
        digest,
        lag: lag_of_agent(for_lag),
        progress: begin(Activity::Verify),
        stop: &stop_on_signal()?,
    };
    let found = with_bars(&verify.progress, verify.stop, verify.run()).await;
    let mut found = found.map_err(interrupted)?;
    add_reasons(config, &mut found);
    if output.json {
        show::json(&found);
    } else {
        print(&found, "the sides differ; `outrigger sync` repairs it");
    }
    Ok(if found.equal { Code::SUCCESS } else { Code::FAILURE })
}

/// A running agent knows why Atlas does not take an option or index.
fn add_reasons(config: &Config, found: &mut Verification) {
    let health = Client::connect(config).ok().flatten();
    let Some(health) = health.and_then(|client| client.get("/api/sync/health").ok()) else {
        return;
    };
    let known: Vec<&str> = health["schemaProblems"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| p.as_str())
        .collect();
    for of in &mut found.namespaces {
        for said in &mut of.schema {
            let start = format!("`{}`: {said}", of.ns);
            if let Some(problem) = known.iter().find(|problem| problem.starts_with(&start)) {
                problem[start.len() - said.len()..].clone_into(said);
            }
        }
    }
}

/// Both ends must answer at all, and be two: what is away from the start is told at once.
pub async fn greet(sides: &Sides) -> Result<(), Failure> {
    same::check(sides).await?;
    Ok(())
}

pub fn begin(activity: Activity) -> Arc<Mutex<Progress>> {
    Arc::new(Mutex::new(Progress::begin(String::new(), activity, String::new(), now_ms())))
}

/// Cancelled by Ctrl-C, or by SIGTERM.
pub fn stop_on_signal() -> Result<Stop, Failure> {
    let stop = Stop::default();
    let leave = stop.leave.clone();
    let mut terminate = signals::terminate()?;
    tokio::spawn(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        leave.cancel();
    });
    Ok(stop)
}

/// Shows progress on a terminal while `work` runs, at most until it is to stop.
pub async fn with_bars<T, E: From<SyncError>>(
    progress: &Mutex<Progress>,
    stop: &Stop,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut bars = Bars::new();
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => {
                bars.finish();
                return result;
            }
            () = stop.leave.cancelled() => {
                bars.finish();
                return Err(SyncError::Stopped.into());
            }
            () = tokio::time::sleep(LOOK) => {
                let report =
                    progress.lock().report(now_ms());
                bars.show(&report);
            }
        }
    }
}

fn interrupted(error: SyncError) -> Failure {
    match error {
        SyncError::Stopped => {
            Failure::new(ExitCode::Problem, anyhow::anyhow!("interrupted before the end"))
        }
        error => error.into(),
    }
}

/// How far the running agent is behind; `None` when none runs. One that does not answer in time is as far
/// behind as it was.
fn lag_of_agent(config: Config) -> Lag {
    let last = Mutex::new(Duration::from_secs(5));
    Arc::new(move || {
        let mut last = last.lock();
        let client = match Client::connect(&config) {
            Ok(None) => return None,
            Ok(Some(client)) => Some(client),
            Err(_) => None,
        };
        let health = client.and_then(|client| client.get("/api/sync/health").ok());
        if let Some(lag) = health.and_then(|health| health["syncLagMs"].as_u64()) {
            *last = Duration::from_millis(lag);
        }
        Some(*last)
    })
}

/// A table of what differs, and below it by name; `unequal` is said at the end of that.
pub fn print(found: &Verification, unequal: &str) {
    let equal = found.namespaces.iter().filter(|of| is_equal(of)).count();
    let rows: Vec<_> = found
        .namespaces
        .iter()
        .filter(|of| !is_equal(of))
        .map(|of| {
            vec![
                of.ns.clone(),
                of.documents.to_string(),
                units::show_bytes(of.bytes),
                of.missing.count.to_string(),
                of.extra.count.to_string(),
                of.different.count.to_string(),
                of.schema.len().to_string(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        show::table(
            &["COLLECTION", "DOCUMENTS", "SIZE", "MISSING", "EXTRA", "DIFFERENT", "SCHEMA"],
            &rows,
        );
    }
    show::line(match equal {
        1 => "1 collection is equal".to_owned(),
        n => format!("{n} collections are equal"),
    });
    for of in &found.namespaces {
        for sentence in &of.schema {
            show::line(format!("{}: {sentence}", of.ns));
        }
        for (kind, documents) in
            [("missing", &of.missing), ("extra", &of.extra), ("different", &of.different)]
        {
            name(&of.ns, kind, documents);
        }
        if of.changing > 0 {
            show::line(format!(
                "{}: {} changed too often to be judged",
                of.ns,
                show::many(of.changing, "document")
            ));
        }
    }
    for left_out in &found.left_out {
        show::line(format!("not replicated: {left_out}"));
    }
    let how = match (found.digest, found.by_hash) {
        (true, _) => "by digest",
        (false, true) => "row by row, by hash",
        (false, false) => "byte for byte",
    };
    show::line(format!(
        "{}, {} compared {how}; Atlas sent {}",
        show::many(found.documents, "document"),
        units::show_bytes(found.bytes),
        units::show_bytes(found.bytes_from_atlas)
    ));
    show::line(if found.equal { "both sides are equal" } else { unequal });
}

fn is_equal(of: &NamespaceResult) -> bool {
    let differing = of.missing.count + of.extra.count + of.different.count + of.changing;
    differing == 0 && of.schema.is_empty()
}

fn name(ns: &str, kind: &str, found: &Found) {
    if found.count == 0 {
        return;
    }
    let keys: Vec<_> = found.keys.iter().map(ToString::to_string).collect();
    let more = if found.count > keys.len() as u64 { ", …" } else { "" };
    show::line(format!("{ns}: {kind}: {}{more}", keys.join(", ")));
}
