//! `outrigger restore`

use std::{borrow::Cow, process::ExitCode as Code, sync::Arc, time::Duration};

use serde_json::json;

use super::{
    access::Client,
    args::{Output, check_patterns},
    show,
    verify::{begin, greet, print, stop_on_signal, with_bars},
};
use crate::{
    agent::{TargetEnd, connect_local, sides},
    config::{Config, ConfigError, SourceKind, units},
    model::hint::Hint,
    observe::{
        progress::Activity,
        report::{ExitCode, Failure},
    },
    policy::limiter::Limiter,
    runtime::clock::now_ms,
    side::MongoSide,
    sink::AtlasSink,
    sync::{Restore, RestoreError, SyncError, Verify},
};

/// How long an end may be away: longer than an election.
const PATIENCE: Duration = Duration::from_secs(60);

/// Not what a verification advises: a sync would make Atlas like what was restored.
const UNEQUAL: &str = "the sides differ in what is named above; mend its cause and run `outrigger restore` again, \
                       or go on with what there is: `outrigger run --adopt` makes Atlas like it";

/// What a person does then.
const NEXT: &str = "next: point the application at the local database; then `outrigger run --adopt` once, since Atlas \
                    carries the mark of the database that was lost: everything is compared, and replication goes on";

/// Exit code 0 when the local database equals Atlas at the end.
pub async fn run(config: &Config, patterns: &[String], output: Output) -> Result<Code, Failure> {
    if config.source.kind == SourceKind::Outbox {
        let problem = "is `outbox`: its tables are the application's own, and come back from a backup of their database. \
                       Documents are not made rows of again";
        return Err(ConfigError::invalid("source.kind", problem.to_owned()).into());
    }
    let scope = check_patterns(patterns)?.with_state_database(&config.atlas.state_database);
    crate::observe::logging::start("error", config.log.format);
    if Client::connect(config)?.is_some() {
        let error = anyhow::anyhow!("an agent runs on {}", config.admin.listen);
        return Err(Failure::new(ExitCode::Problem, error)
            .hint("stop it first: it would replicate what is being restored"));
    }
    let (local, target) = (connect_local(config).await?, TargetEnd::connect(config).await?);
    let mut sides = sides(config, MongoSide::source(&local), target.documents());
    greet(&sides).await?;
    sides.patience = Some(PATIENCE);
    let filter = config.filter()?;
    let sink = AtlasSink::new(local, Limiter::new(0, 0), None);
    let stop = stop_on_signal()?;
    let restore = Restore {
        sides: &sides,
        sink: &sink,
        filter: &filter,
        scope: &scope,
        origin: target.shown(config)?,
        progress: begin(Activity::Restore),
        stop: &stop,
    };
    let restored = with_bars(&restore.progress, &stop, restore.run()).await?;
    let report = restore.progress.lock().report(now_ms());
    let text = format!(
        "restored {}, {} in {}",
        show::many(restored.documents, "document"),
        units::show_bytes(report.bytes_done),
        units::show_duration(Duration::from_millis(now_ms().saturating_sub(report.started_ms))),
    );
    if !output.json {
        show::line(text);
        for problem in &restored.problems {
            show::line(format!("not restored: {problem}"));
        }
    }
    let verify = Verify {
        sides: &sides,
        filter: &filter,
        scope: &scope,
        digest: false,
        lag: Arc::new(|| None),
        progress: begin(Activity::Verify),
        stop: &stop,
    };
    let found =
        with_bars(&verify.progress, &stop, verify.run()).await.map_err(RestoreError::from)?;
    if output.json {
        show::json(&json!({
            "documents": restored.documents, "problems": restored.problems, "verification": found,
        }));
    } else {
        print(&found, UNEQUAL);
    }
    if !found.equal {
        return Ok(Code::FAILURE);
    }
    restore.verified().await?;
    if !output.json {
        show::line(NEXT);
    }
    Ok(Code::SUCCESS)
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Sync(SyncError::Stopped) => {
                let hint = error.hint().map(Cow::into_owned);
                let error = anyhow::anyhow!("interrupted before the end");
                Failure { hint, ..Failure::new(ExitCode::Problem, error) }
            }
            RestoreError::Sync(error) => error.into(),
            error => Failure::of(ExitCode::Problem, error),
        }
    }
}
