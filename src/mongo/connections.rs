//! What is known of the connections to a server: which process each leads to, and whether that process has been
//! proven since the connection was made.
//!
//! The second matters where a process is put back to an older state of itself, with its machine: its old
//! connections break, and the new ones lead to the same process. Whoever asks first which process it is may not be
//! the one who has read something over that connection, so that it is *known* lets nobody believe it; a proof that began
//! after it was known does.

use std::collections::HashMap;

use bson::oid::ObjectId;
use mongodb::options::ServerAddress;

/// Most connections that are remembered, those of clients that were given up included. Beyond it all are forgotten: each is
/// asked once more.
const REMEMBERED_MAX: usize = 1_000;

/// The client's number, the server, and the number that the client gave it.
pub(super) type Connection = (u64, ServerAddress, u32);

/// Which server process a connection leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    pub process: ObjectId,
    /// A proof has ended well that began after the connection was there. The same process may be in an older state
    /// (a virtual machine that was put back to a snapshot), so its id alone proves nothing.
    pub is_proven: bool,
}

/// A connection belongs to one process for its whole life.
#[derive(Debug, Default)]
pub(super) struct KnownConnections(HashMap<Connection, Behind>);

impl KnownConnections {
    pub fn of(&self, connection: &Connection) -> Option<Behind> {
        self.0.get(connection).copied()
    }

    /// A `hello` over the connection was answered by this process.
    pub fn leads_to(&mut self, connection: Connection, process: ObjectId) {
        if self.0.len() >= REMEMBERED_MAX {
            self.0.clear();
        }
        self.0.entry(connection).or_insert(Behind { process, is_proven: false });
    }

    /// A proof has ended well that began after it was [known](Self::leads_to).
    pub fn proven(&mut self, connection: &Connection) {
        if let Some(behind) = self.0.get_mut(connection) {
            behind.is_proven = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: u32) -> Connection {
        (1, ServerAddress::Tcp { host: "a".to_owned(), port: None }, id)
    }

    #[test]
    fn a_connection_that_another_task_has_asked_over_is_not_believed_before_a_proof() {
        let process = ObjectId::from_bytes([1; 12]);
        let mut known = KnownConnections::default();
        known.leads_to(connection(1), process);
        assert_eq!(known.of(&connection(1)), Some(Behind { process, is_proven: false }));

        known.proven(&connection(1));
        // Asked over once more, by a task that was on its way to that.
        known.leads_to(connection(1), process);

        assert_eq!(known.of(&connection(1)), Some(Behind { process, is_proven: true }));
        known.proven(&connection(2));
        assert_eq!(known.of(&connection(2)), None, "nobody knows where it leads");
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut known = KnownConnections::default();
        for id in 0..5_000 {
            known.leads_to(connection(id), ObjectId::from_bytes([1; 12]));
        }

        assert!(known.0.len() <= REMEMBERED_MAX && known.of(&connection(4_999)).is_some());
    }
}
