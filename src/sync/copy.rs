//! The plain copy into an empty collection: read and write overlapped, raw throughout, a range at a time.
//!
//! Used in both directions: the first copy (local → Atlas) and the restore (Atlas → local).

use std::time::Duration;

use bson::RawDocument;

use super::{
    SyncError, pause,
    range::PatientWalk,
    sides::{SideName, Sides},
};
use crate::{
    model::{checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace},
    policy::backoff::OutageWait,
    runtime::{
        crash::{self, CrashPoint},
        shutdown::Stop,
    },
    side::{KeyRange, Order, Page, Part, Route},
    sink::{Sink, SinkError, Write, Written},
    source::SourceError,
};

/// A part of a copy.
#[derive(Clone, Debug)]
pub struct Unit {
    pub ns: Namespace,
    pub range: KeyRange,
    pub order: Order,
    /// Documents in a reply.
    pub page: u32,
}

/// Who wants to know what becomes of a copy.
pub trait CopyObserver: Sync {
    /// Waits while nothing may be written.
    fn may_go_on(&self) -> impl Future<Output = Result<(), SyncError>> + Send;

    /// These are in the target.
    fn copied(&self, ns: &Namespace, documents: u64, bytes: u64);

    /// The target would not take these, for this reason.
    fn refused(
        &self,
        ns: &Namespace,
        documents: Vec<(DocumentKey, String)>,
    ) -> impl Future<Output = Result<(), SyncError>> + Send;

    /// The target did not answer, or answers again. An error ends the copy.
    fn answered(
        &self,
        ns: &Namespace,
        writes: &[Write<'_>],
        error: Option<&SinkError>,
    ) -> Result<(), SyncError>;
}

/// Copies ranges of collections.
pub struct Copier<'a, K, L> {
    pub sides: &'a Sides,
    /// Where from.
    pub from: SideName,
    pub sink: &'a K,
    pub ledger: &'a L,
    /// What is read shows no older state.
    pub after: ClusterTime,
    /// What becomes of a document that is there already, from a part whose answer was lost, or from an earlier
    /// run.
    pub there_already: ThereAlready,
    pub stop: &'a Stop,
}

/// See [`Copier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThereAlready {
    /// It is written over: the original may be newer.
    WriteOver,
    /// It is written over where its turn comes. In a capped collection, what comes later may push it out.
    WriteOverInOrder,
    /// It is left as it is: it may be somebody's.
    Leave,
}

impl<K: Sink, L: CopyObserver> Copier<'_, K, L> {
    /// Copies one unit. Whatever passes is waited for.
    ///
    /// # Errors
    /// What waiting does not mend.
    pub async fn copy(&self, unit: &Unit) -> Result<(), SyncError> {
        let route = Route {
            ns: unit.ns.clone(),
            range: unit.range.clone(),
            part: Part::Whole,
            order: unit.order,
            after: self.after,
            page: unit.page,
        };
        let _slot = self.sides.slot().await;
        let mut walk = PatientWalk::new(self.sides, self.from, route, self.stop);
        let mut page = self.read(&mut walk).await?;
        while let Some(read) = page {
            if self.stop.is_draining() {
                return Err(SyncError::Stopped);
            }
            let write = async {
                let _room = self.sides.copying(read.bytes()).await;
                self.write(&unit.ns, &read).await
            };
            let (next, written) = tokio::join!(self.read(&mut walk), write);
            let is_written = written?;
            page = next?;
            if !is_written {
                walk.go_back_before(&read);
                page = self.read(&mut walk).await?;
            }
            crash::point(CrashPoint::PartCopied);
        }
        Ok(())
    }

    async fn read(&self, walk: &mut PatientWalk<'_>) -> Result<Option<Page>, SyncError> {
        let page = walk.next().await?;
        if let (SideName::Local, Some(page)) = (self.from, &page) {
            self.sides.throttle(page.count(), self.stop).await?;
        }
        Ok(page)
    }

    /// Writes the documents of a page. They are not copied: what is written borrows the reply. False when the page
    /// was read under a permit that holds no longer, and must be read again.
    async fn write(&self, ns: &Namespace, page: &Page) -> Result<bool, SyncError> {
        let found = page.documents()?;
        let documents = found.len() as u64;
        let bytes = found.iter().map(|document| document.as_bytes().len() as u64).sum();
        let mut open: Vec<_> = found.into_iter().map(Pending::new).collect();
        if self.there_already == ThereAlready::WriteOverInOrder {
            open.iter_mut().try_for_each(Pending::write_over)?;
        }
        let mut wait = OutageWait::new(Duration::from_millis(500), Duration::from_secs(15));
        while !open.is_empty() {
            self.ledger.may_go_on().await?;
            // What was read in one epoch is not written in another.
            if !page.permit().holds() {
                return Ok(false);
            }
            let writes: Vec<_> = open.iter().map(Pending::as_write).collect();
            match self.sink.write(ns, &writes).await {
                Ok(written) => {
                    self.ledger.answered(ns, &writes, None)?;
                    let (again, refused) = leftovers(open, written, self.there_already)?;
                    if !refused.is_empty() {
                        self.ledger.refused(ns, refused).await?;
                    }
                    open = again;
                }
                // The command as such.
                Err(SinkError::Rejected(error)) => {
                    let keys = writes.iter().filter_map(Write::key);
                    let refused = keys.map(|key| (key, error.clone())).collect();
                    self.ledger.refused(ns, refused).await?;
                    open.clear();
                }
                Err(error) => {
                    self.ledger.answered(ns, &writes, Some(&error))?;
                    pause(self.stop, wait.next_wait()).await?;
                }
            }
        }
        self.ledger.copied(ns, documents, bytes);
        Ok(true)
    }
}

/// A document of a page that is not written yet.
struct Pending<'a> {
    document: &'a RawDocument,
    /// Known once it was found in the target, or may be there, to be written over.
    there_already: Option<DocumentKey>,
}

impl<'a> Pending<'a> {
    fn new(document: &'a RawDocument) -> Self {
        Self { document, there_already: None }
    }

    /// From here on it is an upsert.
    fn write_over(&mut self) -> Result<(), SyncError> {
        let key = DocumentKey::of(self.document).map_err(SourceError::from)?;
        self.there_already = Some(key);
        Ok(())
    }

    fn as_write(&self) -> Write<'_> {
        match &self.there_already {
            None => Write::Insert(self.document),
            Some(key) => Write::Upsert { key, document: self.document },
        }
    }
}

type Refused = Vec<(DocumentKey, String)>;

/// What a part left to do: documents that were there already, to be written over; and those that the target would not take.
fn leftovers(
    copies: Vec<Pending<'_>>,
    written: Vec<Written>,
    there_already: ThereAlready,
) -> Result<(Vec<Pending<'_>>, Refused), SyncError> {
    let (mut again, mut refused) = (Vec::new(), Vec::new());
    for (mut copy, written) in copies.into_iter().zip(written) {
        match written {
            Written::AlreadyThere if there_already == ThereAlready::WriteOver => {
                copy.write_over()?;
                again.push(copy);
            }
            Written::Conflict { reason, .. } | Written::Rejected { reason, .. } => {
                refused.extend(copy.as_write().key().map(|key| (key, reason)));
            }
            Written::AlreadyThere | Written::Applied { .. } | Written::Unmatched => {}
        }
    }
    Ok((again, refused))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet, VecDeque},
        sync::{
            Arc,
            atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        },
    };

    use parking_lot::Mutex;

    use super::*;
    use crate::{model::write_op::Refusal, side::fake::FakeSide};

    /// How a command ends that is no plain success.
    enum Reply {
        Away,
        /// It is done, and nobody hears of it.
        Lost,
        Refused,
    }

    #[derive(Default)]
    struct Target {
        documents: Mutex<BTreeMap<i32, i32>>,
        /// Of the next commands.
        replies: Mutex<VecDeque<Reply>>,
        refuses: BTreeSet<i32>,
    }

    impl Sink for Target {
        async fn write(
            &self,
            _: &Namespace,
            writes: &[Write<'_>],
        ) -> Result<Vec<Written>, SinkError> {
            let reply = self.replies.lock().pop_front();
            match reply {
                Some(Reply::Away) => return Err(SinkError::Unavailable("away".to_owned())),
                Some(Reply::Refused) => return Err(SinkError::Rejected("no".to_owned())),
                Some(Reply::Lost) | None => {}
            }
            let mut all = self.documents.lock();
            let written = writes.iter().map(|write| {
                let (document, is_over) = match write {
                    Write::Insert(document) => (*document, false),
                    Write::Upsert { document, .. } => (*document, true),
                    _ => panic!("a copy writes whole documents"),
                };
                let of = |name| document.get_i32(name).unwrap();
                let id = of("_id");
                if self.refuses.contains(&id) {
                    let (reason, refusal) = ("too large".to_owned(), Refusal::TooLarge);
                    return Written::Rejected { reason, refusal };
                }
                if all.contains_key(&id) && !is_over {
                    return Written::AlreadyThere;
                }
                Written::Applied { created: all.insert(id, of("v")).is_none() }
            });
            let written = written.collect();
            match reply {
                Some(_) => Err(SinkError::Unanswered("lost".to_owned())),
                None => Ok(written),
            }
        }
    }

    #[derive(Default)]
    struct Noted {
        copied: AtomicU64,
        unanswered: AtomicUsize,
        refused: Mutex<Vec<(i32, String)>>,
    }

    impl CopyObserver for Noted {
        async fn may_go_on(&self) -> Result<(), SyncError> {
            Ok(())
        }

        fn copied(&self, _: &Namespace, documents: u64, _: u64) {
            self.copied.fetch_add(documents, Relaxed);
        }

        async fn refused(
            &self,
            _: &Namespace,
            documents: Vec<(DocumentKey, String)>,
        ) -> Result<(), SyncError> {
            let of =
                |(key, why): (DocumentKey, String)| (key.filter().get_i32("_id").unwrap(), why);
            self.refused.lock().extend(documents.into_iter().map(of));
            Ok(())
        }

        fn answered(
            &self,
            _: &Namespace,
            _: &[Write<'_>],
            error: Option<&SinkError>,
        ) -> Result<(), SyncError> {
            self.unanswered.fetch_add(usize::from(error.is_some()), Relaxed);
            Ok(())
        }
    }

    /// Copies ten documents, `v` of which is 1, in pages of three.
    async fn copy(
        target: &Target,
        there_already: ThereAlready,
        stop: &Stop,
    ) -> (Result<(), SyncError>, Noted) {
        let local = FakeSide::of((0..10).map(|id| (id, 1)));
        let sides = Sides::new(Arc::new(local), Arc::new(FakeSide::default()), 1, 0);
        let noted = Noted::default();
        let copier = Copier {
            sides: &sides,
            from: SideName::Local,
            sink: target,
            ledger: &noted,
            after: ClusterTime::default(),
            there_already,
            stop,
        };
        let unit = Unit {
            ns: Namespace::new("shop", "orders"),
            range: KeyRange::default(),
            order: Order::ById,
            page: 3,
        };
        (copier.copy(&unit).await, noted)
    }

    fn ten() -> BTreeMap<i32, i32> {
        (0..10).map(|id| (id, 1)).collect()
    }

    #[tokio::test]
    async fn outages_and_lost_answers_cost_no_document_and_none_is_counted_twice() {
        let replies = [Reply::Away, Reply::Lost].into();
        let target = Target { replies: Mutex::new(replies), ..Target::default() };

        let (ended, noted) = copy(&target, ThereAlready::WriteOver, &Stop::default()).await;

        ended.unwrap();
        assert_eq!(*target.documents.lock(), ten());
        assert_eq!((noted.copied.into_inner(), noted.unanswered.into_inner()), (10, 2));
        assert!(noted.refused.lock().is_empty());
    }

    #[tokio::test]
    async fn what_is_there_already_is_written_over_or_left_as_the_copy_says() {
        for (there_already, v) in [
            (ThereAlready::WriteOver, 1),
            (ThereAlready::WriteOverInOrder, 1),
            (ThereAlready::Leave, 99),
        ] {
            let target = Target { documents: Mutex::new([(4, 99)].into()), ..Target::default() };

            let (ended, noted) = copy(&target, there_already, &Stop::default()).await;

            ended.unwrap();
            let expected: BTreeMap<_, _> = ten().into_iter().chain([(4, v)]).collect();
            assert_eq!(*target.documents.lock(), expected, "{there_already:?}");
            assert_eq!(noted.copied.into_inner(), 10, "{there_already:?}");
        }
    }

    #[tokio::test]
    async fn what_the_target_refuses_is_named_and_keeps_nothing_else_away() {
        let target = Target { refuses: [5].into(), ..Target::default() };
        let (ended, noted) = copy(&target, ThereAlready::WriteOver, &Stop::default()).await;
        ended.unwrap();
        assert_eq!(target.documents.lock().len(), 9);
        assert_eq!(noted.refused.into_inner(), [(5, "too large".to_owned())]);

        // The command as such: all of its documents, and of no other.
        let replies = Mutex::new([Reply::Refused].into());
        let target = Target { replies, ..Target::default() };
        let (ended, noted) = copy(&target, ThereAlready::WriteOver, &Stop::default()).await;
        ended.unwrap();
        assert_eq!(noted.refused.into_inner(), [0, 1, 2].map(|id| (id, "no".to_owned())));
        assert_eq!(target.documents.lock().len(), 7);
    }

    #[tokio::test]
    async fn a_copy_that_is_told_to_stop_in_an_outage_stops() {
        let replies = (0..1_000).map(|_| Reply::Away).collect();
        let target = Target { replies: Mutex::new(replies), ..Target::default() };
        let stop = Stop::default();
        let told = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stop.drain.cancel();
        };

        let ((ended, noted), ()) =
            tokio::join!(copy(&target, ThereAlready::WriteOver, &stop), told);

        assert!(matches!(ended, Err(SyncError::Stopped)), "{ended:?}");
        assert_eq!(noted.copied.into_inner(), 0);
    }
}
