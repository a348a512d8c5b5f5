//! Which server process has answered, and whether it is believed.
//!
//! A connection belongs to one process of a server for its whole life, so a reply is as good as its connection
//! is known. Which one a reply came over is told by the driver's event of a checkout, which is raised within
//! the task that runs the operation (mongodb 3.9.1, `cmap.rs`, `check_out`): it is noted beside the exchange.
//! The process behind a connection is asked of it once, by `hello`: the pool hands out last what came back
//! last, so the connection that a reply came over is the next one. (The driver's events of commands would tell
//! more, and copy each reply.)

use std::{
    cell::RefCell,
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use bson::{Document, oid::ObjectId, rawdoc};
use mongodb::{
    event::{EventHandler, cmap::CmapEvent},
    options::ServerAddress,
};

use super::{Mongo, MongoError, Slot, class};
use crate::gate::{Gate, Permit};

/// How many `hello` are sent at once for one connection, in turn: where others lie above it in the pool, each
/// takes one of them.
const TRIES: [usize; 8] = [1, 2, 4, 8, 16, 16, 16, 16];

/// Connections that are remembered; those of clients that were given up among them.
const CONNECTIONS_MAX: usize = 1_000;

/// A connection: the client's number, the server, and the number that the client gave it.
type Connection = (u64, ServerAddress, u32);

type Processes = Arc<Mutex<HashMap<Connection, ObjectId>>>;

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
    Gate { gate: Arc<Gate>, processes: Processes },
    /// What one process says, whichever it is: the answers of a proof.
    Proof { process: Arc<Mutex<Option<ObjectId>>>, processes: Processes },
}

impl Guard {
    pub fn of(gate: Arc<Gate>) -> Self {
        Self::Gate { gate, processes: Processes::default() }
    }
}

/// Notes which connection an operation takes.
pub(super) fn handler() -> EventHandler<CmapEvent> {
    EventHandler::callback(|event| {
        if let CmapEvent::ConnectionCheckedOut(taken) = event {
            // The driver's own tasks are nobody's exchange.
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
        let processes = match &self.guard {
            Guard::Gate { processes, .. } | Guard::Proof { processes, .. } => processes.clone(),
            Guard::None => Processes::default(),
        };
        Self { guard: Guard::Proof { process: Arc::default(), processes }, ..self.clone() }
    }

    /// The process that has answered a proof.
    pub fn process(&self) -> Option<ObjectId> {
        match &self.guard {
            Guard::Proof { process, .. } => *lock(process),
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
            // Boxed, as is all that is rare here: else every future of the program grows by it.
            permit = Box::pin(gate.permit_within(self.connect.select_for)).await;
        }
        if permit.holds() { Ok(permit) } else { Err(MongoError::Unproven) }
    }

    /// The reply, if it is believed.
    pub(super) async fn believed<T>(
        &self,
        permit: &Permit,
        slot: &Slot,
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
        slot: &Slot,
        (address, id): &(ServerAddress, u32),
    ) -> bool {
        let Guard::Gate { gate, processes } = &self.guard else { return false };
        let known = lock(processes).get(&(slot.number, address.clone(), *id)).copied();
        known.is_some_and(|process| gate.is_of(permit, process))
    }

    async fn check_process(
        &self,
        permit: &Permit,
        slot: &Slot,
        taken: (ServerAddress, u32),
    ) -> Result<(), MongoError> {
        match &self.guard {
            Guard::None => Ok(()),
            Guard::Proof { process, processes } => {
                let answered = self.process_behind(processes, slot, taken).await?.0;
                let expected = *lock(process).get_or_insert(answered);
                if expected == answered { Ok(()) } else { Err(MongoError::Unproven) }
            }
            Guard::Gate { gate, processes } => {
                let (answered, is_new) = self.process_behind(processes, slot, taken).await?;
                if !gate.is_of(permit, answered) {
                    gate.close(permit, "another server process answers");
                    return Err(MongoError::Unproven);
                }
                // The same process may be in an older state: a machine that was put back to a snapshot.
                if is_new && !gate.proven_anew_within(self.connect.timeout).await {
                    return Err(MongoError::Unproven);
                }
                Ok(())
            }
        }
    }

    /// The process that a connection leads to, and whether that was not known before.
    async fn process_behind(
        &self,
        processes: &Processes,
        slot: &Slot,
        (address, id): (ServerAddress, u32),
    ) -> Result<(ObjectId, bool), MongoError> {
        let connection = (slot.number, address, id);
        if let Some(process) = lock(processes).get(&connection) {
            return Ok((*process, false));
        }
        for at_once in TRIES {
            let asked = (0..at_once).map(|_| {
                let hello = rawdoc! { "hello": 1 };
                noting(Box::pin(self.exchange(slot, "admin", hello, self.connect.timeout)))
            });
            for (reply, taken) in futures_util::future::join_all(asked).await {
                let process = process_of(&reply?).ok_or(MongoError::Unproven)?;
                let Some((address, id)) = taken else { continue };
                let mut processes = lock(processes);
                if processes.len() >= CONNECTIONS_MAX {
                    processes.clear();
                }
                processes.insert((slot.number, address, id), process);
            }
            // Or somebody else has asked it meanwhile.
            if let Some(process) = lock(processes).get(&connection) {
                return Ok((*process, true));
            }
        }
        Err(MongoError::Unproven)
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
