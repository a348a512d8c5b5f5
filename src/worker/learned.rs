//! What the worker remembers between batches: of collections, and of entries that wait for the local side. Each has a
//! lock of its own, which is never held while anything is asked.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use parking_lot::Mutex;

use crate::{
    model::{checkpoint::ClusterTime, namespace::Namespace},
    policy::{anew::ComesAnew, insert_mode::InsertMode},
    runtime::clock,
};

/// What decides how documents of a collection are written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traits {
    pub insert_mode: InsertMode,
    /// Moving average of its documents' size, for `auto`.
    pub document_bytes: usize,
}

/// Another collection under a name than the one that entries were queued for.
#[derive(Clone, Copy, Debug)]
struct UuidMismatch {
    seen: Instant,
    /// The source's time of a read that began after it was seen.
    read_at: Option<ClusterTime>,
}

#[derive(Debug, Default)]
struct Learned {
    traits: Traits,
    uuid_mismatch: Option<UuidMismatch>,
    /// Of a capped one.
    anew: ComesAnew,
    /// It is there in Atlas: asked for only where the stream does not tell that collections are made.
    is_there: bool,
}

/// What is learned of each collection.
#[derive(Debug, Default)]
pub(super) struct Collections(Mutex<HashMap<Namespace, Learned>>);

impl Collections {
    pub fn traits(&self, ns: &Namespace) -> Traits {
        self.0.lock().get(ns).map(|learned| learned.traits).unwrap_or_default()
    }

    pub fn learn(&self, ns: &Namespace, learn: impl FnOnce(&mut Traits)) {
        learn(&mut self.0.lock().entry(ns.clone()).or_default().traits);
    }

    /// See [`ComesAnew::begin`].
    pub fn begin_anew(&self, ns: &Namespace, seq: u64, position: u64) {
        self.0.lock().entry(ns.clone()).or_default().anew.begin(seq, position);
    }

    /// See [`ComesAnew::has`].
    pub fn comes_anew(&self, ns: &Namespace, seq: u64) -> bool {
        self.0.lock().get(ns).is_some_and(|learned| learned.anew.has(seq))
    }

    pub fn is_there(&self, ns: &Namespace) -> bool {
        self.0.lock().get(ns).is_some_and(|learned| learned.is_there)
    }

    /// It is in Atlas from now on, or a change of it is on its way.
    pub fn set_there(&self, ns: &Namespace, is_there: bool) {
        let mut all = self.0.lock();
        match all.get_mut(ns) {
            Some(learned) => learned.is_there = is_there,
            None if is_there => all.entry(ns.clone()).or_default().is_there = true,
            None => {}
        }
    }

    /// Another collection than the one of some entries has the name, or, `false`, none of them sees one any more.
    pub fn uuid_mismatch(&self, ns: &Namespace, is_seen: bool) {
        let mut all = self.0.lock();
        if is_seen {
            let uuid_mismatch = &mut all.entry(ns.clone()).or_default().uuid_mismatch;
            uuid_mismatch.get_or_insert_with(|| UuidMismatch { seen: clock::now(), read_at: None });
        } else if let Some(learned) = all.get_mut(ns) {
            learned.uuid_mismatch = None;
        }
    }

    /// The time of the first read that began after another collection of this name had been seen.
    pub fn mismatch_read_at(
        &self,
        ns: &Namespace,
        (read_began, read_at): (Instant, Option<ClusterTime>),
    ) -> Option<ClusterTime> {
        let mut all = self.0.lock();
        let uuid_mismatch = all.get_mut(ns)?.uuid_mismatch.as_mut()?;
        if uuid_mismatch.read_at.is_none() && read_began > uuid_mismatch.seen {
            uuid_mismatch.read_at = read_at.filter(|at| at.0 < u64::MAX);
        }
        uuid_mismatch.read_at
    }
}

/// Entries whose wait is remembered.
const WAITING_MAX: usize = 10_000;

/// Entries that wait for the local side, by sequence number.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// When a document, or a collection, was first seen to be gone locally.
    since: HashMap<u64, ClusterTime>,
    /// Renames that were sent, and may have been made.
    renames_sent: HashSet<u64>,
}

impl Waiting {
    /// The time of its first look. On a busy stream the time of each new one is always ahead.
    pub fn since(&self, seq: u64) -> Option<ClusterTime> {
        self.0.lock().since.get(&seq).copied()
    }

    /// It waits; `now` counts where this is its first look.
    pub fn goes_on(&self, seq: u64, now: ClusterTime) {
        let since = &mut self.0.lock().since;
        // Some find their place without coming here again; what is forgotten is only seen anew.
        if since.len() >= WAITING_MAX {
            since.clear();
        }
        since.entry(seq).or_insert(now);
    }

    pub fn is_over(&self, seq: u64) {
        self.0.lock().since.remove(&seq);
    }

    /// A rename goes to Atlas. False when this process has sent it before.
    pub fn rename_sent(&self, seq: u64) -> bool {
        self.0.lock().renames_sent.insert(seq)
    }

    pub fn rename_made(&self, seq: u64) {
        self.0.lock().renames_sent.remove(&seq);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_uuid_mismatch_is_believed_by_a_read_that_began_after_it_was_seen() {
        let (collections, ns) = (Collections::default(), Namespace::new("shop", "orders"));
        let before = Instant::now();
        let read = |began, at| collections.mismatch_read_at(&ns, (began, Some(ClusterTime(at))));
        assert_eq!(read(before, 1), None, "none was seen");

        collections.uuid_mismatch(&ns, true);
        let after = Instant::now() + Duration::from_secs(1);

        assert_eq!(read(before, 2), None);
        assert_eq!(read(after, u64::MAX), None, "a read without a time proves nothing");
        assert_eq!(read(after, 3), Some(ClusterTime(3)));
        collections.uuid_mismatch(&ns, true);
        assert_eq!(read(after, 4), Some(ClusterTime(3)), "the first one counts");
        collections.uuid_mismatch(&ns, false);
        assert_eq!(read(after, 5), None);
    }

    /// It may have begun before.
    #[tokio::test(start_paused = true)]
    async fn a_read_that_began_in_the_instant_of_the_look_proves_nothing() {
        let (collections, ns) = (Collections::default(), Namespace::new("shop", "orders"));
        collections.uuid_mismatch(&ns, true);

        let read = (clock::now(), Some(ClusterTime(1)));

        assert_eq!(collections.mismatch_read_at(&ns, read), None);
    }

    #[test]
    fn an_entry_that_waits_keeps_the_time_of_its_first_look() {
        let waiting = Waiting::default();
        waiting.goes_on(1, ClusterTime(5));
        waiting.goes_on(1, ClusterTime(9));

        assert_eq!(waiting.since(1), Some(ClusterTime(5)));
        waiting.is_over(1);
        assert_eq!(waiting.since(1), None);
    }

    #[test]
    fn a_rename_is_sent_for_the_first_time_once() {
        let waiting = Waiting::default();

        assert!(waiting.rename_sent(1) && !waiting.rename_sent(1) && waiting.rename_sent(2));
        waiting.rename_made(1);
        assert!(waiting.rename_sent(1));
    }
}
