//! What is wrong with each end, while it is: said by whoever meets it, asked by whoever concludes something from it (what
//! is not there is not counted, and its silence does not mean that the agent is stuck), and shown from here.

use parking_lot::Mutex;

/// What is wrong with one of the ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub error: String,
    /// Waiting does not help: a person must act, and the error says how.
    pub is_denied: bool,
}

/// Owns the question, of both ends.
#[derive(Debug, Default)]
pub struct Faults {
    pub local: OfAnEnd,
    pub atlas: OfAnEnd,
}

/// See [`Faults`].
#[derive(Debug, Default)]
pub struct OfAnEnd(Mutex<Option<Fault>>);

impl OfAnEnd {
    /// It is away, or refuses access.
    pub fn fails(&self, fault: Fault) {
        *self.0.lock() = Some(fault);
    }

    /// It answers.
    pub fn answers(&self) {
        *self.0.lock() = None;
    }

    /// What is wrong with it, while it is.
    pub fn get(&self) -> Option<Fault> {
        self.0.lock().clone()
    }

    /// True while something is.
    pub fn is_any(&self) -> bool {
        self.0.lock().is_some()
    }
}
