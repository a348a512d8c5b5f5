//! How far the stream has been read into the queue, and whether reading stands still. The tailer says so; whoever
//! concludes something from it asks here.
//!
//! What a position proves stands at [`Position`]. A queue that is full stops the reading, and an entry of that very
//! queue may wait for an event that is still to be read (a rename, a drop): then one more reply is read, and as many
//! as are wanted, or neither side would move again.

use parking_lot::{Mutex, MutexGuard};

use crate::{model::checkpoint::ClusterTime, policy::position::Position};

/// Owns how far the stream has been read.
#[derive(Debug, Default)]
pub struct Reading {
    state: Mutex<ReadingState>,
}

#[derive(Debug, Default)]
struct ReadingState {
    position: Position,
    /// Why it stands still, while it does.
    stopped: Option<String>,
    /// Somebody waits for an event that is still to be read.
    is_wanted: bool,
}

impl Reading {
    /// A copy, as it is now. Whoever has two questions about one moment asks one copy: between two calls a reply may have
    /// come in, and the two answers would not fit each other.
    pub fn position(&self) -> Position {
        self.lock().position
    }

    /// See [`Position::begin_reply`].
    pub fn begin_reply(&self) {
        self.lock().position.begin_reply();
    }

    /// See [`Position::end_reply`].
    pub fn end_reply(&self, position: ClusterTime, whole: ClusterTime) {
        self.lock().position.end_reply(position, whole);
    }

    /// Nothing more is read, for this reason. True when that is news.
    pub fn stop(&self, reason: &str) -> bool {
        self.lock().stopped.replace(reason.to_owned()).is_none()
    }

    /// There is room again. True when it stood still before.
    pub fn go_on(&self) -> bool {
        self.lock().stopped.take().is_some()
    }

    /// Why it stands still, while it does.
    pub fn stopped(&self) -> Option<String> {
        self.lock().stopped.clone()
    }

    /// True while it stands still.
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped.is_some()
    }

    /// An entry waits for an event that is still to be read.
    pub fn want(&self) {
        self.lock().is_wanted = true;
    }

    /// Whether an entry has asked since the last call: then one reply is read though the queue is full. Otherwise the entry
    /// would wait for the stream, and the stream for the room that the entry takes.
    pub fn is_wanted(&self) -> bool {
        std::mem::take(&mut self.lock().is_wanted)
    }

    fn lock(&self) -> MutexGuard<'_, ReadingState> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_reading_stands_still_is_news_once_and_so_is_that_it_goes_on() {
        let reading = Reading::default();

        assert!(reading.stop("the queue is full") && !reading.stop("the disk is"));
        assert_eq!(reading.stopped().as_deref(), Some("the disk is"));
        assert!(reading.go_on() && !reading.go_on() && !reading.is_stopped());
    }

    #[test]
    fn a_wish_for_the_stream_is_good_for_one_reply() {
        let reading = Reading::default();
        reading.want();
        reading.want();

        assert!(reading.is_wanted() && !reading.is_wanted());
    }
}
