//! The local database: whether it can be read from, and how much of it.

use std::time::Duration;

use super::{Report, check_options, check_skew, unchecked};
use crate::{
    agent::connect_local,
    cli::show,
    config::{Config, units},
    mongo::Mongo,
    observe::report::one_line,
    policy::majority,
    runtime::clock::now_ms,
    side::MongoSide,
    source::{
        ChangeStreamSource, EventStream, Source, SourceError, SourceInfo, StartFrom, inspect,
        last_write, oplog_start, source_id,
    },
    sync::{SyncError, unmatched},
};

pub(super) async fn check_local(config: &Config, lines: &mut Report) {
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
    if config.local_uri().is_ok_and(|uri| uri.uses_tls() && uri.trusts_anybody()) {
        unchecked("local", lines);
    }
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
async fn check_member(mongo: &Mongo, lines: &mut Report) {
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

async fn check_stream(config: &Config, mongo: &Mongo, info: &SourceInfo, lines: &mut Report) {
    let Ok(filter) = config.filter() else { return };
    let source = ChangeStreamSource::new(mongo.clone(), filter, info);
    let first = async { source.open(&StartFrom::Now).await?.next().await };
    match first.await {
        Ok(_) => lines.ok("local", "its change stream can be read"),
        Err(error @ SourceError::Denied { .. }) => lines.problem(
            "local",
            format!("its change stream may not be read: {}", one_line(&error)),
            "grant it the role that `outrigger roles` prints",
        ),
        Err(error) => lines.failure("local", error.into()),
    }
}

async fn check_oplog(config: &Config, mongo: &Mongo, info: &SourceInfo, lines: &mut Report) {
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

async fn check_collections(config: &Config, mongo: &Mongo, lines: &mut Report) {
    let Ok(filter) = config.filter() else { return };
    match MongoSide::source(mongo).list(&filter).await {
        Ok(listing) => {
            let (collections, views) = (listing.collections.len(), listing.views.len());
            let collections_of = show::many(collections as u64, "collection");
            let views_of = show::many(views as u64, "view");
            let text = format!("{collections_of} and {views_of} will be replicated");
            if collections + views == 0 {
                let fix = "fine for a database that is still empty; else look at `[namespaces]` and at the address";
                lines.warning("local", text, fix);
            } else {
                lines.ok("local", text);
            }
            for nothing in unmatched(&filter.patterns().include, &[&listing]) {
                let fix = if config.namespaces.include.is_empty() {
                    "correct the database in the local connection string; fine if its collections are still to come"
                } else {
                    "correct `namespaces.include`; fine if the collection is still to come"
                };
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
        Err(error) => lines.failure("local", SyncError::from(error).into()),
    }
}
