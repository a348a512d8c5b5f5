//! `outrigger check`: is everything fit, before anything is copied?

use std::{process::ExitCode as Code, time::Duration};

use bson::{Document, rawdoc};
use serde::Serialize;

use super::show;
use crate::{
    agent::{connect_atlas, connect_local, ends},
    cli::args::Output,
    config::{Config, ConfigError, Uri, units},
    mongo::Mongo,
    observe::report::{ExitCode, Failure, one_line},
    policy::majority,
    queue::free_disk,
    runtime::clock::now_ms,
    schema::{Kind, Version, not_taken},
    sink::{SinkError, classify::command_error},
    source::{
        ChangeStreamSource, EventStream, Source, SourceError, StartFrom, inspect, is_router,
        last_write, oplog_start, source_id,
    },
    sync::{Remark, SyncError, local_collections, review, same, unmatched},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Problem,
}

/// One line: what was looked at, how it is, and what to do if it is not well.
#[derive(Debug, Serialize)]
struct Line {
    end: &'static str,
    verdict: Verdict,
    text: String,
    fix: Option<String>,
}

#[derive(Default)]
struct Lines(Vec<Line>);

/// Clocks that differ by more make lag and times misleading.
const SKEW_MAX: Duration = Duration::from_secs(5);

impl Lines {
    fn ok(&mut self, end: &'static str, text: impl Into<String>) {
        self.0.push(Line { end, verdict: Verdict::Ok, text: text.into(), fix: None });
    }

    fn warning(&mut self, end: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Line {
            end,
            verdict: Verdict::Warning,
            text: text.into(),
            fix: Some(fix.into()),
        });
    }

    fn problem(&mut self, end: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Line {
            end,
            verdict: Verdict::Problem,
            text: text.into(),
            fix: Some(fix.into()),
        });
    }

    /// True when both ends have told their version, which is the first that is asked.
    fn are_answered(&self) -> bool {
        ["local", "atlas"].into_iter().all(|end| {
            self.0.iter().any(|line| line.end == end && line.text.starts_with("MongoDB "))
        })
    }

    fn failure(&mut self, end: &'static str, failure: Failure) {
        let text = failure.error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        self.problem(end, text, failure.hint.unwrap_or_default());
    }
}

/// Exit code 0 without a problem; else 2 where both ends are one, 3 for one of the local end, 4 for one of Atlas, 1 for another.
pub async fn run(config: &Config, output: Output) -> Result<Code, Failure> {
    // A configuration that cannot be used is an error of its own, with exit code 2.
    config.local_uri()?;
    config.atlas_uri()?;
    connect_local(config).await?;
    connect_atlas(config).await?;
    let mut lines = Lines::default();
    check_local(config, &mut lines).await;
    check_atlas(config, &mut lines).await;
    // Whoever does not answer has been named, and is not waited for again.
    if lines.are_answered() {
        check_both(config, &mut lines).await;
        check_schemas(config, &mut lines).await;
        check_ownership(config, &mut lines).await;
    }
    check_here(config, &mut lines);
    if output.json {
        show::json(&lines.0);
    } else {
        for line in &lines.0 {
            let verdict = match line.verdict {
                Verdict::Ok => show::good("ok     "),
                Verdict::Warning => show::soso("warning"),
                Verdict::Problem => show::bad("PROBLEM"),
            };
            show::line(format!("{verdict}  {:<5}  {}", line.end, line.text));
            if let Some(fix) = line.fix.as_deref().filter(|fix| !fix.is_empty()) {
                show::line(format!("                fix: {fix}"));
            }
        }
    }
    let has_problem =
        |end: &str| lines.0.iter().any(|line| line.verdict == Verdict::Problem && line.end == end);
    Ok(match () {
        () if has_problem("both") => Code::from(ExitCode::Usage as u8),
        () if has_problem("local") => Code::from(ExitCode::Local as u8),
        () if has_problem("atlas") => Code::from(ExitCode::Atlas as u8),
        () if has_problem("here") || has_problem("owner") => Code::from(ExitCode::Problem as u8),
        () => Code::SUCCESS,
    })
}

/// What of a connection string does nothing.
fn check_options(end: &'static str, uri: Result<&Uri, ConfigError>, lines: &mut Lines) {
    for text in uri.map(Uri::ignored).unwrap_or_default() {
        lines.warning(end, text, "nothing to do; take it away if the warning disturbs");
    }
}

async fn check_local(config: &Config, lines: &mut Lines) {
    check_options("local", config.local_uri(), lines);
    let mongo = match connect_local(config).await {
        Ok(mongo) => mongo,
        Err(error) => return lines.failure("local", error.into()),
    };
    let info = match inspect(&mongo).await {
        Ok(info) => info,
        Err(error) => return lines.failure("local", error.into()),
    };
    lines.ok("local", format!("MongoDB {}, replica set {}", info.version, info.set_name));
    check_member(&mongo, lines).await;
    if info.major < 6 {
        lines.warning(
            "local",
            "before 6.0 the change stream shows no exact diffs: each update is read again from the local database",
            "upgrade to 6.0 or later for fewer local reads",
        );
    }
    match source_id(&mongo, &info).await {
        Ok((_, true)) => lines.ok("local", "its identity can be read"),
        Ok((_, false)) => lines.warning(
            "local",
            "its identity cannot be read, so a restored or another database of the same set name is not told apart",
            "grant the user the action replSetGetConfig on the cluster (role clusterMonitor)",
        ),
        Err(error) => lines.failure("local", error.into()),
    }
    check_stream(config, &mongo, &info, lines).await;
    check_oplog(config, &mongo, &info, lines).await;
    check_skew("local", &mongo, lines).await;
    check_collections(config, &mongo, lines).await;
}

/// Whether the member that is read shows what its set writes.
async fn check_member(mongo: &Mongo, lines: &mut Lines) {
    let Ok(writes) = last_write(mongo).await else { return };
    if writes.delay > Duration::ZERO {
        let delay = units::show_duration(writes.delay);
        lines.warning(
            "local",
            format!("it is a delayed member: it shows what its replica set writes {delay} late, and so will Atlas"),
            "name the set's other members in `local.uri`, without `directConnection`; a delayed copy is fine only if it is meant",
        );
    }
    // A primary writes something every ten seconds, so that what is committed is no older.
    let behind = Duration::from_millis(now_ms().saturating_sub(writes.committed.millis()));
    let behind = behind.saturating_sub(writes.delay);
    if writes.written > writes.committed && behind > majority::PATIENCE {
        lines.warning(
            "local",
            format!(
                "its replica set has no majority for what was written in the last {}; none of it can be copied",
                units::show_duration(behind)
            ),
            "bring the members back that are away: `rs.status()` in mongosh names them",
        );
    }
}

async fn check_stream(
    config: &Config,
    mongo: &Mongo,
    info: &crate::source::SourceInfo,
    lines: &mut Lines,
) {
    let Ok(filter) = config.filter() else { return };
    let source = ChangeStreamSource::new(mongo.clone(), filter, info);
    let first = async { source.open(&StartFrom::Now).await?.next().await };
    match first.await {
        Ok(_) => lines.ok("local", "its change stream can be read"),
        Err(error @ SourceError::Denied { .. }) => lines.problem(
            "local",
            format!("its change stream may not be read: {}", one_line(&error)),
            "grant the user the role readAnyDatabase",
        ),
        Err(error) => lines.failure("local", error.into()),
    }
}

async fn check_oplog(
    config: &Config,
    mongo: &Mongo,
    info: &crate::source::SourceInfo,
    lines: &mut Lines,
) {
    match oplog_start(mongo).await {
        Ok(Some(start)) => {
            let window = Duration::from_secs(
                u64::from(info.now.seconds()).saturating_sub(u64::from(start.seconds())),
            );
            let text = format!("its oplog reaches back {}", units::show_duration(window));
            if window < config.alerts.oplog_window {
                lines.warning(
                    "local",
                    text,
                    "enlarge the oplog: an outage of the agent that lasts longer makes it compare everything",
                );
            } else {
                lines.ok("local", text);
            }
        }
        Ok(None) => {
            lines.ok("local", "its oplog still holds everything since the set was initiated");
        }
        Err(_) => lines.warning(
            "local",
            "how far its oplog reaches back cannot be read; a restored database is told by its id and time alone",
            "grant the user the role read on the database `local`",
        ),
    }
}

async fn check_collections(config: &Config, mongo: &Mongo, lines: &mut Lines) {
    let Ok(filter) = config.filter() else { return };
    match local_collections(mongo, &filter).await {
        Ok(listing) => {
            let (collections, views) = (listing.collections.len(), listing.views.len());
            let text = format!("{collections} collections and {views} views will be replicated");
            if collections + views == 0 {
                let fix = "fine for a database that is still empty; else look at `[namespaces]` and at the address";
                lines.warning("local", text, fix);
            } else {
                lines.ok("local", text);
            }
            for nothing in unmatched(&filter.patterns().include, &[&listing]) {
                let fix = "correct `namespaces.include`; fine if the collection is still to come";
                lines.warning("local", nothing.to_string(), fix);
            }
            for left in listing.left_out {
                lines.warning(
                    "local",
                    format!("{} is not replicated: it is {}", left.ns, left.reason),
                    "nothing to do if that is fine",
                );
            }
        }
        Err(error) => lines.failure("local", error.into()),
    }
}

async fn check_atlas(config: &Config, lines: &mut Lines) {
    check_options("atlas", config.atlas_uri(), lines);
    let mongo = match connect_atlas(config).await {
        Ok(mongo) => mongo,
        Err(error) => return lines.failure("atlas", error.into()),
    };
    let version = match mongo.version().await {
        Ok(version) => version,
        Err(error) => {
            let certain = error.hint().map(str::to_owned);
            let error = command_error(&error);
            let fix = certain.as_deref().unwrap_or(match &error {
                SinkError::Denied(_) => "check user and password, and TLS",
                _ => {
                    "check the network, the address, and in Atlas the list of permitted IP addresses; the agent starts without Atlas and catches up"
                }
            });
            return lines.problem("atlas", error.to_string(), fix);
        }
    };
    lines.ok("atlas", format!("MongoDB {version}"));
    if config.atlas.allow_insecure && !config.atlas_uri().is_ok_and(Uri::uses_tls) {
        lines.warning(
            "atlas",
            "the connection is not encrypted",
            "set `atlas.allow_insecure = false` and use TLS",
        );
    } else {
        lines.ok("atlas", "the connection is encrypted");
    }
    if mongo.hello().await.is_ok_and(|hello| is_router(&hello)) {
        lines.warning(
            "atlas",
            UNTRIED_ON_SHARDS,
            "take a cluster that is not sharded: Outrigger shards nothing itself",
        );
    }
    check_privileges(&mongo, lines).await;
    check_skew("atlas", &mongo, lines).await;
}

/// What no test has seen where Atlas is behind a router.
const UNTRIED_ON_SHARDS: &str = "it is a sharded cluster, on which these are not tried: collections that are sharded there \
     (unique values that change hands, documents whose shard key changes, capped ones), renames and `dropDatabase`, \
     index builds and what is said of their progress, `--digest`, `restore`, and the mark of ownership while shards are away";

/// The two ends must be two.
async fn check_both(config: &Config, lines: &mut Lines) {
    let (Ok(local), Ok(atlas)) = (connect_local(config).await, connect_atlas(config).await) else {
        return;
    };
    match same::check(&ends(config, &local, &atlas)).await {
        Ok(_) => lines.ok("both", "they are two different databases"),
        Err(error @ SyncError::SameDatabase(_)) => lines.failure("both", error.into()),
        // Whoever does not answer has been named already.
        Err(_) => {}
    }
}

/// What of the local collections this version of Atlas would not take.
async fn check_schemas(config: &Config, lines: &mut Lines) {
    // Whoever does not answer has been named already.
    let (Ok(filter), Ok(local), Ok(atlas)) =
        (config.filter(), connect_local(config).await, connect_atlas(config).await)
    else {
        return;
    };
    let (Ok(listing), Ok(version)) =
        (local_collections(&local, &filter).await, atlas.version().await)
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

/// What `run` will say of whose Atlas it is.
async fn check_ownership(config: &Config, lines: &mut Lines) {
    // Whoever does not answer has been named already.
    let (Ok(filter), Ok(local), Ok(atlas)) =
        (config.filter(), connect_local(config).await, connect_atlas(config).await)
    else {
        return;
    };
    let Ok(info) = inspect(&local).await else { return };
    let Ok((source_id, _)) = source_id(&local, &info).await else { return };
    match review(&local, &atlas, &filter, &source_id).await {
        Ok(findings) => {
            for finding in findings {
                match finding {
                    Remark::Fine(text) => lines.ok("owner", text),
                    Remark::Doubt { text, fix } => lines.warning("owner", text, fix),
                    Remark::Refusal(error) => lines.failure("owner", error.into()),
                }
            }
        }
        Err(error @ SyncError::Sink(SinkError::Denied(_))) => lines.warning(
            "owner",
            format!("whose Atlas it is cannot be told: {}", one_line(&error)),
            "grant the user in Atlas the role readWriteAnyDatabase",
        ),
        Err(_) => {}
    }
}

/// What the agent does in Atlas.
const NEEDED: [&str; 6] =
    ["find", "insert", "update", "remove", "createCollection", "dropCollection"];

async fn check_privileges(mongo: &Mongo, lines: &mut Lines) {
    let command = rawdoc! { "connectionStatus": 1, "showPrivileges": true };
    let reply = match mongo.command("admin", command).await {
        Ok(reply) => reply,
        Err(error) => {
            return lines.problem("atlas", command_error(&error).to_string(), "check the user");
        }
    };
    let Ok(auth) = reply.get_document("authInfo") else {
        return;
    };
    let list = |key: &str| -> Vec<&Document> {
        auth.get_array(key)
            .map(|all| all.iter().filter_map(|v| v.as_document()).collect())
            .unwrap_or_default()
    };
    if list("authenticatedUsers").is_empty() {
        return lines.warning(
            "atlas",
            "no user is authenticated",
            "fine for a test without access control only",
        );
    }
    let privileges = list("authenticatedUserPrivileges");
    let may = |action: &str| {
        privileges.iter().any(|privilege| {
            privilege
                .get_array("actions")
                .is_ok_and(|all| all.iter().any(|a| a.as_str() == Some(action)))
        })
    };
    let missing: Vec<_> = NEEDED.into_iter().filter(|action| !may(action)).collect();
    if missing.is_empty() {
        lines.ok("atlas", "the user may write");
    } else {
        lines.problem(
            "atlas",
            format!("the user may not {}", missing.join(", ")),
            "grant it the role readWriteAnyDatabase",
        );
    }
    if !may("bypassDocumentValidation") {
        lines.warning(
            "atlas",
            "the user may not bypass document validation, so a document that violates a validator cannot be copied",
            "grant the action bypassDocumentValidation, if collections have validators",
        );
    }
}

async fn check_skew(end: &'static str, mongo: &Mongo, lines: &mut Lines) {
    let Ok(hello) = mongo.hello().await else {
        return;
    };
    let Ok(there) = hello.get_datetime("localTime") else {
        return;
    };
    let skew = Duration::from_millis(
        u64::try_from(there.timestamp_millis()).unwrap_or(0).abs_diff(now_ms()),
    );
    if skew > SKEW_MAX {
        let text = format!("its clock differs by {}", units::show_duration(skew));
        lines.warning(end, text, "set both clocks by NTP; until then lag and times mislead");
    } else {
        lines.ok(end, "its clock agrees with this machine's");
    }
}

fn check_here(config: &Config, lines: &mut Lines) {
    let path = &config.queue.path;
    let parent = path.ancestors().find(|dir| dir.exists() && !dir.as_os_str().is_empty());
    let parent = parent.unwrap_or(std::path::Path::new("."));
    match free_disk(parent) {
        Some(free) if free < config.queue.min_free_disk => lines.problem(
            "here",
            format!(
                "{} are free for the queue, less than `queue.min_free_disk`",
                units::show_bytes(free)
            ),
            "make room, or set `queue.path` to another disk",
        ),
        Some(free) => lines.ok(
            "here",
            format!("{} are free for the queue in `{}`", units::show_bytes(free), path.display()),
        ),
        None => lines.problem(
            "here",
            format!("`{}` cannot be looked at", parent.display()),
            "check `queue.path`",
        ),
    }
}
