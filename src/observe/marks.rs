//! What happened when: outages, pauses, restarts, full syncs and changes of collections, as marks in the charts of the last
//! day. Pure, and bounded.
//!
//! Whoever looks says what holds; a mark begins when something does, and ends when it does not any more. So one that is
//! open when the agent is killed goes on, or ends, with the first look of the next.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Most marks that are kept, and for how long.
const MARKS: usize = 100;
const KEPT_MS: u64 = 86_400_000;

/// Changes of collections that follow within this time are one mark.
const TOGETHER_MS: u64 = 60_000;

/// What a mark is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Atlas was away, or refused access.
    AtlasAway,
    /// The local database was.
    LocalAway,
    /// A person had stopped the writing.
    Pause,
    /// The agent did not run.
    Restart,
    /// A copy, or a comparison.
    Sync,
    /// Collections, views, options or indexes changed.
    Ddl,
}

/// Something that happened, or still does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    pub kind: Kind,
    /// Milliseconds since 1970.
    pub from_ms: u64,
    /// Not there while it lasts.
    pub until_ms: Option<u64>,
    /// More than its kind says; may be empty.
    pub text: String,
    /// How many, where things are counted.
    #[serde(default)]
    pub count: u64,
}

/// What holds at one moment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Where that is known.
    pub is_atlas_away: Option<bool>,
    pub is_local_away: bool,
    pub is_paused: bool,
    /// The full sync that runs, or ran last: when it began and ended, and why it ran.
    pub sync: Option<(u64, Option<u64>, String)>,
    /// Changes of collections that reached Atlas since the start.
    pub schema_writes: u64,
}

/// The marks of the last day.
#[derive(Debug, Default)]
pub struct Marks {
    kept: VecDeque<Mark>,
    schema_writes: u64,
}

impl Marks {
    /// Those that were kept, but for what is too old.
    pub(super) fn restored(kept: Vec<Mark>, now_ms: u64) -> Self {
        let mut marks = Self { kept: kept.into(), schema_writes: 0 };
        marks.forget(now_ms);
        marks
    }

    /// The agent runs again; `last_ms` is when it was last seen to, if ever.
    pub(super) fn restarted(&mut self, last_ms: Option<u64>, now_ms: u64) {
        let from_ms = last_ms.unwrap_or(now_ms).min(now_ms);
        self.add(Mark {
            kind: Kind::Restart,
            from_ms,
            until_ms: Some(now_ms),
            text: String::new(),
            count: 0,
        });
        self.forget(now_ms);
    }

    /// Takes what holds at `now_ms`.
    pub(super) fn look(&mut self, facts: &Facts, now_ms: u64) {
        if let Some(is_away) = facts.is_atlas_away {
            self.lasts(Kind::AtlasAway, is_away, now_ms);
        }
        self.lasts(Kind::LocalAway, facts.is_local_away, now_ms);
        self.lasts(Kind::Pause, facts.is_paused, now_ms);
        self.synced(facts.sync.as_ref(), now_ms);
        self.changed(facts.schema_writes, now_ms);
        self.forget(now_ms);
    }

    /// All of them, the oldest first.
    pub fn kept(&self) -> impl ExactSizeIterator<Item = &Mark> {
        self.kept.iter()
    }

    fn lasts(&mut self, kind: Kind, holds: bool, now_ms: u64) {
        let open = self.open(kind);
        match (open, holds) {
            (Some(mark), false) => mark.until_ms = Some(now_ms),
            (None, true) => self.add(Mark {
                kind,
                from_ms: now_ms,
                until_ms: None,
                text: String::new(),
                count: 0,
            }),
            (Some(_), true) | (None, false) => {}
        }
    }

    fn synced(&mut self, sync: Option<&(u64, Option<u64>, String)>, now_ms: u64) {
        let began = sync.map(|(began, ..)| *began);
        // One that a restart cut off.
        if let Some(open) = self.open(Kind::Sync).filter(|open| Some(open.from_ms) != began) {
            open.until_ms = Some(now_ms);
        }
        let Some((from_ms, until_ms, reason)) = sync else { return };
        let known =
            self.kept.iter_mut().find(|mark| mark.kind == Kind::Sync && mark.from_ms == *from_ms);
        match known {
            Some(known) => known.until_ms = *until_ms,
            None => self.add(Mark {
                kind: Kind::Sync,
                from_ms: *from_ms,
                until_ms: *until_ms,
                text: reason.clone(),
                count: 0,
            }),
        }
    }

    fn changed(&mut self, schema_writes: u64, now_ms: u64) {
        let new =
            schema_writes.saturating_sub(std::mem::replace(&mut self.schema_writes, schema_writes));
        if new == 0 {
            return;
        }
        let last = self.kept.iter_mut().rev().find(|mark| mark.kind == Kind::Ddl);
        match last.filter(|last| now_ms.saturating_sub(last.from_ms) < TOGETHER_MS) {
            Some(last) => {
                last.count += new;
                last.until_ms = Some(now_ms);
            }
            None => self.add(Mark {
                kind: Kind::Ddl,
                from_ms: now_ms,
                until_ms: Some(now_ms),
                text: String::new(),
                count: new,
            }),
        }
    }

    fn open(&mut self, kind: Kind) -> Option<&mut Mark> {
        self.kept.iter_mut().rev().find(|mark| mark.kind == kind && mark.until_ms.is_none())
    }

    fn add(&mut self, mark: Mark) {
        self.kept.push_back(mark);
        while self.kept.len() > MARKS {
            // What lasts is what a person looks for, however much has come and gone since. It is one of each kind.
            let oldest = self.kept.iter().position(|mark| mark.until_ms.is_some()).unwrap_or(0);
            self.kept.remove(oldest);
        }
    }

    fn forget(&mut self, now_ms: u64) {
        let from = now_ms.saturating_sub(KEPT_MS);
        // Those of a clock that was set back since would never go.
        self.kept.retain(|mark| {
            mark.until_ms.is_none_or(|until| until >= from) && mark.from_ms <= now_ms
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(marks: &Marks) -> Vec<(Kind, u64, Option<u64>)> {
        marks.kept().map(|mark| (mark.kind, mark.from_ms, mark.until_ms)).collect()
    }

    #[test]
    fn what_lasts_is_one_mark_from_its_begin_to_its_end() {
        let mut marks = Marks::default();
        let away = Facts { is_atlas_away: Some(true), ..Facts::default() };

        let here = Facts { is_atlas_away: Some(false), ..Facts::default() };
        for (now, facts) in [(1, &away), (2, &Facts::default()), (3, &here), (9, &away)] {
            marks.look(facts, now);
        }

        assert_eq!(shown(&marks), [(Kind::AtlasAway, 1, Some(3)), (Kind::AtlasAway, 9, None)]);
    }

    #[test]
    fn an_outage_that_outlives_the_agent_stays_one() {
        let mut before = Marks::default();
        let away = Facts { is_atlas_away: Some(true), ..Facts::default() };
        before.look(&away, 1_000);

        let mut marks = Marks::restored(before.kept().cloned().collect(), 9_000);
        marks.restarted(Some(5_000), 9_000);
        marks.look(&away, 9_500);
        marks.look(&Facts { is_atlas_away: Some(false), ..Facts::default() }, 10_000);

        let restart = (Kind::Restart, 5_000, Some(9_000));
        assert_eq!(shown(&marks), [(Kind::AtlasAway, 1_000, Some(10_000)), restart]);
    }

    #[test]
    fn a_sync_is_one_mark_and_one_that_a_restart_cut_off_ends() {
        let mut marks = Marks::default();
        let sync = |began, ended| Facts {
            sync: Some((began, ended, "the first copy".to_owned())),
            ..Facts::default()
        };
        for (now, facts) in
            [(20, sync(10, None)), (30, sync(10, Some(25))), (40, sync(10, Some(25)))]
        {
            marks.look(&facts, now);
        }
        marks.look(&sync(50, None), 60);
        marks.look(&Facts::default(), 70);

        assert_eq!(shown(&marks), [(Kind::Sync, 10, Some(25)), (Kind::Sync, 50, Some(70))]);
    }

    #[test]
    fn changes_of_collections_that_follow_one_another_are_one_mark_with_their_number() {
        let mut marks = Marks::default();
        let of = |schema_writes| Facts { schema_writes, ..Facts::default() };
        for (now, writes) in [(0, 0), (1_000, 2), (2_000, 2), (30_000, 5), (90_000, 6)] {
            marks.look(&of(writes), now);
        }

        let counts: Vec<_> = marks.kept().map(|mark| (mark.from_ms, mark.count)).collect();
        assert_eq!(counts, [(1_000, 5), (90_000, 1)]);
    }

    #[test]
    fn they_are_bounded_in_number_and_in_age() {
        let mut marks = Marks::default();
        let of = |is_paused| Facts { is_paused, ..Facts::default() };
        for n in 0..1_000 {
            marks.look(&of(n % 2 == 0), n * 1_000);
        }
        assert_eq!(marks.kept().len(), MARKS);

        marks.look(&of(false), 1_000_000 + KEPT_MS + 1);
        assert_eq!(marks.kept().len(), 0);
    }

    #[test]
    fn an_outage_that_goes_on_is_not_pushed_out_by_what_came_after_it() {
        let mut marks = Marks::default();
        let of = |is_paused| Facts { is_atlas_away: Some(true), is_paused, ..Facts::default() };
        for n in 0..1_000 {
            marks.look(&of(n % 2 == 1), n * 1_000);
        }

        assert_eq!(marks.kept().len(), MARKS);
        assert_eq!(shown(&marks)[0], (Kind::AtlasAway, 0, None));
        marks.look(&Facts { is_atlas_away: Some(false), ..Facts::default() }, 1_000_000);
        assert_eq!(shown(&marks)[0], (Kind::AtlasAway, 0, Some(1_000_000)));
    }
}
