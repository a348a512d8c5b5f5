//! The lease records as they stand in PostgreSQL: one row per source in `outrigger.replicas`.
//!
//! | column | what |
//! | --- | --- |
//! | `source` | the source, see [`source_id`](crate::source::source_id) |
//! | `lease_id`, `checkpoint` | which queue's position the target belongs to, and how far that has come |
//! | `holder`, `heartbeat` | the start of an agent that keeps the copy, and when it last said so by PostgreSQL's own clock |
//! | `mark` | the rest, as in a MongoDB: patterns, collections that are not its own, who the agent is |
//!
//! Beside it, `outrigger.tallies` counts each source's transactions ([`tally`](crate::gate::tally)).
//!
//! Each batch of writes holds a share of its source's row ([`fence`]). So whoever takes a
//! lease waits for the batches of whoever has it, which then find out.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::ready;
use serde_json::{Value, json};

use crate::{
    gate::tally::Counts,
    model::{
        checkpoint::ClusterTime,
        namespace::{Namespace, NamespaceFilter, Patterns},
    },
    side::{
        Answer, SideError,
        records::{AgentIdentity, LeaseHolder, LeaseRecord, LeaseRecords, NewLeaseRecord},
    },
    sink::{
        SinkError,
        postgres::{
            connect::{Failed, Param, Postgres, Row, Session, Type},
            ddl,
            fence::{self, Fence, Held},
            names::{OWN_SCHEMA, quoted},
        },
    },
};

/// In Outrigger's own schema.
const TABLE: &str = "replicas";

/// undefined_table, invalid_schema_name: nobody has taken this target yet.
const NOT_THERE: [&str; 2] = ["42P01", "3F000"];

/// Two that make the table at once wait for each other.
const MAKING: &str = "SELECT pg_advisory_xact_lock(7161820493204184)";

/// Keeps the lease records of a PostgreSQL, and tells those who write which one is this agent's.
pub struct PostgresRecords {
    pg: Postgres,
    fence: Fence,
}

impl PostgresRecords {
    /// `fence` is the one that the sink's transactions ask.
    pub fn new(pg: Postgres, fence: Fence) -> Self {
        Self { pg, fence }
    }

    async fn session(&self) -> Result<Session, SideError> {
        self.pg.session().await.map_err(failed)
    }

    /// The number of rows that a statement returns; none where there is no such table.
    async fn ask(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, SideError> {
        let mut session = self.session().await?;
        match session.query(sql, params).await {
            Err(error) if error.is(&NOT_THERE) => Ok(Vec::new()),
            result => result.map_err(failed),
        }
    }

    /// What is there of each source's transactions, or of those of one.
    async fn counts(&self, source: Option<&str>) -> Result<BTreeMap<String, Counts>, SideError> {
        let sql = format!(
            "SELECT source, counter, n FROM {} WHERE $1::text IS NULL OR source = $1",
            tallies()
        );
        let rows = self.ask(&sql, &[(&source, Type::TEXT)]).await?;
        let mut counts: BTreeMap<String, Vec<(u32, u64)>> = BTreeMap::new();
        for row in &rows {
            let number = || Some((row.try_get::<_, i32>(1).ok()?, row.try_get::<_, i64>(2).ok()?));
            let (Ok(source), Some((counter, n))) = (row.try_get(0), number()) else { continue };
            let number = u32::try_from(counter).ok().zip(u64::try_from(n).ok());
            counts.entry(source).or_default().extend(number);
        }
        Ok(counts.into_iter().map(|(source, counts)| (source, Counts::of(counts))).collect())
    }

    async fn make(&self, session: &mut Session) -> Result<(), Failed> {
        let made = async {
            session.batch(&["BEGIN", MAKING].join(";\n")).await?;
            let statements =
                [ddl::make_schema(OWN_SCHEMA), fence::records_table(), fence::tallies_table()];
            ddl::run(session, &statements).await?;
            session.batch("COMMIT").await
        };
        let made = made.await;
        if made.is_err() {
            session.roll_back().await;
        }
        made
    }
}

fn failed(failed: Failed) -> SideError {
    SinkError::from(failed).into()
}

/// A record that is left out would let two agents write the same tables.
fn unreadable(row: &Row) -> SideError {
    let source: String = row.try_get(0).unwrap_or_default();
    let problem = format!("the mark of ownership of `{source}` in {} cannot be read", table());
    SinkError::Rejected(problem).into()
}

fn table() -> String {
    format!("{}.{TABLE}", quoted(OWN_SCHEMA))
}

fn tallies() -> String {
    format!("{}.tallies", quoted(OWN_SCHEMA))
}

impl LeaseRecords for PostgresRecords {
    fn name(&self, _: &str) -> String {
        format!("{OWN_SCHEMA}.{TABLE}")
    }

    /// They stand beside the collections, in no name of one.
    fn is_of_records(&self, _: &Namespace) -> bool {
        false
    }

    fn read<'a>(&'a self, place: &'a str) -> Answer<'a, Vec<LeaseRecord>> {
        Box::pin(async move {
            let sql = format!(
                "SELECT source, lease_id, holder, checkpoint::text, \
                 (extract(epoch FROM heartbeat) * 1000)::bigint, \
                 (extract(epoch FROM clock_timestamp() - heartbeat) * 1000)::bigint, mark::text FROM {} ORDER BY source",
                table()
            );
            let rows = self.ask(&sql, &[]).await?;
            let mut counts = self.counts(None).await?;
            rows.iter()
                .map(|row| {
                    let record = read_record(row, place).ok_or_else(|| unreadable(row))?;
                    let counts = counts.remove(&record.source_id).unwrap_or_default();
                    Ok(LeaseRecord { counts, ..record })
                })
                .collect()
        })
    }

    /// There is one place for them.
    fn elsewhere<'a>(&'a self, _: &'a str) -> Answer<'a, Vec<(String, Vec<LeaseRecord>)>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn set<'a>(
        &'a self,
        _: &'a str,
        record: NewLeaseRecord<'a>,
        before: Option<&'a str>,
        is_new: bool,
    ) -> Answer<'a, bool> {
        let mark = mark_of(&record).to_string();
        let held = Held {
            source: record.source_id.to_owned(),
            lease_id: record.lease_id.to_owned(),
            holder: record.agent.instance.clone(),
        };
        Box::pin(async move {
            // Earlier versions counted nothing, and somebody may have dropped the table.
            let counted = format!("SELECT to_regclass('{}') IS NOT NULL", tallies());
            let is_counted = self.ask(&counted, &[]).await?;
            let is_counted = is_counted.first().is_some_and(|row| row.try_get(0).unwrap_or(false));
            let mut session = self.session().await?;
            if is_new || !is_counted {
                self.make(&mut session).await.map_err(failed)?;
            }
            let is_set = set(&mut session, &held, &mark, before, is_new).await;
            if is_set.is_err() {
                session.roll_back().await;
            }
            if !is_set.map_err(failed)? {
                return Ok(false);
            }
            drop(session);
            // It may have lost something since it was looked at, and what it has now would be taken for all.
            let has = self.counts(Some(&held.source)).await?.remove(&held.source);
            let has = has.unwrap_or_default();
            if !has.have(record.counts) {
                return Ok(false);
            }
            self.fence.tally().take_up(has);
            self.fence.set(Some(held));
            Ok(true)
        })
    }

    fn renew<'a>(
        &'a self,
        _: &'a str,
        source_id: &'a str,
        instance: &'a str,
        left: ClusterTime,
        checkpoint: ClusterTime,
        upstream: Vec<&'a str>,
    ) -> Answer<'a, bool> {
        Box::pin(async move {
            let sql = format!(
                "UPDATE {} SET checkpoint = greatest(checkpoint, $4::numeric), heartbeat = clock_timestamp(), \
                 mark = mark || $5::jsonb WHERE source = $1 AND holder = $2 \
                 AND (checkpoint IS NULL OR checkpoint >= $3::numeric) RETURNING 1",
                table()
            );
            let (left, checkpoint) = (left.0.to_string(), checkpoint.0.to_string());
            let upstream = json!({ "upstream": upstream }).to_string();
            let params: [Param<'_>; 5] = [
                (&source_id, Type::TEXT),
                (&instance, Type::TEXT),
                (&left, Type::TEXT),
                (&checkpoint, Type::TEXT),
                (&upstream, Type::TEXT),
            ];
            // What was confirmed before the look is there for it.
            let confirmed = self.fence.tally().confirmed().unwrap_or_default();
            let is_as_left = !self.ask(&sql, &params).await?.is_empty();
            let has = self.counts(Some(source_id)).await?.remove(source_id).unwrap_or_default();
            Ok(is_as_left && has.have(&confirmed))
        })
    }

    fn release<'a>(&'a self, _: &'a str, source_id: &'a str, instance: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.fence.set(None);
            let sql = format!(
                "UPDATE {} SET holder = NULL, mark = mark - 'agent' WHERE source = $1 AND holder = $2",
                table()
            );
            let params: [Param<'_>; 2] = [(&source_id, Type::TEXT), (&instance, Type::TEXT)];
            self.ask(&sql, &params).await.map(drop)
        })
    }

    fn remove<'a>(&'a self, _: &'a str, source_id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let sql = format!("DELETE FROM {} WHERE source = $1", table());
            self.ask(&sql, &[(&source_id, Type::TEXT)]).await.map(drop)
        })
    }

    fn remove_with_place<'a>(&'a self, place: &'a str, source_id: &'a str) -> Answer<'a, ()> {
        self.remove(place, source_id)
    }
}

/// In one transaction with a lock that no batch in flight passes. False where the record is not as it was read.
async fn set(
    session: &mut Session,
    held: &Held,
    mark: &str,
    before: Option<&str>,
    is_new: bool,
) -> Result<bool, Failed> {
    let Held { source, lease_id, holder } = held;
    let table = table();
    // Last one in: an answer that is given counts, whatever this database is set up to do.
    session.batch("BEGIN; SET LOCAL synchronous_commit = 'on'").await?;
    let lock = format!("SELECT 1 FROM {table} WHERE source = $1 FOR UPDATE");
    session.query(&lock, &[(source, Type::TEXT)]).await?;
    let changes = "lease_id = $2, holder = $3, heartbeat = clock_timestamp(), \
                   mark = r.mark || $4::jsonb || jsonb_build_object('startedAt', now())";
    let sql = if is_new {
        format!(
            "INSERT INTO {table} AS r (source, lease_id, holder, heartbeat, mark) VALUES ($1, $2, $3, clock_timestamp(), \
             $4::jsonb || jsonb_build_object('startedAt', now(), 'claimedAt', now())) \
             ON CONFLICT (source) DO UPDATE SET {changes} WHERE r.holder IS NOT DISTINCT FROM $5 RETURNING 1"
        )
    } else {
        format!(
            "UPDATE {table} AS r SET {changes} WHERE source = $1 AND r.holder IS NOT DISTINCT FROM $5 RETURNING 1"
        )
    };
    let params: [Param<'_>; 5] = [
        (source, Type::TEXT),
        (lease_id, Type::TEXT),
        (holder, Type::TEXT),
        (&mark, Type::TEXT),
        (&before, Type::TEXT),
    ];
    let rows = session.query(&sql, &params).await?;
    session.batch("COMMIT").await?;
    Ok(!rows.is_empty())
}

fn patterns_json(patterns: &Patterns) -> Value {
    json!({ "include": patterns.include, "exclude": patterns.exclude })
}

fn mark_of(record: &NewLeaseRecord<'_>) -> Value {
    let NewLeaseRecord { patterns, copied, refused, upstream, agent, .. } = record;
    let AgentIdentity { id, instance, host, boot, pid } = agent;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "include": patterns.include, "exclude": patterns.exclude,
        "copied": copied.iter().map(patterns_json).collect::<Vec<_>>(),
        "refused": refused.iter().map(Namespace::as_str).collect::<Vec<_>>(),
        "upstream": upstream,
        "life": instance,
        "agent": { "id": id, "instance": instance, "host": host, "boot": boot, "pid": pid },
    })
}

fn texts(mark: &Value, name: &str) -> Vec<String> {
    let array = mark.get(name).and_then(Value::as_array);
    array.into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn filter_of(mark: &Value, place: &str) -> Option<NamespaceFilter> {
    let filter = NamespaceFilter::new(&texts(mark, "include"), &texts(mark, "exclude")).ok()?;
    Some(filter.with_state_database(place))
}

fn read_record(row: &Row, place: &str) -> Option<LeaseRecord> {
    let mark: Value = serde_json::from_str(row.try_get(6).ok()?).ok()?;
    let before = mark.get("copied").and_then(Value::as_array).into_iter().flatten();
    let checkpoint: Option<&str> = row.try_get(3).ok()?;
    let holder: Option<String> = row.try_get(2).ok()?;
    Some(LeaseRecord {
        source_id: row.try_get(0).ok()?,
        filter: filter_of(&mark, place)?,
        copied: before.filter_map(|patterns| filter_of(patterns, place)).collect(),
        refused: texts(&mark, "refused").iter().filter_map(|name| name.parse().ok()).collect(),
        upstream: texts(&mark, "upstream"),
        lease_id: row.try_get(1).ok(),
        life: mark.get("life").and_then(Value::as_str).map(str::to_owned),
        checkpoint: ClusterTime(checkpoint.and_then(|text| text.parse().ok()).unwrap_or_default()),
        holder: holder.and_then(|instance| read_holder(instance, &mark, row)),
        counts: Counts::default(),
    })
}

fn read_holder(instance: String, mark: &Value, row: &Row) -> Option<LeaseHolder> {
    let agent = mark.get("agent");
    let field = |name: &str| agent.and_then(|agent| agent.get(name));
    let text = |name: &str| field(name).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let pid = field("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok());
    let silent_ms: i64 = row.try_get(5).ok()?;
    Some(LeaseHolder {
        agent: AgentIdentity {
            id: text("id"),
            instance,
            host: text("host"),
            boot: text("boot"),
            pid: pid.unwrap_or(0),
        },
        heartbeat: row.try_get(4).ok()?,
        silent_for: Duration::from_millis(silent_ms.try_into().unwrap_or(0)),
    })
}
