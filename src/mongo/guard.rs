//! Which server process has answered, and whether it is believed.
//!
//! A connection belongs to one process of a server for its whole life, so a reply is as good as its connection
//! is known. Which one a reply came over is told by the driver's event of a checkout, which is raised within
//! the task that runs the operation (mongodb 3.9.1, `cmap.rs`, `check_out`): it is noted beside the exchange.
//! The process behind a connection is asked of it once, by `hello`: the pool hands out last what came back
//! last, so the connection that a reply came over is the next one, unless somebody else takes it. (The driver's
//! events of commands would tell more, and copy each reply.)

use std::{cell::RefCell, pin::Pin, sync::Arc, time::Duration};

use bson::{Document, oid::ObjectId, rawdoc};
use mongodb::{
    event::{EventHandler, cmap::CmapEvent},
    options::ServerAddress,
};
use parking_lot::Mutex;

use super::{
    ClientSlot, Mongo, MongoError, class,
    connections::{Behind, Connection, KnownConnections},
};
use crate::gate::{Gate, Permit};

/// How long to wait, and how many `hello` to send at once then, until one goes by the connection that is asked for:
/// where others lie above it in the pool, each `hello` takes one of them. Somebody else may have it meanwhile, the
/// change stream for as long as its server waits for something to happen, so the waits add up to more than that.
const TRIES: [(Duration, usize); 9] = {
    const fn after(ms: u64, at_once: usize) -> (Duration, usize) {
        (Duration::from_millis(ms), at_once)
    }
    [
        after(0, 1),
        after(0, 2),
        after(1, 4),
        after(5, 8),
        after(25, 8),
        after(125, 8),
        after(500, 8),
        after(1_000, 8),
        after(2_000, 16),
    ]
};

type Connections = Arc<Mutex<KnownConnections>>;

tokio::task_local! {
    /// The last connection that was taken for the exchange that is under way.
    static TAKEN: RefCell<Option<(ServerAddress, u32)>>;
}

/// How much of what a server says is believed.
#[derive(Clone, Debug, Default)]
pub(super) enum Guard {
    /// Everything.
    #[default]
    None,
    /// What the proven process says, under a permit.
    Gate { gate: Arc<Gate>, connections: Connections },
    /// What one process says, whichever it is: the answers of a proof.
    Proof { process: Arc<Mutex<Option<ObjectId>>>, connections: Connections },
}

impl Guard {
    pub fn of(gate: Arc<Gate>) -> Self {
        Self::Gate { gate, connections: Connections::default() }
    }
}

/// Notes which connection an operation takes.
pub(super) fn handler() -> EventHandler<CmapEvent> {
    EventHandler::callback(|event| {
        if let CmapEvent::ConnectionCheckedOut(taken) = event {
            // Connections that the driver's own tasks take (monitoring, filling the pool) belong to no exchange: there
            // is no task-local then, and nothing to note.
            let _ = TAKEN.try_with(|cell| {
                *cell.borrow_mut() = Some((taken.address.clone(), taken.connection_id));
            });
        }
    })
}

/// An exchange, and the connection that it went over. `None` when nothing was sent: a cursor that still had a reply.
///
/// The exchange is boxed: a future that is handed through stands in each that it goes through.
pub(super) async fn noting<T>(
    mut exchange: Pin<Box<impl Future<Output = T>>>,
) -> (T, Option<(ServerAddress, u32)>) {
    TAKEN
        .scope(RefCell::new(None), async {
            let answer = exchange.as_mut().await;
            (answer, TAKEN.with(RefCell::take))
        })
        .await
}

impl Mongo {
    /// The same end, whose answers are believed without a proof: for what is shown to a person, and nothing
    /// else.
    #[must_use]
    pub fn unguarded(&self) -> Self {
        Self { guard: Guard::None, ..self.clone() }
    }

    /// The same end for the answers of one proof: they count only as long as all come from one process, which
    /// [`process`](Self::process) tells afterwards.
    #[must_use]
    pub fn for_a_proof(&self) -> Self {
        let connections = match &self.guard {
            Guard::Gate { connections, .. } | Guard::Proof { connections, .. } => {
                connections.clone()
            }
            Guard::None => Connections::default(),
        };
        Self { guard: Guard::Proof { process: Arc::default(), connections }, ..self.clone() }
    }

    /// The process that has answered a proof.
    pub fn process(&self) -> Option<ObjectId> {
        match &self.guard {
            Guard::Proof { process, .. } => *process.lock(),
            Guard::None | Guard::Gate { .. } => None,
        }
    }

    /// What holds for as long as nothing can have put another database in the place of this one. Without a gate
    /// it always holds.
    pub fn permit(&self) -> Permit {
        match &self.guard {
            Guard::Gate { gate, .. } => gate.permit(),
            Guard::None | Guard::Proof { .. } => Permit::free(),
        }
    }

    /// The permit of an exchange; the gate is waited for as long as for a server.
    pub(super) async fn enter(&self) -> Result<Permit, MongoError> {
        let Guard::Gate { gate, .. } = &self.guard else { return Ok(Permit::free()) };
        let mut permit = gate.permit();
        if !permit.holds() {
            // Boxed, as is all that is rare here: a future holds room for its largest branch, so every command of the
            // program would pay for this one.
            permit = Box::pin(gate.permit_within(self.connect.select_for)).await;
        }
        if permit.holds() { Ok(permit) } else { Err(MongoError::Unproven) }
    }

    /// The reply, if it is believed.
    pub(super) async fn believed<T>(
        &self,
        permit: &Permit,
        slot: &ClientSlot,
        (reply, taken): (Result<T, MongoError>, Option<(ServerAddress, u32)>),
    ) -> Result<T, MongoError> {
        if matches!(self.guard, Guard::None) {
            return reply;
        }
        if let Err(error) = &reply
            && is_no_answer(error)
        {
            if let Guard::Gate { gate, .. } = &self.guard {
                gate.close(permit, "an exchange with the local database failed");
            }
            return reply;
        }
        // A refusal is an answer as well: that a collection is not there is said by an error.
        if let Some(taken) = taken
            && !self.is_known_to_be_right(permit, slot, &taken)
        {
            Box::pin(self.check_process(permit, slot, taken)).await?;
        }
        if permit.holds() { reply } else { Err(MongoError::Unproven) }
    }

    /// True for a connection that leads to the proven process for all that is known: nearly always.
    fn is_known_to_be_right(
        &self,
        permit: &Permit,
        slot: &ClientSlot,
        (address, id): &(ServerAddress, u32),
    ) -> bool {
        let Guard::Gate { gate, connections } = &self.guard else { return false };
        let known = connections.lock().of(&(slot.number, address.clone(), *id));
        known.is_some_and(|known| known.is_proven && gate.is_of(permit, known.process))
    }

    async fn check_process(
        &self,
        permit: &Permit,
        slot: &ClientSlot,
        (address, id): (ServerAddress, u32),
    ) -> Result<(), MongoError> {
        let connection = (slot.number, address, id);
        match &self.guard {
            Guard::None => Ok(()),
            Guard::Proof { process, connections } => {
                let answered = self.behind(connections, slot, &connection).await?.process;
                let expected = *process.lock().get_or_insert(answered);
                if expected == answered { Ok(()) } else { Err(MongoError::Unproven) }
            }
            Guard::Gate { gate, connections } => {
                let answered = self.behind(connections, slot, &connection).await?;
                if !gate.is_of(permit, answered.process) {
                    gate.close(permit, "another server process answers");
                    return Err(MongoError::Unproven);
                }
                // The same process may be in an older state: a machine that was put back to a snapshot.
                if !answered.is_proven {
                    let is_proven = gate.proven_anew_within(self.connect.timeout).await;
                    // The permit still holds, so the proof was of this epoch's process; else it may have been of
                    // another that has answered meanwhile.
                    if !is_proven || !permit.holds() {
                        return Err(MongoError::Unproven);
                    }
                    connections.lock().proven(&connection);
                }
                Ok(())
            }
        }
    }

    /// What is known of a connection, once somebody has asked over it.
    async fn behind(
        &self,
        connections: &Connections,
        slot: &ClientSlot,
        connection: &Connection,
    ) -> Result<Behind, MongoError> {
        for (wait, at_once) in TRIES {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            // Several tasks may wait for one connection. What another has learned of it meanwhile will do.
            if let Some(behind) = connections.lock().of(connection) {
                return Ok(behind);
            }
            let asked = (0..at_once).map(|_| {
                let hello = rawdoc! { "hello": 1 };
                noting(Box::pin(self.exchange(slot, "admin", hello, self.connect.timeout)))
            });
            for (reply, taken) in futures_util::future::join_all(asked).await {
                let process = process_of(&reply?).ok_or(MongoError::Unproven)?;
                if let Some((address, id)) = taken {
                    connections.lock().leads_to((slot.number, address, id), process);
                }
            }
        }
        connections.lock().of(connection).ok_or(MongoError::Unproven)
    }
}

/// True for what is said by no server, or by one that stops being the primary. What else a server says, that it
/// is too busy or that a cursor is gone, is an answer as good as its connection: to close the gate for it would end
/// the stream, and begin a long look through the oplog anew.
fn is_no_answer(error: &MongoError) -> bool {
    error.code().is_none_or(class::is_change_of_state)
}

/// `topologyVersion.processId`: drawn at random when a server starts (4.4 and later).
pub fn process_of(hello: &Document) -> Option<ObjectId> {
    hello.get_document("topologyVersion").ok()?.get_object_id("processId").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest that a server holds a connection while nothing happens is a second, on behalf of the stream.
    #[test]
    fn a_connection_that_the_stream_has_is_waited_for_and_few_questions_are_asked_meanwhile() {
        let waits: Duration = TRIES.iter().map(|(wait, _)| *wait).sum();
        let asked: usize = TRIES.iter().map(|(_, at_once)| at_once).sum();

        assert!(waits > Duration::from_secs(3), "{waits:?}");
        assert!(asked < 64, "{asked}");
    }
}
