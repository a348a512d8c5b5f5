//! How much the target has confirmed, by the agent's own count: what a target is known by that was put back.
//!
//! A target that fails over to a replica without the last moments, or that somebody restores, has less than what it had
//! said, and nothing in it tells so. Therefore each transaction adds one to a number that stands in the target, and
//! whoever wrote it notes here what came of it when the target confirms. A target whose number is below the one that is
//! noted has lost that transaction, and whatever came with it.
//!
//! Transactions side by side would wait for one another at one number. So there are as many, called *counters*, as there
//! have ever been transactions at once, and each has one for itself for as long as it lasts.
//!
//! # Invariants
//!
//! - **T1** A number is noted after the target has confirmed it, never before.
//! - **T2** The queue writes what is noted together with what is concluded from it
//!   ([`Queue::carry`](crate::queue::Queue::carry)): what it holds no longer has been counted on the same disk.
//! - **T3** A counter whose transaction may still be open has no other one for [`REST`].

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

/// By when the target has ended a transaction that nobody goes on with.
pub const REST: Duration = Duration::from_secs(40);

/// The number of each counter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts(BTreeMap<u32, u64>);

impl Counts {
    pub fn of(counts: impl IntoIterator<Item = (u32, u64)>) -> Self {
        Self(counts.into_iter().collect())
    }

    /// Whether all is there that `confirmed` says.
    pub fn have(&self, confirmed: &Counts) -> bool {
        confirmed.0.iter().all(|(counter, n)| self.0.get(counter) >= Some(n))
    }

    /// As it is kept.
    pub fn stored(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers are JSON")
    }

    /// From what was kept. What cannot be read is no promise of the target's.
    pub fn read(stored: &[u8]) -> Self {
        serde_json::from_slice(stored).unwrap_or_default()
    }
}

/// Owns the question.
#[derive(Debug, Default)]
pub struct Tally(Mutex<TallyState>);

#[derive(Debug, Default)]
struct TallyState {
    /// What is confirmed. `None`: the target was not taken yet, and what was confirmed before stands in the queue alone.
    confirmed: Option<Counts>,
    free: Vec<u32>,
    /// Since when each has rested, the longest first (T3).
    resting: VecDeque<(u32, Instant)>,
    /// Counters that there were.
    known: u32,
}

impl Tally {
    /// The target was taken, and has this.
    pub fn take_up(&self, has: Counts) {
        self.lock().confirmed = Some(has);
    }

    /// What is confirmed; `None` before the target was taken.
    pub fn confirmed(&self) -> Option<Counts> {
        self.lock().confirmed.clone()
    }

    /// A counter for a transaction that begins at `now`.
    pub fn begin(self: &Arc<Self>, now: Instant) -> Turn {
        let mut state = self.lock();
        let rested = state.resting.front().filter(|(_, since)| now.duration_since(*since) >= REST);
        let rested = rested.map(|(counter, _)| *counter);
        if let Some(counter) = rested {
            state.resting.pop_front();
            state.free.push(counter);
        }
        let counter = state.free.pop().unwrap_or(state.known);
        state.known = state.known.max(counter + 1);
        let confirmed = state.confirmed.as_ref().and_then(|counts| counts.0.get(&counter).copied());
        drop(state);
        Turn { tally: self.clone(), counter, confirmed: confirmed.unwrap_or(0), is_over: false }
    }

    fn lock(&self) -> MutexGuard<'_, TallyState> {
        self.0.lock()
    }
}

/// A counter that one transaction has for itself. Dropped, it rests: nobody knows what became of the transaction.
#[derive(Debug)]
pub struct Turn {
    tally: Arc<Tally>,
    counter: u32,
    confirmed: u64,
    is_over: bool,
}

impl Turn {
    pub fn counter(&self) -> u32 {
        self.counter
    }

    /// Whether a target that counts this transaction as its `n`th has all that it has confirmed.
    pub fn follows(&self, n: u64) -> bool {
        n > self.confirmed
    }

    /// The target has confirmed it, as its `n`th.
    pub fn confirmed(mut self, n: u64) {
        {
            let mut state = self.tally.lock();
            if let Some(counts) = &mut state.confirmed {
                let noted = counts.0.entry(self.counter).or_default();
                *noted = n.max(*noted);
            }
        }
        self.end();
    }

    /// It was rolled back, and the target has said so.
    pub fn ended(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.is_over = true;
        self.tally.lock().free.push(self.counter);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over {
            self.tally.lock().resting.push_back((self.counter, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(has: Counts) -> Arc<Tally> {
        let tally = Arc::new(Tally::default());
        tally.take_up(has);
        tally
    }

    #[test]
    fn t1_what_is_not_confirmed_is_not_noted_and_a_target_with_less_was_put_back() {
        let (tally, now) = (taken(Counts::of([(0, 7)])), Instant::now());
        let turn = tally.begin(now);
        assert!(turn.follows(8) && turn.follows(9) && !turn.follows(7));
        assert_eq!(tally.confirmed(), Some(Counts::of([(0, 7)])));

        turn.confirmed(8);
        tally.begin(now).ended();

        let confirmed = tally.confirmed().unwrap();
        assert_eq!(confirmed, Counts::of([(0, 8)]));
        assert!(Counts::of([(0, 8), (1, 1)]).have(&confirmed));
        assert!(!Counts::of([(0, 7)]).have(&confirmed) && !Counts::default().have(&confirmed));
        assert_eq!(Counts::read(&confirmed.stored()), confirmed);
    }

    #[test]
    fn t3_a_counter_is_of_one_transaction_at_a_time_and_rests_where_its_end_is_not_known() {
        let (tally, now) = (taken(Counts::default()), Instant::now());
        let (first, second) = (tally.begin(now), tally.begin(now));
        assert_eq!((first.counter(), second.counter()), (0, 1));
        first.ended();
        drop(second);

        let again = tally.begin(now);
        let third = tally.begin(now);
        assert_eq!((again.counter(), third.counter()), (0, 2));
        assert_eq!(tally.begin(now + 2 * REST).counter(), 1);
    }

    #[test]
    fn nothing_is_known_before_the_target_was_taken() {
        let tally = Arc::new(Tally::default());
        tally.begin(Instant::now()).confirmed(3);

        assert_eq!(tally.confirmed(), None);
    }
}
