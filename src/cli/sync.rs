//! `outrigger sync`, `sync status`, `sync cancel`

use std::{
    process::ExitCode as Code,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    access::Client,
    args::check_patterns,
    bars::{Bars, LOOK, pace},
    show,
};
use crate::{
    admin,
    agent::{Agent, Handles, queue_options, source_side},
    cli::args::{Output, SyncArgs},
    config::{Config, units},
    observe::{
        progress::{Activity, ProgressReport, SyncOutcome},
        report::{ExitCode, Failure},
    },
    queue::Queue,
    runtime::{clock::now_ms, shutdown::blocking},
    sync::{
        SyncError, is_all_held_up, nothing_of, refused_of_the_run,
        state::{Cancelled, Reason, SyncRequest, SyncState},
    },
};

/// Starts a full sync in the running agent; without one, makes it here and now.
pub async fn run(config: Config, args: SyncArgs) -> Result<Code, Failure> {
    check_patterns(&args.ns)?;
    config.comparable()?;
    let output = args.output;
    let request = SyncRequest {
        namespaces: args.ns,
        digest: args.digest,
        dry_run: args.dry_run,
        allow_mass_delete: args.allow_mass_delete,
    };
    let Some(client) = Client::connect(&config)? else {
        return Box::pin(run_here(config, request, args.adopt, output)).await;
    };
    if args.adopt {
        eprintln!("note: the running agent has its target already; --adopt changes nothing");
    }
    let client = client.because(&args.why);
    let answer = client.post_what_exists("/api/sync/full", &json!(request))?;
    let id = answer["running"].as_str().unwrap_or_default().to_owned();
    if !args.wait {
        let text = format!("full sync {id} has begun; `outrigger sync status` shows how far it is");
        show::result(output, &json!({ "running": id }), text);
        return Ok(Code::SUCCESS);
    }
    let sync = follow(&client, Some(&id)).await?;
    Ok(summary(&sync, refused(&client)?, output))
}

/// Documents that the last sync queued and Atlas would not take.
fn refused(client: &Client) -> Result<u64, Failure> {
    Ok(show::number(&client.get("/api/sync/full")?["refused"]))
}

/// How often in a row the agent may not answer, or not know the sync.
const MISSED_MAX: u32 = 20;

/// Shows how far the sync is until it has ended and what it repaired is written. With an id, that one or the one
/// that took its place.
async fn follow(client: &Client, id: Option<&str>) -> Result<ProgressReport, Failure> {
    let mut bars = Bars::new();
    let (mut missed, mut is_away) = (0, false);
    loop {
        tokio::time::sleep(LOOK).await;
        let looks = client
            .get("/api/sync/full")
            .and_then(|report| Ok((report, client.get("/api/sync/health")?)));
        let (report, health) = match looks {
            Ok(looks) => looks,
            Err(failure) if missed >= MISSED_MAX => return Err(failure),
            Err(_) => {
                missed += 1;
                continue;
            }
        };
        let oldest = health["oldestPendingMs"].as_u64();
        match health["atlasError"].as_str() {
            Some(error) if !is_away => {
                is_away = true;
                eprintln!("note: {error}; the sync goes on when Atlas answers");
            }
            Some(_) => {}
            None => is_away = false,
        }
        let sync = parse(&report["sync"]).filter(|sync| id.is_none_or(|id| *sync.id >= *id));
        match sync {
            Some(sync) => {
                missed = 0;
                bars.show(&sync);
                let is_over = report["running"].is_null() && sync.finished_ms.is_some();
                if is_stuck(&sync) {
                    bars.finish();
                    return Ok(sync);
                }
                // What waits for a change that Atlas has refused for days is not the sync's to write: else `--wait` would
                // never end.
                let is_written = is_written(&sync, oldest) || report["heldUp"] == true;
                if is_over && (sync.activity == Activity::DryRun || is_written) {
                    bars.finish();
                    return Ok(sync);
                }
            }
            // Not begun yet: the agent waits for Atlas.
            None if !report["running"].is_null() => missed = 0,
            None if missed >= MISSED_MAX => {
                let error =
                    anyhow::anyhow!("the full sync was cancelled, or the agent has begun anew");
                return Err(Failure::new(ExitCode::Problem, error)
                    .hint("`outrigger sync status` shows what there is"));
            }
            None => missed += 1,
        }
    }
}

/// True for what is owed and cannot be done until somebody acts.
fn is_stuck(sync: &ProgressReport) -> bool {
    matches!(sync.outcome, Some(SyncOutcome::NotDone(_)))
}

/// True when nothing waits any more that was queued before the sync had ended. `oldest` is the age of the
/// oldest change that waits.
fn is_written(sync: &ProgressReport, oldest: Option<u64>) -> bool {
    let ended_for = now_ms().saturating_sub(sync.finished_ms.unwrap_or_else(now_ms));
    oldest.is_none_or(|oldest| oldest < ended_for)
}

/// Runs an agent for as long as the sync takes.
async fn run_here(
    config: Config,
    request: SyncRequest,
    adopt: bool,
    output: Output,
) -> Result<Code, Failure> {
    if request.dry_run {
        // An agent would replicate what has changed meanwhile, and owes more than this perhaps.
        return super::verify::compare(&config, &request.namespaces, request.digest, output).await;
    }
    crate::observe::logging::start("warn", config.log.format);
    let agent = Agent::builder(config).adopt(adopt).serve(admin::start).prepare().await?;
    let handles = agent.handles();
    if !request.namespaces.is_empty() {
        let Handles { atlas, config, .. } = &handles;
        // The agent's own connections are proven while it runs, which it does not yet.
        let local = source_side(config).await?;
        if let Some(nothing) =
            nothing_of(&request.namespaces, &*local, &*atlas.side, &config.compared()?).await
        {
            return Err(SyncError::NothingMatches(nothing).into());
        }
    }
    let queue = handles.queue.clone();
    let wanted = request.clone();
    let asked = blocking(move || {
        let position = queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time);
        let asked = SyncState::request_behind(
            &queue,
            position.unwrap_or_default(),
            request,
            Reason::Asked,
        )?;
        queue.flush()?;
        Ok::<_, Failure>(asked)
    })
    .await?;
    let open = match asked {
        Ok(open) => open,
        // One of everything that is owed finds the same, and the same one goes on.
        Err(open) if open.request.as_ref().is_none_or(|request| *request == wanted) => open,
        Err(open) => {
            let error = anyhow::anyhow!("another full sync is open: {} ({})", open.id, open.reason);
            return Err(Failure::new(ExitCode::Problem, error)
                .hint("`outrigger run` finishes it, `outrigger sync cancel` ends it"));
        }
    };
    let mut end = None;
    let (mut terminate, watched) = (super::signals::terminate()?, handles.clone());
    let run = agent.run(async {
        end = Some(tokio::select! {
            end = wait_here(watched, open.id.to_string()) => end,
            _ = tokio::signal::ctrl_c() => SyncEnd::Interrupted,
            _ = terminate.recv() => SyncEnd::Interrupted,
        });
    });
    // All of the agent is in it.
    Box::pin(run).await?;
    let sync = handles.status.state().sync.as_ref().map(|sync| sync.report(now_ms()));
    match (end, sync) {
        (Some(SyncEnd::Written), Some(sync)) => {
            let Handles { status, queue, .. } = handles;
            let refused = blocking(move || refused_of_the_run(&status, &queue)).await?;
            Ok(summary(&sync, refused, output))
        }
        (Some(SyncEnd::AtlasAway(problem)), _) => {
            Err(Failure::new(ExitCode::Atlas, anyhow::anyhow!(problem))
                .hint("`outrigger sync` or `outrigger run` goes on with it"))
        }
        (_, _) => {
            let error = anyhow::anyhow!("the full sync was interrupted");
            Err(Failure::new(ExitCode::Problem, error)
                .hint("`outrigger sync` or `outrigger run` goes on with it"))
        }
    }
}

/// How a sync without an agent ended.
enum SyncEnd {
    Written,
    AtlasAway(String),
    Interrupted,
}

/// How long Atlas may be away while a person waits.
const PATIENCE: Duration = Duration::from_secs(60);

async fn wait_here(handles: Handles, id: String) -> SyncEnd {
    let mut bars = Bars::new();
    let mut away: Option<Instant> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let Handles { status, queue, .. } = &handles;
        let fault = status.faults.atlas.get();
        match fault {
            Some(fault) if away.is_some_and(|since| since.elapsed() > PATIENCE) => {
                bars.finish();
                return SyncEnd::AtlasAway(fault.error);
            }
            Some(fault) if away.is_none() => {
                away = Some(Instant::now());
                eprintln!(
                    "note: {}; waiting for Atlas, for {} s at most",
                    fault.error,
                    PATIENCE.as_secs()
                );
            }
            Some(_) => {}
            None => away = None,
        }
        let Some(sync) = status.state().sync.as_ref().map(|sync| sync.report(now_ms())) else {
            continue;
        };
        bars.show(&sync);
        let queue: Arc<Queue> = queue.clone();
        let look = blocking(move || {
            let oldest = queue.oldest_ms()?;
            Ok::<_, crate::queue::QueueError>((oldest, SyncState::open(&queue)?.is_some()))
        });
        let Ok((oldest, is_open)) = look.await else { continue };
        let is_held_up = is_all_held_up(&handles.queue, &handles.watch);
        let oldest = oldest.map(|oldest| now_ms().saturating_sub(oldest));
        let is_over = sync.finished_ms.is_some() && !is_open && sync.id >= id;
        if is_stuck(&sync) || (is_over && (is_held_up || is_written(&sync, oldest))) {
            bars.finish();
            return SyncEnd::Written;
        }
    }
}

/// Prints what a sync found. Exit code 1 when something is left that a person must look at: `refused` documents that
/// Atlas would not take, among others.
fn summary(sync: &ProgressReport, refused: u64, output: Output) -> Code {
    if output.json {
        show::json(&json!({ "sync": sync, "refused": refused }));
    } else {
        print(sync, refused);
    }
    let is_done = sync.outcome == Some(SyncOutcome::Done);
    let found = sync.missing + sync.extra + sync.content + sync.schema;
    let is_fine = is_done && refused == 0 && !(sync.activity == Activity::DryRun && found > 0);
    if is_fine { Code::SUCCESS } else { Code::FAILURE }
}

fn print(sync: &ProgressReport, refused: u64) {
    differences(sync);
    let took = sync.finished_ms.unwrap_or_else(now_ms).saturating_sub(sync.started_ms);
    show::line(format!(
        "{} in {}, {}; Atlas sent {}",
        show::many(sync.documents_done, "document"),
        show::many(sync.collections, "collection"),
        units::show_duration(Duration::from_millis(took)),
        units::show_bytes(sync.bytes_from_atlas),
    ));
    let found = sync.missing + sync.extra + sync.content + sync.schema;
    let is_done = sync.outcome == Some(SyncOutcome::Done);
    let outcome = sync.outcome.as_ref().map_or("not ended".to_owned(), ToString::to_string);
    show::line(match (sync.activity, found) {
        (_, 0) => format!("no difference; {outcome}"),
        (Activity::DryRun, _) => format!("nothing was changed; {outcome}"),
        (_, _) if refused > 0 => {
            let documents = if refused == 1 { "document" } else { "documents" };
            format!(
                "Atlas would not take {refused} {documents} of what differed (see `outrigger dead list`); {outcome}"
            )
        }
        (_, _) if !is_done => format!("not all that differed is repaired; {outcome}"),
        (_, _) => format!("what differed is repaired; {outcome}"),
    });
    if !sync.mass_delete_refused.is_empty() {
        show::line(
            "hint: look at both sides; if the local database is right, repeat it with --allow-mass-delete",
        );
    }
}

/// One row for each collection that differs.
fn differences(sync: &ProgressReport) {
    let rows: Vec<_> = sync
        .namespaces
        .iter()
        .filter(|of| !of.share.is_equal())
        .map(|of| {
            let share = &of.share;
            vec![
                of.ns.to_string(),
                share.documents_done.to_string(),
                share.missing.to_string(),
                share.extra.to_string(),
                share.content.to_string(),
                share.schema.join("; "),
            ]
        })
        .collect();
    if !rows.is_empty() {
        show::table(
            &["COLLECTION", "DOCUMENTS", "MISSING", "EXTRA", "DIFFERENT", "OPTIONS AND INDEXES"],
            &rows,
        );
    }
}

fn parse(value: &Value) -> Option<ProgressReport> {
    serde_json::from_value(value.clone()).ok()
}

/// With `wait`, shows how far it is until it has ended, and tells by its exit code how.
pub async fn status(config: &Config, output: Output, wait: bool) -> Result<Code, Failure> {
    let Some(client) = Client::connect(config)? else {
        return if wait { Err(nobody_to_wait_for(config)?) } else { noted(config, output) };
    };
    if wait && !client.get("/api/sync/full")?["running"].is_null() {
        let sync = follow(&client, None).await?;
        return Ok(summary(&sync, refused(&client)?, output));
    }
    let report = client.get("/api/sync/full")?;
    if let (true, Some(sync)) = (wait, parse(&report["sync"])) {
        return Ok(summary(&sync, show::number(&report["refused"]), output));
    }
    if output.json {
        show::json(&report);
        return Ok(Code::SUCCESS);
    }
    match parse(&report["sync"]) {
        None => show::line("no full sync has run since the agent started"),
        Some(sync) if sync.finished_ms.is_none() => {
            show::line(format!("full sync {} runs ({})", sync.id, sync.reason));
            show::line(format!(
                "{} of {} collections, {} of {} documents; {}",
                sync.collections_done,
                sync.collections,
                sync.documents_done,
                sync.documents,
                pace(&sync)
            ));
            differences(&sync);
        }
        Some(sync) => {
            show::line(format!("full sync {} has ended ({})", sync.id, sync.reason));
            print(&sync, show::number(&report["refused"]));
        }
    }
    Ok(Code::SUCCESS)
}

/// The full sync that is open for the next agent.
fn open_without_agent(config: &Config) -> Result<Option<SyncState>, Failure> {
    if !config.queue.path.exists() {
        return Ok(None);
    }
    Ok(SyncState::open(&Queue::open(&queue_options(config))?)?)
}

/// Without an agent nothing comes to an end, and none is a sign of one.
fn nobody_to_wait_for(config: &Config) -> Result<Failure, Failure> {
    let listen = config.admin.listen;
    let error = match open_without_agent(config)? {
        Some(open) => {
            anyhow::anyhow!("no agent runs on {listen}, and a full sync is open ({})", open.reason)
        }
        None => anyhow::anyhow!("no agent runs on {listen}, and no full sync is open"),
    };
    Ok(Failure::new(ExitCode::Problem, error)
        .hint("start one with `outrigger run`, or name its configuration with --config"))
}

/// Without an agent: what is noted for the next.
fn noted(config: &Config, output: Output) -> Result<Code, Failure> {
    let open = open_without_agent(config)?;
    if output.json {
        let running = open.as_ref().map(|open| open.id.to_string());
        let reason = open.map(|open| open.reason.to_string());
        show::json(&json!({ "running": running, "reason": reason, "sync": null }));
        return Ok(Code::SUCCESS);
    }
    match open {
        None => show::line("no agent runs, and no full sync is open"),
        Some(open) => show::line(format!(
            "no agent runs; a full sync is open and goes on with the next ({})",
            open.reason
        )),
    }
    Ok(Code::SUCCESS)
}

pub fn cancel(config: &Config, output: Output) -> Result<Code, Failure> {
    if let Some(client) = Client::connect(config)? {
        client.delete("/api/sync/full")?;
    } else {
        let queue = Queue::open(&queue_options(config))?;
        let refused = match SyncState::cancel(&queue)? {
            Cancelled::Done(_) => None,
            Cancelled::IsOwed(open) => Some(format!("this full sync is owed: {}", open.reason)),
            Cancelled::NothingRuns => Some("no full sync is open".to_owned()),
        };
        if let Some(problem) = refused {
            return Err(Failure::new(ExitCode::Problem, anyhow::anyhow!(problem)));
        }
        queue.flush()?;
    }
    let text = "cancelled; what was queued for repair is still written";
    show::result(output, &json!({ "cancelled": true }), text);
    Ok(Code::SUCCESS)
}
