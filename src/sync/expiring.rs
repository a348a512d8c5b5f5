//! Counting a collection whose documents expire: each server throws them away at a moment of its own, so only
//! two parts of it tell anything.
//!
//! - **What stays**: documents that no server is about to expire. Both sides have the same, or something is missing.
//! - **What is gone**: documents that are past their time for long. A server that still has them keeps them for
//!   good, as one with `ttlMonitorEnabled` off does; what Atlas then expires by itself stands here alone.
//!
//! Both sides are counted with the same moment, well before or well after what any of the clocks says. Such a
//! collection differs all the time, so it is counted once an hour at the most, and a difference counts only where
//! several counts in a row show it. With one expiry and neither a partial filter nor lists, what stays is counted
//! within the index, else the collection is read as it would be for any exact count; the server gives up after
//! the time for which an answer is waited for.

use std::time::Duration;

use super::{
    SyncError,
    counts::{CountCheck, Counts, LOOK_APART},
    pause,
};
use crate::{
    model::namespace::Namespace,
    observe::status::{Counted, Divergence},
    runtime::{
        clock::{self, now_ms},
        shutdown::Stop,
    },
    schema::expiry::Expiry,
    sink::SchemaSink,
};

/// How often a difference is counted before it is believed.
const LOOKS: usize = 3;

/// How far beyond now a document must live to stay; more where counting takes more than half of it.
const MARGIN: Duration = Duration::from_secs(120);

/// How long past its time a document must be to be certainly gone: servers look once a minute, and need a while
/// for many.
const GRACE: Duration = Duration::from_secs(3600);

/// What several counts say together.
enum CountVerdict {
    Same,
    Differs(Divergence),
    /// What would explain a difference is not read yet, or counting takes longer than anything stays as it is.
    Unknown,
}

impl<K: SchemaSink> CountCheck<K> {
    /// What differs among the documents that both must have, and among those that neither should; `None` where
    /// it cannot be told now.
    pub(super) async fn confirm_expiring(
        &self,
        ns: &Namespace,
        expiry: &Expiry,
        estimated: Counts,
        stop: &Stop,
    ) -> Result<Option<Vec<Divergence>>, SyncError> {
        let mut found = Vec::new();
        for counted in [Counted::Staying, Counted::Gone] {
            match self.count_expiring(ns, expiry, counted, estimated, stop).await? {
                CountVerdict::Same => {}
                CountVerdict::Differs(divergence) => found.push(divergence),
                CountVerdict::Unknown => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    async fn count_expiring(
        &self,
        ns: &Namespace,
        expiry: &Expiry,
        counted: Counted,
        estimated: Counts,
        stop: &Stop,
    ) -> Result<CountVerdict, SyncError> {
        let differs = |local, atlas, counted| {
            CountVerdict::Differs(Divergence { ns: ns.to_string(), local, atlas, counted })
        };
        let mut margin = MARGIN;
        let mut verdict = CountVerdict::Unknown;
        for look in 0..LOOKS {
            if look > 0 {
                pause(stop, LOOK_APART.min(self.every)).await?;
            }
            let (earliest, latest) = self.clocks().await?;
            let filter = match counted {
                Counted::Gone => expiry.gone(earliest - ms(GRACE)),
                Counted::Staying | Counted::All | Counted::Estimated => {
                    Some(expiry.staying(latest.saturating_add(ms(margin))))
                }
            };
            let Some(filter) = filter else { return Ok(CountVerdict::Same) };
            if !self.has_read_all(stop).await? {
                return Ok(CountVerdict::Unknown);
            }
            let began = clock::now();
            let exact = self.count_exactly(ns, Some(&filter)).await?;
            let took = clock::since(began);
            verdict = match exact {
                // Some of them may have gone meanwhile.
                Some(_) if took > margin / 2 => {
                    margin = took * 4;
                    CountVerdict::Unknown
                }
                Some(exact) if exact.are_explained(0) => return Ok(CountVerdict::Same),
                Some(Counts { local: [_, local], atlas, .. }) => differs(local, atlas, counted),
                // Too many for that. What the moments of the servers do not make is all that can be told.
                None if counted == Counted::Staying && !estimated.are_about_equal() => {
                    let Counts { local: [_, local], atlas, .. } = estimated;
                    return Ok(differs(local, atlas, Counted::Estimated));
                }
                None => return Ok(CountVerdict::Same),
            };
        }
        Ok(verdict)
    }

    /// The earliest and the latest time, in milliseconds since 1970, that either server or this host takes for now.
    async fn clocks(&self) -> Result<(i64, i64), SyncError> {
        let now = now_ms() as i64;
        let source = self.cx.sides.local.clock().await?.unwrap_or(now);
        let target = self.cx.sides.atlas.clock().await?.unwrap_or(now);
        Ok((now.min(source).min(target), now.max(source).max(target)))
    }
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
