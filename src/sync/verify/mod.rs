//! The verification: compares both sides, and writes nothing.
//!
//! While the application writes, a document may differ because its change is still on the way. So what was
//! found is looked at again, and counts only when the local document has stayed the same for longer than
//! the replication lags, and Atlas still has another one.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::Hasher,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bson::RawDocumentBuf;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

use super::{
    Collection, LeftOut, SyncError, atlas_collections,
    compare::{Compared, Comparison, Findings, Mismatch, mismatch},
    pause,
    range::splits,
    sides::{Sides, ask},
    unmatched,
};
use crate::{
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        namespace::{Namespace, NamespaceFilter},
    },
    observe::progress::{Progress, ShareState},
    runtime::{
        clock::{self, now_ms},
        shutdown::Stop,
    },
    side::{KeyRange, Part, Size},
};

mod schemas;

/// Keys that a result names, of each kind.
const NAMED: usize = 10;

/// Findings of one collection that are looked at again; beyond it they count at once.
const RECHECKED_MAX: usize = 10_000;

/// Keys that are looked up at once.
const LOOKED_UP: usize = 500;

/// The wait before each further look, and the longest time for all of them.
const RECHECK_EVERY: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(60);

/// What a document is given on top of the lag that is known.
const MARGIN: Duration = Duration::from_secs(2);

/// How often a collection that differs in more than can be looked at again is compared anew.
const WALKS_MAX: u32 = 3;

/// Tells how far replication lags; `None` when no agent runs, so that nothing is on the way.
pub type Lag = Arc<dyn Fn() -> Option<Duration> + Send + Sync>;

/// A verification to be made.
pub struct Verify<'a> {
    pub sides: &'a Sides,
    /// What is replicated.
    pub filter: &'a NamespaceFilter,
    /// What of it is verified.
    pub scope: &'a NamespaceFilter,
    pub digest: bool,
    pub lag: Lag,
    pub progress: Arc<Mutex<Progress>>,
    pub stop: &'a Stop,
}

/// Documents that differ in one way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    pub count: u64,
    /// The first ten `_id`s, as extended JSON.
    pub keys: Vec<serde_json::Value>,
}

impl Found {
    fn add(&mut self, key: &DocumentKey) {
        self.count += 1;
        if self.keys.len() < NAMED {
            self.keys.push(key.to_json());
        }
    }
}

/// One collection's result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceResult {
    pub ns: String,
    /// Local documents that were compared, and their bytes.
    pub documents: u64,
    pub bytes: u64,
    pub missing: Found,
    pub extra: Found,
    pub different: Found,
    /// Options and indexes, a sentence each.
    pub schema: Vec<String>,
    /// Documents that changed too often for a judgement.
    pub changing: u64,
}

impl NamespaceResult {
    pub fn is_equal(&self) -> bool {
        self.missing.count + self.extra.count + self.different.count == 0 && self.schema.is_empty()
    }

    fn add(&mut self, kind: Mismatch, key: &DocumentKey) {
        match kind {
            Mismatch::Missing => self.missing.add(key),
            Mismatch::Extra => self.extra.add(key),
            Mismatch::Content => self.different.add(key),
        }
    }
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    pub equal: bool,
    pub digest: bool,
    /// The target has sent hashes of what stands there, and no documents.
    #[serde(skip)]
    pub by_hash: bool,
    pub documents: u64,
    pub bytes: u64,
    /// Bytes of what Atlas sent for it.
    pub bytes_from_atlas: u64,
    pub namespaces: Vec<NamespaceResult>,
    /// Collections that are not replicated, each with the reason.
    pub left_out: Vec<String>,
}

/// A finding that may be about to go away.
struct Suspect {
    kind: Mismatch,
    key: DocumentKey,
    local: Seen,
    copy: Seen,
}

/// A document as it was looked at last, and since when it is so.
struct Seen {
    /// 0 for none.
    fingerprint: Option<u64>,
    since: Instant,
}

impl Seen {
    fn unknown() -> Self {
        Self { fingerprint: None, since: clock::now() }
    }

    fn look(&mut self, document: Option<&RawDocumentBuf>) {
        let seen = document.map_or(0, fingerprint);
        if self.fingerprint.replace(seen) != Some(seen) {
            self.since = clock::now();
        }
    }
}

impl Verify<'_> {
    /// Compares everything in scope.
    ///
    /// # Errors
    /// When an end stays away for longer than patience lasts, or refuses; [`SyncError::NoDigest`].
    pub async fn run(&self) -> Result<Verification, SyncError> {
        let received = self.sides.atlas.received();
        let source = ask!(self.sides, self.stop, self.sides.local.list(self.filter));
        let target =
            ask!(self.sides, self.stop, atlas_collections(&*self.sides.atlas, self.filter));
        let patterns = &self.scope.patterns().include;
        if let Some(nothing) = unmatched(patterns, &[&source, &target]).into_iter().next() {
            return Err(SyncError::NothingMatches(nothing));
        }
        let in_scope = |mut found: Vec<Collection>| {
            found.retain(|collection| self.scope.matches(&collection.ns));
            found
        };
        let views = self.views(&in_scope(source.views), &in_scope(target.views)).await?;
        let (left_out, left_out_in_target) = (source.left_out, target.left_out);
        let (source, target) = (in_scope(source.collections), in_scope(target.collections));
        let mut pairs: BTreeMap<Namespace, (Option<Collection>, Option<Collection>)> =
            BTreeMap::new();
        for collection in source {
            let ns = collection.ns.clone();
            pairs.entry(ns).or_default().0 = Some(collection);
        }
        for collection in target {
            let ns = collection.ns.clone();
            pairs.entry(ns).or_default().1 = Some(collection);
        }
        let sizes = self.measure(pairs.keys().cloned().collect()).await?;
        let work: Vec<_> = pairs.into_iter().zip(sizes).collect();
        let namespaces = self
            .sides
            .each(work, |((ns, (local, atlas)), size)| {
                Box::pin(async move { self.collection(ns, local, atlas, size).await })
            })
            .await?;
        let mut namespaces = namespaces;
        self.look_again(&mut namespaces).await?;
        namespaces.extend(views);
        namespaces.sort_by(|a, b| a.ns.cmp(&b.ns));
        let mut left_out: Vec<_> = left_out
            .into_iter()
            .chain(left_out_in_target)
            .filter(|LeftOut { ns, .. }| self.scope.is_chosen(ns))
            .map(|LeftOut { ns, reason }| format!("{ns}: {reason}"))
            .collect();
        left_out.sort();
        left_out.dedup();
        Ok(Verification {
            equal: namespaces.iter().all(NamespaceResult::is_equal),
            digest: self.digest,
            by_hash: !self.sides.atlas.keeps_documents(),
            documents: namespaces.iter().map(|of| of.documents).sum(),
            bytes: namespaces.iter().map(|of| of.bytes).sum(),
            bytes_from_atlas: self.sides.atlas.received() - received,
            namespaces,
            left_out,
        })
    }

    async fn measure(&self, namespaces: Vec<Namespace>) -> Result<Vec<Size>, SyncError> {
        let mut sizes = self
            .sides
            .each(namespaces, |ns| {
                Box::pin(async move {
                    let size = ask!(self.sides, self.stop, self.sides.local.size(&ns));
                    Ok((ns, size))
                })
            })
            .await?;
        sizes.sort_by(|a, b| a.0.cmp(&b.0));
        let mut progress = self.progress();
        for (ns, size) in &sizes {
            progress.share(ns).documents = size.documents;
        }
        Ok(sizes.into_iter().map(|(_, size)| size).collect())
    }

    async fn collection(
        &self,
        ns: Namespace,
        local: Option<Collection>,
        atlas: Option<Collection>,
        size: Size,
    ) -> Result<NamespaceResult, SyncError> {
        self.progress().share(&ns).state = ShareState::Running;
        let comparison = Comparison {
            sides: self.sides,
            ns: &ns,
            after: ClusterTime::default(),
            is_only_in_target: local.is_none(),
            by_key: local.as_ref().is_some_and(|of| !self.sides.atlas.keeps_order_of(&of.options)),
            page: size.page(),
            stop: self.stop,
        };
        let keys = if comparison.by_key {
            Vec::new()
        } else {
            ask!(self.sides, self.stop, splits(&*self.sides.local, &ns, size))
        };
        let ranges = KeyRange::between(&keys);
        let expected = size.documents / ranges.len() as u64;
        let by_digest = self.digest && !local.as_ref().is_some_and(Collection::is_clustered);
        let (comparison, ranges) = (&comparison, &ranges);
        let how = by_digest.then_some(expected);
        let (mut result, suspects) = self.walk(comparison, ranges, how).await?;
        self.recheck(&ns, suspects, (size.page() as usize).min(LOOKED_UP), &mut result).await?;
        result.schema = self.schema(&ns, local.as_ref(), atlas.as_ref()).await?;
        result.ns = ns.to_string();
        let mut progress = self.progress();
        let share = progress.share(&ns);
        share.state = ShareState::Done;
        (share.missing, share.extra) = (result.missing.count, result.extra.count);
        share.content = result.different.count;
        Ok(result)
    }

    /// Compares all ranges, by digest where it is said how much is expected in each; once more where so much was found
    /// that it may be on its way.
    async fn walk(
        &self,
        comparison: &Comparison<'_>,
        ranges: &[KeyRange],
        by_digest: Option<u64>,
    ) -> Result<(NamespaceResult, Vec<Suspect>), SyncError> {
        let ns = comparison.ns;
        let mut walks = 0;
        loop {
            walks += 1;
            let notes = VerifyNotes {
                verify: self,
                ns,
                result: Mutex::default(),
                has_overflowed: AtomicBool::new(false),
            };
            let to = &notes;
            self.sides
                .each(ranges.to_vec(), |range| {
                    Box::pin(async move {
                        let _slot = self.sides.slot().await;
                        match by_digest {
                            Some(expected) => comparison.digest(&range, expected, to).await,
                            None => comparison.range(&range, Part::Whole, to).await,
                        }
                    })
                })
                .await?;
            // After the lag it is there, or it never will be.
            let lag = self.current_lag().await;
            let Some(lag) =
                lag.filter(|_| notes.has_overflowed.load(Ordering::Relaxed) && walks < WALKS_MAX)
            else {
                return Ok(notes.result.into_inner());
            };
            pause(self.stop, (lag + MARGIN).min(LOOK_MAX)).await?;
            self.progress().share(ns).documents_done = 0;
        }
    }

    /// Looks at what was found again and again, until each is equal, or has differed for longer than
    /// replication lags.
    async fn recheck(
        &self,
        ns: &Namespace,
        mut suspects: Vec<Suspect>,
        part_max: usize,
        result: &mut NamespaceResult,
    ) -> Result<(), SyncError> {
        let began = clock::now();
        while !suspects.is_empty() {
            pause(self.stop, RECHECK_EVERY).await?;
            let (lag, is_over) = (self.current_lag().await, clock::since(began) > LOOK_MAX);
            let allowed = lag.map_or(Duration::ZERO, |lag| lag + MARGIN);
            let mut open = Vec::new();
            let mut rest = suspects.into_iter();
            loop {
                let part: Vec<Suspect> = rest.by_ref().take(part_max).collect();
                if part.is_empty() {
                    break;
                }
                let keys: Vec<_> = part.iter().map(|suspect| suspect.key.clone()).collect();
                let source = ask!(self.sides, self.stop, self.sides.local.find(ns, &keys));
                let target = ask!(self.sides, self.stop, self.sides.atlas.find(ns, &keys));
                for mut suspect in part {
                    let name = suspect.key.canonical();
                    let (local, copy) = (source.get(&name), target.get(&name));
                    let kind = match (local, copy) {
                        (None, None) => continue,
                        (Some(local), Some(copy)) => {
                            match mismatch(&*self.sides.atlas, local, copy) {
                                Some(kind) => kind,
                                None => continue,
                            }
                        }
                        (Some(_), None) => Mismatch::Missing,
                        (None, Some(_)) => Mismatch::Extra,
                    };
                    suspect.kind = kind;
                    suspect.local.look(local);
                    suspect.copy.look(copy);
                    // One that changes all the time is on its way as long as Atlas follows.
                    let stayed =
                        clock::since(suspect.local.since).max(clock::since(suspect.copy.since));
                    // With a queue that does not drain the lag grows as fast as time goes by.
                    if stayed >= allowed || (is_over && stayed > LOOK_MAX / 2) {
                        result.add(kind, &suspect.key);
                    } else if is_over {
                        result.changing += 1;
                    } else {
                        open.push(suspect);
                    }
                }
            }
            suspects = open;
        }
        Ok(())
    }

    async fn current_lag(&self) -> Option<Duration> {
        let lag = self.lag.clone();
        crate::runtime::shutdown::blocking(move || lag()).await
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock()
    }
}

struct VerifyNotes<'a> {
    verify: &'a Verify<'a>,
    ns: &'a Namespace,
    result: Mutex<(NamespaceResult, Vec<Suspect>)>,
    /// More was found than is looked at again.
    has_overflowed: AtomicBool,
}

impl Findings for VerifyNotes<'_> {
    async fn compared(&self, part: Compared) -> Result<(), SyncError> {
        {
            let mut progress = self.verify.progress();
            progress.advanced(self.ns, part.local_documents, part.bytes, now_ms());
        }
        let mut noted = self.result.lock();
        let (result, suspects) = &mut *noted;
        result.documents += part.local_documents;
        result.bytes += part.bytes;
        for (kind, key) in part.found {
            if suspects.len() < RECHECKED_MAX {
                suspects.push(Suspect { kind, key, local: Seen::unknown(), copy: Seen::unknown() });
            } else {
                result.add(kind, &key);
                self.has_overflowed.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

fn fingerprint(document: &RawDocumentBuf) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(document.as_bytes());
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests;
