//! How far the local history has been read, and what that proves. Pure.
//!
//! A reply of the change stream names a position. That everything of its time has been handed out is another
//! matter, and [`Replies`] alone decides it:
//!
//! | reply | proves everything up to |
//! | --- | --- |
//! | with events | the time before its position: all events of a transaction have one time, and may come in several replies |
//! | empty, the first of an open stream | the time before: a stream that begins now, or at a time, names the tick behind the last operation, and the next write of the same second gets just that tick |
//! | empty, later, still where the first one was, with no event yet | the time before, until an entry of that time is known to have been there when the stream was opened |
//! | any other empty one | its position: the server names an entry that it has come past |
//!
//! [`Position`] is what has been committed to the queue of it. Whoever concludes from an absence ("no rename
//! has come, so none was made"; "nothing waits, so Atlas has everything") asks [`Position::has_read`].

use crate::model::checkpoint::ClusterTime;

/// What the replies of one open stream prove, one after the other.
#[derive(Debug, Default)]
pub struct Replies {
    first: Option<First>,
    has_events: bool,
}

#[derive(Debug)]
struct First {
    position: ClusterTime,
    /// What the server had committed by a majority when it gave the first reply.
    committed: ClusterTime,
}

impl Replies {
    /// Takes the next reply: its position, whether it had no events, and the server's own time
    /// (`operationTime`). Returns the time up to which everything has been handed out.
    pub fn next(
        &mut self,
        position: ClusterTime,
        is_empty: bool,
        server_time: ClusterTime,
    ) -> ClusterTime {
        let before = ClusterTime(position.0.saturating_sub(1));
        let is_first = self.first.is_none();
        let first = self.first.get_or_insert(First { position, committed: server_time });
        self.has_events |= !is_empty;
        if is_first || !is_empty {
            return before;
        }
        // The server was asked for this reply after it had given the first one, so it has looked at all that
        // was committed by then.
        let has_moved = position > first.position || self.has_events;
        if has_moved || first.committed >= position { position } else { before }
    }
}

/// How far the stream has been read into the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    seen: ClusterTime,
    whole: ClusterTime,
    is_within_reply: bool,
}

impl Position {
    /// A reply is being committed, in parts.
    pub fn begin_reply(&mut self) {
        self.is_within_reply = true;
    }

    /// A reply of this position is in the queue; `whole` is what [`Replies`] made of it.
    pub fn end_reply(&mut self, position: ClusterTime, whole: ClusterTime) {
        self.is_within_reply = false;
        self.seen = self.seen.max(position);
        self.whole = self.whole.max(whole);
    }

    /// True once all that was committed locally up to `time` has been committed to the queue.
    pub fn has_read(&self, time: ClusterTime) -> bool {
        self.whole >= time
    }

    /// Everything up to this time has been committed to the queue. The server has such a time behind it, so that
    /// a read may be asked to show at least this.
    pub fn whole(&self) -> ClusterTime {
        self.whole
    }

    /// The position of the last reply in the queue: some of its time may be still to be read.
    pub fn seen(&self) -> ClusterTime {
        self.seen
    }

    /// Nothing was read since the start.
    pub fn is_unknown(&self) -> bool {
        self.seen == ClusterTime::default()
    }

    /// True while a reply is only partly in the queue. Queue and Atlas then hold some changes of one moment and lack
    /// others, so no moment of equality (`consistentAsOf`) may be named; that lasts where reading stops half-way.
    pub fn is_within_reply(&self) -> bool {
        self.is_within_reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: bool = true;
    const EVENTS: bool = false;

    /// Up to when everything is read after each of these replies.
    fn read(replies: &[(u64, bool, u64)]) -> Vec<u64> {
        let mut stream = Replies::default();
        let time = |&(position, is_empty, server_time)| {
            stream.next(ClusterTime(position), is_empty, ClusterTime(server_time)).0
        };
        replies.iter().map(time).collect()
    }

    #[test]
    fn the_tick_that_a_new_stream_begins_with_is_still_to_come() {
        // The last operation is of 10. That of 11 is written after the stream was opened, and has 6,000 parts.
        assert_eq!(read(&[(11, EMPTY, 10), (11, EMPTY, 10)]), [10, 10]);
        assert_eq!(
            read(&[(11, EMPTY, 10), (11, EVENTS, 11), (11, EVENTS, 11), (11, EMPTY, 11)]),
            [10, 10, 10, 11]
        );
    }

    #[test]
    fn a_stream_that_goes_on_from_an_entry_has_read_it_with_its_second_answer() {
        assert_eq!(read(&[(11, EMPTY, 11), (11, EMPTY, 11)]), [10, 11]);
        // The rest of a transaction follows.
        assert_eq!(read(&[(11, EVENTS, 11), (11, EVENTS, 11), (11, EMPTY, 11)]), [10, 10, 11]);
        // After a failover the new primary has not committed that far yet.
        assert_eq!(read(&[(11, EMPTY, 9), (11, EMPTY, 11)]), [10, 10]);
    }

    #[test]
    fn an_empty_answer_behind_others_has_come_past_its_position() {
        assert_eq!(
            read(&[(11, EMPTY, 10), (20, EMPTY, 20), (30, EVENTS, 30), (30, EMPTY, 30)]),
            [10, 20, 29, 30]
        );
    }

    #[test]
    fn a_position_never_goes_back() {
        let mut position = Position::default();
        assert!(position.is_unknown() && !position.has_read(ClusterTime(1)));

        position.end_reply(ClusterTime(20), ClusterTime(20));
        position.begin_reply();
        assert!(position.is_within_reply());
        position.end_reply(ClusterTime(11), ClusterTime(10)); // The stream was opened again.

        assert_eq!((position.seen(), position.whole()), (ClusterTime(20), ClusterTime(20)));
        assert!(position.has_read(ClusterTime(20)) && !position.has_read(ClusterTime(21)));
    }
}
