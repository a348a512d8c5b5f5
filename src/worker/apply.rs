//! One leased batch: sort it by namespace and kind, write it, say how each entry ended.

use super::{
    Verdict, Worker,
    item::{Draft, Item, Unread},
    outcomes::{Halt, LOCAL_WAIT_MS, Outcomes, wait},
    schema::Turn,
};
use crate::{
    config::UpdateMode,
    model::{event::SchemaChange, namespace::Namespace, write_op::WriteOp},
    queue::{Ack, Entry, Outcome, QueueError, Work},
    runtime::shutdown::blocking,
    sink::{SchemaSink, SinkError},
    source::SchemaSource,
    sync::state::{Reason, SyncState},
};

/// Documents of a capped collection that are taken out of Atlas at once, to come anew.
const ANEW_MAX: usize = 100;

/// What documents of a capped collection are written together, since Atlas takes one kind of write after the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Plain,
    /// Read from the local database.
    Read,
    /// Taken out, and put at the end.
    Anew,
    /// Both: by itself, since what is read comes in no order.
    ReadAnew,
}

impl Part {
    fn most(self) -> usize {
        match self {
            Part::Plain | Part::Read => usize::MAX,
            Part::Anew => ANEW_MAX,
            Part::ReadAnew => 1,
        }
    }

    fn comes_anew(self) -> bool {
        matches!(self, Part::Anew | Part::ReadAnew)
    }
}

impl<S: SchemaSource, K: SchemaSink> Worker<S, K> {
    /// Writes the batch and returns one ack for each entry.
    ///
    /// # Errors
    /// When the queue fails.
    pub(super) async fn apply(
        &self,
        entries: Vec<Entry>,
    ) -> Result<(Vec<Ack>, Verdict), QueueError> {
        let leased: Vec<_> = entries.iter().map(|entry| (entry.seq, entry.version)).collect();
        let mut outcomes = Outcomes::of(leased.len());
        let mut by_namespace: Vec<(Namespace, Vec<Entry>)> = Vec::new();
        let mut schema = Vec::new();
        for entry in entries {
            match &entry.work {
                Work::Schema(change) => {
                    let (seq, id, attempts) = (entry.seq, entry.id, entry.attempts);
                    match self.narrowed(change) {
                        Some((change, to_compare)) => {
                            let turn = Turn { seq, id, attempts, time: entry.first_time };
                            schema.push((turn, change, to_compare));
                        }
                        None => outcomes.insert(seq, Outcome::PassedOver),
                    }
                }
                Work::Document { ns, .. } => {
                    match by_namespace.iter_mut().find(|(of, _)| of == ns) {
                        Some((_, group)) => group.push(entry),
                        None => by_namespace.push((ns.clone(), vec![entry])),
                    }
                }
            }
        }
        let mut halted = None;
        for (turn, change, to_compare) in schema {
            let seq = turn.seq;
            if let Err(halt) = self.changes.apply(turn, &change, &mut outcomes).await {
                halted = Some(verdict_of(halt)?);
            }
            if let Some(ns) = to_compare
                && outcomes.is_applied(seq)
            {
                self.compare(ns).await?;
            }
        }
        for (ns, entries) in self.keep_order(by_namespace) {
            if !self.is_replicated(&ns) {
                for entry in entries {
                    outcomes.insert(entry.seq, Outcome::PassedOver);
                }
                continue;
            }
            let seqs: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
            match self.apply_namespace(&ns, entries, &mut outcomes).await {
                Ok(()) => self.dispatch.way_is_free(&ns),
                Err(Halt::Sink(SinkError::Held(reason))) => {
                    let held = self.dispatch.hold_documents(&ns, &seqs, reason, &mut outcomes);
                    if let Err(halt) = held.await {
                        halted = Some(verdict_of(halt)?);
                        break;
                    }
                }
                Err(halt @ Halt::Local) => halted = Some(verdict_of(halt)?),
                Err(halt) => {
                    halted = Some(verdict_of(halt)?);
                    break;
                }
            }
        }
        let verdict = match halted {
            Some(Verdict::NotAsked) | None if outcomes.answered => Verdict::Answered,
            halted => halted.unwrap_or(Verdict::NotAsked),
        };
        let acks = leased
            .into_iter()
            .map(|(seq, version)| {
                let outcome = outcomes.take(seq);
                Ack { seq, version, outcome }
            })
            .collect();
        Ok((acks, verdict))
    }

    /// False for a document that was queued before somebody left its collection out: its copy stays as it is from then on.
    /// Should it be chosen again, everything is compared.
    pub(super) fn is_replicated(&self, ns: &Namespace) -> bool {
        self.source.is_replicated(ns, &self.filter)
    }

    /// The part of a change that concerns what is replicated now, as whoever reads the stream has it of a change that comes
    /// later; and what is to be copied or compared behind it.
    fn narrowed(&self, change: &SchemaChange) -> Option<(SchemaChange, Option<Namespace>)> {
        let SchemaChange::Rename { from, to, .. } = change else {
            return self.is_replicated(change.ns()).then(|| (change.clone(), None));
        };
        match (self.is_replicated(from), self.is_replicated(to)) {
            (true, true) => Some((change.clone(), None)),
            (true, false) => Some((SchemaChange::Drop { ns: from.clone() }, None)),
            // What it had under its other name may be nowhere in Atlas.
            (false, true) => Some((SchemaChange::Drop { ns: to.clone() }, Some(to.clone()))),
            (false, false) => None,
        }
    }

    /// Notes that a collection is to be copied or compared, behind the change that makes way for it: before its entry goes,
    /// so that a crash repeats both, and not each time that it cannot be made yet.
    async fn compare(&self, ns: Namespace) -> Result<(), QueueError> {
        let (queue, position) = (self.queue.clone(), self.reading.position().whole());
        blocking(move || SyncState::require_of(&queue, position, &[ns].into(), Reason::Replaced))
            .await
    }

    /// What is read from the local database is written after what is not, but for a capped collection,
    /// whose documents stay in the order of their entries. What comes anew there goes by itself, and not too much of it
    /// at once: it is in Atlas neither before nor after for a moment.
    fn keep_order(&self, groups: Vec<(Namespace, Vec<Entry>)>) -> Vec<(Namespace, Vec<Entry>)> {
        let mut parts = Vec::with_capacity(groups.len());
        for (ns, entries) in groups {
            if !self.queue.is_in_order(&ns) {
                parts.push((ns, entries));
                continue;
            }
            let orders_inserts = self.orders_inserts(&ns);
            let mut last = None;
            for entry in entries {
                let of = self.part_of(&ns, orders_inserts, &entry);
                if entry.again && of.comes_anew() {
                    self.collections.begin_anew(&ns, entry.seq, self.queue.position());
                }
                let is_full = |part: &Vec<Entry>| part.len() >= of.most();
                if last.replace(of) != Some(of) || parts.last().is_none_or(|(_, of)| is_full(of)) {
                    parts.push((ns.clone(), Vec::new()));
                }
                let (_, part) = parts.last_mut().expect("one was just begun, or before");
                part.push(entry);
            }
        }
        parts
    }

    /// The order of inserts counts locally, and in Atlas.
    fn orders_inserts(&self, ns: &Namespace) -> bool {
        self.sink.carries_options() && self.queue.is_capped(ns)
    }

    fn part_of(&self, ns: &Namespace, orders_inserts: bool, entry: &Entry) -> Part {
        let Work::Document { op, .. } = &entry.work else { return Part::Plain };
        let again = entry.again && orders_inserts;
        match op {
            WriteOp::Update(_) | WriteOp::Refresh if again => Part::ReadAnew,
            WriteOp::Update(_) | WriteOp::Refresh => Part::Read,
            WriteOp::Insert(_) | WriteOp::Replace(_) if again => Part::Anew,
            WriteOp::Insert(_) if orders_inserts && self.collections.comes_anew(ns, entry.seq) => {
                Part::Anew
            }
            WriteOp::Insert(_) | WriteOp::Replace(_) | WriteOp::Merge(_) | WriteOp::Delete => {
                Part::Plain
            }
        }
    }

    async fn apply_namespace(
        &self,
        ns: &Namespace,
        entries: Vec<Entry>,
        outcomes: &mut Outcomes,
    ) -> Result<(), Halt> {
        if !self.changes.ensure(ns).await? {
            for entry in entries {
                outcomes.insert(entry.seq, wait(LOCAL_WAIT_MS));
            }
            return Err(Halt::Local);
        }
        // Those of another namespace that had no chance wait; see `Conflicts::push`.
        drop(outcomes.conflicts.take());
        let mut direct = Vec::with_capacity(entries.len());
        let mut unread = Vec::new();
        let traits = self.collections.traits(ns);
        // Else what was there already would be written after what it stands before, which may have pushed it
        // out by then.
        let use_upserts = traits.insert_mode.use_upserts() || self.queue.is_in_order(ns);
        let orders_inserts = self.orders_inserts(ns);
        for entry in entries {
            let comes_anew = self.part_of(ns, orders_inserts, &entry).comes_anew();
            let (item, op) = Item::split(entry, comes_anew);
            match op {
                WriteOp::Insert(document) | WriteOp::Replace(document) if comes_anew => {
                    direct.push((item, Draft::Anew(document)));
                }
                WriteOp::Insert(document) if !use_upserts => {
                    direct.push((item, Draft::Insert(document)));
                }
                WriteOp::Insert(document) | WriteOp::Replace(document) => {
                    direct.push((item, Draft::Upsert(document)));
                }
                WriteOp::Delete => direct.push((item, Draft::Delete)),
                WriteOp::Merge(fields) if self.sink.takes_changes() => {
                    direct.push((item, Draft::Merge(fields)));
                }
                WriteOp::Merge(_) => unread.push(Unread { item, op: WriteOp::Refresh }),
                WriteOp::Update(delta) => {
                    let command = if self.may_send(
                        &item,
                        delta.as_raw().as_bytes().len(),
                        traits.document_bytes,
                    ) {
                        delta.to_command()
                    } else {
                        None
                    };
                    match command {
                        Some(command) => direct.push((item, Draft::Change(command))),
                        None => unread.push(Unread { item, op: WriteOp::Update(delta) }),
                    }
                }
                WriteOp::Refresh => unread.push(Unread { item, op: WriteOp::Refresh }),
            }
        }
        let unmatched = self.dispatch.write_direct(ns, direct, outcomes).await?;
        // What a change did not match is read and written whole.
        unread.extend(unmatched.into_iter().map(|item| Unread { item, op: WriteOp::Refresh }));
        if !unread.is_empty() {
            self.hydrate(ns, unread, outcomes).await?;
        }
        self.resolve(ns, outcomes).await
    }

    /// Whether any delta is sent in the place of a document that could be read. Where none is, nobody asks which of them
    /// would be exact, and it need not be remembered.
    pub(super) fn sends_deltas(&self) -> bool {
        self.options.update_mode != UpdateMode::Document && self.sink.takes_changes()
    }

    /// May this delta go as it is?
    fn may_send(&self, item: &Item, delta_bytes: usize, document_bytes: usize) -> bool {
        let wanted = match self.options.update_mode {
            UpdateMode::Document => false,
            UpdateMode::Delta => true,
            // Worth it where it saves most of a document that is not small.
            UpdateMode::Auto => document_bytes >= 4096 && delta_bytes * 8 <= document_bytes,
        };
        wanted
            && self.sends_deltas()
            && self.watermark.lock().is_exact(&item.key.canonical(), item.first_time)
    }
}

fn verdict_of(halt: Halt) -> Result<Verdict, QueueError> {
    match halt {
        Halt::Sink(error) => Ok(Verdict::Away(error)),
        Halt::Local => Ok(Verdict::NotAsked),
        Halt::Queue(error) => Err(error),
    }
}
