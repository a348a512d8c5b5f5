//! What the tailer does when the stream breaks.
//!
//! | what is met | what follows |
//! | --- | --- |
//! | the local database is away, refuses access, or answers with an error | the stream is opened again at the checkpoint, after ever longer waits |
//! | the history is lost, or an event is not understood | a new position, and a comparison of everything; ever longer waits, where that repeats |
//! | the stream fails at this one position for [`IMPASSE_PATIENCE`], though the server answers otherwise | likewise, and an alert until everything is compared |
//!
//! Each kind is one line in the log when it begins, and one when it ends.

use std::time::{Duration, Instant};

use super::{STREAM_PATIENCE, Tailer, TailerError};
use crate::{
    gate::faults::Fault,
    observe::{report::one_line, status::Unshowable},
    policy::{backoff::OutageWait, impasse::Impasse},
    queue::note,
    runtime::{
        clock::{self, now_ms},
        shutdown::{Stop, blocking},
    },
    source::{Source, SourceError},
    sync::state::Reason,
};

/// How long the stream may fail at one position, though the server answers otherwise. What passes by itself, a
/// server that is overloaded or a cursor that somebody ends, should have passed by then: a comparison of everything
/// costs more.
pub const IMPASSE_PATIENCE: Duration = Duration::from_secs(180);

/// A history that is lost once more within this time is lost for the same reason.
const LOST_AGAIN_WITHIN: Duration = Duration::from_secs(60);

/// What is known of what breaks the stream.
pub(super) struct Trouble {
    wait: OutageWait,
    outage: Option<Instant>,
    lost: Option<Instant>,
    lost_wait: OutageWait,
    impasse: Impasse,
}

impl Trouble {
    /// `impasse` is what an earlier life of the agent has noted of one.
    fn new(impasse_patience: Duration, impasse: Option<&[u8]>) -> Self {
        let wait = || OutageWait::new(Duration::from_millis(250), Duration::from_secs(15));
        Self {
            wait: wait(),
            outage: None,
            lost: None,
            lost_wait: wait(),
            impasse: Impasse::new(impasse_patience, impasse),
        }
    }

    /// True when nothing was wrong before.
    fn begins(&mut self) -> bool {
        self.outage.replace(self.outage.unwrap_or_else(clock::now)).is_none()
    }
}

impl<S: Source> Tailer<S> {
    /// Nothing is wrong yet.
    pub(super) async fn no_trouble(&self) -> Result<Trouble, TailerError> {
        let queue = self.queue.clone();
        let noted = blocking(move || queue.meta(note::IMPASSE)).await?;
        Ok(Trouble::new(self.impasse_patience, noted.as_deref()))
    }

    async fn note_impasse(&self, trouble: &Trouble) -> Result<(), TailerError> {
        let (queue, note) = (self.queue.clone(), trouble.impasse.note());
        Ok(blocking(move || queue.set_meta(note::IMPASSE, note.as_deref())).await?)
    }

    async fn no_impasse(&self, trouble: &mut Trouble) -> Result<(), TailerError> {
        if trouble.impasse.is_over() { self.note_impasse(trouble).await } else { Ok(()) }
    }

    /// The stream has answered more than the question that opened it: a server may take that one and fail at the
    /// next, again and again.
    pub(super) fn goes_on(&self, trouble: &mut Trouble) {
        let Some(since) = trouble.outage.take() else { return };
        trouble.wait.reset();
        self.status.state().no_longer_failing();
        let elapsed_ms = clock::since(since).as_millis() as u64;
        tracing::info!(elapsed_ms, "reading from the local database again");
    }

    /// Does what an error asks for, and waits as long as it should.
    ///
    /// # Errors
    /// What waiting does not mend.
    pub(super) async fn recover(
        &self,
        error: TailerError,
        trouble: &mut Trouble,
        stop: &Stop,
    ) -> Result<(), TailerError> {
        match error {
            // What cannot be read is no reason to stop either: a comparison does not need it.
            TailerError::Source(
                error @ (SourceError::HistoryLost(_) | SourceError::Malformed(_)),
            ) => {
                let before = trouble.lost.replace(clock::now());
                if before.is_some_and(|before| clock::since(before) < LOST_AGAIN_WITHIN) {
                    // A new position may be of as little use as the last one.
                    self.show(&error);
                    self.pause(stop, trouble.lost_wait.next_wait()).await;
                } else {
                    trouble.lost_wait.reset();
                    let error = one_line(&error);
                    tracing::warn!(%error, "the stream cannot go on from the checkpoint; everything will be compared");
                }
                self.take_another(Reason::HistoryLost, trouble, stop).await.map(drop)
            }
            TailerError::Source(error) if error.is_transient() => {
                self.show(&error);
                let text = one_line(&error);
                if trouble.outage.is_some_and(|since| clock::since(since) > STREAM_PATIENCE) {
                    self.queue.no_longer_behind(&text);
                }
                if trouble.begins() {
                    tracing::warn!(error = %text, "reading from the local database interrupted, reconnecting");
                }
                if self.is_at_an_impasse(&error, trouble, stop).await? {
                    if self.take_another(Reason::Unshowable, trouble, stop).await? {
                        self.no_impasse(trouble).await?;
                        let passed_over = Unshowable::PassedOver { at_ms: now_ms() };
                        self.status.state().unshowable = Some(passed_over);
                        tracing::error!(error = %text, "the local server cannot show what follows the checkpoint; a new position was taken, and everything will be compared");
                    }
                    return Ok(());
                }
                self.pause(stop, trouble.wait.next_wait()).await;
                Ok(())
            }
            error => Err(error),
        }
    }

    /// True when the stream has failed here for long enough, and the server answers another question: that it is
    /// away, or has no primary, is no matter of the position.
    async fn is_at_an_impasse(
        &self,
        error: &SourceError,
        trouble: &mut Trouble,
        stop: &Stop,
    ) -> Result<bool, TailerError> {
        let answers = error.may_be_of_the_position()
            && tokio::select! {
                () = stop.drain.cancelled() => false,
                () = stop.leave.cancelled() => false,
                time = self.source.time() => time.is_ok(),
            };
        if !answers {
            self.no_impasse(trouble).await?;
            self.status.state().no_longer_failing();
            return Ok(false);
        }
        self.status.metrics.local_heard_ms.set(now_ms());
        let queue = self.queue.clone();
        let checkpoint = blocking(move || queue.checkpoint()).await?;
        let position = checkpoint.map(|checkpoint| checkpoint.token);
        let is_given_up = trouble.impasse.failed(position, now_ms());
        self.note_impasse(trouble).await?;
        if trouble.impasse.is_likely() {
            self.status.state().unshowable = Some(Unshowable::Failing(one_line(error)));
        }
        Ok(is_given_up)
    }

    /// Takes a new position. False, after a wait, when there is none yet.
    async fn take_another(
        &self,
        reason: Reason,
        trouble: &mut Trouble,
        stop: &Stop,
    ) -> Result<bool, TailerError> {
        match self.take_position_because(reason).await {
            Ok(()) => Ok(true),
            Err(TailerError::Source(error)) => {
                self.show(&error);
                if trouble.begins() {
                    let error = one_line(&error);
                    tracing::warn!(%error, "no new position yet");
                }
                self.pause(stop, trouble.wait.next_wait()).await;
                Ok(false)
            }
            Err(error @ (TailerError::Queue(_) | TailerError::OtherKind(_))) => Err(error),
        }
    }

    fn show(&self, error: &SourceError) {
        let is_denied = matches!(error, SourceError::Denied { .. });
        // Why it is suspect says more than that it is not read meanwhile.
        if !self.gate.is_suspect() {
            self.status.faults.local.fails(Fault { error: one_line(error), is_denied });
        }
    }

    async fn pause(&self, stop: &Stop, wait: Duration) {
        tokio::select! {
            () = stop.drain.cancelled() => {}
            () = stop.leave.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}
