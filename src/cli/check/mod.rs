//! `outrigger check`: is everything fit, before anything is copied?

use std::{process::ExitCode as Code, time::Duration};

use serde::Serialize;

use super::show;
use crate::{
    agent::{
        TargetEnd, connect_atlas, connect_local, known_id, known_source, queue_options, refusal,
        sides, source_side,
    },
    cli::args::CheckArgs,
    config::{Config, ConfigError, SourceKind, TargetKind, Uri, units},
    mongo::Mongo,
    observe::report::{ExitCode, Failure, one_line},
    queue::{Queue, QueueError, agent_in},
    runtime::{clock::now_ms, shutdown::blocking},
    schema::{Kind, Version, not_taken},
    side::MongoSide,
    sink::SinkError,
    source::SourceError,
    sync::{Asker, Remark, SyncError, review, same},
};

mod atlas;
mod here;
mod line;
mod local;
mod outbox;
mod plan;
mod postgres;
mod tables;

use atlas::check_atlas;
use local::check_local;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    Warning,
    Problem,
}

/// One line: what was looked at, how it is, and what to do if it is not well.
#[derive(Debug, Serialize)]
struct ReportLine {
    end: &'static str,
    verdict: Grade,
    text: String,
    fix: Option<String>,
}

#[derive(Default)]
struct Report(Vec<ReportLine>);

/// Clocks that differ by more make lag and times misleading.
const SKEW_MAX: Duration = Duration::from_secs(5);

impl Report {
    fn ok(&mut self, end: &'static str, text: impl Into<String>) {
        self.0.push(ReportLine { end, verdict: Grade::Ok, text: text.into(), fix: None });
    }

    fn warning(&mut self, end: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.0.push(ReportLine {
            end,
            verdict: Grade::Warning,
            text: text.into(),
            fix: Some(fix.into()),
        });
    }

    fn problem(&mut self, end: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.0.push(ReportLine {
            end,
            verdict: Grade::Problem,
            text: text.into(),
            fix: Some(fix.into()),
        });
    }

    /// True when both ends have told their version, which is the first that is asked.
    fn are_answered(&self) -> bool {
        let has_told = |is_of: fn(&str) -> bool| {
            let products = ["MongoDB ", "PostgreSQL ", "CockroachDB "];
            let is_version = |text: &str| products.iter().any(|name| text.starts_with(name));
            self.0
                .iter()
                .any(|line| is_of(line.end) && line.verdict == Grade::Ok && is_version(&line.text))
        };
        has_told(|end| matches!(end, "local" | outbox::NAME))
            && has_told(|end| matches!(end, "atlas" | "postgres"))
    }

    fn failure(&mut self, end: &'static str, failure: Failure) {
        let text = failure.error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        self.problem(end, text, failure.hint.unwrap_or_default());
    }
}

/// Exit code 0 without a problem; else 2 where both ends are one, 3 for one of the source, 4 for one of the target, 1 for
/// another.
pub async fn run(config: &Config, args: &CheckArgs) -> Result<Code, Failure> {
    // A configuration that cannot be used is an error of its own, with exit code 2.
    source_side(config).await?;
    TargetEnd::connect(config).await?;
    let mut lines = Report::default();
    match config.source.kind {
        SourceKind::Mongodb => check_local(config, &mut lines).await,
        SourceKind::Outbox => outbox::check_outbox(config, &mut lines).await,
    }
    match config.target.kind {
        TargetKind::Atlas => check_atlas(config, &mut lines).await,
        TargetKind::Postgres => postgres::check_postgres(config, &mut lines).await,
    }
    // Whoever does not answer has been named, and is not waited for again.
    if lines.are_answered() {
        check_both(config, &mut lines).await;
        // Options and indexes are not carried into PostgreSQL, and tables have none of MongoDB's.
        if (config.source.kind, config.target.kind) == (SourceKind::Mongodb, TargetKind::Atlas) {
            check_schemas(config, &mut lines).await;
        }
        check_ownership(config, &mut lines).await;
        check_past(config, &mut lines).await;
    }
    let (of_here, told) = (config.clone(), lines);
    let looked = move || {
        let mut lines = told;
        here::check_here(&of_here, &mut lines);
        lines
    };
    let lines = blocking(looked).await;
    let plan = if args.plan && lines.are_answered() {
        // Two that are one have no plan.
        if lines.0.iter().any(|line| line.end == "both" && line.verdict == Grade::Problem) {
            None
        } else {
            Some(plan::of(config).await?)
        }
    } else {
        None
    };
    if args.output.json && args.plan {
        show::json(&serde_json::json!({ "points": lines.0, "plan": plan }));
    } else if args.output.json {
        show::json(&lines.0);
    } else {
        for line in &lines.0 {
            let verdict = match line.verdict {
                Grade::Ok => show::good("ok     "),
                Grade::Warning => show::soso("warning"),
                Grade::Problem => show::bad("PROBLEM"),
            };
            show::line(format!("{verdict}  {:<5}  {}", line.end, line.text));
            if let Some(fix) = line.fix.as_deref().filter(|fix| !fix.is_empty()) {
                show::line(format!("                fix: {fix}"));
            }
        }
    }
    if let Some(plan) = plan.filter(|_| !args.output.json) {
        plan.print();
    }
    let has_problem =
        |end: &str| lines.0.iter().any(|line| line.verdict == Grade::Problem && line.end == end);
    Ok(match () {
        () if has_problem("both") => Code::from(ExitCode::Usage as u8),
        () if has_problem("local") || has_problem(outbox::NAME) => {
            Code::from(ExitCode::Local as u8)
        }
        () if has_problem("atlas") || has_problem("postgres") => Code::from(ExitCode::Atlas as u8),
        () if has_problem("here") || has_problem("owner") => Code::from(ExitCode::Problem as u8),
        () => Code::SUCCESS,
    })
}

/// What of a connection string does nothing.
fn check_options(end: &'static str, uri: Result<&Uri, ConfigError>, lines: &mut Report) {
    for text in uri.map(Uri::ignored).unwrap_or_default() {
        lines.warning(end, text, "nothing to do; take it away if the warning disturbs");
    }
}

/// TLS to whoever answers.
fn unchecked(end: &'static str, lines: &mut Report) {
    lines.warning(
        end,
        "the connection is encrypted, but whose the server's certificate is is not checked: whoever sits on the line may read \
         it all, passwords included",
        "take `tlsInsecure` and `tlsAllowInvalidCertificates` away, and name the authority in `tlsCAFile`",
    );
}

/// The two ends must be two.
async fn check_both(config: &Config, lines: &mut Report) {
    let (Ok(source), Ok(target)) = (source_side(config).await, TargetEnd::connect(config).await)
    else {
        return;
    };
    match same::check(&sides(config, source, target.end().side)).await {
        Ok(_) => lines.ok("both", "they are two different databases"),
        Err(error @ SyncError::SameDatabase(_)) => lines.failure("both", error.into()),
        // Whoever does not answer has been named already.
        Err(_) => {}
    }
}

/// What of the local collections this version of Atlas would not take.
async fn check_schemas(config: &Config, lines: &mut Report) {
    // Whoever does not answer has been named already.
    let (Ok(filter), Ok(local), Ok(atlas)) =
        (config.filter(), connect_local(config).await, connect_atlas(config).await)
    else {
        return;
    };
    let (Ok(listing), Ok(version)) =
        (MongoSide::source(&local).list(&filter).await, atlas.version().await)
    else {
        return;
    };
    let Ok(version) = version.parse::<Version>() else { return };
    let mut all_taken = true;
    for collection in listing.collections.iter().chain(&listing.views) {
        let mut description = collection.description();
        if description.kind == Kind::Collection {
            match local.list_indexes(&collection.ns).await {
                Ok(indexes) => description.indexes = indexes,
                Err(error) => return lines.failure("local", SourceError::from(error).into()),
            }
        }
        for (what, since) in not_taken(&description, version) {
            all_taken = false;
            lines.warning(
                "atlas",
                format!("{}: {what} needs MongoDB {since}, this is {version}", collection.ns),
                "upgrade Atlas; without it the documents are copied, and this is left out and named in `status`",
            );
        }
    }
    if all_taken {
        lines.ok("atlas", "its version takes every option and index of the local collections");
    }
}

/// Whether the queue, if there is one and nobody works with it, was filled from this very database.
async fn check_past(config: &Config, lines: &mut Report) {
    let options = queue_options(config);
    if !options.path.join("db").exists() || agent_in(&options.path).is_some() {
        return;
    }
    let checkpoint = blocking(move || Queue::open(&options)?.checkpoint()).await;
    let checkpoint = match checkpoint {
        Ok(Some(checkpoint)) => checkpoint,
        // A command has it just now, or nothing was read into it yet.
        Ok(None) | Err(QueueError::InUse { .. }) => return,
        Err(error) if error.is_damage() => {
            return lines.warning(
                "here",
                format!("the queue cannot be used: {}", one_line(&error)),
                "nothing to do: a start moves it aside and compares everything",
            );
        }
        Err(error) => return lines.failure("here", error.into()),
    };
    match refusal(config, &checkpoint).await {
        Ok(None) => lines.ok(
            "here",
            match config.source.kind {
                SourceKind::Mongodb => "the queue was filled from this local database",
                SourceKind::Outbox => "the queue was filled from this outbox",
            },
        ),
        Ok(Some(refusal)) => lines.failure("here", refusal.into()),
        // Whoever does not answer has been named already.
        Err(_) => {}
    }
}

/// Of a source that nobody has begun to read: no mark of ownership has it.
const NOT_DRAWN: &str = "";

/// What `run` will say of whose Atlas it is.
async fn check_ownership(config: &Config, lines: &mut Report) {
    // Whoever does not answer has been named already.
    let (Ok(filter), Ok((source, known)), Ok(atlas)) =
        (config.filter(), known_source(config).await, TargetEnd::connect(config).await)
    else {
        return;
    };
    let (source_id, target) = (known.as_deref().unwrap_or(NOT_DRAWN), atlas.end().side);
    let options = queue_options(config);
    let known = if agent_in(&options.path).is_some() {
        None
    } else {
        blocking(move || known_id(&options)).await.ok()
    };
    let asker = known.as_ref().map_or(Asker::Unknown, |id| Asker::Starts(id.as_deref()));
    match review(&*source, &*target, &filter, source_id, asker).await {
        Ok(findings) => {
            for finding in findings {
                match finding {
                    Remark::Fine(text) => lines.ok("owner", text),
                    Remark::Warning { text, fix } => lines.warning("owner", text, fix),
                    Remark::Refusal(error) => lines.failure("owner", error.into()),
                }
            }
        }
        Err(error @ SyncError::Sink(SinkError::Denied(_))) => lines.warning(
            "owner",
            format!("whose Atlas it is cannot be told: {}", one_line(&error)),
            match config.target.kind {
                TargetKind::Atlas => {
                    "grant the user in Atlas the roles that `outrigger roles` prints"
                }
                TargetKind::Postgres => "make the user the owner of the schema `outrigger`",
            },
        ),
        Err(_) => {}
    }
}

async fn check_skew(end: &'static str, mongo: &Mongo, lines: &mut Report) {
    let Ok(hello) = mongo.hello().await else {
        return;
    };
    let Ok(there) = hello.get_datetime("localTime") else {
        return;
    };
    tell_skew(end, u64::try_from(there.timestamp_millis()).unwrap_or(0), lines);
}

/// By its clock, in milliseconds since 1970.
fn tell_skew(end: &'static str, there_ms: u64, lines: &mut Report) {
    let skew = Duration::from_millis(there_ms.abs_diff(now_ms()));
    if skew > SKEW_MAX {
        let text = format!("its clock differs by {}", units::show_duration(skew));
        lines.warning(end, text, "set both clocks by NTP; until then lag and times mislead");
    } else {
        lines.ok(end, "its clock agrees with this machine's");
    }
}
