//! Which collections are to be looked at, and when: a table, without a clock and without I/O. Whoever keeps options and
//! indexes asks it what is due, does that, and says how it ended.
//!
//! | a look ended | the next one |
//! | --- | --- |
//! | all is as it should be | none, unless one was asked for meanwhile |
//! | something passes that is in the way, or Atlas is away | soon |
//! | Atlas was away so often that it is no outage | as where something is refused |
//! | something is refused | ever later; at once where one was asked for meanwhile |
//!
//! Everything is looked at from time to time, and when that is asked for. While a change is held it is looked at again, ever
//! more rarely: what is in the way may go by what such a look finds, and one look may come too early to see the last of it go.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    model::namespace::Namespace,
    schema::{Problem, Step, watch::Asked},
};

/// A look at everything takes at most this share of the time.
const SHARE_MAX: u32 = 20;

/// So much longer than the last one a look at everything may have taken: what it took beyond that it waited for a line on
/// which nothing came, and that cost nobody anything. The first may have taken anything.
const COST_GROWS: u32 = 2;
const COST_MIN: Duration = Duration::from_millis(250);

/// Where a change waits for what such a look may find, it takes at most a third of the time, and rests so often doubled.
const HELD_SHARE_MAX: u32 = 2;
const HELD_DOUBLED_MAX: u32 = 9;

/// Waits before what was refused is tried again: the first one, doubled each time, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(3_600);

/// How soon to look again while something is in the way, or an end is away.
const SOON: Duration = Duration::from_secs(1);

/// How often that is believed of Atlas before it is listed.
const AWAY_MAX: u32 = 10;

/// Collections that are looked at at the same time. A server builds three at once by default
/// (`maxNumActiveUserIndexBuilds`), and a full sync may need one.
const LOOKS_MAX: usize = 2;

/// How a look ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// All is as it should be, or another event will see to it.
    Done,
    /// Something passes that is in the way.
    Soon,
    /// Atlas is away, in its own words.
    Away(String),
    /// What is refused, with the server's reason.
    Problems(Vec<Problem>),
}

/// How a look at everything ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// A full sync is owed, which compares the same: of everything, or of some.
    Owed {
        is_of_some: bool,
    },
    /// These are to be looked at one by one.
    Open(Vec<Namespace>),
    /// It is not the time for it.
    NotNow,
    Failed,
}

/// What is to be told of a collection after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    /// Nothing of it differs any more.
    Fine,
    /// These stay, and are tried again after so long.
    Listed(Vec<Problem>, Duration),
}

/// When a collection is looked at next.
struct NextLook {
    at: Instant,
    /// How often it was refused.
    refusals: u32,
    /// It was asked for, and is not only tried again.
    is_asked: bool,
    /// How often Atlas was away for it.
    away: u32,
}

impl NextLook {
    fn at(now: Instant) -> Self {
        Self { at: now, refusals: 0, is_asked: true, away: 0 }
    }
}

/// See the [module](self).
pub(super) struct Table {
    /// How often everything is looked at.
    usual: Duration,
    due: BTreeMap<Namespace, NextLook>,
    /// Those that are looked at now.
    busy: BTreeSet<Namespace>,
    next_pass: Instant,
    /// No look at everything before that, however often it is asked for.
    earliest: Instant,
    is_pass_asked: bool,
    /// When it is looked at again for a change that is held, and how often it was in vain.
    next_for_held: Instant,
    held_for: Option<u32>,
    /// What the last look at everything has cost.
    cost: Option<Duration>,
}

impl Table {
    /// Everything is due.
    pub fn new(usual: Duration, now: Instant) -> Self {
        let (due, busy) = (BTreeMap::new(), BTreeSet::new());
        Self {
            usual,
            due,
            busy,
            next_pass: now,
            earliest: now,
            is_pass_asked: true,
            next_for_held: now,
            held_for: None,
            cost: None,
        }
    }

    /// A look at these was asked for; `is_held` while a change of any collection cannot be made yet.
    pub fn ask(&mut self, asked: Asked, is_held: bool, now: Instant) {
        if asked.everything {
            self.is_pass_asked = true;
            self.next_pass = self.next_pass.min((now + SOON / 2).max(self.earliest));
        }
        for ns in asked.namespaces {
            let entry = self.due.entry(ns).or_insert_with(|| NextLook::at(now));
            (entry.at, entry.is_asked) = (now, true);
        }
        self.held_for = is_held.then(|| self.held_for.unwrap_or_default());
        if is_held {
            self.next_pass = self.next_pass.min(self.next_for_held);
        }
    }

    /// True when everything is to be looked at.
    pub fn is_pass_due(&self, now: Instant) -> bool {
        now >= self.next_pass
    }

    /// A look at everything that began at `began` has ended.
    pub fn passed(&mut self, passed: Passed, began: Instant, now: Instant) {
        match passed {
            Passed::Owed { is_of_some } => {
                // One of everything ends with the same comparison.
                self.is_pass_asked &= is_of_some;
                self.next_pass = began + if is_of_some { SOON } else { self.usual };
            }
            Passed::Open(open) => {
                let took = now - began;
                let cost =
                    self.cost.map_or(took, |before| took.min(before.max(COST_MIN) * COST_GROWS));
                self.cost = Some(cost);
                let rest = cost * SHARE_MAX;
                self.is_pass_asked = false;
                self.earliest = now + rest;
                self.next_pass = now + self.usual.max(rest);
                for ns in open {
                    self.due.entry(ns).or_insert_with(|| NextLook::at(now));
                }
                let doubled = self.held_for.unwrap_or_default().min(HELD_DOUBLED_MAX);
                self.held_for = self.held_for.map(|looks| looks.saturating_add(1));
                self.next_for_held = now + (SOON * (1 << doubled)).max(cost * HELD_SHARE_MAX);
                return;
            }
            Passed::NotNow => self.next_pass = now + SOON,
            Passed::Failed => self.next_pass = now + SOON * 5,
        }
        self.next_for_held = self.next_pass;
    }

    /// Takes those that are due, as many as may be looked at, each with whether it was asked for.
    pub fn take(&mut self, now: Instant) -> Vec<(Namespace, bool)> {
        let mut taken = Vec::new();
        for (ns, due) in &mut self.due {
            if self.busy.len() < LOOKS_MAX && due.at <= now && !self.busy.contains(ns) {
                self.busy.insert(ns.clone());
                taken.push((ns.clone(), std::mem::take(&mut due.is_asked)));
            }
        }
        taken
    }

    /// Looks that are not done. What was refused and is tried again is none of them.
    pub fn open(&self) -> usize {
        let open = self.due.values().filter(|due| due.refusals == 0).count();
        open + usize::from(self.is_pass_asked)
    }

    /// When something is due. What is due already and has no place waits for one that ends.
    pub fn wake(&self, now: Instant) -> Instant {
        let idle = self.due.iter().filter(|(ns, due)| due.at > now && !self.busy.contains(*ns));
        idle.map(|(_, due)| due.at).min().unwrap_or(self.next_pass).min(self.next_pass)
    }

    /// A look that was [taken](Self::take) at `since` has ended.
    pub fn ended(&mut self, ns: &Namespace, looked: Looked, since: Instant, now: Instant) -> Told {
        self.busy.remove(ns);
        let entry = self.due.entry(ns.clone()).or_insert_with(|| NextLook::at(now));
        let problems = match looked {
            Looked::Done => {
                // Unless it was asked for again meanwhile.
                if entry.at <= since {
                    self.due.remove(ns);
                }
                return Told::Fine;
            }
            Looked::Soon => {
                entry.at = now + SOON;
                return Told::Nothing;
            }
            Looked::Away(_) if entry.away < AWAY_MAX => {
                entry.away += 1;
                entry.at = now + SOON;
                return Told::Nothing;
            }
            // What is said so often is no outage, or one of this alone: a full disk, a quota.
            Looked::Away(reason) => vec![Problem::plain(reason)],
            Looked::Problems(problems) => problems,
        };
        let wait = RETRY_FIRST.saturating_mul(1 << entry.refusals.min(16)).min(RETRY_MAX);
        entry.away = 0;
        entry.refusals += 1;
        // What was asked for during the look is looked at at once.
        if !entry.is_asked {
            entry.at = now + wait;
        }
        Told::Listed(problems, wait)
    }
}

/// What is to be done about a collection after a look at everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sorted {
    Fine,
    /// Something short is to be made, by the worker in its turn.
    Change,
    /// Indexes are to be built, or nothing short can mend it: it is looked at by itself.
    Open,
}

/// Sorts out a collection by what it lacks. What was refused is tried again in its own time.
pub(super) fn sort_out(steps: &[Step], listed: &[Problem]) -> Sorted {
    let is_listed = |step: &Step| listed.iter().any(|problem| problem.is_of(step));
    let is_short = |step: &Step| step.build().is_none() && !step.is_fixed();
    match () {
        () if steps.is_empty() => Sorted::Fine,
        () if steps.iter().all(is_listed) => Sorted::Open,
        () if steps.iter().any(is_short) => Sorted::Change,
        () => Sorted::Open,
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::schema::{IndexChange, OptionChange};

    const SECOND: Duration = Duration::from_secs(1);
    const USUAL: Duration = Duration::from_secs(600);

    fn ns(name: &str) -> Namespace {
        Namespace::new("shop", name)
    }

    fn asked(names: &[&str], everything: bool) -> Asked {
        Asked { namespaces: names.iter().map(|name| ns(name)).collect(), everything }
    }

    fn problem() -> Vec<Problem> {
        vec![Problem::refused("index `a` is missing in Atlas", "duplicates")]
    }

    /// A table in which the first look at everything has found nothing.
    fn table(now: Instant) -> Table {
        let mut table = Table::new(USUAL, now);
        assert!(table.is_pass_due(now));
        table.passed(Passed::Open(Vec::new()), now, now);
        table
    }

    #[test]
    fn what_follows_a_look_is_what_the_table_says() {
        let now = Instant::now();
        let later = now + SECOND;
        let away = || Looked::Away("no majority".to_owned());
        let first = |wait| Told::Listed(problem(), wait);
        // How it ended, whether it was asked for meanwhile; what is told, whether a look is open, and after how long
        // the next one comes.
        let rows = [
            (Looked::Done, false, Told::Fine, 0, None),
            (Looked::Done, true, Told::Fine, 1, Some(Duration::ZERO)),
            (Looked::Soon, false, Told::Nothing, 1, Some(SOON)),
            (away(), false, Told::Nothing, 1, Some(SOON)),
            (Looked::Problems(problem()), false, first(RETRY_FIRST), 0, Some(RETRY_FIRST)),
            (Looked::Problems(problem()), true, first(RETRY_FIRST), 0, Some(Duration::ZERO)),
        ];
        for (looked, is_asked, told, open, next) in rows {
            let mut table = table(now);
            table.ask(asked(&["a"], false), false, now);
            assert_eq!(table.take(now), [(ns("a"), true)]);
            assert!(table.take(now).is_empty(), "it is looked at already");
            if is_asked {
                table.ask(asked(&["a"], false), false, later);
            }

            let name = format!("{looked:?}, asked: {is_asked}");
            assert_eq!(table.ended(&ns("a"), looked, now, later), told, "{name}");
            assert_eq!(table.open(), open, "{name}");
            let expected = match next {
                None => now + USUAL,
                // What is due already wakes nobody: it is taken at once.
                Some(Duration::ZERO) => {
                    assert_eq!(table.take(later), [(ns("a"), true)], "{name}");
                    continue;
                }
                Some(wait) => later + wait,
            };
            assert_eq!(table.wake(later), expected, "{name}");
        }
    }

    #[test]
    fn what_is_refused_is_tried_ever_more_rarely_and_an_outage_that_lasts_is_a_refusal() {
        let mut now = Instant::now();
        let mut table = table(now);
        table.ask(asked(&["a"], false), false, now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            table.take(now);
            let Told::Listed(_, wait) =
                table.ended(&ns("a"), Looked::Problems(problem()), now, now)
            else {
                panic!("it is listed");
            };
            waits.push(wait);
            now += wait;
        }
        assert_eq!(waits[..3], [RETRY_FIRST, RETRY_FIRST * 2, RETRY_FIRST * 4]);
        assert_eq!(waits.last(), Some(&RETRY_MAX));

        let away = || Looked::Away("the disk is full".to_owned());
        for _ in 0..AWAY_MAX {
            assert_eq!(table.ended(&ns("b"), away(), now, now), Told::Nothing);
        }
        let listed = vec![Problem::plain("the disk is full")];
        assert_eq!(table.ended(&ns("b"), away(), now, now), Told::Listed(listed, RETRY_FIRST));
    }

    #[test]
    fn only_so_many_are_looked_at_at_a_time() {
        let now = Instant::now();
        let mut table = table(now);
        table.ask(asked(&["a", "b", "c"], false), false, now);

        assert_eq!(table.take(now).len(), LOOKS_MAX);
        table.ended(&ns("a"), Looked::Done, now, now);
        assert_eq!(table.take(now), [(ns("c"), true)]);
    }

    #[test]
    fn everything_is_looked_at_at_its_time_when_asked_and_never_all_the_time() {
        let now = Instant::now();
        let mut table = Table::new(USUAL, now);
        assert_eq!(table.open(), 1, "until it was looked at once");
        // It took three seconds.
        let end = now + 3 * SECOND;
        table.passed(Passed::Open(vec![ns("a")]), now, end);
        assert_eq!((table.open(), table.take(end)), (1, vec![(ns("a"), true)]));

        table.ask(asked(&[], true), false, end);
        assert!(!table.is_pass_due(end + 59 * SECOND), "at most a twentieth of the time");
        assert!(table.is_pass_due(end + 60 * SECOND));

        let at = end + 60 * SECOND;
        table.passed(Passed::NotNow, at, at);
        assert!(table.is_pass_due(at + SOON) && !table.is_pass_due(at));
        table.passed(Passed::Failed, at, at);
        assert!(table.is_pass_due(at + 5 * SOON) && !table.is_pass_due(at + SOON));
        table.passed(Passed::Owed { is_of_some: true }, at, at);
        assert!(table.is_pass_due(at + SOON));
        assert_eq!(table.open(), 2, "one of some does not look at all");
        table.passed(Passed::Owed { is_of_some: false }, at, at);
        assert!(!table.is_pass_due(at + SOON));
        assert_eq!(table.open(), 1);
    }

    #[test]
    fn a_look_that_a_silent_line_held_up_does_not_put_off_the_next_one() {
        let now = Instant::now();
        let mut table = Table::new(USUAL, now);
        table.passed(Passed::Open(Vec::new()), now, now + SECOND);
        let began = now + 20 * SECOND;
        let end = began + 15 * SECOND;
        table.passed(Passed::Open(Vec::new()), began, end);
        table.ask(asked(&[], true), false, end);
        assert_eq!(table.wake(end), end + 40 * SECOND, "and not five minutes");

        // One that takes as long each time has its share all the same.
        let mut began = end;
        for _ in 0..5 {
            let end = began + 15 * SECOND;
            table.passed(Passed::Open(Vec::new()), began, end);
            began = end;
        }
        table.ask(asked(&[], true), false, began);
        assert_eq!(table.wake(began), began + 300 * SECOND);
    }

    #[test]
    fn while_a_change_is_held_everything_is_looked_at_again_ever_more_rarely() {
        let mut now = Instant::now();
        let mut table = Table::new(USUAL, now);
        // A look took long, as on a machine that has much to do.
        table.passed(Passed::Open(Vec::new()), now, now + 3 * SECOND);
        now += 3 * SECOND;
        table.ask(asked(&[], true), false, now);
        assert_eq!(table.wake(now), now + 60 * SECOND, "a twentieth of the time");

        table.ask(asked(&[], false), true, now);
        assert_eq!(table.wake(now), now + 6 * SECOND, "a third of it while a change is held");
        let mut waits = Vec::new();
        for _ in 0..4 {
            now = table.wake(now);
            assert!(table.is_pass_due(now));
            table.passed(Passed::Open(Vec::new()), now, now);
            table.ask(asked(&[], false), true, now);
            waits.push(table.wake(now) - now);
        }
        assert_eq!(waits, [SECOND, 2 * SECOND, 4 * SECOND, 8 * SECOND], "nobody has to ask again");
        assert_eq!(table.open(), 0, "nor does anybody wait for it");

        // What is not the time for it is not asked for at once again.
        now = table.wake(now);
        table.passed(Passed::NotNow, now, now);
        table.ask(asked(&[], false), true, now);
        assert_eq!(table.wake(now), now + SOON);

        table.passed(Passed::Open(Vec::new()), now, now);
        table.ask(asked(&[], false), false, now);
        assert_eq!(table.wake(now), now + USUAL, "it is made");
        table.ask(asked(&[], false), true, now);
        table.passed(Passed::Open(Vec::new()), now, now);
        table.ask(asked(&[], false), true, now);
        assert_eq!(table.wake(now), now + SECOND, "another one begins anew");
    }

    #[test]
    fn what_a_collection_lacks_says_who_sees_to_it() {
        let spec = rawdoc! { "key": { "a": 1 }, "name": "a" };
        let build = Step::Index(IndexChange::Create { spec: spec.clone() });
        let short = Step::Index(IndexChange::Drop { spec });
        let fixed = Step::Option(OptionChange::Fixed { option: "capped".to_owned() });
        let refused = |step: &Step| Problem::refused(step.to_string(), "no");

        assert_eq!(sort_out(&[], &[refused(&build)]), Sorted::Fine);
        assert_eq!(sort_out(std::slice::from_ref(&build), &[]), Sorted::Open);
        assert_eq!(sort_out(&[build.clone(), short.clone()], &[]), Sorted::Change);
        assert_eq!(sort_out(std::slice::from_ref(&short), &[refused(&short)]), Sorted::Open);
        assert_eq!(sort_out(&[short, build.clone()], &[refused(&build)]), Sorted::Change);
        assert_eq!(sort_out(&[fixed], &[]), Sorted::Open);
    }
}
